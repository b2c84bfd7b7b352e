"""Attacked: the order and every pixel are a pure function of the step, whatever the number of workers and processes;
and no worker is left, hangs, or dies unnoticed.
"""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swav.config import Crop, Recipe
from swav.data import loader as loader_module
from swav.data import workers as workers_module
from swav.data.augment.photometric import apply_batched
from swav.data.images import Images, Unreadable
from swav.data.loader import Loader, epoch_order
from swav.data.sources.open import open_images
from swav.data.sources.pixels import AS_STORED
from swav.data.sources.walk import ROW, Names
from swav.errors import DataError, MachineError
from swav.signals import STOPPING
from swav.views import view_spec
from tests.processes import alive, loader_processes

NUM_IMAGES, BATCH = 22, 4
PER_EPOCH = NUM_IMAGES // BATCH
CROPS = (Crop(count=2, size=16, scale=(0.14, 1.0)), Crop(count=3, size=8, scale=(0.05, 0.14)))


class Made:
    """A storage of images of one colour each (or noise), some of which cannot be read, or end the process that reads them."""

    root, inodes, in_memory, how = Path("memory"), None, False, AS_STORED
    rows = np.zeros(NUM_IMAGES, ROW)
    names = Names(b"%d.png" % i for i in range(NUM_IMAGES))

    def __init__(self, noise=True, bad=(), action=None, at=-1):
        self.noise, self.broken, self.action, self.at = noise, set(bad), action, at

    def __len__(self):
        return NUM_IMAGES

    def name(self, i):
        return f"{i}.png"

    def read(self, i):
        if i == self.at:
            self.action()
        if i in self.broken:
            raise Unreadable(self.name(i), "broken")
        if self.noise:
            return np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
        return np.full((20, 30 + i, 3), 10 * i, np.uint8)

    def read_as_pillow(self, i):
        return self.read(i), None

    def read_bytes(self, i):
        return bytes(self.read(i))

    def select(self, indices):
        raise NotImplementedError("the loader selects nothing")

    def decoded(self, how):
        raise NotImplementedError("nothing is left open")

    def content(self):
        return b""


def made(**how):
    return Images(Made(**how))


def recipe(**settings):
    return Recipe.model_validate({"crops": CROPS, "batch": BATCH, "workers": 0, **settings})


def load(images=None, start=0, total=PER_EPOCH, rank=0, world_size=1, on_device=False, per_epoch=PER_EPOCH, **settings):
    wanted = recipe(**settings)
    return Loader(
        images or made(),
        view_spec(wanted),
        batch=wanted.batch,
        workers=wanted.workers,
        rank=rank,
        world_size=world_size,
        start_step=start,
        total_steps=total,
        steps_per_epoch=per_epoch,
        on_device=on_device,
    )


def kept(batches):
    """Copies of everything that a batch says; its memory is used again."""
    return [
        (
            batch.step,
            [view.clone() for view in batch.views],
            None if batch.params is None else [kind.clone() for kind in batch.params],
            batch.indices.clone(),
            batch.unreadable,
        )
        for batch in batches
    ]


def assert_same(left, right):
    assert len(left) == len(right)
    for (step, *tensors, unreadable), (other_step, *other_tensors, other_unreadable) in zip(left, right, strict=True):
        assert step == other_step and unreadable == other_unreadable
        torch.testing.assert_close(tensors, other_tensors, rtol=0, atol=0)


# -- the order


def test_an_epochs_order_is_a_permutation_of_its_own():
    orders = [epoch_order(seed, epoch, 50).tolist() for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(map(tuple, orders))) == 6
    assert epoch_order(1, 2, 50).tolist() == orders[-1]


def test_batches_walk_through_the_order_and_leave_out_the_last_partial_one():
    batches = kept(load(total=2 * PER_EPOCH))
    assert [batch[0] for batch in batches] == list(range(2 * PER_EPOCH))
    for epoch in (0, 1):
        seen = torch.cat([batch[3] for batch in batches[epoch * PER_EPOCH : (epoch + 1) * PER_EPOCH]])
        assert seen.tolist() == epoch_order(0, epoch, NUM_IMAGES)[: PER_EPOCH * BATCH].tolist()


def test_views_are_crop_major():
    """Every image has one colour, which cropping keeps."""
    plain = {"jitter_probability": 0, "grayscale": 0, "blur": 0}
    for batch in load(made(noise=False), **plain):
        for crop, views in zip(CROPS, batch.views, strict=True):
            assert views.shape == (crop.count * BATCH, crop.size, crop.size, 3)
            colours = views.unflatten(0, (crop.count, BATCH)).flatten(2)
            expected = (10 * batch.indices)[None, :, None].expand_as(colours)
            torch.testing.assert_close(colours.long(), expected)


# -- the same pixels, whoever makes them


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_number_of_workers_changes_nothing(workers, on_device):
    images, total = made(bad=[3, 4]), 2 * PER_EPOCH
    assert_same(
        kept(load(images, total=total, on_device=on_device)),
        kept(load(images, total=total, on_device=on_device, workers=workers)),
    )


def test_two_processes_make_the_halves_of_one_processs_batches():
    for whole, *splits in zip(
        kept(load()), kept(load(rank=0, world_size=2)), kept(load(rank=1, world_size=2)), strict=True
    ):
        assert whole[3].tolist() == [*splits[0][3].tolist(), *splits[1][3].tolist()]
        for kind, crop in enumerate(CROPS):
            parts = [split[1][kind].unflatten(0, (crop.count, BATCH // 2)) for split in splits]
            torch.testing.assert_close(torch.cat(parts, dim=1).flatten(0, 1), whole[1][kind], rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("batch", "world_size"), [(4, 2), (21, 3), (12, 4), (24, 4), (32, 1)])
def test_rounded_up_an_epoch_is_all_images_and_each_process_has_its_share_of_the_last_batch(
    batch, world_size, workers, monkeypatch
):
    monkeypatch.setattr(loader_module, "_STRETCH", 3)  # a share is several, of which the last batch has but some
    per_epoch = -(-NUM_IMAGES // batch)
    options = {"batch": batch, "per_epoch": per_epoch, "total": 2 * per_epoch}
    whole = kept(load(**options))
    assert [len(one[3]) for one in whole] == 2 * ([batch] * (NUM_IMAGES // batch) + [NUM_IMAGES % batch])
    for epoch in (0, 1):
        seen = torch.cat([one[3] for one in whole[epoch * per_epoch : (epoch + 1) * per_epoch]])
        assert seen.tolist() == epoch_order(0, epoch, NUM_IMAGES).tolist()
    shares = [kept(load(rank=r, world_size=world_size, workers=workers, **options)) for r in range(world_size)]
    for step, one in enumerate(whole):
        parts = [share[step] for share in shares]
        sizes = [len(part[3]) for part in parts]
        assert max(sizes) - min(sizes) <= 1 and torch.equal(torch.cat([part[3] for part in parts]), one[3])
        for kind, crop in enumerate(CROPS):
            crops = [part[1][kind].unflatten(0, (crop.count, size)) for part, size in zip(parts, sizes, strict=True)]
            torch.testing.assert_close(torch.cat(crops, dim=1).flatten(0, 1), one[1][kind], rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_beginning_at_a_later_step_gives_the_rest(workers):
    assert_same(kept(load(total=12))[7:], kept(load(start=7, total=12, workers=workers)))


def test_an_image_looks_different_in_every_epoch_and_view():
    seen: dict[int, list[bytes]] = {}
    for batch in load(total=2 * PER_EPOCH):
        for b, sample in enumerate(batch.indices.tolist()):
            views = batch.views[0].unflatten(0, (2, BATCH))[:, b]
            seen.setdefault(sample, []).extend(view.numpy().tobytes() for view in views)
    assert all(len(set(looks)) == len(looks) for looks in seen.values())
    assert max(map(len, seen.values())) == 4


def test_left_to_the_device_colour_and_blur_are_those_of_the_worker_up_to_rounding():
    for here, there in zip(kept(load()), kept(load(on_device=True)), strict=True):
        assert here[2] is None
        for worker, crops, params in zip(here[1], there[1], there[2], strict=True):
            assert params.shape == (len(crops), 11)
            assert (worker.int() - apply_batched(crops, params, view_spec(recipe())).int()).abs().float().mean() < 1


def test_a_batch_stays_as_it_is_while_the_next_one_is_fetched():
    expected, before = kept(load(total=12)), None
    for i, batch in enumerate(load(total=12, workers=2)):
        if before is not None:
            time.sleep(0.01)  # the workers go on meanwhile
            torch.testing.assert_close(before.views, expected[i - 1][1], rtol=0, atol=0)
        before = batch


@pytest.mark.slow
def test_where_forking_is_not_safe_fresh_workers_give_the_same(tmp_path, monkeypatch):
    for i in range(8):
        Image.fromarray(made().read(i)).save(tmp_path / f"{i}.png")
    images = open_images(tmp_path)
    expected = kept(load(images, total=1))
    monkeypatch.setattr(loader_module, "FORKS", False)
    monkeypatch.setattr(workers_module, "FORKS", False)
    assert_same(expected, kept(load(images, total=1, workers=1)))


# -- images that cannot be read


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_replaced_by_the_same_one_in_every_epoch_and_reported_every_time(workers):
    images = made(noise=False, bad=[5])
    plain = {"jitter_probability": 0, "grayscale": 0, "blur": 0}
    colours = []
    for batch in load(images, total=4 * PER_EPOCH, workers=workers, **plain):
        met = 5 in batch.indices.tolist()
        assert batch.unreadable == ([("5.png", "broken")] if met else [])
        if met:
            colours.append(int(batch.views[0][batch.indices.tolist().index(5), 0, 0, 0]))
    assert len(colours) >= 2 and len(set(colours)) == 1 and colours[0] != 50


@pytest.mark.parametrize("workers", [0, 1])
def test_if_nothing_can_be_read_the_error_says_so_in_one_line(workers):
    with pytest.raises(DataError, match=r"an unreadable one are unreadable too.*broken") as caught:
        list(load(made(bad=range(NUM_IMAGES)), workers=workers))
    assert "\n" not in str(caught.value)


# -- the life of workers


def test_a_workers_death_is_an_error_with_advice():
    images = made(action=lambda: os.kill(os.getpid(), signal.SIGKILL), at=int(epoch_order(0, 0, NUM_IMAGES)[-3]))
    with pytest.raises(MachineError, match=r"signal 9.*memory.*workers=N"):
        list(load(images, workers=2))
    assert not loader_processes()


def test_a_fault_in_a_worker_arrives_with_its_traceback():
    def divide():
        return 1 / 0

    with pytest.raises(RuntimeError, match=r"(?s)in a loader process.*ZeroDivisionError"):
        list(load(made(action=divide, at=0), workers=1, total=2 * PER_EPOCH))
    assert not loader_processes()


def test_leaving_early_leaves_no_worker():
    for _ in load(workers=2, total=1000):
        assert len(loader_processes()) == 2
        break
    assert not loader_processes()
    unfinished = load(workers=2, total=1000)
    batches = iter(unfinished)
    next(batches)
    unfinished.close()
    assert not loader_processes()


def test_no_more_workers_are_started_than_there_are_steps():
    for _ in load(workers=4, start=3, total=4):
        assert len(loader_processes()) == 1


def test_signals_that_stop_the_training_do_not_stop_its_workers():
    """A scheduler signals all processes of a job; the training still has a step and a checkpoint to finish."""
    expected, seen = kept(load(total=12)), []
    for batch in load(workers=2, total=12):
        for process in loader_processes():
            for number in STOPPING:
                os.kill(process.pid, number)
        seen += kept([batch])
    assert_same(expected, seen)


@pytest.mark.skipif(not workers_module.FORKS, reason="the system does not tell children of their parent's death")
def test_workers_die_with_a_training_process_that_is_killed():
    def train(report):
        for _ in load(workers=2, total=10_000_000):
            report.send([process.pid for process in loader_processes()])
            time.sleep(60)

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    training = context.Process(target=train, args=(theirs,))
    training.start()
    pids = ours.recv()
    training.kill()
    training.join()
    deadline = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(pids) == 2 and not any(map(alive, pids))
