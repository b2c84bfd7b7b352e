"""Attacks: features of other weights, images or views than asked for, or of half a pass, taken for the whole.

Run: pytest tests/test_feature_store.py
"""

import json
import os
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from swav import feature_files, feature_store
from swav.data.images import Images, Unreadable
from swav.data.sources.catalog import as_pillow
from swav.data.sources.open import open_images
from swav.data.storage import InMemory
from swav.errors import ConfigError, NumericsError
from swav.feature_store import FeatureStore
from swav.features import EvaluationView, pool_stages, read_views, stage_grids
from swav.network.heads import build_network
from swav.progress import Progress
from swav.recipe_files import load_recipe
from swav.weights.encoder import Encoder
from tests.frozen import pooled_features
from tests.test_files import holder_of

CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "BATCH", {"cpu": 3})
    monkeypatch.setattr(feature_store, "NOTED_IMAGES", 4)
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(10):
        Image.fromarray(rng.integers(0, 255, (30 + i, 40, 3), dtype=np.uint8)).save(tmp_path / f"data/{i}.png")
    return open_images(tmp_path / "data")


def network(seed=0, **changed):
    recipe = load_recipe("tiny", {"width": 0.125, "prototypes": 4, "seed": seed} | changed)
    return Encoder(build_network(recipe), recipe, "random:tiny").requires_grad_(False)


@pytest.fixture(scope="module")
def encoder():
    return network()


def features(encoder, images, out, capsys=None, **changes):
    wanted: dict[str, Any] = {"stages": True, "pooled": True, "view": "centre", "workers": 0, "device": CPU} | changes
    kinds = {kind: wanted.pop(kind) for kind in ("stages", "pooled")}
    view = EvaluationView(wanted.pop("view"), 32)
    out.mkdir(exist_ok=True)
    with Progress("features", len(images)) as progress:
        found = FeatureStore(encoder, images, view, out=out, **wanted).get(progress=progress, **kinds)
    return (found, capsys.readouterr().err) if capsys else found


def nothing_is_read(*arguments):
    raise AssertionError("computed again")


def test_one_pass_gives_the_stages_and_the_features_of_each_image_alone(images, encoder, tmp_path):
    found = features(encoder, images, tmp_path)
    assert found.pooled is not None and found.kept.tolist() == list(range(10))
    torch.testing.assert_close(found.pooled, pooled_features(encoder, images, 32, workers=0).features)
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
    monkeypatch.setattr(feature_store, "read_views", nothing_is_read)
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

    monkeypatch.setattr(feature_store, "fault_point", interrupt)
    with pytest.raises(KeyboardInterrupt):
        features(encoder, images, tmp_path / "cut")
    starts = []

    def read(*arguments):
        starts.append(arguments[4])
        return read_views(*arguments)

    monkeypatch.setattr(feature_store, "read_views", read)
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


def test_packed_images_of_the_same_names_and_other_pixels_are_computed_again(encoder, tmp_path):
    """Names and sizes of CIFAR's files are always the same."""
    (tmp_path / "data").mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(tmp_path / f"data/{i}.bmp")
    rows = open_images(tmp_path / "data").rows
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8) for _ in range(2))
    names = [f"train#{i}".encode() for i in range(3)]
    found = [
        features(encoder, Images(InMemory(tmp_path, names, rows, part)), tmp_path / "out") for part in (one, other, one)
    ]
    assert not torch.equal(found[0].pooled, found[1].pooled) and torch.equal(found[0].pooled, found[2].pooled)


def test_other_weights_are_computed_and_the_old_ones_left_alone_which_is_said(
    images, encoder, tmp_path, capsys, monkeypatch
):
    old = features(encoder, images, tmp_path)
    _, said = features(network(seed=2), images, tmp_path, capsys)
    assert "other weights" not in said  # one command that scores both
    monkeypatch.setattr(feature_store, "_given", set())  # the next command
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


def test_rows_agree_though_an_image_could_not_be_read_at_another_time(images, encoder, tmp_path, monkeypatch):
    expected = features(encoder, images, tmp_path / "whole")
    read = Images.read

    def hiccup(self, i):
        if i == 5:
            raise Unreadable(self.name(i), "Input/output error")
        return read(self, i)

    with monkeypatch.context() as patch:
        patch.setattr(Images, "read", hiccup)
        assert features(encoder, images, tmp_path / "out").kept.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    (array,) = (tmp_path / "out").glob("features/*/stage3.npy")
    array.unlink()
    found = features(encoder, images, tmp_path / "out")
    assert found.kept.tolist() == list(range(10))
    for ours, its in zip(found.stages, expected.stages, strict=True):
        np.testing.assert_allclose(ours, its, rtol=1e-5, atol=1e-6)


def test_networks_of_the_same_tensors_and_other_strides_do_not_share_features(images, tmp_path):
    split, small = (network(stem=stem) for stem in ("half", "small"))
    assert split.sha256 == small.sha256
    first, second = (features(one, images, tmp_path).pooled for one in (split, small))
    assert first is not None and second is not None and not torch.allclose(first, second, atol=1e-3)


def test_features_that_are_not_finite_are_an_error_and_no_score(images, tmp_path):
    broken = network()
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(NumericsError, match="random:tiny: expected finite features, found others in stage1"):
        features(broken, images, tmp_path)


def test_a_trunk_without_stages_is_refused(images, tmp_path, monkeypatch):
    bare = network()
    monkeypatch.setattr(bare, "stage_channels", [])
    with pytest.raises(ConfigError, match="expected a backbone with stages"):
        features(bare, images, tmp_path)


# -- checksums


def only(folder, name):
    (path,) = folder.glob(f"features/*/{name}")
    return path


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("place", [128, -1, -20, 60, 3])  # first and last row; another; shape or type; NumPy's name
def test_one_flipped_bit_in_an_array_is_found_and_that_array_is_computed_again(
    images, encoder, tmp_path, capsys, monkeypatch, place
):
    expected = [np.array(stage) for stage in features(encoder, images, tmp_path).stages]
    flip(only(tmp_path, "stage2.npy"), place)
    computed, kinds_of = list[list[str]](), feature_store._kinds_of

    def noted(*rest):
        computed.append(rest[-1])
        return kinds_of(*rest)

    monkeypatch.setattr(feature_store, "_kinds_of", noted)
    found, said = features(encoder, images, tmp_path, capsys)
    assert "stage2.npy: expected features of 10 images, found a damaged file; computed again" in said
    assert all(kinds == ["stage2"] for kinds in computed) and computed
    for ours, its in zip(found.stages, expected, strict=True):
        np.testing.assert_array_equal(ours, its)


def test_every_bit_of_the_note_is_held_against_its_checksum(images, encoder, tmp_path):
    (images.root / images.name(1)).write_bytes(b"gone bad")
    kept = features(encoder, images, tmp_path, stages=False).kept.tolist()
    path = only(tmp_path, "cache.json")
    good = path.read_bytes()
    for place in range(good.index(b'"arrays"'), len(good) - 1):
        flip(path, place)
        assert feature_files.read_notes(path, json.loads(good)["of"]) in (None, {}), place
        path.write_bytes(good)
    text = good.decode()
    path.write_text(text.replace('"unreadable": [1]', '"unreadable": [2]'))
    assert text != path.read_text() and features(encoder, images, tmp_path, stages=False).kept.tolist() == kept


def test_a_part_that_was_damaged_before_the_pass_went_on_is_computed_again(
    images, encoder, tmp_path, monkeypatch, capsys
):
    expected = features(encoder, images, tmp_path / "whole").pooled
    interrupted(images, encoder, tmp_path, monkeypatch, "features:noted")
    flip(only(tmp_path, "pooled.npy.part"), 200)
    found, said = features(encoder, images, tmp_path, capsys)
    assert "pooled.npy.part: expected features of 10 images, found a damaged file" in said
    torch.testing.assert_close(found.pooled, expected)


def interrupted(images, encoder, out, monkeypatch, where):
    def interrupt(name):
        if name == where:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(feature_store, "fault_point", interrupt)
        features(encoder, images, out)


def test_a_pass_that_was_killed_between_its_last_note_and_the_renaming_is_not_made_again(
    images, encoder, tmp_path, monkeypatch, capsys
):
    interrupted(images, encoder, tmp_path, monkeypatch, "features:whole")
    assert only(tmp_path, "pooled.npy.part").exists()
    monkeypatch.setattr(feature_store, "read_views", nothing_is_read)
    _, said = features(encoder, images, tmp_path, capsys)
    assert "damaged" not in said


def test_features_of_an_older_version_without_checksums_are_not_used_which_is_said(
    images, encoder, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        patch.setattr(feature_store, "VERSION", 2)
        features(encoder, images, tmp_path)
    _, said = features(encoder, images, tmp_path, capsys)
    assert "features without checksums are not used; it may be deleted" in said


# -- several processes


def test_what_a_process_has_mapped_never_changes_though_others_replace_it(images, encoder, tmp_path):
    mine = features(encoder, images, tmp_path)
    before = [np.array(stage) for stage in mine.stages]
    path = only(tmp_path, "stage3.npy")
    os.truncate(shutil.copy(path, tmp_path / "short"), 500)
    (tmp_path / "short").replace(path)
    features(encoder, images, tmp_path)  # finds it damaged
    only(tmp_path, "cache.json").unlink()
    features(encoder, images, tmp_path)  # finds nothing
    for ours, its in zip(mine.stages, before, strict=True):
        np.testing.assert_array_equal(ours, its)


def test_who_wants_features_that_another_computes_waits_says_for_whom_and_reads_them(
    images, encoder, tmp_path, monkeypatch, capsys
):
    expected = features(encoder, images, tmp_path / "first").pooled
    (folder,) = (tmp_path / "first/features").iterdir()
    with holder_of(tmp_path / "out/features" / folder.name / ".lock") as other:

        def finish(_):  # what the other would do while we wait
            shutil.copytree(folder, tmp_path / "out/features" / folder.name, dirs_exist_ok=True, ignore=no_locks)
            other.kill()

        monkeypatch.setattr("time.sleep", finish)
        monkeypatch.setattr(feature_store, "read_views", nothing_is_read)
        found, said = features(encoder, images, tmp_path / "out", capsys)
    place = tmp_path / "out/features" / folder.name
    assert f"waiting for process {other.pid} on " in said
    assert f", which holds the features of random:tiny in {place}" in said
    assert torch.equal(found.pooled, expected)


def no_locks(_, names):
    return [name for name in names if name == ".lock"]


def test_of_other_weights_nobody_waits_and_whole_features_are_read_without_the_lock(images, encoder, tmp_path):
    features(encoder, images, tmp_path)
    (folder,) = (tmp_path / "features").iterdir()
    with holder_of(folder / ".lock"):
        features(encoder, images, tmp_path)
        features(network(seed=1), images, tmp_path)


def test_damaged_images_that_were_read_as_pillow_does_are_known_to_who_reads_their_features(
    encoder, tmp_path, monkeypatch
):
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(5):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"data/{i}.jpg")
    data = (tmp_path / "data/2.jpg").read_bytes()
    (tmp_path / "data/2.jpg").write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    strict = features(encoder, open_images(tmp_path / "data"), tmp_path)
    assert strict.kept.tolist() == [0, 1, 3, 4]
    for _ in range(2):
        images, _ = as_pillow((open_images(tmp_path / "data"),) * 2)
        assert features(encoder, images, tmp_path).kept.tolist() == list(range(5))
        assert images.damaged == {"2.jpg"}
        monkeypatch.setattr(feature_store, "read_views", nothing_is_read)


def test_no_kind_of_features_is_refused(images, encoder, tmp_path):
    with pytest.raises(ValueError, match="expected stages=True or pooled=True"):
        features(encoder, images, tmp_path / "out", stages=False, pooled=False)
