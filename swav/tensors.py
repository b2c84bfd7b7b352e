"""Tensors before they are believed: exactly the expected names, shapes and types; finite; no negative variance."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from swav.errors import CheckpointError


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def require_same_form(where: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare what a file holds with what it is to be copied into: `copy_` would broadcast, and round, without a word.

    Args:
        where: the file, for the message.
        found, expected: tensors by name; only their names, shapes and types are looked at.

    Raises:
        CheckpointError: a name is missing or unexpected, or a shape or type differs.
    """
    wrong = [
        f"{name} {_form(found[name])} instead of {_form(tensor)}"
        for name, tensor in expected.items()
        if name in found and _form(found[name]) != _form(tensor)
    ]
    faults = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "wrong": wrong,
    }
    if any(faults.values()):
        raise CheckpointError(
            f"{where}: its tensors do not fit: {'; '.join(f'{kind} {some(names)}' for kind, names in faults.items() if names)}\n"
            "it is whole, but of other settings or written by another version; put a checkpoint of these settings in its place"
        )


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold an infinite value or no number. Waits once for each device."""
    return _where(lambda tensor: ~tensor.isfinite().all(), tensors)


def negative_variances(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of BatchNorm's running variances that are below 0 somewhere."""
    return _where(lambda t: (t < 0).any(), {name: t for name, t in tensors.items() if name.endswith("running_var")})


def _where(test: Callable[[Tensor], Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            by_device.setdefault(tensor.device, {})[name] = test(tensor)
    return [
        name
        for flags in by_device.values()
        for name, flag in zip(flags, torch.stack(list(flags.values())).tolist(), strict=True)
        if flag
    ]


def require_sound(where: str, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that no training leaves behind, which would give numbers all the same.

    Raises:
        CheckpointError: a value is infinite or no number, or a running variance is negative.
    """
    for problem, names in (
        ("finite weights, found values that are infinite or no number", not_finite(weights)),
        ("running variances of 0 or more, found negative ones", negative_variances(weights)),
    ):
        if names:
            raise CheckpointError(f"{where}: expected {problem} in {some(names)}; use another checkpoint or file")
