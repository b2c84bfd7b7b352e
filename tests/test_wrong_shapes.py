"""Tensor functions as a user calls them, where no checker of types stands before them.

Attacks: arguments of a wrong shape or type that give a number all the same (scores of all crops, a row that is repeated for
others, scores in the place of classes), or an error that names neither the argument nor the right call.
Run: pytest tests/test_wrong_shapes.py
"""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import swav.algorithm
import swav.data.augment.crops
import swav.metrics
import swav.weights.encoder
from swav.network.heads import build_network
from swav.recipe_files import load_recipe


def as_users_import_it(module: ModuleType) -> ModuleType:
    """A second copy, made without the hook that has shapes checked in tests."""
    assert module.__file__
    spec = importlib.util.spec_from_file_location(f"plain_{module.__name__.rpartition('.')[2]}", module.__file__)
    assert spec is not None and spec.loader is not None
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    return plain


algorithm, metrics, views, encoder = map(
    as_users_import_it, (swav.algorithm, swav.metrics, swav.data.augment.crops, swav.weights.encoder)
)
encoder.val_view = views.val_view  # type: ignore[attr-defined]  # which it would take from the checked one
Z = torch.zeros
IMAGE = np.zeros((9, 8, 3), np.uint8)
NORMAL = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)


def queue() -> Any:
    return algorithm.Queue(6, 4, 2)


def network() -> Any:
    recipe = load_recipe("tiny", {"width": 0.125, "prototypes": 4})
    return encoder.Encoder(build_network(recipe), recipe, "random:tiny")


def state(*shape: int) -> dict[str, Any]:
    return {"embeddings": Z(*shape), "count": torch.tensor(3)}


# A call that is right, and calls of the same function that are not; what the message of these must hold.
CASES: dict[str, tuple[Callable[[], Any], list[Callable[[], Any]], str]] = {
    "sinkhorn_codes": (
        lambda: algorithm.sinkhorn_codes(Z(4, 3)),
        [partial(algorithm.sinkhorn_codes, Z(s)) for s in [(2, 4, 3), (4,), (), (0, 3), (4, 0), (1, 2, 4, 3)]],
        r"\[sinkhorn_codes\(s\) for s in scores\[:2\]\]",
    ),
    "hard_assignments": (
        lambda: algorithm.hard_assignments(Z(2, 4, 3)),
        [lambda: algorithm.hard_assignments(Z(())), lambda: algorithm.hard_assignments(Z(4, 0))],
        "sinkhorn_codes",
    ),
    "swapped_loss": (
        lambda: algorithm.swapped_loss(Z(3, 4, 5), Z(2, 4, 5), (0, 1)),
        [
            partial(algorithm.swapped_loss, Z(s), Z(q), (0, 1))
            for s, q in [
                ((3, 4, 5), (4, 5)),
                ((12, 5), (2, 4, 5)),
                ((3, 4, 5), (2, 1, 5)),  # einsum would repeat the one sample, or the one prototype
                ((3, 4, 5), (2, 4, 1)),
                ((3, 4, 5), (2, 5, 4)),
                ((3, 4, 5), (2, 8, 5)),
                ((3, 0, 5), (2, 0, 5)),
            ]
        ],
        r"torch\.stack\(\[sinkhorn_codes",
    ),
    "koleo_loss": (
        lambda: algorithm.koleo_loss(Z(2, 4, 3)),
        [partial(algorithm.koleo_loss, Z(s)) for s in [(4, 3), (4,), (1, 2, 4, 3)]],
        r"koleo_loss\(z\[None\]\)",
    ),
    "normalize_prototypes_": (
        lambda: algorithm.normalize_prototypes_(Z(4, 3)),
        [partial(algorithm.normalize_prototypes_, Z(s)) for s in [(2, 4, 3), (4,)]],
        r"prototypes\.weight",
    ),
    "Queue.push": (
        lambda: queue().push(Z(2, 3, 4), torch.tensor(False)),
        [partial(queue().push, Z(s)) for s in [(3, 4), (1, 3, 4), (3, 3, 4), (2, 3, 5), (2, 3)]],
        r"queue\.push\(z\[code_views\]\)",
    ),
    "Queue.push, flag": (
        lambda: queue().push(Z(2, 3, 4), torch.tensor([True])),
        [partial(queue().push, Z(2, 3, 4), Z(s) > 0) for s in [(4,), (6, 1), (0,)]],
        r"skip\.any\(\)",
    ),
    "Queue.load_state_dict": (
        lambda: queue().load_state_dict(state(2, 6, 4)),
        [partial(queue().load_state_dict, state(*s)) for s in [(1, 6, 4), (2, 1, 4), (4,), (2, 6, 1), (2, 7, 4)]],
        r"Queue\(L, D, A\)",
    ),
    "nearest": (
        lambda: metrics.nearest(Z(5, 3), Z(2, 3), 1),
        [
            partial(metrics.nearest, Z(b), Z(q), 1)
            for b, q in [((5, 3), (3,)), ((5, 3), (2, 4)), ((5,), (2, 5)), ((2, 5, 3), (2, 3)), ((5, 3), (2, 2, 3))]
        ],
        r"features\[None\]",
    ),
    "knn_vote": (
        lambda: metrics.knn_vote(Z(5, 3), Z(5).long(), Z(2, 3), [1], 2),
        [partial(metrics.knn_vote, Z(5, 3), Z(s).long(), Z(2, 3), [1], 2) for s in [(6,), (5, 2), (4,), (5, 1)]],
        r"labels\.argmax\(dim=1\)",
    ),
    "top_k_accuracy": (
        lambda: metrics.top_k_accuracy(Z(4, 2).long(), Z(4).long(), 1),
        [
            lambda: metrics.top_k_accuracy(Z(4, 2), Z(4).long(), 1),  # scores: right where they equal a class
            lambda: metrics.top_k_accuracy(Z(4, 2).long(), Z(1).long(), 1),  # one label for all
            lambda: metrics.top_k_accuracy(Z(4).long(), Z(4).long(), 1),
            lambda: metrics.top_k_accuracy(Z(4, 2).long(), Z(4, 1).long(), 1),
        ],
        r"scores\.topk\(k\)\.indices",
    ),
    "average_precision": (
        lambda: metrics.average_precision(Z(4, 2), Z(4) > 0),
        [
            lambda: metrics.average_precision(Z(4), Z(4) > 0),  # a number for every pair
            lambda: metrics.average_precision(Z(4, 2), Z(6) > 0),
            lambda: metrics.average_precision(Z(4, 2), Z(4, 2) > 0),
            lambda: metrics.average_precision(Z(4, 2), Z(4).long() - 1),  # -1 counts as minus one hit
        ],
        r"scores\[:, None\], labels == 1",
    ),
    "rankme": (
        lambda: metrics.rankme(Z(4, 3)),
        [partial(metrics.rankme, Z(s)) for s in [(2, 4, 3), (4,)]],
        r"embeddings\.flatten\(0, 1\)",
    ),
    "Encoder.forward": (
        lambda: network()(Z(2, 3, 32, 32)),
        [
            lambda: network()(Z(3, 32, 32)),
            lambda: network()(Z(2, 32, 32, 3)),
            lambda: network()(Z(2, 1, 32, 32)),
            lambda: network()(Z(2, 3, 32, 32).byte()),
            lambda: network().stages(Z(2, 32, 32, 3)),
        ],
        r"encoder\.preprocess\(image\)",
    ),
    "Encoder.preprocess": (
        lambda: network().preprocess(IMAGE),
        [
            partial(network().preprocess, image)
            for image in [
                IMAGE[:, :, 0],
                IMAGE / np.float32(255),
                IMAGE.transpose(2, 0, 1),
                np.zeros((9, 8, 4), np.uint8),
                torch.from_numpy(IMAGE),
            ]
        ],
        r"convert\('RGB'\)",
    ),
    "resize_view": (
        lambda: views.resize_view(IMAGE, 4),
        [lambda: views.resize_view(IMAGE.transpose(2, 0, 1), 4), lambda: views.resize_view(IMAGE / 255, 4)],
        r"convert\('RGB'\)",
    ),
    "to_input": (
        lambda: views.to_input(Z(2, 4, 4, 3).byte(), *NORMAL, lighting=Z(2, 3)),
        [
            lambda: views.to_input(Z(2, 3, 4, 4).byte(), *NORMAL),
            lambda: views.to_input(Z(4, 4, 3).byte(), *NORMAL),
            lambda: views.to_input(Z(2, 4, 4, 3), *NORMAL),  # 0..1 already: divided by 255 again
        ],
        r"permute\(0, 2, 3, 1\)",
    ),
    "to_input, lighting": (
        lambda: views.to_input(Z(2, 4, 4, 3).byte(), *NORMAL),
        [partial(views.to_input, Z(2, 4, 4, 3).byte(), *NORMAL, lighting=Z(s)) for s in [(1, 3), (3,), (2, 1)]],
        r"views\.lighting",
    ),
    "cut": (
        lambda: views.cut(views.planes(IMAGE), (0, 0, 4, 4), Z(1, 3, 2, 2).byte()),
        [
            lambda: views.cut(views.planes(IMAGE), (0, 0, 4, 4), Z(1, 1, 2, 2).byte()),
            lambda: views.cut(views.planes(IMAGE), (0, 0, 4, 4), Z(2, 3, 2, 2).byte()),
            lambda: views.cut(torch.from_numpy(IMAGE)[None], (0, 0, 4, 4), Z(1, 3, 2, 2).byte()),
        ],
        r"planes\(image\)",
    ),
}
WRONG = [
    pytest.param(call, advice, id=f"{name}-{i}")
    for name, (_, calls, advice) in CASES.items()
    for i, call in enumerate(calls)
]


@pytest.mark.parametrize("name", CASES)
def test_the_right_call_is_taken(name):
    CASES[name][0]()


@pytest.mark.parametrize(("call", "advice"), WRONG)
def test_a_wrong_shape_is_refused_in_one_line_with_what_was_found_and_the_right_call(call, advice):
    with pytest.raises(ValueError, match=advice) as caught:
        call()
    message = str(caught.value)
    assert "expected" in message and "found" in message and "\n" not in message


@given(shape=st.lists(st.integers(0, 5), max_size=5))
def test_codes_are_made_of_one_crop_and_of_nothing_else(shape):
    if len(shape) == 2 and all(shape):
        assert algorithm.sinkhorn_codes(Z(*shape)).shape == tuple(shape)
    else:
        with pytest.raises(ValueError, match="call sinkhorn_codes once per crop"):
            algorithm.sinkhorn_codes(Z(shape))


@given(scores=st.lists(st.integers(1, 3), min_size=1, max_size=4), codes=st.lists(st.integers(1, 3), max_size=4))
def test_a_loss_is_of_scores_and_codes_that_agree_and_of_nothing_else(scores, codes):
    views = tuple(range(codes[0])) if codes else ()
    agree = len(scores) == len(codes) == 3 and scores[1:] == codes[1:] and 2 <= scores[0] >= codes[0]
    if agree:
        assert algorithm.swapped_loss(Z(scores), Z(codes), views).shape == ()
    else:
        with pytest.raises(ValueError, match="expected"):
            algorithm.swapped_loss(Z(scores), Z(codes), views)


def test_the_package_as_it_is_imported_refuses_the_scores_of_all_crops():
    script = "import torch, swav; swav.sinkhorn_codes(torch.zeros(8, 64, 30))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(
        "ValueError: scores: expected [B, K] of one code-giving crop, found [8, 64, 30]; call sinkhorn_codes once per crop"
    )
