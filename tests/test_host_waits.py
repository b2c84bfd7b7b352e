"""A step makes its batch once per pass, and the host never waits for the device: on a GPU that is not there.

Attacks: values that the host reads, copies that block, lists as indices, masks, a batch that is brought to the device and
coloured anew each time that it is asked for. See host_waits.py for what this cannot see.
Run: pytest tests/test_host_waits.py
"""

import contextlib
import sys
from collections import Counter
from typing import Any

import pytest
import torch

from swav.config import Recipe
from swav.data.augment.photometric import NUM_PARAMS
from swav.data.device import MicroBatches
from swav.data.loader import Batch
from swav.network.heads import build_network
from swav.recipe_files import load_recipe
from swav.system import Readback
from swav.training import step as learner_module
from swav.training.auto import derive
from swav.training.choices import MachineAndData
from swav.training.monitor import STEP_VALUES, Monitor
from swav.training.step import Trainer
from swav.views import view_spec
from tests.host_waits import GPU, FakeGpu, fake_gpu, placed
from tests.training.test_step import SMALL

ALL: dict[str, Any] = {
    "queue_length": 16,
    "queue_start_epoch": 0,
    "freeze_prototypes_steps": 1,
    "prototypes": [12, 5],
    "hard_codes": True,
    "teacher_momentum": 0.9,
    "koleo": 0.1,
    "precision": "fp16",
}
OPTIONS: list[Any] = [
    {"optimizer": "larc"},
    pytest.param(
        {"optimizer": "adam", "in_channels": 1, "sinkhorn": "local", "micro_batch": 4}, marks=pytest.mark.slow
    ),
    pytest.param(ALL | {"optimizer": "lars"}, marks=pytest.mark.slow),
    ALL | {"micro_batch": 4},
]


def batch(recipe: Recipe, step: int) -> Batch:
    """As the loader leaves it to a GPU; in memory that, for all that can be seen here, is pinned."""
    views = [torch.zeros(c.count * 8, c.size, c.size, 3, dtype=torch.uint8) for c in recipe.crops]
    return Batch(step, views, [torch.zeros(len(kind), NUM_PARAMS) for kind in views], torch.arange(8), [])


class Counted(MicroBatches):
    """Counts how often the step has each piece made. (The checker of types, in tests, takes a look at one too.)"""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.made: Counter[int] = Counter()

    def __getitem__(self, piece: Any) -> Any:
        if piece < len(self) and "beartype" not in sys._getframe(1).f_code.co_filename:
            self.made[piece] += 1
        return super().__getitem__(piece)


def settled(changes: dict[str, Any]) -> Recipe:
    return derive(load_recipe("tiny", SMALL | changes), MachineAndData(num_images=32))[0]


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # by a copy of a network
@pytest.mark.parametrize("changes", OPTIONS, ids=lambda changes: "-".join(changes) or "plain")
def test_the_host_never_waits_in_a_step_and_makes_each_piece_once_a_pass(changes, monkeypatch):
    # What asks the driver whether there is a GPU. A generator's state lies on the host: to keep it is no wait.
    monkeypatch.setattr(learner_module, "autocast", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(learner_module, "random_state", lambda _: {})
    monkeypatch.setattr(learner_module, "set_random_state", lambda *_: None)
    recipe = settled(changes)
    network = build_network(recipe)
    at_a_time = recipe.images_per_forward(1)
    with fake_gpu() as gpu:
        ours = Trainer(recipe, placed(network), steps_per_epoch=8)
        monitor = Monitor(sum(recipe.prototype_sets), recipe.head_dim, GPU)
        gpu.waits.clear()
        for step in range(3):  # prototypes frozen and free, the queue empty, filling and full
            micro_batches = Counted(batch(recipe, step), view_spec(recipe), GPU, at_a_time)
            values = ours.step(micro_batches, step, lambda: (True, 0.5, 75))
            monitor.watch(ours.embeddings, ours.codes)
            once = 2 if step == 0 and recipe.in_channels == 3 else 0  # mean and std are brought there once and for all
            assert [wait.partition(":")[0] for wait in gpu.waits] == once * ["_to_copy cpu to cuda at crops.py"]
            gpu.waits.clear()
            assert micro_batches.made == dict.fromkeys(range(8 // at_a_time), 1 if at_a_time == 8 else 2)
            assert values.device == GPU and values.shape == (len(STEP_VALUES) + 4,)
            assert ours.embeddings.device == GPU


def test_what_is_asked_for_in_a_step_comes_back_as_it_was():
    ours = Trainer(settled({}), build_network(settled({})), steps_per_epoch=8)
    crops = [torch.randn(count * 8, 3, size, size) for count, size in ((1, 16), (2, 24))]
    assert ours.step([crops], 0, lambda: (True, 0.5, 75)).tolist()[-4:] == [0, 1, 0.5, 75]


def a_step_that_waits(gpu: FakeGpu, name: str) -> list[str]:
    x = torch.ones(4, 3, device=GPU)
    on_host = torch.ones(4, 3)
    calls: dict[str, Any] = {
        "item": lambda: x.sum().item(),
        "float": lambda: float(x.sum()),
        "if": lambda: bool((x > 0).all()),
        "list of tensors": lambda: [int(one) for one in x[:, 0].unbind()],
        "to the host": lambda: x.cpu(),
        "to the device": lambda: on_host.to(GPU),
        "into the device": lambda: x.copy_(on_host),
        "a number": lambda: torch.tensor(1.0, device=GPU),
        "a list": lambda: torch.tensor([1.0, 2.0], device=GPU),
        "a list as an index": lambda: x[[0, 2]],
        "a list that is set": lambda: x.__setitem__([0, 2], 0),
        "indices on the host": lambda: x.index_select(0, torch.arange(2)),
        "a mask": lambda: x[x > 0],
        "nonzero": lambda: x.nonzero(),
        "a copy that does not block": lambda: on_host.to(GPU, non_blocking=True),
        "back, not blocking": lambda: x.to("cpu", non_blocking=True),
        "fill": lambda: torch.full((), 2.0, device=GPU),
        "a number as an operand": lambda: torch.where(x > 0, 0.0, x * 2),
        "numbers as indices": lambda: x[1, 2].zero_(),
    }
    with contextlib.suppress(Exception):  # a fake tensor has no values: what follows from them cannot be computed
        calls[name]()
    return gpu.waits


@pytest.mark.parametrize(
    ("name", "waits"),
    [
        *(
            (name, True)
            for name in ("item", "float", "if", "list of tensors", "to the host", "to the device", "a mask")
        ),
        *((name, True) for name in ("into the device", "a number", "a list", "a list as an index", "nonzero")),
        *((name, True) for name in ("a list that is set", "indices on the host")),
        *((name, False) for name in ("a copy that does not block", "back, not blocking", "fill")),
        *((name, False) for name in ("a number as an operand", "numbers as indices")),
    ],
)
def test_the_tool_sees_what_waits_and_nothing_else(name, waits):
    if name in ("a list as an index", "a list that is set") and tuple(map(int, torch.__version__.split(".")[:2])) < (
        2,
        15,
    ):
        pytest.skip(f"torch {torch.__version__}: a list as an index is not seen by its fake tensors (2.11 was tried)")
    with fake_gpu() as gpu:
        assert bool(a_step_that_waits(gpu, name)) == waits


def test_values_are_copied_at_once_and_waited_for_by_an_event_of_their_own(monkeypatch):
    happened = []

    class Event:
        def record(self, stream: Any) -> None:
            happened.append("recorded")

        def synchronize(self) -> None:
            happened.append("waited")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    with fake_gpu() as gpu:
        readback = Readback(torch.ones(3, device=GPU))
        assert gpu.waits == [] and happened == ["recorded"] and readback._values.device.type == "cpu"
    readback._values = torch.ones(3)
    assert readback.tolist() == [1, 1, 1] and happened == ["recorded", "waited"]
    assert Readback(torch.arange(3.0)).tolist() == [0, 1, 2] and len(happened) == 2
