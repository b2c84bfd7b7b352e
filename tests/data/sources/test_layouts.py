"""Attacks: a test split that is trained on, a mask that is an image, two answers to what one folder is, a silent omission.

Run: pytest tests/data/sources/test_layouts.py
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swav.data import manifest
from swav.data.scan import render_scan, scan
from swav.data.sources.catalog import labelled
from swav.data.sources.label_maps import find_folder
from swav.data.sources.layouts import find_layout, unused_splits
from swav.data.sources.open import check_images, labelled_splits, open_images
from swav.data.sources.walk import VAL_SPLITS, first_of, walk
from swav.errors import ConfigError, DataError
from swav.files import refuse_inside
from tests.data.folders import names_of, put, put_all

HALF = ("a/1.png", "b/2.png")


def put_splits(root, train="train", val="val"):
    put_all(root, *(f"{split}/{name}" for split in (train, val) for name in HALF))
    return root


def put_mask(path, size=(8, 6), mode="P"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 1).save(path)


def folders_read(path, split="train"):
    return {name.rpartition("/")[0] for name in names_of(open_images(path, split))}


# -- splits


@pytest.mark.parametrize(
    "place, train, val",
    [
        ("", "Training", "Testing"),
        ("", "Train", "Test"),
        ("", "train", "dev"),
        ("", "TRAIN", "VALID"),
        ("data/data", "train", "test"),
        ("ILSVRC/Data/CLS-LOC", "train", "val"),
    ],
)
def test_splits_by_any_of_the_words_and_three_levels_down_are_one_data_set(tmp_path, place, train, val):
    home = put_splits(tmp_path / place, train, val)
    train, val = (str((home / name).relative_to(tmp_path)) for name in (train, val))
    assert folders_read(tmp_path) == {f"{train}/a", f"{train}/b"}
    assert folders_read(tmp_path, "val") == {f"{val}/a", f"{val}/b"}
    assert f"{train}/ of" in open_images(tmp_path).note and f"{val}/ is left" in open_images(tmp_path).note
    for bank, scored in (labelled_splits(tmp_path), labelled(tmp_path)):
        assert bank.classes == scored.classes == ["a", "b"] and names_of(scored) == names_of(
            open_images(tmp_path, "val")
        )


def test_splits_four_levels_down_are_trained_on_with_a_warning(tmp_path):
    put_splits(tmp_path / "1/2/3/4")
    images = open_images(tmp_path)
    assert len(images) == 4 and "1/2/3/4/val/" in images.warnings[0] and "trained on too" in images.warnings[0]


def test_of_several_scored_words_the_first_is_chosen_and_small_letters_win():
    names = ["testing", "Test", "dev", "VALIDATION", "x"]
    assert first_of(VAL_SPLITS, names) == "VALIDATION" and first_of(VAL_SPLITS, ["Val", "val", "VAL"]) == "val"
    assert first_of(VAL_SPLITS, ["x"]) == ""


def test_two_data_sets_below_a_folder_are_a_tree_and_both_scored_splits_are_named(tmp_path):
    put_splits(tmp_path / "one")
    put_splits(tmp_path / "two", "Training", "Testing")
    images = open_images(tmp_path)
    assert len(images) == 8 and "one/val/, two/Testing/" in images.warnings[0]


def test_a_link_to_a_data_set_does_not_make_it_two(tmp_path):
    put_splits(tmp_path / "data/z")
    (tmp_path / "data/a").symlink_to(tmp_path / "data/z")
    assert folders_read(tmp_path / "data") == {"z/train/a", "z/train/b"}


def test_labels_beside_images_are_no_data_set_of_their_own(tmp_path):
    put_all(tmp_path, *(f"images/{split}/{i}.png" for split in ("train", "val") for i in range(3)))
    for split in ("train", "val"):
        (tmp_path / "labels" / split).mkdir(parents=True)
        (tmp_path / "labels" / split / "0.txt").write_text("0 0.5 0.5 1 1")
    assert folders_read(tmp_path) == {"images/train"}


def test_images_beside_the_way_to_the_splits_are_named(tmp_path):
    put_splits(tmp_path / "deep/set")
    put_all(tmp_path, "photos/1.png", "deep/more/2.png")
    (tmp_path / "docs").mkdir()
    images = open_images(tmp_path)
    assert len(images) == 2 and "photos/, deep/more/" in images.warnings[0] and "not used" in images.warnings[0]
    assert not open_images(put_splits(tmp_path / "alone/set").parent).warnings


@pytest.mark.parametrize(
    "there, named",
    [
        (["seg_train/x", "seg_test/x"], ["seg_test"]),
        (["train_images", "TestImages"], ["TestImages"]),
        (["train", "test1"], ["test1"]),
        (["a/b/val/c", "a/b/d"], ["a/b/val"]),
        (["test_tube", "flask"], []),
        (["train", "bus"], []),
        (["latest", "contest", "trainers"], []),
    ],
)
def test_names_that_look_like_a_split_are_noticed_and_others_are_not(there, named):
    assert unused_splits([f"{folder}/1.png".encode() for folder in there]) == named


def test_the_words_hold_for_the_csv_in_any_case(tmp_path):
    put_all(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "list.csv").write_text("path,split\n1.png,Training\n2.png,DEV\n3.png,test\n")
    assert names_of(open_images(tmp_path / "list.csv")) == ["1.png"]
    assert names_of(open_images(tmp_path / "list.csv", "val")) == ["2.png"]


def test_folders_of_images_and_masks_know_the_same_words(tmp_path):
    for name in ("Training/images", "Training/masks", "Testing/images", "Testing/masks"):
        (tmp_path / name).mkdir(parents=True)
    assert list(find_folder(tmp_path)) == ["Training", "Testing"]


# -- known layouts


def voc(root, year="VOC2012"):
    for i in range(4):
        put(root / year / f"JPEGImages/{i}.jpg", (i, 0, 0))
        put_mask(root / year / f"SegmentationClass/{i}.png")
        put_mask(root / year / f"SegmentationObject/{i}.png")
    lists = root / year / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("3\n")
    return root


def test_voc_is_photographs_without_those_that_are_scored(tmp_path):
    root = voc(voc(tmp_path / "VOCdevkit"), "VOC2007")
    (root / "VOC2007/ImageSets/Main").mkdir()
    (root / "VOC2007/ImageSets/Main/test.txt").write_bytes(b"\xef\xbb\xbf0 \r\n1\r\n")
    for path, start in ((tmp_path, "VOCdevkit/"), (root, ""), (root / "VOC2007", None)):
        train, scored, whole = (names_of(open_images(path, split)) for split in ("train", "val", "all"))
        assert sorted(train + scored) == whole and all("JPEGImages" in name for name in whole)
        if start is not None:
            assert train == [f"{start}VOC2007/JPEGImages/{i}.jpg" for i in (2, 3)] + [
                f"{start}VOC2012/JPEGImages/{i}.jpg" for i in range(3)
            ]
    assert names_of(open_images(root / "VOC2007")) == ["JPEGImages/2.jpg", "JPEGImages/3.jpg"]
    found = scan(tmp_path)
    assert found["layout"] == "voc" and found["trained_on"]["images"] == 5 and "PASCAL VOC" in found["scored"]["note"]


def test_coco_and_cityscapes_are_their_training_photographs(tmp_path):
    coco, city = tmp_path / "coco", tmp_path / "city"
    put_all(coco, "train2017/1.png", "val2017/2.png", "test2017/3.png")
    (coco / "annotations").mkdir()
    (coco / "annotations/instances_train2017.json").write_text("{}")
    for split in ("train", "val"):
        put(city / f"leftImg8bit/{split}/{split}burg/x_leftImg8bit.png")
        put_mask(city / f"gtFine/{split}/{split}burg/x_gtFine_labelIds.png", mode="L")
    assert names_of(open_images(coco)) == ["train2017/1.png"]
    assert names_of(open_images(city)) == ["leftImg8bit/train/trainburg/x_leftImg8bit.png"]
    for path, name in ((coco, "COCO"), (city, "Cityscapes")):
        assert open_images(path).labels is None
        with pytest.raises(DataError, match=name):
            labelled_splits(path)
    both = open_images(tmp_path)  # two data sets: a tree, and still no mask
    assert len(both) == 5 and "gtFine" in both.left_out


def test_masks_and_trimaps_beside_images_are_passed_over_only_where_they_have_their_names(tmp_path):
    for i in range(6):
        put(tmp_path / f"pets/images/cat_{i}.jpg")
        put_mask(tmp_path / f"pets/annotations/trimaps/cat_{i}.png", mode="L")
        put(tmp_path / f"own/images/{i}.jpg")
        put_mask(tmp_path / f"own/masks/{i}.png")
        put(tmp_path / f"people/images/face{i}.jpg")
        put(tmp_path / f"people/masks/worn{i}.png")
    assert folders_read(tmp_path / "pets") == folders_read(tmp_path / "own") == {"images"}
    assert "annotations" in open_images(tmp_path / "pets").note
    assert folders_read(tmp_path / "people") == {"images", "masks"}
    assert folders_read(tmp_path / "own/masks") == {""}  # who names it means it


def test_masks_in_other_places_are_warned_of_in_scan_and_run(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5):
        put(tmp_path / f"photos/p{i}.jpg", size=(20 + i, 30))
        put_mask(tmp_path / f"truth/P{i}_mask.png", (20 + i, 30))
        Image.fromarray(rng.integers(0, 255, (9, 9), dtype=np.uint8)).save(tmp_path / f"photos/grey{i}.png")
    (warning,) = open_images(tmp_path).warnings
    assert (
        "5 of the images seem to be masks" in warning and "truth/P0_mask.png" in warning and "photos/p0.jpg" in warning
    )
    assert f"warning     {warning}" in render_scan(scan(tmp_path))
    for i in range(5):
        put_mask(tmp_path / f"truth/P{i}_mask.png", (21 + i, 30))  # another size: a picture of its own
    assert not open_images(tmp_path).warnings


@pytest.mark.parametrize("places", ["{seq}/{kind}", "{kind}/{seq}"])
def test_masks_of_many_sequences_with_the_same_numbers_are_noticed(tmp_path, places):
    for seq in "abc":
        for i in range(3):
            put(tmp_path / places.format(seq=seq, kind="video") / f"{i}.jpg")
            put_mask(tmp_path / places.format(seq=seq, kind="truth") / f"{i}.png")
    assert "9 of the images seem to be masks" in open_images(tmp_path).warnings[0]


def test_grey_pictures_with_numbers_for_names_are_no_masks(tmp_path):
    for name in "abcd":
        for i in range(3):
            put(tmp_path / name / f"{i}.jpg")
    for i in range(3):
        put_mask(tmp_path / f"grey/{i}.png", mode="L")
    assert not open_images(tmp_path).warnings


# -- flat ImageNet


def flat_imagenet(root):
    put_all(root, "train/n1/a.png", "train/n2/b.png", "val/ILSVRC2012_val_1.png", "val/ILSVRC2012_val_2.png")
    (root / "meta").mkdir()
    (root / "meta/train.txt").write_text("n1/a.png 0\nn2/b.png 1\n")
    (root / "meta/val.txt").write_text("ILSVRC2012_val_1.png 1\nILSVRC2012_val_2.png 0\n")
    return root


def test_scan_run_and_bench_read_the_lists_of_a_flat_val_alike(tmp_path):
    root = flat_imagenet(tmp_path)
    (root / "val/.ipynb_checkpoints").mkdir()
    (root / "val/__MACOSX").mkdir()
    for _, scored in (labelled_splits(root), labelled(root)):
        assert scored.labels is not None and scored.labels.tolist() == [1, 0]
    found = scan(root)
    assert found["layout"] == "flat-imagenet" and found["scored"]["images"] == 2 and found["classes"]["count"] == 2
    assert names_of(open_images(root)) == ["train/n1/a.png", "train/n2/b.png"]


def test_a_flat_val_without_lists_is_said_to_be_that_with_what_to_get(tmp_path):
    root = flat_imagenet(tmp_path)
    (root / "meta/val.txt").unlink()
    with pytest.raises(DataError, match=r"folder of each class in val/.*2 images without.*ImageNet.*meta/val\.txt"):
        labelled_splits(root)
    for path in root.glob("val/*"):
        path.rename(path.with_name(path.name.replace("ILSVRC2012_val_", "")))
    with pytest.raises(DataError, match="move each image") as error:
        labelled(root)
    assert "ImageNet" not in str(error.value)


# -- classes of which nothing can be read


def test_a_class_without_a_readable_image_is_named_with_the_reason(tmp_path):
    put_splits(tmp_path)
    (tmp_path / "train/b/2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"only in val: b \(train/b/2\.png: empty file\)"):
        labelled_splits(tmp_path)
    assert "no readable image in 1 class: b (train/b/2.png: empty file)" in open_images(tmp_path).warnings
    (tmp_path / "train/b/2.png").rename(tmp_path / "train/b/2.heic")
    put(tmp_path / "train/c/1.png")
    with pytest.raises(DataError, match=r"only in train: c; only in val: b \(1 \.heic, which are not read: convert"):
        labelled_splits(tmp_path)
    (tmp_path / "list.csv").write_text("path,label\ntrain/a/1.png,a\ntrain/c/1.png,c\ntrain/b/2.heic,b\n")
    (warning,) = open_images(tmp_path / "list.csv").warnings
    assert "1 class: b (train/b/2.heic: empty file" in warning


# -- numbers


def test_scan_says_what_a_run_leaves_out_and_what_it_meets(tmp_path):
    put_splits(tmp_path)
    cut = put(tmp_path / "train/a/cut.png", (1, 2, 3), (40, 40))
    cut.write_bytes(cut.read_bytes()[:60])
    (tmp_path / "train/a/zero.png").write_bytes(b"")
    (tmp_path / "val/a/zero.png").write_bytes(b"")
    found = scan(tmp_path)["trained_on"]
    images = open_images(tmp_path)
    assert (found["images"], found["left_out"], found["damaged"]) == (len(images), len(images.bad), 1) == (3, 1, 1)
    assert (
        "3 images: train/ of" in (text := render_scan(scan(tmp_path)))
        and "; 1 unreadable left out; 1 more damaged" in text
    )


# -- runs that began with another reading


def test_what_earlier_versions_read_is_read_again(tmp_path):
    put_splits(tmp_path, "Training", "Testing")
    put_mask(tmp_path / "Training/a/images/x.png")
    put(tmp_path / "Training/a/masks/x.png")
    before = open_images(find_layout(tmp_path, as_before=True))
    assert len(before) == 6 and before.root == tmp_path and not before.warnings
    manifest.write_roster(tmp_path / "list.npz", before)
    assert manifest.count_missing(tmp_path / "list.npz", before) == 0
    assert manifest.count_missing(tmp_path / "list.npz", open_images(tmp_path)) == 3  # Testing's two, and the mask
    assert manifest.count_missing(tmp_path / "none.npz", before) == 0


def test_of_train_beside_dev_earlier_versions_read_both(tmp_path):
    put_splits(tmp_path, "train", "dev")
    assert find_layout(tmp_path).kind == "splits" and find_layout(tmp_path, as_before=True).kind == "tree"


# -- the folder for results


def test_a_new_out_inside_of_the_data_is_refused_with_a_place_beside_it(tmp_path, monkeypatch):
    put_all(tmp_path, "photos/1.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for out, data, beside in (
        ("photos/run", "photos/", "photos-run"),
        ("photos/a/b", "link", "link-a-b"),
        ("photos", "photos", "photos-out"),
        (f"{tmp_path}/photos/run", "photos", "photos-run"),
        ("run", ".", f"{tmp_path}-run"),
    ):
        with pytest.raises(ConfigError, match=f"use --out {beside}$"):
            refuse_inside(Path(out), data, resumes=False)
        refuse_inside(Path(out), data, resumes=True)
    refuse_inside(Path("photos-run"), "photos", resumes=False)
    refuse_inside(Path("run"), "photos/list.txt", resumes=False)
    (tmp_path / "photos-run").mkdir()
    with pytest.raises(ConfigError, match="photos-run-2"):
        refuse_inside(Path("photos/run"), "photos", resumes=False)


# -- speed of the check before torch


def test_the_check_before_a_run_looks_where_the_run_will(tmp_path):
    put_splits(tmp_path / "x", "Training", "Testing")
    for path in (tmp_path / "x/Training").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="Training: expected images, found no file"):
        check_images(tmp_path / "x")
    check_images(voc(tmp_path / "VOCdevkit"))
    assert walk(tmp_path / "VOCdevkit").maps == ("VOC2012/SegmentationClass", "VOC2012/SegmentationObject")
