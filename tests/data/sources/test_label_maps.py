"""Attacks: colours taken for classes, a map of another image or size, an index that is no class, an image learned from and
scored, and void that counts.

Run: pytest tests/data/sources/test_label_maps.py
"""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from swav.data.overlap import SharedImages
from swav.data.sources import catalog, label_maps, map_files
from swav.data.sources.catalog import DATASETS
from swav.data.targets import VOID, LabelMaps
from swav.errors import DataError
from tests.data.folders import names_of
from tests.data.sources.test_annotated import WIDE, photo


def untyped(find):
    """The same, returning what is not known to the type checker: targets are LabelMaps."""

    def found(*arguments, **settings):
        return find(*arguments, **settings)

    return found


cityscapes_splits = untyped(label_maps.cityscapes_splits)
folder_splits = untyped(label_maps.folder_splits)
folder_parts = untyped(label_maps.folder_parts)
segmented_splits = untyped(label_maps.segmented_splits)
require_disjoint = untyped(catalog.require_disjoint)
voc12aug_splits = untyped(label_maps.voc12aug_splits)


def plain(*indices):
    """A map of 4 x 6 pixels that holds these indices, and else the first."""
    values = np.full(WIDE, indices[0], np.uint8)
    values.flat[: len(indices)] = indices
    return values


def put_map(path, values, mode="P"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if mode == "P":  # colours that are not the indices
        image.putpalette(bytes(range(255, -1, -1)) * 3)
    image.save(path)
    return values


def maps_of(images):
    assert isinstance(images.targets, LabelMaps)
    return [images.targets[i] for i in range(len(images))]


def first_values(images):
    """The first index of each map: which it is."""
    return {images.name(i): int(each.flat[0]) for i, each in enumerate(maps_of(images))}


def refused(find, *arguments, **settings):
    with pytest.raises(DataError) as error:
        find(*arguments, **settings)
    assert error.value.exit_code == 3
    return str(error.value)


# -- a folder of one's own


@pytest.fixture
def folder(tmp_path):
    for i in range(10):
        photo(tmp_path / f"images/deep/{i}.jpg", seed=i)
        put_map(tmp_path / f"masks/deep/{i}.png", plain(i % 3, VOID))
    return tmp_path


def test_indices_are_the_classes_by_whatever_palette_or_as_grey(folder):
    for mode in ("P", "L"):
        put_map(folder / "masks/deep/0.png", plain(0, 1, 2, VOID), mode)
        (whole,) = folder_parts(folder)
        found = whole.targets[0]
        assert np.array_equal(found, plain(0, 1, 2, VOID)) and found.dtype == np.uint8
    assert whole.classes == ["0", "1", "2"] and len(whole) == 10
    assert first_values(whole) == {f"images/deep/{i}.jpg": i % 3 for i in range(10)}


def test_a_map_of_two_colours_holds_0_and_1(folder):
    for path in sorted((folder / "masks").rglob("*.png")):
        Image.fromarray(plain(0, 255)).convert("1").save(path)
    (whole,) = folder_parts(folder)
    assert whole.classes == ["0", "1"] and whole.targets[3].ravel()[:3].tolist() == [0, 1, 0]


def test_a_folder_without_val_is_divided_by_a_fixed_seed(folder):
    train, val = require_disjoint(folder_splits(folder))
    assert (len(train), len(val)) == (8, 2) and sorted(names_of(train) + names_of(val)) == names_of(
        folder_parts(folder)[0]
    )
    assert names_of(folder_splits(folder)[1]) == names_of(val) and "20 %" in val.note and "seed 0" in train.note
    assert first_values(val) == {name: int(name[-5]) % 3 for name in names_of(val)}
    assert DATASETS["segmented"].find_undivided is None  # else protocol own would score what it has learned from
    for name in names_of(train):  # whichever lies on the other side
        copy = (folder / name).with_stem(f"{Path(name).stem} again")
        copy.symlink_to(folder / name)
        shutil.copy(folder / f"masks/deep/{Path(name).stem}.png", folder / f"masks/deep/{copy.stem}.png")
    with pytest.raises(SharedImages):
        require_disjoint(folder_splits(folder))


@pytest.mark.parametrize("pattern", ["{kind}/{split}", "{split}/{kind}"])
@pytest.mark.parametrize("words", [("train", "val"), ("training", "validation"), ("train", "test")])
def test_splits_may_be_above_or_below_images_and_masks(tmp_path, pattern, words):
    for k, split in enumerate(words):
        photo(tmp_path / pattern.format(kind="images", split=split) / "a.png", seed=k)
        put_map(tmp_path / pattern.format(kind="masks", split=split) / "a.png", plain(k))
    train, val = require_disjoint(segmented_splits(tmp_path))
    assert [*first_values(train).values(), *first_values(val).values()] == [0, 1] and train.classes == val.classes
    assert train.note.startswith(words[0]) and val.note.startswith(words[1])


def test_of_two_splits_to_score_val_is_taken(folder):
    for split in ("train", "val", "test"):
        photo(folder / f"images/{split}/a.png")
        put_map(folder / f"masks/{split}/a.png", plain(0, 1))
    assert names_of(folder_splits(folder)[1]) == ["images/val/a.png"]


def test_train_alone_is_a_folder_without_val(tmp_path):
    for name in "ab":
        photo(tmp_path / f"train/images/{name}.png")
        put_map(tmp_path / f"train/masks/{name}.png", plain(0, 1))
    assert [len(split) for split in folder_splits(tmp_path)] == [1, 1]


def test_names_of_classes_come_from_a_file(folder):
    (folder / "classes.txt").write_text("sky\nroad\ncar\ntree\n")
    train, val = folder_splits(folder)
    assert train.classes == val.classes == ["sky", "road", "car", "tree"]
    (folder / "classes.txt").write_text("sky\nroad\n")
    train, _ = folder_splits(folder)  # no map is read yet
    with pytest.raises(
        DataError, match=r"masks/deep/\d.png: expected indices from 0 to 1, or 255 .*found 2 in column 0 of row 0"
    ):
        maps_of(train)
    (folder / "classes.txt").write_text("".join(f"{k}\n" for k in range(256)))
    assert "expected at most 255 classes, found 256" in refused(folder_splits, folder)


@pytest.mark.parametrize(
    "values, said",
    [((0, 255), "found only 0 and 255, which marks"), ((0,), "found only 0;"), ((255,), "found only none and 255")],
)
def test_masks_of_fewer_than_two_classes_are_refused(folder, values, said):
    for path in sorted((folder / "masks").rglob("*.png")):
        put_map(path, plain(*values))
    assert said in refused(folder_splits, folder)


def test_a_missing_mask_is_refused_or_in_smoke_left_out(folder):
    (folder / "masks/deep/4.png").unlink()
    assert "expected a map of every image of all images, found none at" in (text := refused(folder_splits, folder))
    assert "masks/deep/4.png" in text
    (whole,) = folder_parts(folder, None, True)
    assert len(whole) == 9 and first_values(whole)["images/deep/5.jpg"] == 2
    assert "(1 image without a map left out)" in whole.note


def test_an_unreadable_image_takes_its_map_along(folder):
    (folder / "images/deep/4.jpg").write_bytes(b"")
    (whole,) = folder_parts(folder)
    assert len(whole) == 9 and first_values(whole)["images/deep/5.jpg"] == 2


def test_an_empty_folder_and_an_empty_split_are_refused(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    assert "expected images/ and masks/ there, found none" in refused(folder_splits, empty)
    for name in ("images", "masks"):
        (folder / name / "train").mkdir()
        (folder / name / "val").mkdir()
    assert "images/train: expected images, found none" in refused(folder_splits, folder)


def test_two_images_of_one_mask_are_refused(folder):
    photo(folder / "images/deep/4.png")
    assert "found images/deep/4.jpg and images/deep/4.png" in refused(folder_splits, folder)


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda path: Image.fromarray(plain(1)).convert("RGB").save(path), "found colours (RGB) instead of an index"),
        (lambda path: Image.fromarray(plain(1)).convert("RGBA").save(path), "found colours (RGBA)"),
        (lambda path: Image.fromarray(plain(1).astype(np.uint16)).save(path), "found 16 bits per pixel"),
        (lambda path: Image.fromarray(plain(1)).save(path, "JPEG"), "found a JPEG, which is no PNG"),
        (lambda path: path.write_text("text"), "found not an image"),
        (lambda path: put_map(path, np.zeros((4, 5), np.uint8)), "4.jpg: expected 5x4 pixels, as annotated, found 6x4"),
    ],
)
def test_a_map_that_its_header_shows_to_be_none_is_refused_when_opened(folder, spoil, said):
    (folder / "classes.txt").write_text("a\nb\nc\n")  # no map is read
    spoil(folder / "masks/deep/4.png")
    text = refused(folder_splits, folder)
    assert "deep/4." in text and said in text


def test_a_map_that_breaks_later_is_refused_by_name_when_read(folder):
    (whole,) = folder_parts(folder)
    path = folder / "masks/deep/4.png"
    content = path.read_bytes()
    changes = {
        "truncated|broken|Truncated": lambda: path.write_bytes(content[:60]),
        "colours": lambda: Image.fromarray(plain(1)).convert("RGB").save(path),
        "another file than a PNG": lambda: path.write_text("text"),
        "No such file": path.unlink,
        r"each of 6x4 pixels, as the image has, found 5x4": lambda: put_map(path, np.zeros((4, 5), np.uint8)),
        "grey of 4 bits": lambda: Image.fromarray(plain(1)).save(path, bits=4),
    }
    for said, change in changes.items():
        change()
        with pytest.raises(DataError, match=rf"(?s)masks/deep/4.png: expected .*({said})"):
            whole.targets[4]
        assert whole.targets[5].shape == WIDE


def test_a_map_of_few_bits_by_a_palette_keeps_its_indices(folder):
    image = Image.fromarray(plain(0, 1, 2, 3))
    image.putpalette([9, 9, 9] * 4)
    image.save(folder / "masks/deep/0.png", bits=2)
    (whole,) = folder_parts(folder)
    assert whole.targets[0].ravel()[:4].tolist() == [0, 1, 2, 3] and whole.classes == ["0", "1", "2", "3"]


@pytest.mark.parametrize("size", [WIDE, WIDE[::-1]])
def test_the_size_of_the_map_decides_whether_exif_turns_its_image(folder, size):
    photo(folder / "images/deep/4.jpg", 6)
    put_map(folder / "masks/deep/4.png", np.zeros(size, np.uint8))
    (whole,) = folder_parts(folder)
    assert whole.read(4).shape[:2] == whole.targets[4].shape == size
    assert whole.targets.sizes[4].tolist() == list(size)


def test_content_shows_a_map_that_was_replaced_and_no_place(folder, tmp_path_factory):
    moved = tmp_path_factory.mktemp("moved") / "folder"
    shutil.copytree(folder, moved, copy_function=shutil.copy2)
    one, two = (folder_parts(root)[0].targets for root in (folder, moved))
    assert one.content() == two.content()
    put_map(moved / "masks/deep/4.png", plain(2, 1, 1))
    assert folder_parts(moved)[0].targets.content() != one.content()
    assert np.array_equal(pickle.loads(pickle.dumps(one))[4], one[4])


# -- PASCAL VOC 2012 with SBD's maps


class Voc12:
    """train: a; val: b; SBD's: c, d, and its lists name a and b too. Maps hold 1 where VOC's, 2 where of SegmentationClassAug,
    3 where SBD's."""

    def __init__(self, root):
        self.root, self.home = root, root / "VOCdevkit" / "VOC2012"
        for k, name in enumerate("abcd"):
            photo(self.home / f"JPEGImages/{name}.jpg", seed=k)
        for name in "ab":
            put_map(self.home / f"SegmentationClass/{name}.png", plain(1, VOID, 20))
        self.list_of("train", "a")
        self.list_of("val", "b")

    def list_of(self, name, ids):
        path = self.home / f"ImageSets/Segmentation/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{each}\n" for each in ids))

    def augment(self, names="cd"):
        for name in names:
            put_map(self.home / f"SegmentationClassAug/{name}.png", plain(2))

    def add_sbd(self, below="benchmark_RELEASE/dataset"):
        home = self.root / below
        (home / "cls").mkdir(parents=True)
        for name in "abcd":
            savemat(home / f"cls/{name}.mat", {"GTcls": {"Segmentation": plain(3, 20), "Boundaries": np.zeros(3)}})
        (home / "train.txt").write_text("d\na\n")
        (home / "val.txt").write_text("b\nc\n")
        return home


@pytest.fixture
def voc12(tmp_path):
    return Voc12(tmp_path)


def shown(splits):
    return [{name[11:-4]: value for name, value in first_values(split).items()} for split in splits]


def test_train_is_vocs_own_and_aug(voc12):
    voc12.augment("abcd")
    voc12.list_of("aug", "dc")
    splits = require_disjoint(voc12aug_splits(voc12.root))
    assert shown(splits) == [{"a": 1, "d": 2, "c": 2}, {"b": 1}]
    assert names_of(splits[0]) == ["JPEGImages/a.jpg", "JPEGImages/d.jpg", "JPEGImages/c.jpg"]
    assert splits[0].classes[:2] == ["background", "aeroplane"] and len(splits[0].classes) == 21
    assert splits[0].targets[0].ravel()[:3].tolist() == [1, VOID, 20]
    assert splits[0].note.endswith("; 1 with VOC's maps, 2 with SBD's")


@pytest.mark.parametrize(
    "below", ["benchmark_RELEASE/dataset", "VOCdevkit/SBD", "VOCdevkit/benchmark_RELEASE/dataset", "SBD"]
)
def test_of_sbds_own_lists_vocs_train_and_val_are_taken_out(voc12, below):
    voc12.add_sbd(below)
    splits = require_disjoint(voc12aug_splits(voc12.root))
    assert shown(splits) == [{"a": 1, "c": 3, "d": 3}, {"b": 1}]
    assert splits[0].targets[1].dtype == np.uint8 and np.array_equal(splits[0].targets[1], plain(3, 20))


def test_sbd_beside_the_folder_that_was_named_is_not_borrowed(voc12):
    voc12.add_sbd()
    assert len(voc12aug_splits(voc12.root)[0]) == 3
    assert "expected SBD's maps" in refused(voc12aug_splits, voc12.root / "VOCdevkit")
    assert "expected SBD's maps" in refused(voc12aug_splits, voc12.home)
    assert len(voc12aug_splits(voc12.home, allow_missing=True)[0]) == 1


def test_aug_txt_may_go_with_sbds_files(voc12):
    voc12.add_sbd()
    voc12.list_of("aug", "c")
    assert shown(voc12aug_splits(voc12.root)) == [{"a": 1, "c": 3}, {"b": 1}]


def test_trainaug_txt_names_both_and_vocs_own_maps_are_preferred(voc12):
    voc12.augment("abcd")
    voc12.list_of("trainaug", "cad")
    assert shown(voc12aug_splits(voc12.root)) == [{"a": 1, "c": 2, "d": 2}, {"b": 1}]


def test_segmentation_class_aug_alone_will_do_in_smoke_and_for_segmented(voc12):
    shutil.rmtree(voc12.home / "SegmentationClass")
    voc12.augment("abcd")
    voc12.list_of("trainaug", "cad")
    for find in (lambda: voc12aug_splits(voc12.root, None, True), lambda: segmented_splits(voc12.root)):
        splits = find()
        assert shown(splits) == [{"a": 2, "c": 2, "d": 2}, {"b": 2}]
        assert splits[0].note.endswith("; all maps from SegmentationClassAug")
    (voc12.home / "ImageSets/Segmentation/train.txt").unlink()
    assert shown(voc12aug_splits(voc12.root, None, True)) == [{"c": 2, "a": 2, "d": 2}, {"b": 2}]
    assert "train.txt: expected a list of images" in refused(voc12aug_splits, voc12.root)


def test_without_sbds_maps_smoke_takes_vocs_own_and_says_so(voc12):
    assert "expected SBD's maps in SegmentationClassAug/ with aug.txt" in refused(voc12aug_splits, voc12.root)
    train, _ = voc12aug_splits(voc12.root, None, True)
    assert len(train) == 1 and train.note.endswith("; 1 with VOC's maps, 0 with SBD's")


def test_an_image_learned_from_and_scored_is_refused(voc12):
    voc12.augment("bcd")
    voc12.list_of("aug", "bc")
    with pytest.raises(SharedImages, match=r"b\.jpg"):
        require_disjoint(voc12aug_splits(voc12.root))


def test_sbds_map_of_another_size_or_kind_is_refused_when_read(voc12):
    sbd = voc12.add_sbd()
    train, _ = voc12aug_splits(voc12.root)
    for values, said in (
        (np.zeros((6, 4), np.uint8), "each of 6x4 pixels, as the image has, found 4x6"),
        (plain(21), "expected indices from 0 to 20, or 255 where no class counts, found 21"),
        (np.zeros(WIDE), "found GTcls.Segmentation of float64"),
        (np.full(WIDE, 300), "found GTcls.Segmentation of int64"),
    ):
        savemat(sbd / "cls/c.mat", {"GTcls": {"Segmentation": values}})
        with pytest.raises(DataError, match=rf"cls/c.mat: .*{said}"):
            train.targets[1]
    (sbd / "cls/c.mat").write_bytes(b"text")
    with pytest.raises(DataError, match=r"cls/c.mat: expected a map of classes, found"):
        train.targets[1]


def test_the_root_may_be_a_relative_path(voc12, monkeypatch):
    voc12.augment()
    voc12.list_of("aug", "cd")
    monkeypatch.chdir(voc12.root)
    train, _ = label_maps.voc12aug_splits("VOCdevkit")
    assert len(train) == 3 and isinstance(train.targets, LabelMaps)
    assert train.targets[0].shape == train.read(0).shape[:2]


def test_sbds_maps_go_with_images_as_stored(voc12):
    voc12.add_sbd()
    photo(voc12.home / "JPEGImages/c.jpg", 6)
    train, _ = voc12aug_splits(voc12.root)
    assert train.read(1).shape[:2] == train.targets[1].shape == WIDE


def test_the_real_subset_is_read_whole(data_root):
    train, val = segmented_splits(data_root / "voc12aug")
    assert (len(train), len(val)) == (106, 104) and len(train.classes) == 21
    seen = set()
    for images in (train, val):
        for i in range(0, len(images), 7):
            with Image.open(images.root / images.targets.paths[i]) as image:
                assert image.mode == "P" and np.array_equal(images.targets[i], np.array(image))
            assert images.targets[i].shape == tuple(images.targets.sizes[i]) == images.read(i).shape[:2]
            seen |= set(np.unique(images.targets[i]).tolist())
    assert seen <= {*range(21), VOID} and {0, VOID} < seen


# -- Cityscapes


@pytest.fixture
def city(tmp_path):
    home = tmp_path / "cityscapes"
    for split, name in (("train", "b/b_2"), ("train", "b/b_1"), ("train", "a/a_9"), ("val", "c/c_1")):
        photo(home / f"leftImg8bit/{split}/{name}_leftImg8bit.png")
        put_map(home / f"gtFine/{split}/{name}_gtFine_labelTrainIds.png", plain(18, VOID), "L")
        put_map(home / f"gtFine/{split}/{name}_gtFine_labelIds.png", plain(7), "L")
    return home


def test_cityscapes_is_read_in_order_by_train_ids(city):
    for root in (city, city.parent):
        train, val = require_disjoint(cityscapes_splits(root))
        assert [name.split("/")[-1][:3] for name in names_of(train)] == ["a_9", "b_1", "b_2"] and len(val) == 1
        assert all(np.array_equal(each, plain(18, VOID)) for each in maps_of(train))
    assert train.classes[0] == "road" and train.classes[18] == "bicycle" and len(train.classes) == 19


# ids and names of the classes that count, by the data set's labels.py
LABELS = {
    **{7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light"},
    **{20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car"},
    **{27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"},
}


def test_all_34_label_ids_become_train_ids_or_void(city):
    for path in city.rglob("*_labelTrainIds.png"):
        path.unlink()
    values = np.full((6, 6), VOID, np.uint8)
    values.flat[:34] = np.arange(34)
    photo(city / "leftImg8bit/val/c/c_1_leftImg8bit.png", size=(6, 6))
    path = city / "gtFine/val/c/c_1_gtFine_labelIds.png"
    put_map(path, values, "L")
    _, val = cityscapes_splits(city)
    expected = np.full(36, VOID)
    expected[list(LABELS)] = np.arange(19)
    assert np.array_equal(val.targets[0].ravel(), expected)
    assert val.classes == list(LABELS.values())
    values.flat[35] = 34
    put_map(path, values, "L")
    with pytest.raises(
        DataError, match=r"labelIds.png: expected indices from 0 to 33, or 255 .*found 34 in column 5 of row 5"
    ):
        val.targets[0]


def test_train_ids_above_18_are_refused(city):
    path = city / "gtFine/val/c/c_1_gtFine_labelTrainIds.png"
    put_map(path, plain(19), "L")
    _, val = cityscapes_splits(city)
    with pytest.raises(DataError, match="expected indices from 0 to 18, or 255"):
        val.targets[0]


def test_a_missing_map_or_split_of_cityscapes_is_said(city):
    for path in city.rglob("a_9_gtFine*"):
        path.unlink()
    assert "found none at" in (text := refused(cityscapes_splits, city)) and "a_9_gtFine_labelTrainIds.png" in text
    train, _ = cityscapes_splits(city, None, True)
    assert len(train) == 2 and "(1 image without a map left out)" in train.note
    shutil.rmtree(city / "leftImg8bit/train/a")
    shutil.rmtree(city / "leftImg8bit/val")
    assert "leftImg8bit/val: expected CITY/NAME_leftImg8bit.png, found no such image\nunpack" in refused(
        cityscapes_splits, city
    )
    assert "expected Cityscapes there or as cityscapes/ below it" in refused(cityscapes_splits, city / "gtFine")


# -- the catalogue


def test_what_is_segmented_is_a_folder_or_voc(folder, voc12, tmp_path_factory):
    seek = DATASETS["segmented"].seek
    assert seek(folder) == folder and seek(voc12.root) == voc12.root
    assert "expected images/ and masks/ there, or PASCAL VOC 2012" in refused(seek, tmp_path_factory.mktemp("none"))
    assert set(label_maps.CITYSCAPES_IDS) < set(range(label_maps.CITYSCAPES_KNOWN)) and map_files.UNKNOWN < 0
