"""Attacks: processes that train or score together with other settings, another seed, other data or other code.

Run: pytest tests/test_agreement.py
"""

import contextlib
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from swav import agreement, checkpoint, dist
from swav.agreement import require_agreement, seen
from swav.data.sources.open import open_images
from swav.data.storage import Files
from swav.data.synthetic.writers import write_shapes
from swav.errors import ConfigError
from swav.evaluation import runner
from swav.network.heads import build_network
from swav.recipe_files import load_recipe, to_yaml
from swav.training import loop

EQUAL = {"recipe": "tiny", "data": "", "out": "", "width": 0.125, "epochs": 3, "workers": 0, "seed": 0}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("shapes")
    write_shapes(folder / "a", "imagenet", train=48, val=16, size=32, seed=0)
    write_shapes(folder / "b", "imagenet", train=48, val=16, size=32, seed=1)
    return folder


def said(work: Any) -> str:
    """What a work of both processes raises."""
    try:
        work()
    except ConfigError as error:
        assert error.exit_code == 2
        return str(error)
    return "no error"


def compare(*values: dict[str, Any]) -> str:
    return said(lambda: require_agreement(values[dist.rank()]))


def pretrain(*settings: dict[str, Any]) -> str:
    return said(lambda: loop.pretrain(**settings[dist.rank()]))


def bench(*settings: dict[str, Any]) -> str:
    return said(lambda: runner.bench(**settings[dist.rank()]))


def listed_here(settings: dict[str, Any]) -> str:
    """A benchmark whose list is another file of the same name on each machine."""
    with mock.patch(
        "swav.evaluation.protocols.semisup.listed", lambda images, *_: images.select(range(20 + dist.rank()))
    ):
        return bench(settings, settings)


def started_from(folders: list[str], settings: dict[str, Any]) -> str:
    """A run whose init is another file of the same name on each machine."""
    with contextlib.chdir(folders[dist.rank()]):
        return pretrain(settings, settings)


def sample(folder: str, missing: list[str]) -> str:
    """What a process sees on whose disk some files are not, or are others."""
    images = dist.on_rank0(lambda: open_images(folder, "train", Path(folder).parent / "cache"))
    if dist.rank() == 1:
        assert isinstance(images.storage, Files)
        images.storage.root = Path(missing[0])
    return seen(images, 0)


def test_values_that_differ_are_named_with_the_ranks_that_have_them(two_processes):
    one = {"batch": 16, "seed": 0, "crops": [2, 6]}
    assert two_processes(compare, one, dict(one)) == ["no error"] * 2
    told = two_processes(compare, one, one | {"seed": 1, "extra": True})
    assert told[0] == told[1] and len(told[0].splitlines()) == 3
    assert told[0].splitlines()[1] == "seed: 0 on rank 0, 1 on rank 1; extra: none on rank 0, true on rank 1"


def test_of_many_processes_the_odd_one_is_found(monkeypatch):
    monkeypatch.setattr(dist, "is_active", lambda: True)
    monkeypatch.setattr(dist, "gather_objects", lambda own: [own] * 7 + [{"lr": "9"}] + [own] * 200)
    with pytest.raises(ConfigError, match=r"expected 208 .*\nlr: 1 on rank 0\+1\+2\+3 and 203 more, 9 on rank 7\n"):
        require_agreement({"lr": 1})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed: 0 on rank 0, 1 on rank 1"),
        ({"lr": 0.5}, "lr: "),
        (
            {"checkpoint_every_steps": 2},
            "checkpoint_every_steps: ",
        ),  # harmless to weights, but one would wait for the other
        ({"out": "elsewhere"}, "--out: "),
        ({"data": "b"}, "data: "),
    ],
    ids=str,
)
def test_processes_with_other_settings_do_not_pretrain_together(two_processes, shapes, tmp_path, changes, words):
    changes = dict(changes)
    one = EQUAL | {"data": str(shapes / "a"), "out": str(tmp_path / "run")}
    for key, folder in (("data", shapes), ("out", tmp_path)):
        if key in changes:
            changes[key] = str(folder / changes[key])
    told = two_processes(pretrain, one, one | changes)
    assert told[0] == told[1] and words in told[0]
    assert not list(tmp_path.iterdir())


def test_processes_with_other_settings_do_not_score_together(two_processes, shapes, tmp_path):
    one = {"names": ["linear"], "weights": ["random:tiny"], "data": str(shapes / "a"), "out": str(tmp_path / "out")}
    told = two_processes(bench, one, one | {"seed": 3})
    assert told[0] == told[1] and "linear.seed: 0 on rank 0, 3 on rank 1" in told[0]
    assert not list(tmp_path.iterdir())


def test_a_list_with_other_images_on_one_machine_is_found(two_processes, shapes, tmp_path):
    (tmp_path / "list.txt").write_text("x")
    settings = {
        "semisup.list": str(tmp_path / "list.txt"),
        "protocol": "smoke",
        "semisup.fraction": 0.1,
        "size": 32,
        "workers": 0,
    }
    one = {"names": ["semisup"], "weights": ["random:tiny"], "data": str(shapes / "a"), "out": str(tmp_path / "out")}
    told = two_processes(listed_here, one | settings)
    assert told[0] == told[1] and "images of semisup" in told[0]


def test_weights_to_start_from_that_differ_between_machines_are_found(two_processes, shapes, tmp_path):
    folders = [tmp_path / name for name in ("one", "other")]
    for seed, folder in enumerate(folders):
        recipe = load_recipe("tiny", {"width": 0.125, "seed": seed})
        state = {
            "recipe": recipe.model_dump(mode="json"),
            "num_images": 64,
            "step": 0,
            "best_step": None,
            "best_knn": None,
        }
        model = build_network(recipe).state_dict()
        (folder / "w").mkdir(parents=True)
        checkpoint.save(folder / "w/checkpoints", 0, model=model, optim={}, local={}, state=state, keep=1)
        (folder / "w/config.yaml").write_text(to_yaml(recipe))
    settings = EQUAL | {"data": str(shapes / "a"), "out": str(tmp_path / "run"), "init": "w", "batch": 16}
    told = two_processes(started_from, list(map(str, folders)), settings)
    assert told[0] == told[1] and "init=w" in told[0]


def test_a_disk_with_other_images_of_the_same_names_or_with_none_shows(two_processes, shapes, tmp_path):
    assert two_processes(sample, str(shapes / "a"), [str(shapes / "a")]) == ["48 of 48 sampled images as listed"] * 2
    for folder, most in ((shapes / "b", 10), (tmp_path, 0)):
        one, other = two_processes(sample, str(shapes / "a"), [str(folder)])
        assert one == "48 of 48 sampled images as listed" and int(other.partition(" ")[0]) <= most


def test_one_process_alone_looks_at_nothing(monkeypatch):
    monkeypatch.setattr(agreement, "versions", lambda: pytest.fail("looked"))
    require_agreement({"seed": 0} | agreement.code())
