"""Attacks: a class or an image taken for another, a difficult image taken for a plain one, a half that is not there.

Run: pytest tests/data/sources/test_voc.py
"""

import shutil
from xml.etree import ElementTree

import numpy as np
import pytest

from swav.data.sources.voc import classification_splits
from swav.data.synthetic.writers import write_shapes
from swav.data.targets import MultiLabels
from swav.errors import DataError


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root") / "VOCdevkit"
    write_shapes(folder, "voc", train=12, val=8, size=32)
    return folder


def marks(images) -> np.ndarray:
    assert isinstance(images.targets, MultiLabels)
    return images.targets.values


@pytest.fixture
def home(drawn, tmp_path):
    shutil.copytree(drawn / "VOC2007", tmp_path / "VOC2007")
    return tmp_path / "VOC2007"


@pytest.mark.parametrize("below", ["", "VOC2007", ".."])
def test_the_set_itself_the_kit_and_a_folder_of_sets_are_the_same(drawn, below):
    train, test = classification_splits(drawn / below)
    assert (len(train), len(test)) == (12, 8)
    assert train.classes == test.classes and train.classes is not None and len(train.classes) == 10
    assert train.targets is not None and marks(train).shape == (12, 10) and marks(train).dtype == np.int8
    assert train.read(3).shape == (32, 32, 3)


def test_hidden_files_of_other_systems_are_no_lists_and_hidden_folders_no_kit(drawn, home):
    lists = home / "ImageSets" / "Main"
    for path in list(lists.iterdir()):
        (lists / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
    for below in (home, home.parent):
        assert classification_splits(below)[0].classes == classification_splits(drawn)[0].classes
    kits = home.parent / "root"
    for name in ("kit", ".trash"):
        shutil.copytree(home, kits / name / "VOCdevkit" / "VOC2007")
    assert len(classification_splits(kits)[0]) == 12


def test_labels_are_those_of_the_annotations(data_root):
    """On real images: present in plain sight 1, difficult ones only 0, absent -1; a class is named `train`."""
    for images in classification_splits(data_root / "voc07"):
        assert images.targets is not None and images.classes is not None and "train" in images.classes
        for i in range(len(images)):
            name = images.name(i).removeprefix("JPEGImages/").removesuffix(".jpg")
            root = ElementTree.parse(images.root / f"Annotations/{name}.xml").getroot()
            expected = dict.fromkeys(images.classes, -1)
            for item in root.iter("object"):
                label = item.findtext("name") or ""
                expected[label] = max(expected[label], 0 if item.findtext("difficult") == "1" else 1)
            assert marks(images)[i].tolist() == list(expected.values())
        assert 0 in marks(images)


def test_a_choice_of_images_keeps_its_labels(drawn):
    train, _ = classification_splits(drawn)
    some = train.select([5, 2])
    assert some.targets is not None and train.targets is not None
    assert np.array_equal(marks(some), marks(train)[[5, 2]]) and some.name(0) == train.name(5)


def test_no_data_set_says_what_belongs_where(tmp_path):
    with pytest.raises(DataError, match=r"VOCdevkit/VOC2007 below it, found none\n.*VOCtest_06-Nov-2007.tar"):
        classification_splits(tmp_path)


def test_a_missing_test_half_is_told(home):
    for path in (home / "ImageSets/Main").glob("*test.txt"):
        path.unlink()
    with pytest.raises(DataError, match="found no list ImageSets/Main/CLASS_test"):
        classification_splits(home)


def test_classes_that_differ_between_halves_are_told(home):
    (home / "ImageSets/Main/star_test.txt").unlink()
    with pytest.raises(DataError, match="same classes in both splits, found no star_test"):
        classification_splits(home)


def test_a_listed_image_that_is_missing_is_refused_or_in_smoke_left_out_and_told(home):
    (home / "JPEGImages/000004.jpg").unlink()
    with pytest.raises(DataError, match="found none at JPEGImages/000004"):
        classification_splits(home)
    train, test = classification_splits(home, allow_missing=True)
    assert (len(train), len(test)) == (11, 8) and "1 listed images are not there" in train.note
    whole, _ = classification_splits(home.parent, allow_missing=True)
    assert whole.targets is not None and len(marks(whole)) == 11


def test_lists_that_contradict_each_other_are_refused(home):
    path = home / "ImageSets/Main/star_trainval.txt"
    text = path.read_text()
    path.write_text(text + "000099  1\n")
    with pytest.raises(DataError, match="found 000099 not in both"):
        classification_splits(home)
    for wrong in ("000003  2\n", "000003\n", text[:10] + text[:10]):
        path.write_text(wrong)
        with pytest.raises(DataError, match=r"expected a new id and 1, 0 or -1 in line \d"):
            classification_splits(home)
