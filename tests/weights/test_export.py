"""Attacks: exported weights that need swav after all, that give other features than the run's, that are another file each time,
or whose loss takes the run along.

Run: pytest tests/weights/test_export.py
"""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from swav import checkpoint
from swav.config import Recipe
from swav.errors import CheckpointError, ConfigError, MachineError
from swav.network.heads import build_network
from swav.recipe_files import load_recipe
from swav.weights.encoder import load
from swav.weights.export import export_backbone, export_missing
from swav.weights.exported import CARD, CODE, FOLDER, RIGHTS, WEIGHTS, how_to_use, read_description, usage

SMALL = {"head_hidden": 8, "head_dim": 4, "prototypes": 6, "epochs": 2, "batch": 4, "queue_length": 0}

# Executes the printed lines, each list in a namespace of its own, where there is no swav; saves the features.
WITHOUT_SWAV = """
import importlib.abc, json, sys

class NoSwav(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "swav":
            raise ImportError("swav is not here")

sys.meta_path.insert(0, NoSwav())
try:
    import swav
except ImportError:
    pass
else:
    raise SystemExit("swav can be imported")
import torch
torch.set_num_threads(1)
sys.modules["backbone"] = None  # one of the user's own must not be in the way
for case in json.loads(sys.argv[1]):
    names = {"images": torch.load(case["images"])}
    with torch.no_grad():
        exec("\\n".join(case["lines"]), names)
    assert not names["model"].training
    torch.save(names["features"], case["features"])
print(sorted(set(sys.modules) & {"torchvision", "timm", "safetensors", "numpy"}) if len(sys.argv) > 2 else "done")
"""


def run_of(folder: Path, **changes: Any) -> Path:
    """The folder of a run whose network has statistics and weights that differ from fresh ones."""
    recipe = load_recipe("tiny", SMALL | {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.21, 0.22]} | changes)
    network = build_network(recipe)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 10)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    save(folder, recipe, network, step=6)
    return folder


def save(folder: Path, recipe: Recipe, network: nn.Module, step: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {"recipe": recipe.model_dump(mode="json"), "num_images": 12, "best_step": 3, "best_knn": 50.0}
    checkpoint.save(folder / "checkpoints", step, model=network.state_dict(), optim={}, local={}, state=state, keep=1)


def features_without_swav(cases: list[dict[str, Any]], *more: str) -> tuple[list[Tensor], str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_SWAV, json.dumps(cases), *more],
        capture_output=True,
        text=True,
        env=environment,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(case["features"]) for case in cases], done.stdout.strip()


def case(run: Path, images: Tensor) -> dict[str, Any]:
    """The printed lines of a run, images for them, and a place for features."""
    printed = how_to_use(export_backbone(run), run / FOLDER).splitlines()
    torch.save(images, run / "images.pt")
    assert len(printed) == 5 and str(run / FOLDER / WEIGHTS) in printed[0]
    own = [line for line in printed[1:] if not line.startswith("images = ")]
    assert len(own) == 3
    return {"lines": own, "images": str(run / "images.pt"), "features": str(run / "features.pt")}


CASES: dict[str, dict[str, Any]] = {
    "torchvision's": {"backbone": "resnet18", "width": 1, "stem": "imagenet"},
    "torchvision's bottlenecks": {"backbone": "resnet50", "width": 1, "stem": "imagenet"},
    "of another width": {"backbone": "resnet18", "width": 0.25, "stem": "imagenet"},
    "with the small stem": {"backbone": "resnet50", "width": 0.125, "stem": "small"},
    "with the half stem, of grey images": {"backbone": "resnet34", "width": 0.125, "stem": "half", "in_channels": 1},
    "timm's transformer": {"backbone": "timm:vit_tiny_patch16_224", "width": 1, "stem": "imagenet"},
    "timm's of grey images": {
        "backbone": "timm:mobilenetv3_small_050",
        "width": 1,
        "stem": "imagenet",
        "in_channels": 1,
    },
}


@pytest.mark.slow
def test_the_printed_lines_give_the_runs_features_to_the_bit_where_there_is_no_swav(tmp_path):
    cases, expected = [], []
    for number, (name, settings) in enumerate(CASES.items()):
        run = run_of(tmp_path / f'the user\'s "run" {number}', **settings)
        encoder = load(run)
        images = torch.rand(2, encoder.in_channels, 48, 48, generator=torch.Generator().manual_seed(number))
        cases.append(case(run, images))
        mean, std = torch.tensor(encoder.mean), torch.tensor(encoder.std)
        if encoder.in_channels == 1:
            luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
            mean, std = ((luma @ values.double()).float()[None] for values in (mean, std))
        with torch.no_grad():
            expected.append(encoder((images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)))
        kinds = ("torchvision.models" in cases[-1]["lines"][1], "timm.create_model" in cases[-1]["lines"][1])
        assert kinds == (name.startswith("torchvision's"), name.startswith("timm's"))
        assert (run / FOLDER / CODE).exists() == (kinds == (False, False))
    found, _ = features_without_swav(cases)
    for name, its, ours in zip(CASES, found, expected, strict=True):
        assert torch.equal(its, ours), name


def test_the_code_beside_the_weights_needs_torch_alone(tmp_path):
    run = run_of(tmp_path / "run")
    _, imported = features_without_swav([case(run, torch.rand(1, 3, 32, 32))], "imported")
    assert set(json.loads(imported.replace("'", '"'))) <= {"numpy"}  # which torch imports if it is there


def test_the_same_weights_are_the_same_bytes_in_every_process_and_folder(tmp_path):
    runs = [run_of(tmp_path / name) for name in ("one", "other")]
    export_backbone(runs[0])
    code = f"from pathlib import Path; from swav.weights.export import export_backbone as e; e(Path({str(runs[1])!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
    for name in (WEIGHTS, CODE, CARD):
        assert (runs[0] / FOLDER / name).read_bytes() == (runs[1] / FOLDER / name).read_bytes()
    assert sorted(path.name for path in (runs[0] / FOLDER).iterdir()) == sorted([CARD, CODE, WEIGHTS])


def test_the_card_says_whose_the_weights_are_and_its_python_runs_beside_them(tmp_path, monkeypatch):
    run = run_of(tmp_path / "run")
    export_backbone(run)
    text = (run / FOLDER / CARD).read_text()
    assert RIGHTS in text and "yours" in RIGHTS and "Apache-2.0" in RIGHTS and str(tmp_path) not in text
    monkeypatch.chdir(run / FOLDER)
    names: dict[str, Any] = {}
    with torch.no_grad():
        exec(text.partition("```python\n")[2].partition("```")[0], names)
        encoder = load(run)
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in ([0.5, 0.4, 0.3], [0.2, 0.21, 0.22]))
        assert torch.equal(names["features"], encoder((names["images"] - mean) / std))
        assert names["images"].shape == (2, 3, 48, 48) and names["features"].shape[0] == 2


def test_names_are_torchvisions_and_tensors_the_checkpoints(tmp_path):
    run = run_of(tmp_path / "run", width=1, stem="imagenet")
    export_backbone(run)
    tensors, trunk = load_file(run / FOLDER / WEIGHTS), load(run).trunk.state_dict()
    assert tensors.keys() == trunk.keys() and {"conv1.weight", "layer2.0.downsample.1.running_var"} <= tensors.keys()
    assert all(torch.equal(tensors[name], trunk[name]) for name in trunk)


@pytest.mark.parametrize("name", ["with the half stem, of grey images", "timm's of grey images", "of another width"])
def test_an_exported_file_is_a_weight_source_that_needs_no_options(tmp_path, name):
    run = run_of(tmp_path / "run", **CASES[name])
    export_backbone(run)
    ours, exported = load(run), load(run / FOLDER / WEIGHTS)
    images = torch.randn(2, ours.in_channels, 48, 48)
    assert torch.equal(ours(images), exported(images))
    for key in ("sha256", "mean", "std", "size", "in_channels", "settings", "architecture", "stage_names"):
        assert getattr(ours, key) == getattr(exported, key), key
    assert exported.head is None and exported.prototypes is None and exported.provenance == ""
    with pytest.raises(ConfigError, match="says itself what it is"):
        load(run / FOLDER / WEIGHTS, stem="small")


def test_files_that_do_not_hold_what_they_describe_are_refused(tmp_path: Path):
    run = run_of(tmp_path / "run")
    export_backbone(run)
    path = run / FOLDER / WEIGHTS
    description, tensors = read_description(path), load_file(path)
    assert description is not None

    def with_(changed: dict[str, Tensor], **other: Any) -> Path:
        text = json.dumps((description or {}) | other)
        save_file(tensors | changed, tmp_path / "w.safetensors", {"swav": text})
        return tmp_path / "w.safetensors"

    load(with_({}))
    with pytest.raises(CheckpointError, match="do not fit the resnet18"):
        load(with_({}, width=0.5))
    with pytest.raises(CheckpointError, match=r"infinite or no number in conv1.weight"):
        load(with_({"conv1.weight": tensors["conv1.weight"] / 0}))
    with pytest.raises(CheckpointError, match="format 1, found 2, of a newer swav"):
        load(with_({}, format=2))
    hostile = with_({}, backbone="resnet18(); print('sprung')")
    assert read_description(hostile) is None and read_description(with_({}, mean=["x", 1.0, 1.0])) is None
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        load(path)


def test_what_is_missing_of_a_finished_run_is_exported_and_nothing_else_is_touched(tmp_path):
    run = run_of(tmp_path / "run")
    assert export_missing(run, 6) is not None and export_missing(run, 6) is None
    (run / FOLDER / CODE).unlink()
    assert export_missing(run, 6) is not None and (run / FOLDER / CODE).exists()
    content = (run / FOLDER / WEIGHTS).read_bytes()
    (run / FOLDER / WEIGHTS).write_bytes(content[:-100])  # its header is whole, and tells its step
    assert export_missing(run, 6) is not None and export_missing(run, 6) is None
    (run / FOLDER / WEIGHTS).write_bytes(b"cut")
    (run / FOLDER / f".{WEIGHTS}.4711.tmp").write_bytes(b"left by one that was killed")
    assert export_missing(run, 6) is not None
    assert sorted(path.name for path in (run / FOLDER).iterdir()) == sorted([CARD, CODE, WEIGHTS])
    assert export_missing(run, 7) is not None  # of another step than the last checkpoint's: older weights
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((run / FOLDER / WEIGHTS).stat().st_mode) == 0o666 & ~mask


def test_a_folder_that_cannot_be_written_is_exit_4_and_names_the_step_that_is_safe(tmp_path, monkeypatch):
    run = run_of(tmp_path / "run")
    (run / FOLDER).write_text("in the way")
    with pytest.raises(MachineError, match=r"the checkpoint of step 6 is saved"):
        export_backbone(run)
    (run / FOLDER).unlink()
    monkeypatch.setattr("swav.weights.export.load_file", lambda path: {})  # a disk that returns other bytes
    with pytest.raises(MachineError, match="read back with other values"):
        export_backbone(run)
    assert {path.name for path in (run / FOLDER).iterdir()} == {CARD, CODE}  # no half file under the name
    assert load(run).sha256


def test_which_weights_these_are_is_said(tmp_path):
    run = run_of(tmp_path / "run")
    text = how_to_use(export_backbone(run), run / FOLDER)
    assert "step 6, the last; step 3 scored best" in text.splitlines()[0]
    assert "[0.5, 0.4, 0.3]" in text and "[0.2, 0.21, 0.22]" in text and "48, 48]" in text
    assert usage(read_description(run / FOLDER / WEIGHTS) or {}, run / FOLDER) == text.splitlines()[1:]
