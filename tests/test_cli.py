"""What a user sees: one message of at most three lines, the exit code of its kind, and nothing else printed or written.

Run: pytest tests/test_cli.py
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swav import cli
from swav.data.synthetic.writers import LAYOUTS
from swav.evaluation import runner
from swav.results.results import Results
from tests.network import foreign

pytestmark = pytest.mark.usefixtures("commands_in_process")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three readable photographs."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def swav(capfd, monkeypatch):
    """Runs a command in this process; returns exit code, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["swav", *map(str, words)])
        with pytest.raises(SystemExit) as leave:
            cli.main()
        out, err = capfd.readouterr()
        return int(leave.value.code or 0), out, err

    return run


def folder_with_a_text_file(folder: Path) -> Path:
    folder.mkdir()
    (folder / "photo.jpg").write_text("<html>not a photo</html>")
    return folder


BAD = {
    "unknown key": (["pretrain", "tiny", "epoch=5"], 2, "did you mean 'epochs'"),
    "unknown recipe": (["pretrain", "tyny"], 2, "did you mean 'tiny'"),
    "queue shorter than the batch": (["pretrain", "tiny", "queue_length=32"], 2, "at least the batch (64), found 32"),
    "queue starts after the last epoch": (["pretrain", "tiny", "queue_start_epoch=3"], 2, "below epochs (3), found 3"),
    "not a number": (["pretrain", "tiny", "lr=fast"], 2, "lr: "),
    "no data": (["pretrain", "tiny"], 2, "data=PATH"),
    "compiling on a CPU": (
        ["pretrain", "tiny", "batch=2", "queue_length=2", "compile=true", "device=cpu", "data={images}"],
        2,
        "compile=true",
    ),
    "micro-batches that do not fit": (
        ["pretrain", "tiny", "batch=3", "queue_length=3", "micro_batch=2", "data={images}"],
        2,
        "divisor of the 3 images per process, found 2; use 1",
    ),
    "missing folder": (["pretrain", "tiny", "data={tmp}/nowhere"], 3, "nowhere"),
    "empty folder": (["pretrain", "tiny", "data={tmp}"], 3, "expected images, found no file"),
    "a text file named .jpg": (["pretrain", "tiny", "data={text}"], 3, "photo.jpg"),
    "unknown timm model, before the data": (
        ["pretrain", "default", "backbone=timm:resnet8", "data={tmp}/nowhere"],
        2,
        "did you mean",
    ),
    "four channels": (["pretrain", "tiny", "in_channels=4", "data={images}"], 2, "3 (RGB) or 1 (grey)"),
    "hours beside epochs": (["pretrain", "tiny", "hours=1", "data={images}"], 2, "epochs=auto"),
    "fewer images than a batch": (["pretrain", "tiny", "data={images}"], 3, "one batch of 64 images, found 3"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gives_one_message_and_the_code_of_its_kind(name, swav, tmp_path, images):
    words, code, expected = BAD[name]
    empty = tmp_path / "empty"
    empty.mkdir()
    places = {"tmp": empty, "images": images, "text": folder_with_a_text_file(tmp_path / "text")}
    out = tmp_path / "run"
    found, printed, complaint = swav(*(word.format(**places) for word in words), "--out", out)
    assert (found, printed) == (code, "")
    assert expected in complaint
    assert complaint.startswith("swav: ")
    assert len(complaint.splitlines()) <= 3
    assert not (out / "config.yaml").exists()


def bad_weights(folder: Path) -> dict[str, Path]:
    """Files of weights that must not be taken."""
    whole = foreign.write(folder / "whole.pth", foreign.swav_flat(foreign.network()))
    (folder / "cut.pth").write_bytes(whole.read_bytes()[:-5000])
    deeper = foreign.torchvision(foreign.network("bottleneck", (3, 4, 23, 3), width=0.0625))
    return {
        "whole": whole,
        "cut": folder / "cut.pth",
        "deeper": foreign.write(folder / "deeper.pth", deeper),
        "hostile": foreign.write(
            folder / "hostile.pth", {"state_dict": foreign.swav_flat(foreign.network()), "x": Trap(folder / "sprung")}
        ),
    }


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


BAD_WEIGHTS = {
    "cut short": ("cut", [], 6, "cut short or damaged"),
    "another depth": ("deeper", [], 6, "too many layer3.6"),
    "hostile": ("hostile", [], 6, "as in an attack"),
    "not that model": ("whole", ["model=resnet18"], 6, "nearest: resnet18"),
    "unknown model": ("whole", ["model=resnet51"], 2, "did you mean 'resnet50'"),
    "unknown key": ("whole", ["modle=resnet50"], 2, "did you mean 'model'"),
    "wrong channels": ("whole", ["channels=gbr"], 2, "channels"),
}


def test_bad_weights_give_one_message_and_write_nothing(swav, tmp_path, images):
    weights = bad_weights(tmp_path)
    out = tmp_path / "results"
    for name, words, code, expected in BAD_WEIGHTS.values():
        found, printed, complaint = swav(
            "bench", "knn", *words, "--weights", weights[name], "--data", images, "--out", out
        )
        assert (found, printed) == (code, "") and expected in complaint
        assert complaint.startswith("swav: ") and len(complaint.splitlines()) <= 3
        assert not out.exists() and not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("words", [["pretrian"], ["pretrain", "tiny"], ["bench", "knn"], ["pretrain", "--bogus"]])
def test_a_wrong_command_line_is_exit_2_in_one_line(words, swav):
    code, printed, complaint = swav(*words)
    assert (code, printed) == (2, "")
    assert len(complaint.splitlines()) == 1


def test_debug_shows_where_it_came_from(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["swav", "pretrain", "tyny", "--out", "x", "--debug"])
    with pytest.raises(ValueError, match="tyny"):
        cli.main()


def test_recipes_are_listed_and_printed_with_every_key(swav):
    code, listed, _ = swav("recipes")
    assert code == 0
    assert "resnet50_8xb32-mcrop-2-6-coslr-200e_in1k-224-96" in listed
    code, printed, _ = swav("recipes", "tiny")
    assert code == 0
    assert "epsilon: 0.05" in printed
    assert "# batch" not in printed.splitlines()[0]


def test_the_batch_script_is_printed_for_the_command_as_typed_and_nothing_is_done(swav, images, tmp_path):
    out = tmp_path / "my run"
    code, printed, _ = swav("pretrain", "auto", f"data={images}", "batch=2", "--out", out, "--print-slurm")
    assert code == 0
    assert printed.startswith("#!/bin/bash\n")
    assert f"-m swav pretrain auto data={images} batch=2 --out '{out}' &" in printed
    assert not out.exists()
    assert swav("pretrain", "auto", f"data={images}", "bach=2", "--out", out, "--print-slurm")[0] == 2


def test_dry_run_gives_reasons_and_estimates_and_writes_nothing(swav, images, tmp_path, monkeypatch):
    monkeypatch.setattr("swav.training.estimate.SECONDS", 0.2)
    out = tmp_path / "run"
    code, printed, _ = swav("pretrain", "auto", f"data={images}", "batch=2", "width=0.25", "--out", out, "--dry-run")
    assert code == 0
    assert "prototypes = 30: " in printed and "crops = " in printed
    assert {"images", "time", "memory", "disk", "measured"} <= {
        line.split()[0] for line in printed.splitlines() if line
    }
    assert len(printed.splitlines()) <= 40 and str(out) not in printed and "epsilon:" not in printed
    code, printed, _ = swav(
        "pretrain", "tiny", images, "batch=2", "queue_length=2", "--out", out, "--dry-run", "--full"
    )
    assert code == 0 and "\nepsilon: 0.05\n" in printed and str(out) not in printed
    assert swav("pretrain", "tiny", images, "--out", out, "--full")[0] == 2
    assert not out.exists()


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_of_several_processes_one_prints_the_results(words, swav, monkeypatch, tmp_path, images):
    monkeypatch.setattr(runner, "measure", lambda *_, **__: runner.Measured(Results()))
    command = ["bench", "knn", *words, "--weights", "random:tiny", "--data", images, "--out", tmp_path]
    assert swav(*command)[1] != ""
    monkeypatch.setenv("RANK", "1")
    assert swav(*command) == (0, "", "")


def test_help_names_every_layout_that_is_drawn(swav):
    told = swav("data", "shapes", "--help")[1]
    assert all(layout in told for layout in LAYOUTS)
