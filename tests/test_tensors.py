"""Attacks: a tensor that is broadcast or rounded into its place, one too few or too many, and weights that are no numbers.

Run: pytest tests/test_tensors.py
"""

import pytest
import torch
from torch import Tensor

from swav.errors import CheckpointError
from swav.tensors import negative_variances, not_finite, require_same_form, require_sound, some


def expected() -> dict[str, Tensor]:
    return {"a.weight": torch.zeros(4, 3), "a.count": torch.tensor(0), "b.weight": torch.zeros(3)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"a.weight": torch.zeros(1, 3)}, r"wrong a.weight float32 \[1, 3\] instead of float32 \[4, 3\]"),
        ({"a.weight": torch.zeros(())}, r"wrong a.weight float32 \[\]"),
        ({"a.weight": torch.zeros(4, 3).double()}, r"float64 \[4, 3\] instead of float32 \[4, 3\]"),
        ({"a.count": torch.tensor(0.0)}, r"wrong a.count float32 \[\] instead of int64 \[\]"),
        ({"c.weight": torch.zeros(3)}, "unexpected c.weight"),
        ({"b.weight": None}, "missing b.weight"),
        ({"b.weight": None, "c.weight": torch.zeros(3)}, "missing b.weight; unexpected c.weight"),
    ],
    ids=str,
)
def test_whatever_copying_would_hide_is_named(changes, words):
    found = {name: tensor for name, tensor in (expected() | changes).items() if tensor is not None}
    with pytest.raises(CheckpointError, match=words) as caught:
        require_same_form("model.safetensors", found, expected())
    assert len(str(caught.value).splitlines()) == 2 and caught.value.exit_code == 6


def test_other_values_in_another_order_are_accepted():
    require_same_form("model.safetensors", dict(reversed([(n, t + 1) for n, t in expected().items()])), expected())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_one_value_among_many_that_is_no_number_is_found(dtype, value):
    tensors = {"whole": torch.ones(3), "empty": torch.ones(0), "count": torch.tensor(3), "odd": torch.ones(50, 2)}
    assert not_finite(tensors) == []
    tensors["odd"] = tensors["odd"].to(dtype)
    tensors["odd"][49, 1] = value
    assert not_finite(tensors) == ["odd"]
    with pytest.raises(CheckpointError, match="infinite or no number in odd;"):
        require_sound("w.pth", tensors)


def test_a_variance_below_zero_is_found_and_other_negative_values_are_not():
    tensors = {"bn.weight": -torch.ones(2), "bn.running_mean": -torch.ones(2), "bn.running_var": torch.zeros(2)}
    require_sound("w.pth", tensors)
    tensors["bn.running_var"][1] = -1e-9
    assert negative_variances(tensors) == ["bn.running_var"]
    with pytest.raises(CheckpointError, match=r"negative ones in bn.running_var"):
        require_sound("w.pth", tensors)


def test_long_lists_are_cut():
    assert some(["a"]) == "a" and some(list("abcde")) == "a, b, c and 2 more"
