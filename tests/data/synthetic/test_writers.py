"""Attacks: a written data set that its own reader misunderstands, whose lists contradict its annotations, or that takes half
a folder for a whole one.

Run: pytest tests/data/synthetic/test_writers.py
"""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from swav.data.sources.open import labelled_splits
from swav.data.synthetic import writers
from swav.data.synthetic.shapes import CLASSES, scene
from swav.data.synthetic.writers import LayoutWriter, write_shapes
from swav.errors import ConfigError, DataError, MachineError


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_folder_is_one_that_our_reader_takes_for_a_labelled_data_set(tmp_path):
    write_shapes(tmp_path / "data", train=20, val=10, size=32, seed=4)
    train, val = labelled_splits(tmp_path / "data")
    assert (len(train), len(val)) == (20, 10)
    assert train.classes == list(CLASSES)
    for images, split in ((train, "train"), (val, "val")):
        for i in range(len(images)):
            index = int(images.name(i)[-10:-4])
            assert np.array_equal(images.read(i), scene(4, split, index, 32).image)
            assert images.labels is not None and images.labels[i] == index % 10


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_shapes(tmp_path / name, train=10, val=10, size=32)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert len(files(tmp_path / "a")) == 21


def test_a_complete_folder_is_left_alone(tmp_path):
    write_shapes(tmp_path, train=10, val=10, size=32)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_shapes(tmp_path, train=10, val=10, size=32)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_a_write_that_was_cut_off_is_known_and_made_whole(tmp_path, monkeypatch):
    write_shapes(tmp_path / "whole", train=10, val=10, size=32)
    draw = writers._draw_imagenet

    def dies_half_way(drawn, folder, split, index):
        draw(drawn, folder, split, index)
        if index == 6:
            (folder / split / CLASSES[drawn.label] / f"{index:06d}.png").write_bytes(b"half a")
            raise KeyboardInterrupt

    monkeypatch.setitem(writers.LAYOUTS, "imagenet", LayoutWriter(dies_half_way, writers._no_lists))
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "cut", train=10, val=10, size=32)
    monkeypatch.undo()
    assert json.loads((tmp_path / "cut" / "shapes.json").read_text())["complete"] is False
    write_shapes(tmp_path / "cut", train=10, val=10, size=32)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_other_arguments_are_refused_and_named(tmp_path):
    write_shapes(tmp_path, train=10, val=10, size=32)
    before = files(tmp_path)
    with pytest.raises(ConfigError, match="holds shapes with val=10 instead of 20, seed=0 instead of 1"):
        write_shapes(tmp_path, train=10, val=20, size=32, seed=1)
    assert files(tmp_path) == before


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "holiday.png").write_bytes(b"dear")
    with pytest.raises(DataError, match="expected an empty folder"):
        write_shapes(tmp_path, train=10, val=10)
    (tmp_path / "shapes.json").write_text("[]")
    with pytest.raises(DataError, match="found something else"):
        write_shapes(tmp_path, train=10, val=10)
    with pytest.raises(DataError, match="expected a folder, found a file"):
        write_shapes(tmp_path / "holiday.png", train=10, val=10)
    assert sorted(files(tmp_path)) == ["holiday.png", "shapes.json"]


def test_an_unknown_layout_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(
        ConfigError, match=r"expected one of imagenet, .*found 'imagenett' \(did you mean 'imagenet'\?\)"
    ):
        write_shapes(tmp_path / "data", "imagenett")
    assert not (tmp_path / "data").exists()


def test_a_disk_that_refuses_is_told_as_such(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(writers.LAYOUTS, "imagenet", LayoutWriter(full, writers._no_lists))
    with pytest.raises(MachineError, match="No space left on device"):
        write_shapes(tmp_path / "data", train=10, val=10)


@pytest.mark.slow
def test_vocs_lists_say_what_its_annotations_say(tmp_path):
    write_shapes(tmp_path, "voc", train=24, val=16, size=48)
    home = tmp_path / "VOC2007"
    seen = {-1: 0, 0: 0, 1: 0}
    for split, count in (("trainval", 24), ("test", 16), ("train", 12), ("val", 12)):
        ids = (home / f"ImageSets/Main/{split}.txt").read_text().split()
        assert len(set(ids)) == count
        for k, label in enumerate(CLASSES):
            lines = (home / f"ImageSets/Main/{label}_{split}.txt").read_text().splitlines()
            assert [line.split()[0] for line in lines] == ids
            for name, mark in map(str.split, lines):
                root = ElementTree.parse(home / f"Annotations/{name}.xml").getroot()
                hard = [item.findtext("difficult") for item in root.iter("object") if item.findtext("name") == label]
                assert int(mark) == (-1 if not hard else int("0" in hard))
                seen[int(mark)] += 1
                split_of_scene, index = ("val", int(name) - 500_000) if int(name) >= 500_000 else ("train", int(name))
                assert (k in scene(0, split_of_scene, index, 48).classes) == bool(hard)
    assert min(seen.values()) > 0  # difficult ones occur
    ids = {split: set((home / f"ImageSets/Main/{split}.txt").read_text().split()) for split in ("trainval", "test")}
    assert not ids["trainval"] & ids["test"]


def test_vocs_boxes_are_those_of_the_scene_counted_from_one(tmp_path):
    write_shapes(tmp_path, "voc", train=3, val=1, size=48)
    for index in range(3):
        root = ElementTree.parse(tmp_path / f"VOC2007/Annotations/{index:06d}.xml").getroot()
        found = [
            [int(box.findtext(key) or 0) for key in ("xmin", "ymin", "xmax", "ymax")] for box in root.iter("bndbox")
        ]
        assert np.array_equal(np.array(found) - [1, 1, 0, 0], scene(0, "train", index, 48).boxes)
