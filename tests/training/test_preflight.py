"""Attacks: errors that are reported only after seconds of importing torch, or with another exit code than the work itself has.

Run: pytest tests/training/test_preflight.py
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from swav.config import AUTO, Recipe
from swav.data.sources import walk as walk_module
from swav.data.sources.open import check_images
from swav.data.sources.walk import image_among, may_hold_images, walk
from swav.errors import ConfigError, DataError, MachineError
from swav.evaluation import runner
from swav.files import check_writable
from swav.training.loop import pretrain
from swav.training.preflight import check_pretraining, require_balance
from swav.weights.sources import check_source

# Runs commands in one interpreter that has no torch; prints the exit code and the message of each.
WITHOUT_TORCH = """
import contextlib, importlib.abc, io, json, sys

class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm"):
            raise RuntimeError("imports torch")

sys.meta_path.insert(0, NoTorch())
from swav import cli
found = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["swav", *words]
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            cli.main()
        except SystemExit as leave:
            code = leave.code
        except RuntimeError as error:
            code = str(error)
    found.append([code, errors.getvalue()])
print(json.dumps(found))
"""

PRETRAIN = "pretrain tiny data=images --out run"
BENCH = "bench knn --weights random:resnet18 --data images --out run"
BAD = [
    ("pretrain tyny data=images --out run", 2, "did you mean 'tiny'"),
    ("pretrain tiny epoch=3 data=images --out run", 2, "did you mean 'epochs'"),
    ("pretrain tiny --out run", 2, "data=PATH"),
    ("pretrain tiny data=nowhere batch=1 queue_length=0 --out run", 2, "batch: expected at least 2 images"),
    ("pretrain tiny data=nowhere prototypes=1 --out run", 2, "prototypes: expected at least 2 in each set, found 1"),
    ("pretrain tiny data=nowhere prototypes=[60,1] --out run", 2, "found 60, 1"),
    ("pretrain tiny data=nowhere --out run", 3, "nowhere: expected a folder of images"),
    ("pretrain tiny data=empty --out run", 3, "empty: expected images, found no file"),
    ("pretrain tiny data=texts --out run", 3, "found only 1 .txt"),
    ("pretrain tiny data=texts --out run --dry-run", 3, "found only 1 .txt"),
    ("pretrain tiny data=images init=nowhere --out run", 2, "weights 'nowhere'"),
    ("pretrain tiny data=images --out labelled", 2, "labelled: expected a new folder or a run's, found images in it"),
    ("pretrain tiny data=images --out file/run", 4, "file/run: cannot be written"),
    ("pretrain tiny data=images --out file", 4, "file: cannot be written"),
    ("pretrain tiny data=images --out /proc/run", 4, "/proc/run: cannot be written"),
    ("bench kn --weights random:resnet18 --data images --out run", 2, "did you mean 'knn'"),
    ("bench knn knn.kk=3 --weights random:resnet18 --data images --out run", 2, "did you mean 'knn.k'"),
    ("bench knn --weights nowhere --data images --out run", 2, "weights 'nowhere'"),
    ("bench knn --weights nowhere.pth --data images --out run", 2, "weights 'nowhere.pth'"),
    ("bench knn --weights random:resnet19 --data images --out run", 2, "did you mean 'resnet18'"),
    ("bench knn --weights empty@best --data images --out run", 2, "weights 'empty@best'"),
    ("bench knn --weights random:resnet18 --data nowhere --out run", 3, "nowhere: expected"),
    ("bench knn --weights random:resnet18 --data empty --out run", 3, "empty: expected images, found no file"),
    ("bench svm --weights random:resnet18 --data empty --out run", 3, "expected PASCAL VOC 2007"),
    ("bench places205 --weights random:resnet18 --data nowhere --out run", 3, "expected Places205"),
    ("bench knn --weights random:resnet18 --data texts --out run", 3, "found only 1 .txt"),
    ("bench knn --weights random:resnet18 --data images --out file/run", 4, "file/run: cannot be written"),
    ("bench knn --weights random:resnet18 --data images --out file", 4, "file: cannot be written"),
    ("bench knn --weights random:resnet18 --data images --out /proc/run", 4, "/proc/run: cannot be written"),
    ("pretrain tiny data=images --out images/run", 2, "use --out images-run"),
    ("pretrain tiny data=images --out images/run --dry-run", 2, "use --out images-run"),
    ("bench knn --weights random:resnet18 --data images --out images/run", 2, "use --out images-run"),
    ("compare --data images --out images/run", 2, "use --out images-run"),
    ("pretrain tiny data=images --out \udcff", 2, "--out \\udcff: expected a name in UTF-8"),
    ("pretrain tiny data=images --dry-run --out \udcff/run", 2, "expected a name in UTF-8"),
    ("bench knn --weights random:resnet18 --data images --out \udcff", 2, "expected a name in UTF-8"),
    ("compare --data images --out \udcff", 2, "expected a name in UTF-8"),
    ("demo --out \udcff", 2, "expected a name in UTF-8"),
    ("data shapes \udcff", 2, "expected a name in UTF-8"),
    ("pretrain ~/own.yaml data=~/empty --out=~/run", 3, "expected images, found no file"),
    ("pretrain tiny data=~/images init=~/nowhere --out=~/run", 2, "weights '"),
    ("bench knn --weights ~/weights.pth --data ~/texts --out ~/run", 3, "found only 1 .txt"),
    ("data scan ~/empty", 3, "expected images, found no file"),
    ("report ~/empty", 3, "empty: expected config.yaml"),
    ("report nowhere", 3, "nowhere: expected the folder of a run"),
    ("data scan nowhere", 3, "nowhere: expected"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with images (as a labelled set), an empty folder, one without images, and a file."""
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            Image.new("RGB", (20, 20)).save(tmp_path / "images" / split / name / "1.png")
    shutil.copytree(tmp_path / "images" / "val", tmp_path / "labelled")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("none")
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "own.yaml").write_text("epochs: 2\nqueue_start_epoch: 0\n")
    (tmp_path / "weights.pth").write_bytes(b"PK\x03\x04")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_without_torch(commands: list[str]) -> list[tuple[int | str, str]]:
    arguments = json.dumps([command.split() for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, arguments], capture_output=True, text=True, check=True, timeout=100
    )
    return [(code, said) for code, said in json.loads(done.stdout)]


def test_bad_commands_are_refused_without_torch_and_write_nothing(here):
    before = sorted(here.rglob("*"))
    found = run_without_torch([command for command, _, _ in BAD])
    for (command, code, message), (its_code, said) in zip(BAD, found, strict=True):
        assert its_code == code and message in said, f"{command}: {its_code}, {said}"
        assert said.startswith("swav: ") and len(said.splitlines()) <= 3
    assert sorted(here.rglob("*")) == before


def test_the_check_for_torch_can_fail(here):
    assert [code for code, _ in run_without_torch([PRETRAIN, BENCH])] == ["imports torch"] * 2


def test_from_python_the_same_errors_come(here):
    for name, error in (("nowhere", DataError), ("empty", DataError), ("texts", DataError)):
        with pytest.raises(error, match=name):
            pretrain("tiny", out="run", data=name)
        with pytest.raises(error, match=name):
            runner.bench(["knn"], weights=["random:resnet18"], data=name, out="run")
    for out in ("file", "file/run"):
        with pytest.raises(MachineError, match=f"{out}: cannot be written"):
            pretrain("tiny", out=out, data="images")
        with pytest.raises(MachineError, match=f"{out}: cannot be written"):
            runner.bench(["knn"], weights=["random:resnet18"], data="images", out=out)
    with pytest.raises(ConfigError, match="nowhere"):
        runner.bench(["knn"], weights=["nowhere"], data="images", out="run")
    assert not Path("run").exists()


def test_where_nothing_is_seen_the_walk_sees_nothing_and_the_other_way_round(tmp_path):
    hidden = tmp_path / "hidden"
    for name in (".git/a.png", "__MACOSX/b.png", "c/._d.png", "e/f.txt"):
        (hidden / name).parent.mkdir(parents=True, exist_ok=True)
        (hidden / name).touch()
    assert not may_hold_images(hidden) and not walk(hidden).names
    (tmp_path / "deep/er/x").mkdir(parents=True)
    (tmp_path / "deep/er/x/y.JPG").touch()
    assert may_hold_images(tmp_path / "deep") and walk(tmp_path / "deep").names
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "there").symlink_to(tmp_path / "deep")
    assert may_hold_images(tmp_path / "linked") and walk(tmp_path / "linked").names


def test_images_are_found_where_class_folders_have_them_and_not_among_results(tmp_path):
    for name in ("run/report/views.webp", "run/config.yaml", "texts/a.txt", ".cache/b.png", "a/b/c/too_deep.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert not image_among(os.fsencode(tmp_path))
    (tmp_path / "train" / "church").mkdir(parents=True)
    (tmp_path / "train" / "church" / "1.JPG").touch()
    assert image_among(os.fsencode(tmp_path)) == os.fsencode(tmp_path / "train" / "church" / "1.JPG")


def test_a_folder_that_may_not_be_read_is_passed_over_where_images_are_looked_for(tmp_path, monkeypatch):
    """Of a shared disk, where most folders belong to others."""
    for name in ("a/hidden.png", "b/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    entries = walk_module._entries

    def readable(folder: bytes) -> list[os.DirEntry[bytes]]:
        if folder.endswith(b"/a"):
            raise PermissionError(13, "Permission denied")
        return entries(folder)

    monkeypatch.setattr(walk_module, "_entries", readable)
    assert image_among(os.fsencode(tmp_path)) == os.fsencode(tmp_path / "b" / "1.png")


def test_of_a_data_set_with_halves_the_images_of_train_are_what_counts(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
    (tmp_path / "val" / "a" / "1.png").touch()
    with pytest.raises(DataError, match="train: expected images, found no file"):
        check_images(tmp_path)


def test_a_folder_that_can_be_written_is_left_as_it_is(tmp_path):
    check_writable(tmp_path / "not" / "there" / "yet")
    check_writable(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "dangling").symlink_to(tmp_path / "gone" / "gone")
    with pytest.raises(MachineError, match="dangling: cannot be written"):
        check_writable(tmp_path / "dangling")


def test_sources_that_are_there_pass(tmp_path, monkeypatch):
    (tmp_path / "run" / "checkpoints" / "step_1").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step_1" / "manifest.json").touch()
    (tmp_path / "w.pth").write_bytes(b"PK\x03\x04")
    for source in ("run", "run@best", "run/checkpoints/step_1", "w.pth"):
        check_source(f"{tmp_path}/{source}")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run" / "config.yaml").write_text("backbone: resnet18\n")
    for source in ("~/run", "~/run@best", "~/w.pth", "random:~/run", "~/run/checkpoints/step_1"):
        check_source(source)
    for source in ("random:resnet50", "random:tiny", "random:timm:any", "timm:any"):
        check_source(source)


def test_what_cannot_be_balanced_is_refused_and_nothing_else():
    """One image has equal codes whatever it shows; a queue, or the images of other processes, are in the balance too."""
    refused = [
        (Recipe(batch=1, queue_length=0), 1),
        (Recipe(batch=4, queue_length=0, sinkhorn="local"), 4),
        (Recipe(prototypes=1), 1),
        (Recipe(prototypes=(60, 1), batch=AUTO), 1),
    ]
    for recipe, processes in refused:
        with pytest.raises(ConfigError, match="nothing is learned"):
            require_balance(recipe, processes)
    allowed = [
        (Recipe(batch=2, queue_length=0), 2),
        (Recipe(batch=4, queue_length=0, sinkhorn="local"), 2),
        (Recipe(batch=1, queue_length=64), 1),
        (Recipe(batch=1, queue_length=AUTO), 1),
        (Recipe(batch=AUTO, prototypes=AUTO), 1),
        (Recipe(prototypes=2), 1),
    ]
    for recipe, processes in allowed:
        require_balance(recipe, processes)


def test_a_batch_of_one_is_refused_once_the_queue_is_derived_but_a_run_that_is_there_resumes(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (40, 40), (200, 0, 0)).save(data / "a.png")
    Image.new("RGB", (40, 40), (0, 0, 200)).save(data / "b.png")
    settings = {"data": data, "batch": 1, "queue_length": "auto", "epochs": 1}
    with pytest.raises(ConfigError, match="batch: expected at least 2 images in the balance"):
        pretrain("tiny", out=tmp_path / "new", **settings)
    (tmp_path / "old/checkpoints").mkdir(parents=True)
    check_pretraining(Recipe(data=str(data), batch=1), tmp_path / "old", False)
