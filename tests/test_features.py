"""Attacks: features in another order than their labels, of other pixels than the protocol's, or that depend on the batch.

Run: pytest tests/test_features.py
"""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swav import feature_store
from swav.data.images import Unreadable
from swav.data.sources.open import labelled_splits
from swav.errors import DataError, MachineError
from swav.features import EvaluationView, pool_stages, read_views, stage_grids
from swav.metrics import knn_vote, top_k_accuracy
from swav.network.backbone import BACKBONES
from swav.network.heads import build_network
from swav.progress import Progress
from swav.recipe_files import load_recipe
from swav.signals import STOPPING
from swav.training.scoring import knn_top1
from swav.weights.encoder import Encoder
from tests.frozen import pooled_features

CPU = torch.device("cpu")
VIEW = EvaluationView("centre", 24)


@pytest.fixture
def folder(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 3)):
        for k, name in enumerate(("dark", "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(100 * k, 100 * k + 150, (30 + i, 40 - i, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return Path(tmp_path)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    recipe = load_recipe("tiny", {"width": 0.125, "prototypes": 4})
    return Encoder(build_network(recipe), recipe, "random:tiny").requires_grad_(False)


@pytest.mark.parametrize(("batch", "workers"), [(64, 0), (4, 0), (4, 2)])
def test_features_are_those_of_each_image_alone_in_order(folder, encoder, monkeypatch, batch, workers):
    monkeypatch.setattr(feature_store, "BATCH", {"cpu": batch})
    train, _ = labelled_splits(folder)
    found = pooled_features(encoder, train, 24, workers=workers)
    alone = torch.cat([encoder(encoder.preprocess(train.read(i), 24)[None]) for i in range(len(train))])
    torch.testing.assert_close(found.features, alone, rtol=1e-4, atol=1e-5)
    assert train.labels is not None and found.labels.tolist() == train.labels.tolist()
    assert found.names == [train.name(i) for i in range(len(train))]


def test_what_cannot_be_read_is_left_out_with_its_label(folder, encoder, monkeypatch):
    monkeypatch.setattr(feature_store, "BATCH", {"cpu": 3})
    train, _ = labelled_splits(folder)
    broken = [train.name(i) for i in (0, 5, 6)]
    for name in broken:
        (train.root / name).write_bytes(b"gone bad")
    progress = Progress("features", len(train), quiet=True)
    found = pooled_features(encoder, train, 24, workers=0, progress=progress)
    kept = [i for i in range(len(train)) if train.name(i) not in broken]
    assert found.names == [train.name(i) for i in kept]
    assert train.labels is not None and found.labels.tolist() == train.labels[kept].tolist()
    assert len(found.features) == len(kept) and progress.done == len(train)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_evaluation_leaves_the_random_state_of_the_training_alone(folder, encoder, workers):
    train, val = labelled_splits(folder)
    before = torch.get_rng_state()
    knn_top1(encoder, train, val, VIEW, 3, CPU, workers)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_readable_is_an_error(folder, encoder):
    train, _ = labelled_splits(folder)
    for i in range(len(train)):
        (train.root / train.name(i)).write_bytes(b"gone bad")
    with pytest.raises(DataError, match="none among 14"):
        pooled_features(encoder, train, 24, workers=0)


def test_a_signal_to_all_processes_does_not_end_the_workers(folder, encoder, monkeypatch):
    train, _ = labelled_splits(folder)
    read = train.read

    def read_when_asked_to_stop(i):
        for number in STOPPING:
            os.kill(os.getpid(), number)
        return read(i)

    expected = pooled_features(encoder, train, 24, workers=0)
    monkeypatch.setattr(train, "read", read_when_asked_to_stop)
    assert torch.equal(pooled_features(encoder, train, 24, workers=1).features, expected.features)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_disk_that_may_pass_is_not_kept_as_a_missing_image(folder, encoder, monkeypatch, workers):
    train, _ = labelled_splits(folder)

    def away(i):
        raise Unreadable(train.name(i), "Stale file handle", passing=True)

    monkeypatch.setattr(train, "read", away)
    assert [len(places) for _, places in read_views(train, VIEW, 64, workers)] == [0]
    with pytest.raises(MachineError, match=r"cannot be read just now \(Stale file handle\)"):
        list(read_views(train, VIEW, 64, workers, 0, True))


def test_the_death_of_a_worker_is_an_error_of_the_machine(folder, encoder, monkeypatch):
    train, _ = labelled_splits(folder)
    monkeypatch.setattr(train, "read", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(MachineError, match="fewer workers"):
        pooled_features(encoder, train, 24, workers=1)


def test_bf16_is_asked_for_and_gives_float32_near_the_same(folder, encoder):
    _, val = labelled_splits(folder)
    exact, rough = (
        pooled_features(encoder, val, 24, workers=0, precision=precision).features for precision in ("fp32", "bf16")
    )
    assert exact.dtype == rough.dtype == torch.float32 and not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, rtol=0.1, atol=0.05)


def test_knn_while_training_is_the_vote_of_the_bank(folder, encoder):
    train, val = labelled_splits(folder)
    bank, queries = (pooled_features(encoder, split, 24, workers=0) for split in (train, val))
    ranked = knn_vote(bank.features, bank.labels, queries.features, [3], 2)
    assert knn_top1(encoder, train, val, VIEW, 3, CPU, 0) == (top_k_accuracy(ranked[3], queries.labels, 1), 3)


def test_a_bank_smaller_than_k_is_used_whole_and_that_is_told(folder, encoder):
    train, val = labelled_splits(folder)
    bank = len(pooled_features(encoder, train, 24, workers=0).labels)
    whole = knn_top1(encoder, train, val, VIEW, bank, CPU, 0)
    assert knn_top1(encoder, train, val, VIEW, 1000, CPU, 0) == whole and whole[1] == bank


def test_pooled_stages_of_a_resnet50_at_224_have_the_pages_dimensions():
    trunk = BACKBONES["resnet50"]().eval()
    with torch.no_grad():
        maps = trunk.stages(torch.randn(1, 3, 224, 224))
    pooled = pool_stages(maps, stage_grids(trunk.stage_channels))
    assert [tuple(one.shape) for one in pooled] == [(1, dim) for dim in (9216, 9216, 8192, 9216, 8192)]


def test_at_224_pixels_the_windows_are_the_pages():
    """By hand, in the first and the last cell of each map: the source's kernel, stride and padding."""
    rows = torch.arange(112.0)
    for grid, side, first, last in (
        (12, 112, rows[:6].sum() * 6 / 100, rows[106:].sum() * 6 / 100),  # padding of 4 counts as zeros
        (6, 56, rows[:16].mean(), rows[40:56].mean()),
        (4, 28, rows[:13].mean(), rows[15:28].mean()),
        (3, 14, rows[:8].mean(), rows[6:14].mean()),
        (2, 7, rows[:6].mean(), rows[1:7].mean()),
    ):
        ramp = rows[:side].expand(1, 1, side, side).mT.contiguous()  # each row holds its number
        (cells,) = pool_stages([ramp], [grid])
        assert cells.shape == (1, grid * grid)
        torch.testing.assert_close(torch.stack([cells[0, 0], cells[0, -1]]), torch.stack([first, last]))


def test_below_224_pixels_cells_cover_the_map_and_no_grid_is_finer_than_it():
    maps = [torch.randn(2, 3, side, side) for side in (32, 16, 8, 4, 1)]
    pooled = pool_stages(maps, (12, 6, 4, 3, 2))
    assert [one.shape[1] for one in pooled] == [3 * 144, 3 * 36, 3 * 16, 3 * 9, 3]
    torch.testing.assert_close(pooled[2].view(2, 3, 4, 4), maps[2].unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)))


def test_grids_of_blocks_follow_the_rule_behind_the_pages():
    assert stage_grids([64, 256, 512, 1024, 2048]) == (12, 6, 4, 3, 2) == stage_grids([8, 16, 32, 64, 128])
    assert stage_grids([64, 256, 512, 1024, 2048, 384, 20_000]) == (12, 6, 4, 3, 2, 4, 1)
