"""Attacks: benchmarks that start before what they need is checked, that lose results, or that write where nothing may be.

Run: pytest tests/evaluation/test_runner.py
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from typing import Any

import pytest
from PIL import Image

from swav.data.sources.catalog import DATASETS, labelled
from swav.errors import CheckpointError, ConfigError, DataError, NumericsError
from swav.evaluation import runner
from swav.evaluation.catalog import CATALOG
from swav.evaluation.request import resolve
from swav.evaluation.settings import KnnSettings, LinearSettings
from swav.evaluation.task import Score
from swav.recipe_files import parse_overrides
from swav.reporting.page import report
from swav.results.console import format_results
from swav.results.results import read_results
from tests.network import foreign

QUICK: dict[str, Any] = {
    "protocol": "published",
    "size": 16,
    "workers": 0,
    "knn.k": [1, 5],
    "linear.epochs": 2,
    "linear.batch": 8,
}
QUICK_ALL: dict[str, Any] = QUICK | {
    "linear-stages.epochs": 1,
    "linear-stages.steps": [],
    "semisup.epochs": 1,
    "semisup.steps": [],
}
# what cannot run on images in class folders
OTHER_DATA = (
    *("svm", "lowshot", "places205", "inat18"),
    *("detect-voc", "detect-coco", "segment-voc", "segment-cityscapes", "segment-linear"),
)
QUICK_KNN: dict[str, Any] = {"protocol": "published", "size": 16, "workers": 0, "knn.k": [1]}


def test_two_benchmarks_of_two_weights_end_in_one_file(colours, tmp_path):
    content = runner.bench(
        ["knn", "linear"], weights=["random:tiny", "random:cifar10"], data=colours, out=tmp_path, **QUICK
    )
    assert content == read_results(tmp_path)
    rows = content.results
    assert {(row.bench, row.metric, row.weights) for row in rows} == {
        (bench, metric, weights)
        for weights in ("random:tiny", "random:cifar10")
        for bench, metrics in (
            ("knn", ["top-1 k=1", "top-5 k=1", "top-1 k=5", "top-5 k=5"]),
            ("linear", ["top-1", "top-5"]),
        )
        for metric in metrics
    }
    assert all(row.value is not None and 0 <= row.value <= 100 and row.n == 12 and row.unit == "%" for row in rows)
    assert not any(row.comparable for row in rows) and all("3 classes" in row.difference for row in rows)
    assert len({row.weights_sha256 for row in rows}) == 2
    assert all(row.config.mean and row.config.model_dump()["data"] and row.versions["torch"] for row in rows)
    again = runner.bench(["knn"], weights=["random:tiny"], data=colours, out=tmp_path, **QUICK_KNN | {"knn.k": [1, 5]})
    assert again == content


def test_a_folder_of_data_sets_is_searched_for_the_benchmarks_own(colours, tmp_path):
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "imagenette").symlink_to(colours)
    content = runner.bench(["knn"], weights=["random:tiny"], data=tmp_path / "sets", out=tmp_path / "out", **QUICK_KNN)
    assert content.results[0].n == 12


def test_what_has_no_data_under_all_is_listed_with_what_it_needs(colours, tmp_path, monkeypatch):
    for name in CATALOG:
        monkeypatch.setattr(runner.protocol_of(name), "run", lambda _: [Score("top-1", 50.0, 12, "few")])
    words = QUICK_ALL | {"protocol": "smoke"}
    content = runner.bench(["all"], weights=["random:tiny"], data=colours, out=tmp_path / "out", **words)
    assert [row.bench for row in content.not_run] == [name for name in CATALOG if name in OTHER_DATA]
    assert [row.bench for row in content.results] == [name for name in CATALOG if name not in OTHER_DATA]
    assert all(str(colours) in row.reason for row in content.not_run)
    of_voc = [row.bench for row in content.not_run if "VOCdevkit/VOC2007" in row.expected]
    assert of_voc == ["svm", "lowshot", "detect-voc"]
    for name, home in (
        *(("places205", "Places205/"), ("inat18", "iNaturalist2018/"), ("detect-coco", "as coco/")),
        *(("segment-voc", "benchmark_RELEASE/"), ("segment-cityscapes", "cityscapes/"), ("segment-linear", "masks/")),
    ):
        assert [row.bench for row in content.not_run if home in row.expected] == [name]


def test_too_few_images_end_a_benchmark_asked_for_by_name_before_any_work(colours, tmp_path, monkeypatch):
    for name in CATALOG:
        fails = lambda _: pytest.fail("works before all is checked")  # noqa: E731
        monkeypatch.setattr(runner.protocol_of(name), "run", fails)
    for names, words, error in (
        (["linear", "knn"], {"knn.k": [1, 25]}, DataError),
        (["knn", "linear", "semisup"], {"semisup.list": str(tmp_path / "none"), "semisup.fraction": 0.1}, DataError),
    ):
        for dry_run in (False, True):
            with pytest.raises(error, match="found"):
                runner.bench(
                    names, weights=["random:tiny"], data=colours, out=tmp_path / "out", **QUICK | words, dry_run=dry_run
                )
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("words", "left", "ran"),
    [
        ({"knn.k": [1, 25]}, "knn", {"linear", "linear-stages", "semisup"}),
        ({"semisup.list": "24_none", "semisup.fraction": 0.1}, "semisup", {"knn", "linear", "linear-stages"}),
    ],
)
def test_under_all_what_has_too_few_images_is_told_and_the_others_run(colours, tmp_path, words, left, ran):
    weights = ["random:tiny", "random:cifar10"]
    content = runner.bench(["all"], weights=weights, data=colours, out=tmp_path, **QUICK_ALL | words)
    rows = {(row.bench, row.weights) for row in content.results}
    assert rows == {(bench, source) for bench in ran for source in weights}
    missing = {row.bench: row.reason for row in content.not_run}
    assert set(missing) == {left, *OTHER_DATA} and "24" in missing[left]
    found = runner.bench(
        ["all"], weights=weights[:1], data=colours, out=tmp_path, **QUICK_ALL | words, dry_run=True
    ).dry_run
    assert {row.bench for row in found[: len(ran)]} == ran
    assert {row.bench for row in found[len(ran) :]} == {left, *OTHER_DATA}


def test_a_bank_that_shrinks_below_k_while_decoded_does_not_end_all(colours, tmp_path, monkeypatch):
    folder = shutil.copytree(colours, tmp_path / "set")

    def then_break(*rest, **named):
        splits = labelled(*rest, **named)
        (folder / splits[0].name(0)).write_bytes(b"gone bad")
        return splits

    monkeypatch.setitem(DATASETS, "labelled", DATASETS["labelled"]._replace(find=then_break))
    content = runner.bench(
        ["all"], weights=["random:tiny"], data=folder, out=tmp_path / "out", **QUICK_ALL | {"knn.k": [24]}
    )
    assert {row.bench for row in content.results} == {"linear", "linear-stages", "semisup"}
    told = {row.bench: row.reason for row in content.not_run}
    assert set(told) == {"knn", *OTHER_DATA} and "at most 23" in told["knn"]


@pytest.mark.parametrize("error", [DataError, NumericsError])
def test_under_all_a_benchmark_that_fails_at_work_is_told_and_the_others_run(colours, tmp_path, monkeypatch, error):
    def fails(_):
        raise error("expected better, found this")

    monkeypatch.setattr(runner.protocol_of("knn"), "run", fails)
    content = runner.bench(["all"], weights=["random:tiny"], data=colours, out=tmp_path / "out", **QUICK_ALL)
    assert {row.bench for row in content.results} == {"linear", "linear-stages", "semisup"}
    told = {row.bench: row.reason for row in content.not_run}
    assert told["knn"] == "expected better, found this"
    with pytest.raises(error):
        runner.bench(["knn", "linear"], weights=["random:tiny"], data=colours, out=tmp_path / "named", **QUICK)


def too_few(task: object) -> None:
    raise DataError("expected more images, found few")


def test_what_an_earlier_command_measured_is_not_listed_as_not_run(colours, drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner.protocol_of("lowshot"), "check", too_few)
    monkeypatch.setattr(runner.protocol_of("svm"), "run", lambda _: [Score("top-1", 50.0, 40, "few")])
    weights = ["random:tiny", "random:cifar10"]
    runner.bench(["knn"], weights=weights[:1], data=colours, out=tmp_path / "out", **QUICK_KNN)
    content, measured, not_run = runner.measure(
        ["all"], weights=weights[:1], data=drawn, out=tmp_path / "out", **QUICK_KNN
    )
    assert {row.bench for row in content.not_run} == set(CATALOG) - {"knn", "svm"}
    assert "knn: not run now, its earlier results stay" in capsys.readouterr().err
    assert {row.bench for row in content.results if row.key in measured} == {"svm"}
    shown = format_results(content.results, not_run, measured).splitlines()
    assert {row.bench for row in not_run} == set(CATALOG) - {"knn", "svm"}
    (knn,) = (line for line in shown if line.startswith("| knn ") and "| top-1 k=1 " in line)
    (svm,) = (line for line in shown if line.startswith("| svm "))
    assert "†" in knn and "†" not in svm
    when = str(content.results[0].measured)
    assert f"† from an earlier command, not measured now ({when[:10]} {when[11:16]} UTC): knn of random:tiny" in shown
    assert "†" not in format_results(content.results)
    assert runner.measure(["svm"], weights=weights[:1], data=drawn, out=tmp_path / "out", size=16).not_run == ()
    content = runner.bench(["all"], weights=weights, data=drawn, out=tmp_path / "out", **QUICK_KNN)
    assert "knn" in {row.bench for row in content.not_run}  # of the second weights there is nothing


def test_a_folder_that_may_not_be_read_is_an_error_of_the_data(tmp_path, monkeypatch):
    def locked(*_):
        raise PermissionError(13, "Permission denied", "/locked/imagenet")

    monkeypatch.setitem(DATASETS, "labelled", DATASETS["labelled"]._replace(find=locked))
    with pytest.raises(DataError, match=r"^/locked/imagenet: .*; check --data$"):
        runner.bench(["knn"], weights=["random:tiny"], data=tmp_path, out=tmp_path / "out", **QUICK_KNN)


def test_an_image_both_to_learn_from_and_to_score_is_refused(colours, tmp_path):
    paths = sorted((colours / "train").glob("*/*.png"))
    rows = [f"{path},{path.parent.name},train" for path in paths] + [
        f"{path},{path.parent.name},val" for path in paths[::8]
    ]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    with pytest.raises(DataError, match=r"train/blue/0\.png and 2 more in both"):
        runner.bench(["knn"], weights=["random:tiny"], data=tmp_path / "list.csv", out=tmp_path / "out", **QUICK_KNN)


def test_a_damaged_image_is_read_as_pillow_does_counted_and_leaves_the_row_as_it_is(colours, tmp_path):
    folder = tmp_path / "set"
    for path in colours.rglob("*.png"):
        copy = folder / path.relative_to(colours).with_suffix(".jpg")
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(copy, quality=95)
    whole = runner.bench(["knn", "linear"], weights=["random:tiny"], data=folder, out=tmp_path / "whole", **QUICK)
    for path in (folder / "train/blue/3.jpg", folder / "val/red/1.jpg", folder / "val/red/2.jpg"):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3] + b"\xff\xd9")
    out = tmp_path / "out"
    first = runner.bench(["knn", "linear"], weights=["random:tiny"], data=folder, out=out, **QUICK)
    again = runner.bench(
        ["knn", "linear"], weights=["random:tiny"], data=folder, out=out, **QUICK
    )  # of what is on disk
    with_workers = runner.bench(
        ["knn", "linear"], weights=["random:tiny"], data=folder, out=tmp_path / "workers", **QUICK | {"workers": 1}
    )
    for content, damaged in ((whole, 0), (first, 3), (again, 3), (with_workers, 3)):
        assert [row.config.model_dump()["damaged_images"] for row in content.results] == [damaged] * len(
            content.results
        )
    for row, its in zip(whole.results, first.results, strict=True):
        assert (row.n, row.difference, row.comparable) == (its.n, its.difference, its.comparable)
    values = [[row.value for row in content.results] for content in (first, again, with_workers)]
    assert values[0] == values[1] == values[2]


def test_a_size_that_a_network_does_not_take_is_refused_before_any_work(colours, tmp_path):
    with pytest.raises(
        ConfigError, match=r"random:timm:test_vit: does not take images of 50 pixels .*; use knn\.size=224"
    ):
        runner.bench(
            ["knn"], weights=["random:timm:test_vit"], data=colours, out=tmp_path / "out", **QUICK_KNN | {"size": 50}
        )


def test_settings_are_checked_before_weights_and_weights_before_data(tmp_path):
    with pytest.raises(ConfigError, match=r"knn\.kk"):
        runner.bench(["knn"], weights=["nothing"], data=tmp_path / "nowhere", out=tmp_path, knn={"kk": 5})
    with pytest.raises((ConfigError, CheckpointError), match="nothing"):
        runner.bench(["knn"], weights=["nothing"], data=tmp_path / "nowhere", out=tmp_path)


def test_other_projects_weights_are_scored_beside_ours_with_their_own_normalisation(colours, tmp_path, capsys):
    path = str(foreign.write(tmp_path / "w.pth", foreign.swav_flat(foreign.network("basic", (2, 2, 2, 2)))))
    weights = ["random:tiny", path]
    content = runner.bench(
        ["knn"], weights=weights, data=colours, out=tmp_path / "out", **QUICK_KNN | {"mean": [0.5, 0.5, 0.5]}
    )
    ours, theirs = content.results[0], content.results[-1]
    assert (ours.weights, ours.config.mean) == ("random:tiny", (0.485, 0.456, 0.406))
    assert (theirs.weights, theirs.config.mean) == (path, (0.5, 0.5, 0.5)) and theirs.config.std == (
        0.228,
        0.224,
        0.225,
    )
    assert theirs.config.model_dump()["network"]["layout"] == "facebookresearch/swav"
    assert "all 120 backbone keys at 'module.'" in capsys.readouterr().err
    assert f"{path}: normalised by mean [0.5, 0.5, 0.5], std [0.228, 0.224, 0.225]" in format_results(content.results)
    with pytest.raises(ConfigError, match="random:tiny says itself"):
        runner.bench(
            ["knn"],
            weights=["random:tiny"],
            data=colours,
            out=tmp_path / "out",
            **QUICK_KNN | {"mean": [0.5, 0.5, 0.5]},
        )


@pytest.mark.parametrize(
    ("names", "words", "message"),
    [
        (["kn"], [], "did you mean 'knn'"),
        (["knn"], ["protocol=smoky"], "did you mean 'smoke'"),
        (["knn"], ["knn.kk=[5]"], "did you mean 'knn.k'"),
        (["linear"], ["epochs=5"], "did you mean 'linear.epochs'"),
        (["knn"], ["sise=64"], "did you mean 'size'"),
        (["knn"], ["knm.k=5"], "did you mean 'knn'"),
        (["knn"], ["linear.epochs=5"], "not among the benchmarks asked for"),
        (["knn"], ["knn.k=[5, 5]"], "different numbers"),
        (["knn"], ["knn.k=0"], "knn: k"),
        (["knn"], ["size=large"], "size"),
        (["linear"], ["linear.crop_scale=[0.5, 0.1]"], "min <= max"),
    ],
)
def test_a_wrong_setting_is_named_with_the_nearest_right_one(names, words, message):
    with pytest.raises(ConfigError) as caught:
        resolve(names, parse_overrides(words))
    assert message in str(caught.value) and len(str(caught.value).splitlines()) <= 3


def test_a_key_for_one_benchmark_wins_over_the_key_for_all_and_over_the_protocol():
    once, settings = resolve(["all"], parse_overrides(["knn.size=32", "size=64", "protocol=smoke", "knn.k=7"]))
    assert once.protocol == "smoke"
    assert isinstance(settings["knn"], KnnSettings) and isinstance(settings["linear"], LinearSettings)
    assert (settings["knn"].size, settings["knn"].k, settings["linear"].size) == (32, (7,), 64)
    assert settings["linear"].epochs == CATALOG["linear"].smoke["epochs"]


def test_settings_answer_without_torch():
    code = "import sys, swav.evaluation.settings; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_draw_of_images_is_the_seeds(colours, tmp_path):
    quick = QUICK_KNN | {"train_images": 10, "score_images": 5}
    rows = runner.bench(["knn"], weights=["random:tiny"], data=colours, out=tmp_path, **quick).results
    assert rows[0].n == 5 and "10 training images" in rows[0].difference
    assert runner.bench(["knn"], weights=["random:tiny"], data=colours, out=tmp_path, **quick).results == rows


def test_names_label_the_rows_and_must_be_as_many_as_the_weights(colours, tmp_path):
    weights = ["random:tiny", "random:cifar10"]
    names = ["small | fast", "large"]
    named: dict[str, Any] = QUICK_KNN | {"name": names, "knn.k": [10]}
    content = runner.bench(["knn"], weights=weights, data=colours, out=tmp_path, **named)
    assert {(row.weights, row.name) for row in content.results} == set(zip(weights, names, strict=True))
    assert "large" in format_results(content.results) and "random:cifar10" not in format_results(content.results)
    assert all("large" in (tmp_path / f"tables.{kind}").read_text() for kind in ("md", "html", "tex"))
    assert ">large<" in report(tmp_path).read_text()
    for name in ("alone", ["a", "b", "c"]):
        with pytest.raises(ConfigError, match="one for each of the 2 --weights"):
            runner.bench(["knn"], weights=weights, data=colours, out=tmp_path, **QUICK_KNN | {"name": name})
    with pytest.raises(ConfigError, match="different names"):
        runner.bench(["knn"], weights=weights, data=colours, out=tmp_path, **QUICK_KNN | {"name": ["a", "a"]})


def test_several_seeds_run_what_draws_and_only_that_and_show_mean_and_spread(colours, tmp_path, capsys):
    content = runner.bench(
        ["knn", "linear"], weights=["random:tiny"], data=colours, out=tmp_path, **QUICK | {"seeds": 3, "seed": 5}
    )
    seeds: dict[str, set[int]] = {}
    for row in content.results:
        seeds.setdefault(row.bench, set()).add(row.seed)
    assert seeds == {"knn": {0}, "linear": {5, 6, 7}}  # nothing is drawn for knn
    assert "run once (deterministic): knn" in capsys.readouterr().err
    top1 = [row.value or 0.0 for row in content.results if (row.bench, row.metric) == ("linear", "top-1")]
    assert f"{statistics.mean(top1):.2f} ± {statistics.stdev(top1):.2f} (n=3)" in format_results(content.results)
    drawn = runner.bench(
        ["knn"],
        weights=["random:tiny"],
        data=colours,
        out=tmp_path / "b",
        **QUICK_KNN | {"seeds": 2, "train_images": 20},
    )
    assert {row.seed for row in drawn.results} == {0, 1}
    all_there = QUICK_KNN | {"seeds": 2, "train_images": 24, "score_images": 5000}
    whole = runner.bench(["knn"], weights=["random:tiny"], data=colours, out=tmp_path / "c", **all_there)
    assert {row.seed for row in whole.results} == {0}


def test_a_folder_of_other_data_sets_is_not_taken_for_classes(colours, drawn, tmp_path):
    with pytest.raises(DataError, match=r"found other data sets only \(VOCdevkit\)"):
        runner.bench(["knn"], weights=["random:tiny"], data=drawn, out=tmp_path / "out", **QUICK_KNN)
    with pytest.raises(DataError, match="VOC2007"):
        runner.bench(["knn"], weights=["random:tiny"], data=drawn / "VOCdevkit", out=tmp_path / "out", **QUICK_KNN)


def _benched(data, out):
    quick = (
        "protocol=published size=16 workers=0 knn.k=3 linear.epochs=2 linear.batch=10 linear-stages.epochs=2 linear-stages.batch=8 "
        "linear-stages.train_images=17 linear-stages.steps=[1] linear-stages.size=40 semisup.size=40 semisup.fraction=.375 semisup.batch=8 semisup.epochs=2 "
        "semisup.lr_head=0.2"
    )  # rests of 4, 1 and 1 of 24, 17 and 9 images: of one image a process has no share
    words = parse_overrides(quick.split())
    rows = runner.bench(
        ["knn", "linear", "linear-stages", "semisup"], weights=["random:tiny"], data=data, out=out, **words
    ).results
    words = {"linear.epochs": 1, "linear.batch": 8, "linear.score_images": 1} | QUICK_KNN
    del words["knn.k"]
    few = runner.bench(
        ["linear"], weights=["random:tiny"], data=data, out=out / "few", **words
    ).results  # one process has none to score
    return [*rows, *few]


@pytest.mark.slow
def test_two_processes_share_a_benchmark_and_come_to_what_one_comes_to(colours, tmp_path, two_processes):
    shared, other = two_processes(_benched, colours, tmp_path / "two")
    alone = _benched(colours, tmp_path / "one")
    assert shared == other and len(shared) == len(alone)
    for ours, its in zip(shared, alone, strict=True):
        same = ("bench", "metric", "n", "weights_sha256", "difference")
        assert [getattr(ours, key) for key in same] == [getattr(its, key) for key in same]
    for name in ("linear", "linear-stages", "semisup"):
        logs = [
            [json.loads(line)["loss"] for line in _log(tmp_path / where, rows, name)]
            for where, rows in (("two", shared), ("one", alone))
        ]
        assert len(logs[0]) == 2 and logs[0] == pytest.approx(logs[1], rel=1e-5)


def _log(out, rows, bench):
    return (out / next(row.log for row in rows if row.bench == bench)).read_text().splitlines()


@pytest.mark.slow
def test_killed_with_half_the_features_on_disk_it_computes_the_others_only(colours, tmp_path):
    """A real kill -9 once the bank is noted, in a process of its own."""

    def run(out, fault=None):
        words = [
            "knn",
            "--weights",
            "random:tiny",
            "--data",
            str(colours),
            "--out",
            str(out),
            "size=16",
            "knn.k=[1,5]",
            "protocol=published",
        ]
        environment = os.environ | ({"SWAV_FAULT": fault} if fault else {})
        return subprocess.run([sys.executable, "-m", "swav", "bench", *words], env=environment, capture_output=True)

    assert run(tmp_path / "whole").returncode == 0
    assert run(tmp_path / "torn", "features:noted:1").returncode == -9
    (bank,) = (tmp_path / "torn" / "features").glob("*/pooled.npy")
    written = bank.stat().st_mtime_ns
    assert run(tmp_path / "torn").returncode == 0
    assert bank.stat().st_mtime_ns == written and len(list((tmp_path / "torn" / "features").iterdir())) == 2
    whole, torn = (read_results(tmp_path / out).results for out in ("whole", "torn"))
    assert [row.value for row in whole] == [row.value for row in torn] and len(whole) == 4
