"""Attacks: a protocol that the data did not decide, or that nobody names; one error at a time; a dry run that hides what is left out.

Run: pytest tests/evaluation/test_places.py
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from swav.data.sources.catalog import DATASETS
from swav.errors import ConfigError, DataError
from swav.evaluation import runner
from swav.evaluation.places import check_places, open_data, protocols_chosen, require_some
from swav.evaluation.request import read_request, refuse, resolve
from swav.evaluation.resources import format_rows
from swav.evaluation.settings import BenchSettings, KnnOwnSettings, KnnSettings, LinearOwnSettings, LinearSettings
from swav.results.results import DryRunRow, NotRun

QUICK: dict[str, Any] = {"protocol": "published", "size": 16, "workers": 0, "knn.k": [1]}
LABELLED = ["knn", "linear", "linear-stages", "semisup"]


def opened(names: list[str], data: Path, **overrides: Any):
    request = read_request(names, ["random:tiny"], overrides)
    return request, open_data(request, data, None)


@pytest.fixture
def undivided(colours, tmp_path):
    shutil.copytree(colours / "train", tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def published_3(monkeypatch):
    """As though the published numbers were of three classes."""
    monkeypatch.setattr(BenchSettings, "published", {**BenchSettings.published, "classes": 3})


# -- which protocol


def test_other_classes_than_the_published_are_scored_by_own(colours, undivided):
    request, found = opened(["knn", "linear"], undivided)
    assert {name: chosen.protocol for name, chosen in found.chosen.items()} == {"knn": "own", "linear": "own"}
    assert isinstance(found.chosen["knn"].settings, KnnOwnSettings)
    assert isinstance(found.chosen["linear"].settings, LinearOwnSettings)
    assert all(train is val and len(train) == 24 for train, val in found.splits.values())  # in folds
    assert protocols_chosen(request, found) == [
        "knn, linear: protocol own, as the data have 3 classes (published: 1,000); protocol=published asks for the other"
    ]
    _, found = opened(["knn"], colours)
    assert found.chosen["knn"].protocol == "own" and [len(split) for split in found.splits["knn"]] == [24, 12]


def test_the_published_classes_are_scored_as_published_however_few_the_images(undivided, published_3):
    request, found = opened(["knn", "linear"], undivided)
    assert {chosen.protocol for chosen in found.chosen.values()} == {"published"}
    assert type(found.chosen["knn"].settings) is KnnSettings and type(found.chosen["linear"].settings) is LinearSettings
    train, val = found.splits["knn"]
    assert (len(train) + len(val), train is val) == (24, False) and not set(names(train)) & set(names(val))
    assert protocols_chosen(request, found) == [
        "knn, linear: protocol published, as the data have the published 3 classes; protocol=own asks for the other"
    ]


def names(images):
    return [images.name(i) for i in range(len(images))]


def test_a_protocol_that_is_asked_for_is_taken_and_nothing_is_said(colours, published_3):
    for protocol in ("own", "smoke", "published"):
        request, found = opened(["knn"], colours, protocol=protocol)
        assert found.chosen["knn"].protocol == protocol and not protocols_chosen(request, found)


@pytest.mark.parametrize("protocol", ["auto", "published"])
def test_what_has_no_protocol_own_is_left_out_under_all_and_run_by_name(colours, protocol):
    _, found = opened(["all"], colours, protocol=protocol)
    reasons = {row.bench: row for row in found.absent}
    left_out = {"linear-stages", "semisup"} if protocol == "auto" else set()
    assert set(LABELLED) - found.chosen.keys() == left_out == set(LABELLED) & reasons.keys()
    for name in left_out:
        assert "3 classes (published: 1,000)" in reasons[name].reason
        assert reasons[name].expected == "protocol=published or protocol=smoke"
    _, found = opened(["semisup"], colours)
    assert found.chosen["semisup"].protocol == "published" and not found.problems


def test_a_set_with_splits_is_opened_once_whatever_is_asked_of_it(colours, monkeypatch):
    calls, of = [], DATASETS["labelled"]

    def counted(kind: str, find: Any):
        def noted(*rest: Any) -> Any:
            calls.append(kind)
            return find(*rest)

        return noted

    assert of.find_undivided is not None
    both = {"find": counted("divided", of.find), "find_undivided": counted("whole", of.find_undivided)}
    monkeypatch.setitem(DATASETS, "labelled", of._replace(**both))
    opened(["all"], colours)
    assert calls == ["whole"]


# -- settings of two protocols


def test_settings_of_either_protocol_are_taken_until_the_data_decide(colours, published_3, monkeypatch):
    for key, value, protocol in (("linear.epochs", 3, "published"), ("linear.costs", [1.0], "own")):
        _, found = opened(["linear"], colours, **{key: value})
        if protocol == "published":
            assert not found.problems and found.chosen["linear"].settings.model_dump()["epochs"] == 3
        else:
            ((_, error),) = found.problems
            assert str(error) == (
                "linear.costs: expected a setting of protocol published, by which linear is run as the data have the published 3 "
                "classes, found one of protocol own; use protocol=own, or leave it out"
            )
    monkeypatch.undo()
    _, found = opened(["linear"], colours, **{"linear.epochs": 3})
    ((name, error),) = found.problems
    assert name == "linear" and "use protocol=published, or leave it out" in str(error)
    assert isinstance(error, ConfigError)
    with pytest.raises(
        ConfigError,
        match=r"found linear\.epochs of protocol published; linear\.costs of protocol own; give protocol= and",
    ):
        resolve(["linear"], {"linear.epochs": 3, "linear.costs": [1.0]})


# -- all at once


def test_all_that_is_wrong_with_settings_is_told_at_once_a_line_each():
    words = {"sise": 64, "knn.kk": 5, "linear.lr": -1.0, "semisup.batch": 0, "seeds": 0}
    with pytest.raises(ConfigError) as caught:
        resolve(["knn", "linear", "semisup"], words)
    lines = str(caught.value).splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["unknown", "unknown", "linear:", "semisup:", "benchmarks:"]
    assert "did you mean 'size'" in lines[0] and "did you mean 'knn.k'" in lines[1]
    with pytest.raises(ConfigError, match="did you mean 'knn'") as caught:
        resolve(["kn", "lineer"], {})
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(ConfigError, match=r"^knn, linear: size: .*, found 'large'$"):
        resolve(["knn", "linear"], {"size": "large"})


def test_problems_are_told_settings_before_data_and_alike_ones_once():
    bad, missing = ConfigError("linear.epochs: expected another, found 3"), DataError("x: expected images, found none")
    with pytest.raises(ConfigError) as caught:
        refuse([("knn", missing), ("semisup", missing), ("linear", bad)])
    assert str(caught.value) == f"{bad}\nknn, semisup: {missing}"
    for alone in (bad, missing):
        with pytest.raises(type(alone)) as one:
            refuse([("linear", alone)])
        assert one.value is alone
    refuse([])


def test_missing_data_and_wrong_settings_of_several_benchmarks_are_one_error(colours, undivided, tmp_path):
    places = {"data": colours, "out": tmp_path / "out", "weights": "random:tiny"}
    with pytest.raises(DataError) as caught:
        runner.bench(["svm", "knn", "detect-coco"], **places)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["svm", "detect-coco"]
    with pytest.raises(ConfigError) as both:
        runner.bench(["knn", "linear"], **places | {"data": undivided}, linear={"epochs": 3}, knn={"k": 500}, size=16)
    assert [line.split(":")[0] for line in str(both.value).splitlines()] == ["linear.epochs", "knn.k"]
    assert not (tmp_path / "out").exists()


def test_without_any_data_the_reason_is_told_before_torch_too(tmp_path):
    (tmp_path / "empty").mkdir()
    request, found = opened(["all"], tmp_path / "empty")
    assert not found.splits
    with pytest.raises(DataError, match="expected the data of at least one benchmark, found none; check --data"):
        require_some(found, tmp_path / "empty")
    with pytest.raises(DataError, match="found none; check --data"):
        check_places(request, tmp_path / "empty", tmp_path / "out", dry_run=False)


def test_missing_data_is_an_error_by_name_and_a_line_under_all(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        runner.bench(["knn"], weights=["random:tiny"], data=tmp_path / "nowhere", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for place in ("nowhere", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        for dry_run in (True, False):
            with pytest.raises(DataError, match=f"{place}: expected the data of at least one benchmark, found none"):
                runner.bench(
                    ["all"], weights=["random:tiny"], data=tmp_path / place, out=tmp_path / "out", dry_run=dry_run
                )
    assert not (tmp_path / "out").exists()


def test_a_data_set_that_may_not_be_read_is_an_error_of_the_data_before_torch_too(colours, tmp_path, monkeypatch):
    def locked(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/locked/train_places205.csv")

    monkeypatch.setattr("swav.data.sources.lists._home", locked)
    with pytest.raises(
        DataError, match=r"/locked/train_places205.csv: expected a folder to read, found Permission denied"
    ):
        check_places(read_request(["places205"], ["random:tiny"], {}), colours, tmp_path / "out", dry_run=False)


def too_few(task: object) -> None:
    raise DataError("expected more images, found few")


def test_where_nothing_can_be_run_old_results_are_no_answer(colours, tmp_path, monkeypatch):
    """Exit 3 before the work, and where each benchmark fails at work."""
    there: dict[str, Any] = {"weights": ["random:tiny"], "data": colours, "out": tmp_path / "out"}
    given = there | QUICK
    runner.bench(["knn"], **given)
    for name in ("knn", "linear", "linear-stages", "semisup"):
        monkeypatch.setattr(runner.protocol_of(name), "run", too_few)
    with pytest.raises(DataError) as caught:
        runner.bench(["all"], **given)
    assert str(caught.value).splitlines() == [
        f"{colours}: expected data that a benchmark can use, found none",
        "knn, linear, linear-stages, semisup: expected more images, found few",
    ]
    assert caught.value.exit_code == 3
    for name in ("knn", "linear", "linear-stages", "semisup"):
        monkeypatch.setattr(runner.protocol_of(name), "check", too_few)
        monkeypatch.setattr(runner.protocol_of(name), "run", lambda _: pytest.fail("works after all is refused"))
    for dry_run in (True, False):
        with pytest.raises(DataError, match="found none\nknn, linear, linear-stages, semisup: expected more"):
            runner.bench(["all"], **given, dry_run=dry_run)


def test_settings_that_leave_nothing_to_run_are_named_under_all_too(undivided, tmp_path):
    words: dict[str, Any] = {"linear.epochs": 3, "knn.k": 500, "size": 16}
    with pytest.raises(DataError) as caught:
        runner.bench("all", weights="random:tiny", data=undivided, out=tmp_path / "out", **words)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == ["linear.epochs", "linear-stages, semisup", "knn.k"]


# -- the dry run's table


def test_a_dry_run_is_a_table_of_what_would_be_computed_and_what_not():
    row = DryRunRow(
        bench="knn",
        weights="a",
        seed=0,
        protocol="own",
        data="d",
        images="24 in folds",
        hours=0.5,
        memory_gb=1.0,
        disk_gb=2.0,
    )
    lack = [NotRun(bench=name, reason="no VOC", expected="VOC") for name in ("svm", "lowshot")]
    text = format_rows([row], [*lack, NotRun(bench="inat18", reason="no list", expected="it")])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[0] == "|"]
    assert cells[0] == ["bench", "protocol", "images", "h:mm:ss", "memory [GB]", "disk [GB]"]
    assert cells[2] == ["knn", "own", "24 in folds", "0:30:00", "1.00", "2.00"]
    assert [line[:2] for line in cells[3:]] == [
        ["svm", "not run (1)"],
        ["lowshot", "not run (1)"],
        ["inat18", "not run (2)"],
    ]
    assert text.splitlines()[-2:] == ["(1) no VOC; needs VOC", "(2) no list; needs it"]
    several = format_rows([row, row.model_copy(update={"weights": "b", "seed": 1})], lack)
    assert "| bench   | weights | seed | protocol" in several and "together at most 1:00:00 and 4.00 GB" in several
