"""Attacks: drawn boxes, masks and lists of VOC, COCO and Cityscapes that contradict the scene they are of, or each other.

Run: pytest tests/data/synthetic/test_dense_writers.py
"""

import io
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from swav.data.synthetic import dense_writers
from swav.data.synthetic.shapes import CLASSES, SPLITS, scene
from swav.data.synthetic.writers import write_shapes
from swav.data.targets import VOID
from swav.evaluation.detection.coco_eval import decode_masks

TRAIN, VAL, SIZE = 9, 3, 48


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each layout, written once."""
    root = tmp_path_factory.mktemp("shapes")
    for layout in ("voc", "voc0712", "coco", "cityscapes"):
        write_shapes(root / layout, layout, train=TRAIN, val=VAL, size=SIZE)
    return root


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def near_an_object(drawn):
    """Pixels whose neighbour above, below, left or right belongs to something in front of them."""
    depth = np.zeros(drawn.semantic.shape, int)
    for place, mask in enumerate(drawn.instances, start=1):
        depth[mask] = place
    padded = np.pad(depth, 1)
    around = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    return np.max(around, axis=0) > depth


def lines(path):
    return path.read_text().split()


@pytest.mark.parametrize("layout", ["voc0712", "coco", "cityscapes"])
def test_the_same_arguments_give_the_same_bytes(folders, tmp_path, layout):
    write_shapes(tmp_path, layout, train=TRAIN, val=VAL, size=SIZE)
    assert files(tmp_path) == files(folders / layout)


# --- voc0712 ----------------------------------------------------------------------------------------------------------


def test_voc2007_is_the_same_with_and_without_voc2012_beside_it(folders):
    assert files(folders / "voc0712/VOC2007") == files(folders / "voc/VOC2007")
    assert not (folders / "voc/VOC2012").exists()


def test_voc2012_shows_scenes_that_voc2007_does_not(folders):
    home = folders / "voc0712/VOC2012"
    ids = lines(home / "ImageSets/Main/trainval.txt")
    assert ids == [f"2012_{index:06d}" for index in range(TRAIN, 2 * TRAIN)]
    images = [(home / f"JPEGImages/{name}.jpg").read_bytes() for name in ids]
    assert not set(images) & {path.read_bytes() for path in (folders / "voc0712/VOC2007/JPEGImages").iterdir()}
    assert len(list((home / "JPEGImages").iterdir())) == len(list((home / "Annotations").iterdir())) == TRAIN


def test_voc2012s_boxes_and_lists_are_those_of_its_scenes(folders):
    home = folders / "voc0712/VOC2012"
    lists = {split: lines(home / f"ImageSets/Main/{split}.txt") for split in ("trainval", "train", "val")}
    assert sorted(lists["train"] + lists["val"]) == lists["trainval"]
    for name in lists["trainval"]:
        drawn = scene(0, "train", int(name[-6:]), SIZE)
        root = ElementTree.parse(home / f"Annotations/{name}.xml").getroot()
        assert (root.findtext("folder"), root.findtext("filename")) == ("VOC2012", f"{name}.jpg")
        boxes = [[int(box.findtext(k) or 0) for k in ("xmin", "ymin", "xmax", "ymax")] for box in root.iter("bndbox")]
        np.testing.assert_array_equal(np.array(boxes) - [1, 1, 0, 0], drawn.boxes)
        assert [item.findtext("name") for item in root.iter("object")] == [CLASSES[k] for k in drawn.classes]
        assert int(root.findtext("segmented") or 0) == (home / f"SegmentationClass/{name}.png").exists()
    for k, label in enumerate(CLASSES):
        marks = dict(line.split() for line in (home / f"ImageSets/Main/{label}_trainval.txt").read_text().splitlines())
        assert list(marks) == lists["trainval"]
        for name, mark in marks.items():
            assert (int(mark) >= 0) == (k in scene(0, "train", int(name[-6:]), SIZE).classes)


def test_the_lists_of_segmentation_are_disjoint_and_their_masks_are_there(folders):
    home = folders / "voc0712/VOC2012"
    lists = {
        split: lines(home / f"ImageSets/Segmentation/{split}.txt") for split in ("train", "val", "aug", "trainval")
    }
    assert lists["trainval"] == sorted(lists["train"] + lists["val"])
    everything = lists["train"] + lists["val"] + lists["aug"]
    assert len(set(everything)) == len(everything) == TRAIN and all(lists.values())
    assert sorted(path.stem for path in (home / "SegmentationClass").iterdir()) == lists["trainval"]
    assert sorted(path.stem for path in (home / "SegmentationClassAug").iterdir()) == sorted(everything)
    for split in ("train", "val"):
        assert set(lists[split]) <= set(lines(home / f"ImageSets/Main/{split}.txt"))


def test_masks_are_the_scenes_with_void_around_objects_and_without_in_the_augmented_ones(folders):
    home = folders / "voc0712/VOC2012"
    for name in lines(home / "ImageSets/Segmentation/trainval.txt"):
        drawn = scene(0, "train", int(name[-6:]), SIZE)
        border = near_an_object(drawn)
        assert 0 < border.mean() < 0.5
        mask = pixels(home / f"SegmentationClass/{name}.png")
        np.testing.assert_array_equal(mask, np.where(border, VOID, drawn.semantic))
        assert all((mask[seen] == k + 1).any() for seen, k in zip(drawn.instances, drawn.classes, strict=True))
        np.testing.assert_array_equal(pixels(home / f"SegmentationClassAug/{name}.png"), drawn.semantic)


def test_masks_bear_vocs_palette(folders):
    path = next((folders / "voc0712/VOC2012/SegmentationClass").iterdir())
    with Image.open(path) as image:
        assert image.mode == "P"
        palette = np.array(image.getpalette()).reshape(-1, 3)
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 6: (0, 128, 128), 12: (64, 0, 128), 20: (0, 64, 128)}
    assert {k: tuple(palette[k]) for k in known} == known
    assert tuple(palette[255]) == (224, 224, 192)


# --- coco -------------------------------------------------------------------------------------------------------------


def test_cocos_masks_boxes_and_areas_are_those_of_the_scenes(folders):
    kinds = set()
    for split in SPLITS:
        content = json.loads((folders / f"coco/annotations/instances_{split}2017.json").read_text())
        categories = {each["id"]: each["name"] for each in content["categories"]}
        assert list(categories.values()) == list(CLASSES)
        assert set(np.diff(list(categories))) == {3}  # with gaps
        assert [each["id"] for each in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
        assert len(content["images"]) == {"train": TRAIN, "val": VAL}[split]
        for index, image in enumerate(content["images"]):
            drawn = scene(0, split, index, SIZE)
            assert image["file_name"] == f"{image['id']:012d}.jpg"
            assert pixels(folders / f"coco/{split}2017/{image['file_name']}").shape[:2] == (
                image["height"],
                image["width"],
            )
            own = [each for each in content["annotations"] if each["image_id"] == image["id"]]
            masks = decode_masks([each["segmentation"] for each in own], SIZE, SIZE)
            np.testing.assert_array_equal(masks, drawn.instances)
            assert [categories[each["category_id"]] for each in own] == [CLASSES[k] for k in drawn.classes]
            assert [each["area"] for each in own] == masks.sum(axis=(1, 2)).tolist()
            boxes = np.array([each["bbox"] for each in own])
            boxes[:, 2:] += boxes[:, :2]
            np.testing.assert_array_equal(boxes, drawn.boxes)
            assert not any(each["iscrowd"] for each in own)
            kinds |= {type(each["segmentation"]) for each in own}
    assert kinds == {list, dict}  # polygons, and run-length codes of what has holes


def test_cocos_images_have_different_numbers_in_both_splits(folders):
    numbers = [
        {each["id"] for each in json.loads(path.read_text())["images"]}
        for path in sorted((folders / "coco/annotations").iterdir())
    ]
    assert len(numbers) == 2 and not numbers[0] & numbers[1] and 0 not in numbers[0] | numbers[1]


@pytest.mark.parametrize(
    "corner",
    [(slice(0, 3), slice(0, 3)), (slice(2, 5), slice(2, 5)), (slice(4, 5), slice(0, 5)), (slice(1, 3), slice(1, 3))],
)
def test_a_mask_with_or_without_a_hole_and_at_any_border_is_the_same_when_drawn_again(corner):
    mask = np.zeros((5, 5), np.bool_)
    mask[corner] = True
    np.testing.assert_array_equal(decode_masks([dense_writers._segmentation(mask)], 5, 5)[0], mask)
    inverse = dense_writers._segmentation(~mask)
    np.testing.assert_array_equal(decode_masks([inverse], 5, 5)[0], ~mask)


def test_polygons_run_along_the_middle_of_the_outer_quarters_of_pixels():
    mask = np.zeros((6, 7), np.bool_)
    mask[1:3, 2:5] = True
    (polygon,) = dense_writers._segmentation(mask)
    corners = np.array(polygon).reshape(-1, 2)
    assert corners.min(axis=0).tolist() == [2.125, 1.125] and corners.max(axis=0).tolist() == [4.875, 2.875]


# --- cityscapes -------------------------------------------------------------------------------------------------------


def test_cityscapes_maps_are_train_ids_of_forms_and_background_with_void_between(folders):
    home = folders / "cityscapes"
    cities = {}
    for split, count in (("train", TRAIN), ("val", VAL)):
        images = sorted((home / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
        assert len(images) == count == len(list((home / "gtFine" / split).glob("*/*")))
        cities[split] = {path.parent.name for path in images}
        for path in images:
            stem = path.name.removesuffix("_leftImg8bit.png")
            city, sequence, frame = stem.split("_")
            assert city == path.parent.name and len(sequence) == len(frame) == 6
            drawn = scene(0, split, int(sequence), SIZE)
            np.testing.assert_array_equal(pixels(path), drawn.image)
            found = pixels(home / "gtFine" / split / city / f"{stem}_gtFine_labelTrainIds.png")
            ids = np.where(drawn.semantic == 0, 10, drawn.semantic.astype(int) - 1)
            np.testing.assert_array_equal(found, np.where(near_an_object(drawn), VOID, ids))
    assert len(cities["train"]) == 2 and not cities["train"] & cities["val"]


def test_pngs_are_of_one_channel(folders):
    for path in (folders / "cityscapes/gtFine").rglob("*.png"):
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            assert image.mode == "L"
