"""The description of an exported backbone, and the Python that uses it. No torch here: reports need it.

OUT/export/ holds `backbone.safetensors`, whose header describes the network as JSON under the key `swav`; a model card,
`README.md`; and, where torchvision and timm have no such network, `backbone.py`, which does.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swav.config import RESNETS, TIMM
from swav.data.augment.spec import LUMA

FOLDER, WEIGHTS, CODE, CARD = "export", "backbone.safetensors", "backbone.py", "README.md"
RIGHTS = "Weights that you train are yours. The code of swav is licensed under Apache-2.0."
FORMAT = 1
DECODING = ("white_level", "alpha")  # are there where the run did not read its images in the default way
MAX_HEADER = 10_000_000  # bytes; that of a network has some ten thousand
LAYOUT = "memory_format=torch.channels_last"  # as in the run: with it features are the same to the last bit


def metadata(description: Mapping[str, Any]) -> dict[str, str]:
    """A description as safetensors keeps it: under one key, as several would be written in any order."""
    return {"swav": json.dumps({"format": FORMAT, **description}, sort_keys=True)}


def read_description(path: Path) -> dict[str, Any] | None:
    """The description in an exported file's header: backbone, width, stem, in_channels, mean, std, size, step and others.

    None of any other file, and of a damaged one. Of a newer format only `format` is there.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER:
                return None
            found = json.loads(json.loads(file.read(length))["__metadata__"]["swav"])
            return _checked(found) if found["format"] == FORMAT else {"format": found["format"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # it may be any file
        return None


def _checked(found: dict[str, Any]) -> dict[str, Any] | None:
    """A description whose values are what they must be: they become lines of Python."""
    whole = all(isinstance(found[key], int) for key in ("in_channels", "seed", "size", "step", "epochs", "batch"))
    triples = all(len(found[key]) == 3 and all(isinstance(v, float) for v in found[key]) for key in ("mean", "std"))
    known = found["backbone"] in RESNETS or is_timms(found)
    options = all(isinstance(value, int) for value in found.get("timm_options", {}).values())
    rest = isinstance(found["width"], float) and isinstance(found["stem"], str)
    best = found["best_step"] is None or isinstance(found["best_step"], int)
    white, alpha = found.get("white_level", 1), found.get("alpha", "blend")
    decoding = isinstance(white, int) and white > 0 and alpha in ("blend", "ignore")
    return found if decoding and whole and triples and known and options and rest and best else None


def fits_torchvision(description: Mapping[str, Any]) -> bool:
    """Whether the model of torchvision's of this name is this network."""
    usual = {"width": 1.0, "stem": "imagenet", "in_channels": 3}
    return not is_timms(description) and all(description[key] == value for key, value in usual.items())


def is_timms(description: Mapping[str, Any]) -> bool:
    return str(description["backbone"]).startswith(TIMM)


def usage(description: Mapping[str, Any], folder: Path) -> list[str]:
    """Four lines of Python, which run as they are, that load an exported backbone, without swav, and compute features.

    Args:
        description: see read_description.
        folder: that holds the files.
    """
    folder = folder.absolute()  # the lines are used elsewhere
    return _usage(description, str(folder / WEIGHTS), str(folder / CODE))


def _usage(description: Mapping[str, Any], weights: str, code: str) -> list[str]:
    name = str(description["backbone"])
    images, features = _images_and_features(description)
    if is_timms(description):
        options = "".join(f", {key}={value!r}" for key, value in description.get("timm_options", {}).items())
        lines = [
            "import timm, torch",
            images,
            f"model = timm.create_model({name.removeprefix(TIMM)!r}{options}, checkpoint_path={weights!r}).eval().to({LAYOUT})",
        ]
    elif fits_torchvision(description):
        lines = [
            "import safetensors.torch, torch, torchvision",
            images,
            f"model = torchvision.models.{name}(); model.fc = torch.nn.Identity(); "
            f"model.load_state_dict(safetensors.torch.load_file({weights!r})); model.eval().to({LAYOUT})",
        ]
    else:
        # By path: a second `import backbone` would give the first run's module again, or one of the user's own.
        lines = ["import runpy, torch", images, f"model = runpy.run_path({code!r})['load']()"]
    return [*lines, features]


def how_to_use(description: Mapping[str, Any], folder: Path) -> str:
    """What is printed at the end of a run: where the weights are, of which step, and the lines that use them."""
    return "\n".join(
        [f"weights for any program: {folder / WEIGHTS} ({which(description)})", *usage(description, folder)]
    )


def card(description: Mapping[str, Any]) -> str:
    """The model card: what the weights are and whose, and how they are used. No time and no path is in it."""
    width = "" if description["width"] == 1 or is_timms(description) else f", width {description['width']:g}"
    stem = "" if is_timms(description) else f", stem {description['stem']}"
    mean, std = (", ".join(f"{value:g}" for value in description[key]) for key in ("mean", "std"))
    lines = "\n".join(_usage(description, WEIGHTS, CODE))
    return f"""# {description["backbone"]}, pre-trained by SwAV

A backbone that swav pre-trained on images without labels (SwAV, Caron et al. 2020, arXiv 2006.09882).

| | |
|---|---|
| network | {description["backbone"]}{width}{stem} |
| images | {description["in_channels"]} channels, {description["size"]} x {description["size"]} pixels, as in the run's own evaluation |
| normalisation | mean {mean}; std {std} |
| trained | {which(description)}; {description["epochs"]} whole epochs, batch {description["batch"]}, seed {description["seed"]} |

In this folder, without swav:

```python
{lines}
```

{RIGHTS}
"""


def which(description: Mapping[str, Any]) -> str:
    """Of which step exported weights are, and whether another one scored better."""
    step, best = description["step"], description["best_step"]
    return f"step {step}" + ("" if best in (None, step) else f", the last; step {best} scored best")


def _images_and_features(description: Mapping[str, Any]) -> tuple[str, str]:
    """A line that makes images of the form that is wanted, and one that takes them."""
    channels, size = description["in_channels"], description["size"]
    if channels == 1:
        mean, std = (
            f"{sum(w * v for w, v in zip(LUMA, description[key], strict=True)):.9g}" for key in ("mean", "std")
        )
        kind = "grey (luma)"
    else:
        mean, std = (f"torch.tensor({list(description[key])}).view(3, 1, 1)" for key in ("mean", "std"))
        kind = "RGB"
    said = ", ".join(f"{key}={description[key]}" for key in DECODING if key in description)
    kind += f" ({said})" if said else ""
    shape = f"{channels}, {size}, {size}"
    return (
        f"images = torch.rand(2, {shape})  # in place of yours: [N, {shape}], {kind} in 0..1",
        f"features = model((images - {mean}) / {std})",
    )
