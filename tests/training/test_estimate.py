"""Attacks: a probe that finds room where there is none, forgets what a step keeps, times the wrong thing, leaves workers
or files behind; and a forecast that is far from what a run then does.

On a GPU the same functions measure for real; here `peak` is a model of one. Run: pytest tests/training/test_estimate.py
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swav import algorithm, dist
from swav.config import Recipe
from swav.data.sources.open import open_images
from swav.errors import MachineError
from swav.network.backbone import count_parameters
from swav.network.heads import build_network
from swav.recipe_files import load_recipe
from swav.training import estimate, loop
from swav.training.auto import derive
from swav.training.choices import MachineAndData
from swav.training.step import Teacher, Trainer

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "crops": [{"count": 2, "size": 24, "scale": [0.3, 1.0]}, {"count": 1, "size": 16, "scale": [0.1, 0.3]}],
    "width": 0.125,
    "head_hidden": 16,
    "head_dim": 8,
    "prototypes": 12,
    "batch": 16,
    "queue_length": 0,
    "epochs": 3,
    "precision": "fp32",
}


def recipe(**changes: object) -> Recipe:
    return derive(
        load_recipe("tiny", SMALL | {"data": "unused", "workers": 0} | changes), MachineAndData(num_images=64)
    )[0]


# -- memory


@given(
    fixed=st.integers(0, 10**10),
    per_image=st.integers(1, 10**9),
    budget=st.integers(1, 10**11),
    most=st.sampled_from([1, 2, 8, 21, 64, 96, 256, 4096]),
    bend=st.floats(0.7, 1.5),
)
def test_what_is_found_fits_and_twice_as_much_would_not(
    fixed: int, per_image: int, budget: int, most: int, bend: float
) -> None:
    def takes(batch: int) -> int:
        return fixed + round(per_image * math.pow(batch, bend))  # not in proportion: kernels change with the batch

    def peak(batch: int) -> int | None:
        tried.append(batch)
        return takes(batch) if takes(batch) <= 1.1 * budget else None  # memory runs out above the budget

    tried: list[int] = []
    found = estimate.max_batch_that_fits(peak, most, budget)
    assert found == 0 or (found <= most and takes(found) <= budget and found in tried)
    assert max(tried) <= most and len(tried) <= 15
    if bend == 1:
        sizes = {most, *(2**i for i in range(13) if 2**i <= most)}
        assert found == max([0, *(size for size in sizes if takes(size) <= budget)])


@pytest.mark.parametrize(
    ("fixed", "budget", "found"),
    [(0, 10_000, 64), (0, 6_399, 32), (5_000, 6_000, 8), (5_000, 5_099, 0), (0, 10**9, 256)],
)
def test_the_largest_batch_is_found_in_a_few_steps(fixed: int, budget: int, found: int) -> None:
    tried: list[int] = []

    def peak(batch: int) -> int | None:
        tried.append(batch)
        return fixed + 100 * batch

    assert estimate.max_batch_that_fits(peak, 256, budget) == found
    assert found == 0 or len(tried) <= 5


def test_a_step_on_a_cpu_keeps_so_much_per_image_and_so_much_anyway():
    fixed, per_image = estimate.cpu_bytes(recipe())
    assert estimate.cpu_bytes(recipe(batch=32)) == (fixed, per_image)  # it is per image
    small, large = (
        recipe(
            crops=[
                {"count": 2, "size": size, "scale": [0.3, 1.0]},
                {"count": 1, "size": size // 2, "scale": [0.1, 0.3]},
            ]
        )
        for size in (64, 128)
    )
    assert estimate.cpu_bytes(large)[1] == pytest.approx(4 * estimate.cpu_bytes(small)[1], rel=0.1)
    assert estimate.cpu_bytes(recipe(width=0.25))[1] == pytest.approx(2 * per_image, rel=0.1)
    weights = 4 * count_parameters(build_network(recipe()))
    assert fixed == 4 * weights  # weights, gradients, and Adam's two
    assert estimate.cpu_bytes(recipe(optimizer="larc", lr=1.0))[0] == 3 * weights
    assert estimate.cpu_bytes(recipe(teacher_momentum=0.9))[0] == 5 * weights
    assert estimate.cpu_bytes(recipe(koleo=0.1))[1] > per_image  # the embeddings' nearest ones


def test_on_a_cpu_half_of_the_available_memory_is_the_bound(monkeypatch):
    fixed, per_image = estimate.cpu_bytes(recipe())
    monkeypatch.setattr(estimate, "available_memory", lambda _: 2 * (fixed + 5 * per_image) + 2)
    count, how = estimate.batch_fits(recipe(), CPU, most=16)
    assert count == 5 and "half of the" in how
    monkeypatch.setattr(estimate, "available_memory", lambda _: 10**12)
    assert estimate.batch_fits(recipe(), CPU, most=16)[0] == 16
    monkeypatch.setattr(estimate, "available_memory", lambda _: fixed)
    with pytest.raises(MachineError, match="at least one image"):
        estimate.batch_fits(recipe(), CPU, most=16)


def kept_by_a_real_step(settings: Recipe, images: int) -> float:
    """Bytes per image that a forward on the CPU keeps for the backward."""
    steps = estimate._Steps(settings, CPU)
    weights = {p.untyped_storage().data_ptr() for p in steps.trainer.network.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        steps.make([estimate._random_crops(settings, images, CPU)], images)
    return sum(count for place, count in kept.items() if place not in weights) / images


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"koleo": 0.1},
        {"backbone": "resnet50", "stem": "half"},
        {"backbone": "timm:test_vit", "width": 1.0, "stem": "imagenet"},
    ],
    ids=str,
)
def test_shapes_alone_tell_what_a_step_keeps(options):
    """The attention of a transformer too: on the meta device it would keep the matrix of all pairs."""
    crops = [{"count": 2, "size": 96, "scale": [0.3, 1.0]}, {"count": 1, "size": 32, "scale": [0.1, 0.3]}]
    settings = recipe(crops=crops, **options)
    expected = kept_by_a_real_step(settings, 2)
    assert estimate.cpu_bytes(settings)[1] == pytest.approx(estimate._OVERHEAD * expected, rel=0.01)


def test_half_precision_keeps_half_and_a_copy_of_the_weights():
    fixed, per_image = estimate.cpu_bytes(recipe(precision="fp32"))
    halved = estimate.cpu_bytes(recipe(precision="bf16"))
    assert halved[0] == fixed + 2 * count_parameters(build_network(recipe()))
    assert halved[1] < 0.65 * per_image


GIGA = 10**9


@pytest.fixture
def warnings(monkeypatch):
    """What is said of a step that takes a gigabyte whatever the batch, and 1.3 per image."""
    said: list[str] = []
    monkeypatch.setattr(estimate, "warn_once", said.append)
    monkeypatch.setattr(estimate, "_IMPORTED_LATER", GIGA // 4)
    monkeypatch.setattr(estimate, "_loader_bytes", lambda _: GIGA // 4)
    monkeypatch.setattr(estimate, "cpu_bytes", lambda _: (GIGA // 2, 13 * GIGA // 10))
    return said


def check(monkeypatch: pytest.MonkeyPatch, gigabytes: float, resumes: bool = False, **options: object) -> None:
    """Look at a run on a machine with so much memory."""
    monkeypatch.setattr(estimate, "available_memory", lambda _: int(gigabytes * GIGA))
    estimate.check_memory(recipe(**{"batch": 48, "koleo": 0.0} | options), CPU, resumes)


def test_a_step_that_does_not_fit_is_said_with_the_micro_batch_that_does(monkeypatch, warnings):
    check(monkeypatch, 63.4)
    assert warnings == []
    check(monkeypatch, 63.3)
    assert len(warnings) == 1 and "48 images at a time takes about 63.4 GB, 63.3 GB are available" in warnings[0]
    assert "use micro_batch=16 (" in warnings[0] and len(warnings[0].splitlines()) == 1
    check(monkeypatch, 63.3, micro_batch=16)
    assert len(warnings) == 1  # what is proposed is not warned of
    check(monkeypatch, 64.9 / 2)
    assert "use micro_batch=8 (" in warnings[1]  # the most that takes half, as for `auto`, and cuts 48 evenly
    check(monkeypatch, 3)
    assert "use micro_batch=1 (" in warnings[2] and "are of 1 image)" in warnings[2]


def test_one_image_at_a_time_is_the_least_and_two_with_koleo(monkeypatch, warnings):
    check(monkeypatch, 2.2, micro_batch=1)
    assert "micro_batch" not in warnings[-1] and "smaller crops" in warnings[-1]
    check(monkeypatch, 3.5, micro_batch=2, koleo=0.1)
    assert "micro_batch" not in warnings[-1]
    check(monkeypatch, 3.5, koleo=0.1)
    assert "micro_batch=2 " in warnings[-1]


def test_where_not_even_one_image_fits_the_run_is_refused(monkeypatch, warnings):
    with pytest.raises(
        MachineError, match=r"room for a step with 1 image at a time \(2\.0 GB\), found 2\.0 GB"
    ) as caught:
        check(monkeypatch, 1.99)
    assert caught.value.exit_code == 4 and len(str(caught.value).splitlines()) == 1
    with pytest.raises(MachineError, match="2 images at a time"):
        check(monkeypatch, 2.99, koleo=0.1)
    assert warnings == []
    check(monkeypatch, 2.01)  # only an estimate says that it doesn't fit
    assert len(warnings) == 1


def test_a_run_that_is_there_cannot_take_another_micro_batch(monkeypatch, warnings):
    check(monkeypatch, 60, resumes=True)
    assert "end other programs, or begin again (another --out)" in warnings[0]


def test_processes_of_a_machine_share_its_memory(monkeypatch, warnings):
    check(monkeypatch, 100)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check(monkeypatch, 100)
    assert len(warnings) == 1 and "a step of each process" in warnings[0] and "50.0 GB are available" in warnings[0]


@pytest.mark.parametrize("batch", [8, "auto"])
def test_every_run_is_looked_at_before_its_first_step(batch, shapes, tmp_path, monkeypatch, warnings):
    """Whether a recipe says the batch or leaves it at `auto`."""
    monkeypatch.setattr(estimate, "available_memory", lambda _: GIGA)
    settings = SMALL | {
        "data": str(shapes),
        "workers": 0,
        "batch": batch,
        "micro_batch": 0,
        "epochs": 1,
        "warmup_epochs": 0,
    }
    with pytest.raises(MachineError, match=r"at least one image|room for a step with"):
        loop.pretrain("tiny", out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_the_memory_of_a_gpu_is_torchs_to_refuse(monkeypatch):
    monkeypatch.setattr(estimate, "cpu_bytes", lambda _: pytest.fail("looked at"))
    estimate.check_memory(recipe(), torch.device("cuda"), resumes=False)


def test_batches_that_are_made_ahead_count(shapes, monkeypatch):
    """As many as the loader then has."""
    from swav.data import loader as loader_file
    from swav.data.loader import Loader
    from swav.views import view_spec

    monkeypatch.setattr(loader_file, "_STRETCH", 4)
    for workers in (1, 3):
        settings = recipe(workers=workers)
        loader = Loader(open_images(shapes), view_spec(settings), batch=16, workers=workers, rank=0, world_size=1,
                        start_step=0, total_steps=40, steps_per_epoch=4, on_device=False)  # fmt: skip
        try:
            batches = iter(loader)
            next(batches)
            views = sum(kind.nbytes for slot in loader._slots for kind in slot.views)
        finally:
            loader.close()
        assert estimate._loader_bytes(settings) == views


# -- speed


class Clock:
    """Every look at it is a tenth of a second later; steps that are to last longer let it run."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.1
        return self.now


def timed(monkeypatch: pytest.MonkeyPatch, clock: Clock, seconds: Callable[[int], float]) -> list[list[int]]:
    """Replaces the step by the passing of time; returns the list of images per piece that each is given."""
    steps: list[list[int]] = []

    def step(trainer: Trainer, micro_batches: Sequence[list[torch.Tensor]], number: int) -> None:
        steps.append([len(piece[0]) // 2 for piece in micro_batches])
        assert sum(steps[-1]) == trainer.batch
        clock.now += seconds(len(steps))

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr("swav.training.estimate.time.monotonic", clock)
    return steps


def of_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_short_enough", lambda recipe, steps, most: most)


def test_the_pace_is_that_of_the_steps_after_the_first_ones(shapes, monkeypatch):
    of_whole_batches(monkeypatch)
    steps = timed(monkeypatch, Clock(), lambda n: 30.0 if n == 1 else 0.9)
    throughput = estimate.throughput(open_images(shapes), recipe(), CPU)
    assert throughput == pytest.approx(16 / 1.0)
    assert steps == [[16]] * len(steps) and len(steps) <= 3 + estimate.SECONDS / 1.0 + 1


def test_a_batch_in_micro_batches_is_timed_by_two_of_these_in_a_step(shapes, monkeypatch):
    of_whole_batches(monkeypatch)
    steps = timed(monkeypatch, Clock(), lambda n: 0.9)
    assert estimate.throughput(open_images(shapes), recipe(micro_batch=4), CPU) == pytest.approx(8 / 1.0)
    assert steps == [[4, 4]] * len(steps)


def test_slow_steps_are_not_waited_for_longer_than_the_limit(shapes, monkeypatch):
    of_whole_batches(monkeypatch)
    steps = timed(monkeypatch, Clock(), lambda n: 49.9)
    assert estimate.throughput(open_images(shapes), recipe(workers=0), CPU) == pytest.approx(16 / 50)
    assert len(steps) == 3


@pytest.mark.parametrize("micro_batch", [0, 4])
def test_all_that_a_step_does_is_timed(micro_batch, shapes, monkeypatch):
    """A teacher, KoLeo, several sets of prototypes, and a second pass where the batch goes through in pieces."""
    calls = {"a teacher": 0, "KoLeo": 0, "codes": 0, "network": 0}

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return function(*arguments)

        return call

    monkeypatch.setattr(Teacher, "__call__", counted("a teacher", Teacher.__call__))
    monkeypatch.setattr("swav.training.step.koleo_loss", counted("KoLeo", algorithm.koleo_loss))
    monkeypatch.setattr("swav.training.step.sinkhorn_codes", counted("codes", algorithm.sinkhorn_codes))
    monkeypatch.setattr(Trainer, "_forward", counted("network", Trainer._forward))
    monkeypatch.setattr(estimate, "SECONDS", 0.0)
    monkeypatch.setattr(estimate, "_CPU_STEP_SECONDS", 0.0)
    options: dict[str, Any] = {"teacher_momentum": 0.9, "koleo": 0.1, "prototypes": [12, 5], "micro_batch": micro_batch}
    of_whole_batches(monkeypatch)
    assert estimate.throughput(open_images(shapes), recipe(**options), CPU) > 0
    micro_batches = 2 if micro_batch else 1
    steps = calls["codes"] // 4  # of two crops, on two sets
    assert steps > 0
    assert calls == {"a teacher": micro_batches * steps, "KoLeo": micro_batches * steps, "codes": 4 * steps, "network": 2 * micro_batches * steps}  # fmt: skip


def test_no_process_waits_for_another_while_it_measures(monkeypatch):
    """Each makes as many steps as it has time for: a collective in one of them would hang or mix the processes."""

    def collective(*_: Any, **__: Any) -> None:
        raise AssertionError("a step that is measured talks to other processes")

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", collective)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", collective)
    assert dist.world_size() == 2
    settings = recipe(teacher_momentum=0.9)
    estimate._Steps(settings, CPU).make([estimate._random_crops(settings, 4, CPU)], 4)
    assert estimate.cpu_bytes(settings)[1] > 0


def test_long_steps_are_probed_with_fewer_images(monkeypatch):
    clock = Clock()
    steps = timed(monkeypatch, clock, lambda _: 0.05 * steps[-1][0])
    assert estimate._short_enough(recipe(), estimate._Steps(recipe(), CPU), 64) == 8
    assert steps == [[2], [4], [8]]


def test_a_slow_first_step_does_not_shorten_the_ones_that_are_timed(monkeypatch):
    """A batch of 4 in place of 32 gave 0.5 images/s where the run then made 3."""
    clock = Clock()
    timed(monkeypatch, clock, lambda n: 30.0 if n == 1 else 0.001)
    assert estimate._short_enough(recipe(), estimate._Steps(recipe(), CPU), 64) == 64


# -- forecast


def test_the_forecast_speaks_of_time_memory_disk_and_how_far_off_it_is(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "throughput", lambda *_: 8.0)
    run = tmp_path / "some" / "run"
    lines = dict(
        line.split(maxsplit=1)
        for line in estimate.estimate_run(open_images(shapes), 0, recipe(epochs=900), CPU, run).splitlines()
    )
    assert lines["time"] == "2.0 hours at 8 images/s"  # 900 epochs of 64 images
    assert "available" in lines["memory"] and "TOO MUCH" not in lines["memory"]
    assert "may be off by" in lines["measured"]
    weights = 4 * count_parameters(build_network(recipe()))
    assert lines["disk"].startswith(f"{5 * 3 * weights / 1e6:.1f} MB of checkpoints")
    assert not run.parent.exists()


@pytest.mark.parametrize(
    ("epochs", "throughput", "words"),
    [(1, 8.0, "8 s at 8 images/s"), (1, 0.4, "3 minutes at 0.4 images/s"), (90, 1234.5, "5 s at 1234 images/s")],
)
def test_a_short_time_and_a_slow_pace_are_not_rounded_to_nothing(epochs, throughput, words, shapes, tmp_path):
    settings = recipe(epochs=epochs, warmup_epochs=0)
    assert estimate.estimate_run(open_images(shapes), 0, settings, CPU, tmp_path, throughput).startswith(
        f"time       {words}\n"
    )


def test_the_evaluation_at_the_end_is_foreseen(shapes, tmp_path):
    line = estimate.estimate_run(
        open_images(shapes), 96, recipe(epochs=3, knn_every_epochs=2.0), CPU, tmp_path, 1.0
    ).splitlines()[0]
    once = estimate.estimate_run(
        open_images(shapes), 96, recipe(epochs=3, knn_every_epochs=3.0), CPU, tmp_path, 1.0
    ).splitlines()[0]
    assert line != once and "of it for kNN" in once


def test_what_does_not_fit_is_called_so(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "throughput", lambda *_: 8.0)
    monkeypatch.setattr(estimate, "available_memory", lambda _: 1000)
    assert "TOO MUCH" in estimate.estimate_run(open_images(shapes), 0, recipe(), CPU, tmp_path)


def test_a_checkpoint_takes_what_was_forecast(shapes, tmp_path):
    run = loop.pretrain(
        "tiny", out=tmp_path / "run", **SMALL | {"data": str(shapes), "workers": 0, "epochs": 2, "knn_every_epochs": 0}
    )
    checkpoint = max((run / "checkpoints").glob("step_*"))
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    network = build_network(recipe())
    assert size == pytest.approx(
        estimate._checkpoint_bytes(recipe(), network), abs=150_000
    )  # headers and BatchNorm's buffers
