"""Attacked: the counts that `swav data scan` shows must be those of the folder."""

import json

from PIL import Image

from swav.data.scan import render_scan, scan
from swav.data.sources.open import open_images
from tests.data.folders import put, put_all, splits


def test_scan_counts_what_is_there(tmp_path):
    splits(tmp_path, train=("cat/1.png", "cat/2.png", "dog/3.png"))
    put(tmp_path / "train/dog/big.jpg", size=(100, 50))
    Image.new("L", (8, 6)).save(tmp_path / "train/dog/grey.png")
    (tmp_path / "val/cat/copy.png").write_bytes((tmp_path / "train/cat/2.png").read_bytes())
    whole = put(tmp_path / "train/cat/cut.png", (1, 2, 3), (40, 40))
    whole.write_bytes(whole.read_bytes()[:60])
    (tmp_path / "train/zero.jpg").write_bytes(b"")
    (tmp_path / "train/x.heic").write_bytes(b"x")
    found = json.loads(json.dumps(scan(tmp_path)))
    assert found["layout"] == "splits" and found["images"] == 9 and found["trained_on"]["images"] == 6
    assert found["formats"] == {"PNG": 8, "JPEG": 1} and found["modes"] == {"RGB": 8, "L": 1}
    assert found["width"] == {"min": 8, "median": 8, "max": 100}
    assert (
        found["duplicates"]["in_both_splits"] == 2
    )  # train/cat/2 was copied; train/cat/1 and val/cat/2 were drawn alike
    assert {bad["name"] for bad in found["unreadable"]} == {"train/zero.jpg", "train/cat/cut.png"}
    assert found["passed_over"] == {".heic": 1} and "convert" in found["advice"][".heic"]
    lines = render_scan(found).splitlines()
    assert any("trained on" in line and "6 images: train/ of" in line for line in lines)
    assert any(
        line.endswith("; 1 unreadable left out; 1 more damaged, in whose place others are read") for line in lines
    )
    (line,) = (line for line in lines if ".heic is not read" in line)
    assert line == "  warning     .heic is not read, 1 file left out: convert to JPEG or PNG"
    assert any("train/zero.jpg: empty file" in line for line in lines)


def test_pictures_of_formats_that_are_not_read_are_warned_of_and_archives_are_not(tmp_path):
    put_all(tmp_path, "a.png", "b.png")
    for name in ("1.heic", "2.HEIC", "photos.zip"):
        (tmp_path / name).write_bytes(b"x")
    assert open_images(tmp_path).warnings == [".heic is not read, 2 files left out: convert to JPEG or PNG"]
    assert ".zip is not read: unpack" in render_scan(scan(tmp_path))


def test_scan_of_a_tree_without_labels_says_that_nothing_can_be_scored(tmp_path):
    put_all(tmp_path, "a.png", "b.png")
    found = scan(tmp_path)
    assert found["classes"] is None and found["scored"]["images"] == 0
    assert "none: " in render_scan(found)
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert "duplicates  1 file repeats the content of another\n" in render_scan(scan(tmp_path))


def test_folders_of_runs_are_named(tmp_path):
    put_all(tmp_path, "a.png", "out/b.png")
    (tmp_path / "out" / "config.yaml").write_text("")
    (tmp_path / "out" / "checkpoints").mkdir()
    found = scan(tmp_path)
    assert found["images"] == 1 and "without 1 folder of runs" in found["trained_on"]["note"]
    assert "config.yaml and checkpoints/: out" in render_scan(found)
