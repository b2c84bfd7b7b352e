"""Attacks: COCO numbers that are not pycocotools', and masks that are drawn differently.

Oracle: pycocotools. Run: pytest tests/evaluation/detection/test_coco_eval.py
"""

import contextlib
import dataclasses
import io
import json
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as oracle  # type: ignore[import-untyped]
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

from swav.data.targets import Objects, ObjectSets
from swav.errors import DataError
from swav.evaluation.detection.coco_eval import coco_metrics, decode_masks, encode_mask
from swav.evaluation.detection.detections import Detections

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl"]


def truth_of(dataset):
    """ObjectSets of the content of an instances_*.json."""
    categories = [category["id"] for category in dataset["categories"]]
    objects = []
    for image in dataset["images"]:
        own = [each for each in dataset["annotations"] if each["image_id"] == image["id"]]
        boxes = np.array([each["bbox"] for each in own], np.float64).reshape(len(own), 4)
        boxes[:, 2:] += boxes[:, :2]
        objects.append(
            Objects(
                boxes=boxes.astype(np.float32),
                labels=np.array([categories.index(each["category_id"]) for each in own], np.int64),
                difficult=np.zeros(len(own), np.bool_),
                crowd=np.array([each["iscrowd"] for each in own], np.bool_),
                area=np.array([each["area"] for each in own], np.float32),
                numbers=np.array([each["id"] for each in own], np.int64),
                masks=[each["segmentation"] for each in own],
            )
        )
    return ObjectSets(
        objects,
        [str(number) for number in categories],
        sizes=np.array([(image["height"], image["width"]) for image in dataset["images"]], np.int64).reshape(-1, 2),
        ids=np.array([image["id"] for image in dataset["images"]], np.int64),
    )


def pycocotools_numbers(dataset, found, kind):
    """The six numbers [%], from the same JSON and results as a user of pycocotools would write them."""
    results = []
    for j in range(len(found)):
        x0, y0, x1, y1 = (float(x) for x in found.boxes[j])
        shape = {"bbox": [x0, y0, x1 - x0, y1 - y0]} if kind == "box" else {"segmentation": found.masks[j]}
        image, category = dataset["images"][found.images[j]]["id"], dataset["categories"][found.labels[j]]["id"]
        results.append({"image_id": image, "category_id": category, "score": float(found.scores[j]), **shape})
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = json.loads(json.dumps(dataset))
        api.createIndex()
        evaluation = COCOeval(api, api.loadRes(results), {"box": "bbox", "mask": "segm"}[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {
        f"{kind} {name}": 100 * value for name, value in zip(NAMES, evaluation.stats[:6], strict=True) if value >= 0
    }


def rectangle(box, height, width):
    mask = np.zeros((height, width), np.bool_)
    x0, y0, x1, y1 = (max(0, int(x)) for x in box)
    mask[y0:y1, x0:x1] = True
    return mask


def random_case(seed, images=8, side=160):
    """Boxes on whole pixels and few scores: ties are frequent. Some are crowds, some images are empty, some sizes large."""
    rng = np.random.default_rng(seed)
    dataset: dict[str, list[dict[str, Any]]]
    dataset = {"images": [], "annotations": [], "categories": [{"id": k, "name": str(k)} for k in (3, 4, 9)]}
    rows = []

    def box():
        x, y = rng.integers(0, side - 20, 2)
        return np.array([x, y, min(side, x + rng.integers(4, 130)), min(side, y + rng.integers(4, 130))])

    for i in range(images):
        number = int(97 * (i * 5 % images) + 1)  # not in order
        dataset["images"].append({"id": number, "height": side, "width": side})
        objects = [(int(rng.integers(3)), box()) for _ in range(rng.integers(0, 6) if i else 0)]
        for label, edges in objects:
            crowd = int(rng.random() < 0.2)
            mask = rectangle(edges, side, side)
            code = encode_mask(mask)
            dataset["annotations"].append(
                {
                    "id": len(dataset["annotations"]) + 1,
                    "image_id": number,
                    "category_id": (3, 4, 9)[label],
                    "bbox": [float(edges[0]), float(edges[1]), *(float(x) for x in edges[2:] - edges[:2])],
                    "area": float(mask.sum()),
                    "iscrowd": crowd,
                    "segmentation": code,
                }
            )
            for _ in range(rng.integers(0, 4)):
                moved = np.clip(edges + rng.integers(-3, 4, 4), 0, side)
                rows.append(
                    (
                        i,
                        label,
                        round(rng.random(), 1),
                        np.maximum(moved, np.tile(moved[:2], 2) + np.array([0, 0, 1, 1])),
                    )
                )
        rows.append((i, int(rng.integers(3)), round(rng.random(), 1), box()))
    order = rng.permutation(len(rows))
    rows = [rows[j] for j in order]
    found = Detections(
        images=np.array([row[0] for row in rows]),
        labels=np.array([row[1] for row in rows]),
        scores=np.array([row[2] for row in rows], np.float32),
        boxes=np.array([row[3] for row in rows], np.float32),
        masks=[encode_mask(rectangle(row[3], side, side)) for row in rows],
    )
    return dataset, found


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_numbers_are_those_of_pycocotools_on_random_sets(kind):
    seen = set()
    for seed in range(6):
        dataset, found = random_case(seed)
        ours = coco_metrics(truth_of(dataset), found, (kind,))
        assert ours == pytest.approx(pycocotools_numbers(dataset, found, kind), rel=0, abs=1e-11)
        seen |= set(ours)
        assert 5 < ours[f"{kind} AP"] < 95
    assert seen == {f"{kind} {name}" for name in NAMES}


@pytest.fixture(scope="module")
def coco_tiny(data_root):
    return json.loads((data_root / "coco_tiny/annotations/instances_val2017.json").read_text())


def drawn_again(dataset, move, seed=0):
    """Detections that are a set's own objects, moved by up to some pixels; crowds are left out."""
    rng = np.random.default_rng(seed)
    truth = truth_of(dataset)
    images, labels, boxes, masks = [], [], [], []
    for i in range(len(truth)):
        height, width = truth.sizes[i].tolist()
        objects = truth[i]
        pixels = decode_masks(objects.masks, height, width)
        for j in np.flatnonzero(~objects.crowd):
            shift = rng.integers(-move, move + 1, 2)
            images.append(i)
            labels.append(objects.labels[j])
            boxes.append(objects.boxes[j] + np.tile(shift, 2))
            masks.append(encode_mask(np.roll(pixels[j], shift[::-1], axis=(0, 1)) > 0))
    scores = rng.random(len(images)).round(2).astype(np.float32)
    return Detections(np.array(images), np.array(labels), scores, np.array(boxes, np.float32), masks)


def test_numbers_are_pycocotools_on_real_annotations(coco_tiny):
    found = drawn_again(coco_tiny, move=6)
    ours = coco_metrics(truth_of(coco_tiny), found)
    theirs = pycocotools_numbers(coco_tiny, found, "box") | pycocotools_numbers(coco_tiny, found, "mask")
    assert ours.keys() == theirs.keys() and len(ours) == 12
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-3), name  # ObjectSets hold boxes in float32
    assert 20 < ours["box AP"] < 90 and 20 < ours["mask AP"] < 90


def test_the_objects_themselves_score_100(coco_tiny):
    ours = coco_metrics(truth_of(coco_tiny), drawn_again(coco_tiny, move=0))
    assert ours == pytest.approx(dict.fromkeys(ours, 100.0))
    assert len(ours) == 12


def test_nothing_found_scores_0():
    dataset, found = random_case(1)
    nothing = Detections(found.images[:0], found.labels[:0], found.scores[:0], found.boxes[:0], [])
    ours = coco_metrics(truth_of(dataset), nothing)
    assert len(ours) >= 10 and set(ours.values()) == {0.0}


def test_where_no_object_counts_there_is_no_number():
    dataset, found = random_case(1)
    for annotation in dataset["annotations"]:
        annotation["iscrowd"] = 1
    assert coco_metrics(truth_of(dataset), found) == {}
    dataset["annotations"] = []
    assert coco_metrics(truth_of(dataset), found) == {}
    dataset["images"] = []
    nothing = Detections(found.images[:0], found.labels[:0], found.scores[:0], found.boxes[:0], [])
    assert coco_metrics(truth_of(dataset), nothing) == {}


def one_object(masks=True, **changes):
    annotation = {
        "id": 1,
        "image_id": 5,
        "category_id": 3,
        "bbox": [10.0, 10.0, 40.0, 40.0],
        "area": 900.0,
        "iscrowd": 0,
        "segmentation": [[10, 10, 50, 10, 50, 50, 10, 50]],
    }
    dataset = {
        "images": [{"id": 5, "height": 100, "width": 120}],
        "annotations": [annotation | changes],
        "categories": [{"id": 3, "name": "c"}],
    }
    box = np.array([[10, 10, 50, 50]], np.float32)
    mask = [encode_mask(rectangle(box[0], 100, 120))] if masks else ()
    zero = np.zeros(1, np.int64)
    return truth_of(dataset), Detections(zero, zero, np.ones(1, np.float32), box, mask)


def test_the_size_of_an_object_is_its_annotated_area_not_its_boxs():
    ours = coco_metrics(*one_object())  # the box has 1600 pixels, and would be a medium object
    assert ours["box APs"] == ours["mask APs"] == pytest.approx(100) and "box APm" not in ours


def test_a_crowd_swallows_detections():
    both = truth_of(
        {
            "images": [{"id": 5, "height": 100, "width": 120}],
            "annotations": [
                {
                    "id": n,
                    "image_id": 5,
                    "category_id": 3,
                    "bbox": box,
                    "area": 900.0,
                    "iscrowd": crowd,
                    "segmentation": [],
                }
                for n, box, crowd in ((1, [10.0, 10.0, 40.0, 40.0], 0), (2, [60.0, 60.0, 40.0, 40.0], 1))
            ],
            "categories": [{"id": 3, "name": "c"}],
        }
    )
    in_crowd = np.array([[65, 65, 75, 75], [10, 10, 50, 50]], np.float32)
    found = Detections(np.zeros(2, np.int64), np.zeros(2, np.int64), np.array([0.9, 0.8], np.float32), in_crowd)
    assert coco_metrics(both, found, ("box",))["box AP"] == pytest.approx(100)


def test_boxes_alone_need_no_masks_and_masks_are_asked_for():
    truth, found = one_object(masks=False)
    assert coco_metrics(truth, found, ("box",))["box AP"] == pytest.approx(100)
    with pytest.raises(ValueError, match="expected a mask of each of 1, found 0"):
        coco_metrics(truth, found)


def test_of_images_with_one_number_none_can_be_told():
    truth, found = one_object()
    with pytest.raises(ValueError, match="number of its own"):
        coco_metrics(truth.select(np.array([0, 0])), found)
    with pytest.raises(ValueError, match="expected images from 0 to 0"):
        coco_metrics(truth, dataclasses.replace(found, images=np.array([1])))


def test_nothing_is_printed(capfd):
    coco_metrics(*one_object())
    assert capfd.readouterr() == ("", "")


def test_masks_survive_their_code():
    rng = np.random.default_rng(0)
    for density in (0, 0.1, 0.9, 1):
        mask = rng.random((9, 14)) < density
        code = json.loads(json.dumps(encode_mask(mask)))
        assert code["counts"].encode() == oracle.encode(np.asfortranarray(mask, np.uint8))["counts"]
        np.testing.assert_array_equal(decode_masks([code], 9, 14)[0], mask)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decode
def test_polygons_and_codes_are_drawn_as_pycocotools_draws_them(coco_tiny):
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = coco_tiny
        api.createIndex()
    truth = truth_of(coco_tiny)
    crowds = 0
    for i, image in enumerate(coco_tiny["images"][:25]):
        masks = decode_masks(truth[i].masks, *truth.sizes[i].tolist())
        annotations = [each for each in coco_tiny["annotations"] if each["image_id"] == image["id"]]
        assert masks.dtype == np.uint8 and len(masks) == len(annotations)
        for mask, annotation in zip(masks, annotations, strict=True):
            np.testing.assert_array_equal(mask, api.annToMask(annotation))
            crowds += annotation["iscrowd"]
    assert crowds > 0  # they have run-length codes


def test_polygons_of_several_parts_are_one_object_and_none_at_all_is_empty():
    parts = [[1, 1, 3, 1, 3, 3, 1, 3], [5, 1, 7, 1, 7, 3, 5, 3]]
    masks = decode_masks([parts, [], {"size": [4, 8], "counts": [4, 2, 26]}], 4, 8)
    assert masks[0].sum() == 8 and masks[0, 1:3, 5:7].all()
    assert masks[1].sum() == 0
    assert masks[2].sum() == 2 and masks[2, :2, 1].all()  # column by column
    assert decode_masks([], 4, 8).shape == (0, 4, 8)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [8, 4], "counts": [4, 2, 26]},
        {"size": [4, 8], "counts": [4, 2]},
        {"size": [4, 8], "counts": [4, 2, 260]},
        {"size": [4, 8], "counts": [4, -2, 30]},
        {"size": [4, 8], "counts": "ZZZ"},
        {"size": [4, 8]},
        "polygon",
        [["a", "b"]],
        None,
    ],
)
def test_damaged_segmentations_are_data_errors(segmentation):
    with pytest.raises(DataError, match="expected"):
        decode_masks([segmentation], 4, 8)
