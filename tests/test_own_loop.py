"""Attacked: the page about a loop of one's own: code that does not run, does not learn, or does not use its queue.

Run: pytest tests/test_own_loop.py
"""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import swav
from swav.data.synthetic.writers import write_shapes

PAGE = (Path(__file__).parents[1] / "docs/own_loop.md").read_text(encoding="utf-8")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What the page's code has made, and how many rows each call for codes balanced."""
    folder = tmp_path_factory.mktemp("own")
    write_shapes(folder / "photos", train=48, val=1, size=48)
    write_shapes(folder / "labelled", train=40, val=20, size=48)
    loop, measured = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    namespace: dict[str, Any] = {}
    rows: list[int] = []
    original = swav.sinkhorn_codes

    def counting(scores: torch.Tensor) -> torch.Tensor:
        rows.append(len(scores))
        return original(scores)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(swav, "sinkhorn_codes", counting)
        torch.manual_seed(0)
        exec(loop, namespace)
        before = {name: tensor.clone() for name, tensor in namespace["backbone"].state_dict().items()}
        exec(measured, namespace)
    return namespace, rows, before


def test_the_loop_learns_with_its_queue(ran):
    namespace, rows, _ = ran
    losses = namespace["losses"]
    assert len(losses) == 4 * 3 and rows == [16] * 8 + [16 + 64] * 16
    assert all(map(math.isfinite, losses)) and sum(losses[-3:]) / 3 < losses[0]


def test_the_backbone_is_measured_and_left_as_it_was(ran):
    namespace, _, before = ran
    backbone, results = namespace["backbone"], namespace["results"]
    assert {(row.metric, row.weights, row.n) for row in results.results} == {
        ("top-1 k=1", "mine", 20),
        ("top-5 k=1", "mine", 20),
        ("top-1 k=5", "mine", 20),
        ("top-5 k=5", "mine", 20),
    }
    assert backbone.training and all(parameter.requires_grad for parameter in backbone.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert not hasattr(backbone, "num_features")
