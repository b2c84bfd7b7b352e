"""Attacks: a run's list of images that is damaged, differs from one writing to the next, lets another data set pass, or
counts a file that the run never had.

Run: pytest tests/data/test_manifest.py
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swav import files
from swav.data import manifest
from swav.data.images import Images
from swav.data.sources.open import open_images
from swav.errors import ConfigError

COUNT = 40


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(files, "_warned", set())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for i in range(COUNT):
        folder = tmp_path / "data" / f"{i // 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8 + i % 3, 3), i, np.uint8)).save(folder / f"{i:02d}.bmp")
    (tmp_path / "data" / "0" / os.fsdecode(b"\xe9\n.bmp")).write_bytes(
        (tmp_path / "data" / "0" / "01.bmp").read_bytes()
    )
    (tmp_path / "data" / "0" / "bad.bmp").write_bytes(b"BM")
    return tmp_path / "data"


@pytest.fixture
def kept(data: Path, tmp_path: Path) -> Path:
    """The list of a run that began with all of them."""
    manifest.write_roster(tmp_path / manifest.FILE, open_images(data))
    return tmp_path / manifest.FILE


def names(images: Images) -> list[str]:
    return [images.name(i) for i in range(len(images))]


def test_the_list_comes_back_and_is_the_same_bytes_each_time_it_is_written(data, kept, tmp_path):
    images = open_images(data)
    found = manifest.read_roster(kept, data)
    assert names(found) == names(images) and found.fingerprint == images.fingerprint and found.bad == images.bad
    for field in ("size", "format", "mode", "height", "width"):
        assert np.array_equal(found.rows[field], images.rows[field])
    for path in data.rglob("*.bmp"):
        os.utime(path, (1, 1))
    manifest.write_roster(tmp_path / "again.npz", open_images(data))
    assert (tmp_path / "again.npz").read_bytes() == kept.read_bytes()


def test_every_flipped_bit_cut_or_foreign_content_is_found(data, kept):
    whole = kept.read_bytes()
    images = open_images(data)
    for place in np.linspace(0, len(whole) - 1, 200).astype(int).tolist():
        kept.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            found = manifest.read_roster(kept, data)
        except ValueError:
            continue
        assert found.fingerprint == images.fingerprint and found.bad == images.bad  # a bit that means nothing: a date
    for content in (b"", whole[:100], b"PK\x03\x04 no archive", whole[:-30]):
        kept.write_bytes(content)
        with pytest.raises(ValueError, match=r": "):
            manifest.read_roster(kept, data)


def test_a_damaged_list_is_warned_of_and_the_images_are_those_that_are_there(data, kept, capsys):
    kept.write_bytes(b"")
    now = open_images(data)
    assert manifest.as_begun(kept, now, 0.01) is now and "cannot be used" in capsys.readouterr().err
    kept.unlink()
    assert manifest.as_begun(kept, now, 0.01) is now and not capsys.readouterr().err
    manifest.keep_roster(kept, now)
    assert manifest.read_roster(kept, data).fingerprint == now.fingerprint


def test_lost_damaged_changed_and_added_files_keep_order_and_count_and_are_said(data, kept, capsys):
    began = open_images(data)
    (data / "1" / "13.bmp").unlink()
    (data / "2" / "20.bmp").write_bytes(b"not an image")
    Image.new("RGB", (30, 30)).save(data / "3" / "31.bmp")
    Image.new("RGB", (30, 30)).save(data / "0" / "bad.bmp")  # was left out when the run began
    Image.new("RGB", (30, 30)).save(data / "0" / "0 first.bmp")
    found = manifest.as_begun(kept, open_images(data), 0.01)
    assert names(found) == names(began) and found.fingerprint == began.fingerprint and found.bad == began.bad
    assert [name for name, _ in found.gone] == ["1/13.bmp", "2/20.bmp"] and "not an image" in found.gone[1][1]
    said = capsys.readouterr().err
    assert "2 images of this run cannot be read any more: 1/13.bmp (no such file), 2/20.bmp (not an image" in said
    assert "1 image of this run changed in size since it began, and will be used as found: 3/31.bmp\n" in said
    assert "images added after the run began are not part of it: 1 file left out" in said
    assert found.read(names(found).index("3/31.bmp")).shape == (30, 30, 3)


def test_a_folder_that_cannot_be_read_is_no_other_data_set(data, kept):
    now = open_images(data).select(range(10))
    now.bad = [("1/", "folder: Input/output error"), ("2/", "folder: x"), ("3/", "folder: x")]
    gone = manifest.as_begun(kept, now, 0.01).gone
    assert ("1/10.bmp", "folder: Input/output error") in gone and len(gone) >= 30


def test_a_list_that_names_a_file_twice_has_it_twice(data, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("data/1/10.bmp\ndata/1/11.bmp\ndata/1/10.bmp\n")
    manifest.write_roster(tmp_path / "twice.npz", open_images(tmp_path / "list.txt"))
    (tmp_path / "list.txt").write_text("data/1/10.bmp\ndata/1/11.bmp\ndata/1/10.bmp\ndata/1/12.bmp\n")
    found = manifest.as_begun(tmp_path / "twice.npz", open_images(tmp_path / "list.txt"), 0.01)
    assert names(found) == ["data/1/10.bmp", "data/1/11.bmp", "data/1/10.bmp"] and not found.gone
    assert capsys.readouterr().err.count("swav: warning: ") == 1


def test_another_data_set_is_refused_by_name_whether_its_names_or_its_sizes_differ(data, kept):
    now = open_images(data)
    with pytest.raises(
        ConfigError, match=r"41 images .* found 21 of them missing and 0 of another size, as 1/1\d.bmp, "
    ) as caught:
        manifest.as_begun(kept, now.select(range(20)), 0.01)
    assert (
        caught.value.exit_code == 2 and str(caught.value).count(".bmp") == 3 and " and 18 more\n" in str(caught.value)
    )
    now.rows["size"][:11] += 1  # ten may differ
    with pytest.raises(ConfigError, match="0 of them missing and 11 of another size"):
        manifest.as_begun(kept, now, 0.01)
    manifest.as_begun(kept, now, 0.5)
