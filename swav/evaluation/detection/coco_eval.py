"""COCO's average precision of boxes and masks, through faster-coco-eval's COCOeval; and COCO's masks as arrays.

The numbers are pycocotools': at most 100 detections an image, 101 points of recall, IoU .50, .55, .. .95, crowds ignored.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import COCO, COCOeval_faster, mask  # type: ignore[import-untyped]
from jaxtyping import Bool, UInt8

from swav.data.targets import ObjectSets
from swav.errors import DataError
from swav.evaluation.detection.detections import Detections, require_known

_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # the order of COCOeval's first six
_IOU_TYPES = {"box": "bbox", "mask": "segm"}


def coco_metrics(truth: ObjectSets, found: Detections, kinds: Sequence[str] = ("box", "mask")) -> dict[str, float]:
    """AP, AP50 and AP75 of boxes and of masks, and AP of small, medium and large objects [%].

    Args:
        truth: the objects, with masks where masks are scored.
        found: the detections; boxes in edges of pixels from 0.
        kinds: box, mask.

    Returns:
        `box AP`, `box AP50`, `box AP75`, `box APs`, `box APm`, `box APl`, and the same of masks. 0 where nothing was found.
        A number is left out where no object counts for it: of the size asked for, or at all (no images, crowds only).

    Raises:
        ValueError: detections in images, or of classes, that the truth doesn't have; masks are missing; numbers of images
            that are not unique.
        DataError: a damaged mask.
    """
    require_known(found, len(truth), len(truth.classes))
    if len(np.unique(truth.ids)) != len(truth):
        raise ValueError("truth: expected a number of its own for each image, found some twice; give each image once")
    metrics: dict[str, float] = {}
    for kind in kinds:
        if kind == "mask" and len(found.masks) != len(found):
            raise ValueError(f"detections: expected a mask of each of {len(found)}, found {len(found.masks)}")
        stats = _coco_stats(truth, found, kind)
        metrics |= {
            f"{kind} {name}": 100 * value for name, value in zip(_NUMBERS, stats, strict=True) if value >= 0
        }  # COCOeval says -1 where no object counts
    return metrics


def _coco_stats(truth: ObjectSets, found: Detections, kind: str) -> list[float]:
    """COCOeval's first six numbers, 0..1, or -1."""
    dataset = _as_json(truth, with_masks=kind == "mask")
    if not dataset["annotations"]:
        return [-1.0] * len(_NUMBERS)
    api = COCO(dataset)
    numbers = truth.ids[found.images].tolist()
    # Without a box beside it, a mask's area is that of its pixels: COCOeval takes the box's where there is one.
    shapes = (
        [{"bbox": box} for box in _corner_and_sides(found.boxes)]
        if kind == "box"
        else [{"segmentation": code} for code in found.masks]
    )
    results = [
        {"image_id": image, "category_id": label + 1, "score": score, **shape}
        for image, label, score, shape in zip(
            numbers, found.labels.tolist(), found.scores.tolist(), shapes, strict=True
        )
    ]
    evaluation = COCOeval_faster(api, api.loadRes(results), _IOU_TYPES[kind], rle_iou_max_workers=1)
    evaluation.run()  # prints nothing: its progress goes to a logger
    return [float(value) for value in evaluation.stats[: len(_NUMBERS)]]


def _as_json(truth: ObjectSets, with_masks: bool) -> dict[str, Any]:
    """The content of an instances_*.json. Annotations are numbered from 1: 0 would be taken for "not matched"."""
    annotations: list[dict[str, Any]] = []
    for i, (number, (height, width)) in enumerate(zip(truth.ids.tolist(), truth.sizes.tolist(), strict=True)):
        objects = truth[i]
        if with_masks and len(objects.masks) != len(objects):
            raise ValueError("truth: expected a mask of each object, found none; score boxes only")
        for j, box in enumerate(_corner_and_sides(objects.boxes)):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": int(objects.labels[j]) + 1,
                "bbox": box,
                "area": float(objects.area[j]),
                "iscrowd": int(objects.crowd[j]),
            }
            if with_masks:
                annotation["segmentation"] = _run_length(objects.masks[j], height, width)
            annotations.append(annotation)
    return {
        "images": [
            {"id": number, "height": height, "width": width}
            for number, (height, width) in zip(truth.ids.tolist(), truth.sizes.tolist(), strict=True)
        ],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(truth.classes)],
    }


def _corner_and_sides(boxes: np.ndarray) -> list[list[float]]:
    """Boxes as left, top, width, height."""
    edges = boxes.astype(np.float64)
    sides: list[list[float]] = np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], axis=1).tolist()
    return sides


def encode_mask(pixels: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """Return a mask's compressed run-length code, which JSON can hold."""
    code = mask.encode(np.asfortranarray(pixels, dtype=np.uint8))
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}


def decode_masks(segmentations: Sequence[Any], height: int, width: int) -> UInt8[np.ndarray, "n H W"]:
    """Draw COCO's segmentations: polygons, or run-length codes, compressed or not.

    Args:
        segmentations: one per object; several polygons are one object.
        height, width: of the image [pixels].

    Returns:
        1 on the object, 0 elsewhere.

    Raises:
        DataError: a code of another size, or a damaged one.
    """
    masks = np.zeros((len(segmentations), height, width), np.uint8)
    for pixels, segmentation in zip(masks, segmentations, strict=True):
        code = _run_length(segmentation, height, width)
        try:
            pixels[:] = mask.decode(code)
        except ValueError as error:  # its runs don't fill the image
            raise _damaged(error) from None
    return masks


def _run_length(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Return the compressed run-length code of a segmentation.

    Raises:
        DataError: see decode_masks.
    """
    match segmentation:
        case []:
            return encode_mask(np.zeros((height, width), np.bool_))
        case {"size": [h, w]} if (h, w) != (height, width):
            raise DataError(
                f"segmentation: expected a run-length code of {height}x{width} pixels, as its image, found one of {h}x{w}; "
                "get the annotations again"
            )
    try:
        code: dict[str, Any] = mask.segmToRle(segmentation, width, height)
        mask.area(code)  # reads the code
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _damaged(error) from None
    return code


def _damaged(error: Exception) -> DataError:
    return DataError(
        f"segmentation: expected polygons or a run-length code, found neither ({str(error).splitlines()[0][:80]}); "
        "get the annotations again"
    )
