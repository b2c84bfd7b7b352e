"""Attacks: features of other weights, images or views than asked for, or of half a pass, taken for the whole.

Run: pytest tests/test_feature_cache.py
"""

import json
import os
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from swav import feature_cache
from swav.config import load_recipe
from swav.data.images import open_images
from swav.errors import ConfigError
from swav.feature_cache import cached_features
from swav.features import pool_stages, pooled_features, read_views, stage_grids
from swav.network.encoder import Encoder
from swav.network.heads import build_network
from swav.runtime import Progress

CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "BATCH", {"cpu": 3})
    monkeypatch.setattr(feature_cache, "NOTED_IMAGES", 4)
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(10):
        Image.fromarray(rng.integers(0, 255, (30 + i, 40, 3), dtype=np.uint8)).save(tmp_path / f"data/{i}.png")
    return open_images(tmp_path / "data")


def network(seed=0):
    recipe = load_recipe("tiny", {"width": 0.125, "prototypes": 4, "seed": seed})
    return Encoder(build_network(recipe), recipe, "random:tiny").requires_grad_(False)


@pytest.fixture(scope="module")
def encoder():
    return network()


def features(encoder, images, out, capsys=None, **changes):
    wanted: dict[str, Any] = {"stages": True, "pooled": True, "workers": 0, "device": CPU} | changes
    with Progress("features", len(images)) as progress:
        found = cached_features(encoder, images, 32, out=out, progress=progress, **wanted)
    return (found, capsys.readouterr().err) if capsys else found


def nothing_is_read(*arguments):
    raise AssertionError("computed again")


def test_one_pass_gives_the_stages_and_the_features_of_each_image_alone(images, encoder, tmp_path):
    found = features(encoder, images, tmp_path)
    assert found.pooled is not None and found.kept.tolist() == list(range(10))
    torch.testing.assert_close(found.pooled, pooled_features(encoder, images, 32, workers=0, device=CPU).features)
    grids = stage_grids(encoder.stage_channels)
    for i in range(10):
        alone = pool_stages(encoder.stages(encoder.preprocess(images.read(i), 32)[None]), grids)
        for ours, one in zip(found.stages, alone, strict=True):
            np.testing.assert_allclose(ours[i], one[0], rtol=1e-4, atol=1e-5)


def test_squeezed_views_hold_the_whole_image(images, encoder, tmp_path):
    centre, squeezed = (features(encoder, images, tmp_path, view=view).pooled for view in ("centre", "squeezed"))
    assert centre is not None and squeezed is not None and not torch.equal(centre, squeezed)


def test_what_is_there_is_not_computed_again_and_what_is_not_is(images, encoder, tmp_path, monkeypatch):
    first = features(encoder, images, tmp_path, pooled=False)
    both = features(encoder, images, tmp_path)
    monkeypatch.setattr(feature_cache, "read_views", nothing_is_read)
    again = features(encoder, images, tmp_path)
    assert first.pooled is None and both.pooled is not None and again.pooled is not None
    assert torch.equal(both.pooled, again.pooled)
    assert all(np.array_equal(a, b) for a, b in zip(first.stages, again.stages, strict=True))
    with pytest.raises(AssertionError, match="computed again"):
        features(encoder, images, tmp_path, view="squeezed")
    with pytest.raises(AssertionError, match="computed again"):
        features(encoder, images.select(range(9)), tmp_path)


@pytest.mark.parametrize(("note", "expected"), [(1, [6]), (2, [])])
def test_an_interrupted_pass_goes_on_from_its_last_note(images, encoder, tmp_path, monkeypatch, note, expected):
    (images.root / images.name(1)).write_bytes(b"gone bad")
    whole = features(encoder, images, tmp_path / "whole")
    notes = []

    def interrupt(name):
        notes.append(name)
        if len(notes) == note:
            raise KeyboardInterrupt

    monkeypatch.setattr(feature_cache, "fault_point", interrupt)
    with pytest.raises(KeyboardInterrupt):
        features(encoder, images, tmp_path / "cut")
    starts = []

    def read(*arguments):
        starts.append(arguments[-1])
        return read_views(*arguments)

    monkeypatch.setattr(feature_cache, "read_views", read)
    resumed = features(encoder, images, tmp_path / "cut")
    assert starts == expected
    assert resumed.kept.tolist() == whole.kept.tolist() == [0, *range(2, 10)]
    for ours, its in zip(resumed.stages, whole.stages, strict=True):
        np.testing.assert_allclose(ours, its, rtol=1e-5, atol=1e-6)  # other batches, other rounding


def test_an_image_changed_in_place_at_the_same_size_is_computed_again(encoder, tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(3):  # uncompressed: the size is that of the pixels
        Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(tmp_path / f"data/{i}.bmp")
    first = features(encoder, open_images(tmp_path / "data"), tmp_path / "out").pooled
    changed = tmp_path / "data/1.bmp"
    about = changed.stat()
    Image.new("RGB", (32, 32), (0, 0, 200)).save(changed)
    os.utime(changed, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    assert changed.stat().st_size == about.st_size
    second = features(encoder, open_images(tmp_path / "data"), tmp_path / "out").pooled
    assert [bool(torch.equal(a, b)) for a, b in zip(first, second, strict=True)] == [True, False, True]


def test_other_weights_are_computed_and_the_old_ones_left_alone_which_is_said(images, encoder, tmp_path, capsys):
    old = features(encoder, images, tmp_path)
    new, said = features(network(seed=1), images, tmp_path, capsys)
    assert "features of other weights" in said and encoder.sha256[:12] in said
    assert not np.array_equal(new.stages[0], old.stages[0])
    assert np.array_equal(features(encoder, images, tmp_path).stages[0], old.stages[0])


def test_a_cache_that_says_it_is_of_other_weights_is_ignored_and_rebuilt_which_is_said(
    images, encoder, tmp_path, capsys
):
    expected = np.array(features(encoder, images, tmp_path).stages[0])
    (note,) = tmp_path.glob("features/*/cache.json")
    content = json.loads(note.read_text())
    content["of"]["weights_sha256"] = "0" * 64
    note.write_text(json.dumps(content))
    np.save(note.with_name("stage1.npy"), np.zeros_like(expected))
    found, said = features(encoder, images, tmp_path, capsys)
    assert "expected features of these weights" in said
    np.testing.assert_array_equal(found.stages[0], expected)


@pytest.mark.parametrize("how", ["short", "gone"])
def test_a_damaged_array_is_computed_again_which_is_said(images, encoder, tmp_path, capsys, how):
    expected = np.array(features(encoder, images, tmp_path).stages[2])
    (array,) = tmp_path.glob("features/*/stage3.npy")
    if how == "short":
        os.truncate(array, 500)
    else:
        array.unlink()
    found, said = features(encoder, images, tmp_path, capsys)
    assert "stage3.npy: expected features of 10 images" in said
    np.testing.assert_array_equal(found.stages[2], expected)


def test_a_trunk_without_stages_is_refused(images, tmp_path, monkeypatch):
    bare = network()
    monkeypatch.setattr(bare, "stage_channels", [])
    with pytest.raises(ConfigError, match="expected a trunk with stages"):
        features(bare, images, tmp_path)
