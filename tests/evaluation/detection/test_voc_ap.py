"""Attacks: average precision that is not the development kit's, in each of its rules.

Oracle: the kit's loops, written out. Run: pytest tests/evaluation/detection/test_voc_ap.py
"""

import dataclasses
import math

import numpy as np
import pytest

from swav.data.targets import Objects, ObjectSets
from swav.evaluation.detection.detections import Detections
from swav.evaluation.detection.voc_ap import IOUS, voc_ap, voc_metrics


def truth_of(images, classes=2):
    """ObjectSets of one list per image, of (label, box) or (label, box, difficult)."""
    objects = []
    for rows in images:
        full = [(*row, False)[:3] for row in rows]
        n = len(full)
        objects.append(
            Objects(
                boxes=np.array([box for _, box, _ in full], np.float32).reshape(n, 4),
                labels=np.array([label for label, _, _ in full], np.int64),
                difficult=np.array([hard for _, _, hard in full], np.bool_),
                crowd=np.zeros(n, np.bool_),
                area=np.ones(n, np.float32),
                numbers=np.arange(1, n + 1),
            )
        )
    n = len(objects)
    return ObjectSets(objects, [f"c{k}" for k in range(classes)], sizes=np.full((n, 2), 50), ids=np.arange(n))


def found_of(rows):
    """Detections from (image, label, score, box)."""
    n = len(rows)
    return Detections(
        images=np.array([row[0] for row in rows], np.int64),
        labels=np.array([row[1] for row in rows], np.int64),
        scores=np.array([row[2] for row in rows], np.float32),
        boxes=np.array([row[3] for row in rows], np.float32).reshape(n, 4),
    )


def the_kits(truth, found, threshold, points, inclusive, match_at_threshold, as_text):
    """Per class, a loop over detections and a loop over objects."""
    extra = 1 if inclusive else 0
    results = []
    for k in range(len(truth.classes)):
        objects = {
            i: [
                [box, hard, False]
                for box, hard, c in zip(truth[i].boxes, truth[i].difficult, truth[i].labels, strict=True)
                if c == k
            ]
            for i in range(len(truth))
        }
        positives = sum(not hard for each in objects.values() for _, hard, _ in each)
        mine = [j for j in range(len(found)) if found.labels[j] == k]
        score = {j: float(f"{found.scores[j]:.3f}") if as_text else float(found.scores[j]) for j in mine}
        hits, misses, curve = 0, 0, []
        for j in sorted(mine, key=lambda j: (-score[j], found.images[j], j)):
            a = [float(f"{x:.1f}") if as_text else float(x) for x in found.boxes[j]]
            best, at = -math.inf, None
            for entry in objects[found.images[j]]:
                b = [float(x) for x in entry[0]]
                w = min(a[2], b[2]) - max(a[0], b[0]) + extra
                h = min(a[3], b[3]) - max(a[1], b[1]) + extra
                shared = w * h if w > 0 and h > 0 else 0
                area_a = (a[2] - a[0] + extra) * (a[3] - a[1] + extra)
                area_b = (b[2] - b[0] + extra) * (b[3] - b[1] + extra)
                if shared / (area_a + area_b - shared) > best:
                    best, at = shared / (area_a + area_b - shared), entry
            if at is not None and (best > threshold or (match_at_threshold and best == threshold)):
                if at[1]:
                    pass
                elif at[2]:
                    misses += 1
                else:
                    hits, at[2] = hits + 1, True
            else:
                misses += 1
            curve.append((hits / positives if positives else math.nan, hits / max(hits + misses, 1)))
        if not positives:
            results.append(math.nan)
        elif points == 11:
            best_beyond = [max([p for r, p in curve if r >= t], default=0) for t in np.arange(0.0, 1.1, 0.1)]
            results.append(100 * sum(best_beyond) / 11)
        else:
            area, before = 0.0, 0.0
            for at_here, (recall, _) in enumerate(curve):
                area += (recall - before) * max(p for _, p in curve[at_here:])
                before = recall
            results.append(100 * area)
    return results


def random_case(seed):
    """Boxes on a coarse grid, scores of few values: equal scores, equal IoU and IoU at thresholds are frequent."""
    rng = np.random.default_rng(seed)
    classes = 3

    def box():
        x, y = rng.integers(1, 20, 2)
        return [x, y, x + rng.integers(1, 12), y + rng.integers(1, 12)]

    images = [
        [(rng.integers(classes), box(), rng.random() < 0.25) for _ in range(rng.integers(0, 6))] for _ in range(8)
    ]
    if seed % 4 == 0:
        images = [[row for row in rows if row[0] != 1] for rows in images]  # a class without objects
    rows = []
    for i, objects in enumerate(images):
        for label, near, _ in objects:
            for _ in range(rng.integers(0, 4)):
                moved = np.array(near) + rng.integers(-2, 3, 4) + (rng.normal(0, 0.3, 4) if seed % 2 else 0)
                moved[2:] = np.maximum(moved[2:], moved[:2])
                score = round(rng.random(), 1) + (0 if seed % 3 else rng.uniform(-0.0004, 0.0004))
                rows.append((i, label, score, moved))
        rows.append((i, rng.integers(classes), round(rng.random(), 1), box()))
    order = rng.permutation(len(rows))
    return truth_of(images, classes), found_of([rows[j] for j in order])


@pytest.mark.parametrize("points", [11, None])
@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize("match_at_threshold", [True, False])
@pytest.mark.parametrize("as_text", [False, True])
def test_average_precision_is_that_of_the_kits_loops(points, inclusive, match_at_threshold, as_text):
    options = {
        "points": points,
        "inclusive": inclusive,
        "match_at_threshold": match_at_threshold,
        "as_text": as_text,
    }
    for seed in range(12):
        truth, found = random_case(seed)
        ours = voc_ap(truth, found, (0.5, 0.75), **options)
        for t, threshold in enumerate((0.5, 0.75)):
            kits = np.array(the_kits(truth, found, threshold, **options))
            np.testing.assert_allclose(ours.per_class[t], kits, rtol=0, atol=1e-10)
            np.testing.assert_allclose(ours.mean[t], np.nanmean(kits), rtol=0, atol=1e-10)


def test_each_option_changes_the_number():
    """Else the comparison with the kit could not see it."""
    cases = [random_case(seed) for seed in range(12)]
    plain = [voc_ap(*case).mean for case in cases]
    for options in ({"points": None}, {"inclusive": False}, {"match_at_threshold": False}, {"as_text": True}):
        assert any((voc_ap(*case, **options).mean != value).any() for case, value in zip(cases, plain, strict=True))


A, FAR = [11, 11, 20, 20], [31, 31, 40, 40]


def test_the_objects_themselves_score_100():
    truth = truth_of([[(0, A), (0, FAR)], [(1, A)], []])
    found = found_of([(0, 0, 0.9, A), (0, 0, 0.2, FAR), (1, 1, 0.4, A)])
    assert voc_metrics(truth, found) == pytest.approx({"AP50": 100, "AP": 100, "AP75": 100})


def test_nothing_found_scores_0_and_nothing_to_find_scores_nothing():
    nothing = found_of([])
    assert voc_metrics(truth_of([[(0, A)]]), nothing) == {"AP50": 0, "AP": 0, "AP75": 0}
    cases: list[list[list[tuple[int, list[int], bool]]]] = [[[]], [], [[(0, A, True)]]]
    for objects in cases:
        assert voc_metrics(truth_of(objects), nothing) == {}
    assert voc_metrics(truth_of([[(0, A, True)]]), found_of([(0, 0, 0.9, A)])) == {}
    assert np.isnan(voc_ap(truth_of([[(0, A, True)]]), nothing).mean).all()


def test_a_class_without_positives_is_left_out_of_the_mean():
    truth = truth_of([[(0, A), (1, FAR, True)]], classes=3)
    found = found_of([(0, 0, 0.9, A), (0, 2, 0.8, A)])
    result = voc_ap(truth, found)
    np.testing.assert_array_equal(result.per_class, [[100, np.nan, np.nan]])
    assert result.mean[0] == 100


def test_a_difficult_object_is_neither_missed_nor_found_nor_a_mistake():
    hard = truth_of([[(0, A), (0, FAR, True)]])
    assert voc_ap(hard, found_of([(0, 0, 0.9, FAR), (0, 0, 0.5, A)])).mean[0] == 100
    easy = truth_of([[(0, A), (0, FAR)]])
    assert voc_ap(easy, found_of([(0, 0, 0.5, A)]), points=None).mean[0] == 50
    assert voc_ap(hard, found_of([(0, 0, 0.5, A)]), points=None).mean[0] == 100


def test_a_second_detection_of_an_object_is_a_mistake_and_gets_no_second_best():
    near = [11, 11, 20, 19]
    truth = truth_of([[(0, A), (0, near)]])  # both detections overlap A most
    found = found_of([(0, 0, 0.9, A), (0, 0, 0.8, [11, 11, 20, 20])])
    assert voc_ap(truth, found, points=None).mean[0] == 50


def test_an_iou_of_exactly_one_half_matches_by_the_kits_rule_and_counts_pixels_inclusively():
    truth = truth_of([[(0, [1, 1, 10, 10])]])  # 100 pixels
    half = found_of([(0, 0, 0.9, [1, 1, 10, 5])])  # 50 of them
    assert voc_ap(truth, half).mean[0] == 100
    assert voc_ap(truth, half, match_at_threshold=False).mean[0] == 0
    assert voc_ap(truth, half, inclusive=False).mean[0] == 0  # 36 of 81


def test_eleven_points_of_a_worked_case():
    """Ten objects; right, wrong, right: recall .1 at precision 1, recall .2 at precision 2/3."""
    boxes = [[1 + 20 * i, 1, 10 + 20 * i, 10] for i in range(11)]
    truth = truth_of([[(0, box) for box in boxes[:10]]])
    found = found_of([(0, 0, 0.9, boxes[0]), (0, 0, 0.8, boxes[10]), (0, 0, 0.7, boxes[1])])
    assert voc_ap(truth, found).mean[0] == pytest.approx(100 * (1 + 1 + 2 / 3) / 11)
    assert voc_ap(truth, found, points=None).mean[0] == pytest.approx(100 * (0.1 + 0.1 * 2 / 3))


def test_recall_of_three_tenths_is_below_the_fourth_point_as_in_the_peers():
    boxes = [[1 + 20 * i, 1, 10 + 20 * i, 10] for i in range(10)]
    truth = truth_of([[(0, box) for box in boxes]])
    found = found_of([(0, 0, 0.9 - i / 100, box) for i, box in enumerate(boxes[:3])])
    assert voc_ap(truth, found).mean[0] == pytest.approx(100 * 3 / 11)  # 0, .1, .2; not .3


def test_of_equal_scores_the_earlier_image_comes_first():
    truth = truth_of([[], [(0, A)]])
    for rows in ([(0, 0, 0.5, A), (1, 0, 0.5, A)], [(1, 0, 0.5, A), (0, 0, 0.5, A)]):
        assert voc_ap(truth, found_of(rows)).mean[0] == 50


def test_scores_and_boxes_written_as_text_are_rounded():
    truth = truth_of([[], [(0, [1, 1, 10, 10])]])
    close = found_of([(0, 0, 0.5001, A), (1, 0, 0.5004, [1, 1, 10, 10])])
    assert voc_ap(truth, close).mean[0] == 100
    assert voc_ap(truth, close, as_text=True).mean[0] == 50  # a tie: the wrong one, of the earlier image, comes first
    nearly_half = found_of([(1, 0, 0.9, [1, 1, 10, 4.96])])
    assert voc_ap(truth, nearly_half).mean[0] == 0
    assert voc_ap(truth, nearly_half, as_text=True).mean[0] == 100


def test_the_mean_over_thresholds_is_that_of_ten_thresholds():
    truth, found = random_case(5)
    assert IOUS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    each = [voc_ap(truth, found, (iou,)).mean[0] for iou in IOUS]
    assert len(set(each)) > 3
    assert voc_metrics(truth, found) == pytest.approx({"AP50": each[0], "AP": np.mean(each), "AP75": each[5]})


def test_an_iou_between_two_thresholds_counts_below_and_not_above():
    metrics = voc_metrics(truth_of([[(0, [1, 1, 10, 100])]]), found_of([(0, 0, 0.9, [1, 1, 10, 72])]))  # IoU .72
    assert metrics == pytest.approx({"AP50": 100, "AP": 50, "AP75": 0})  # five of ten thresholds


def test_the_order_of_images_and_detections_changes_nothing_but_ties():
    truth, found = random_case(3)
    found = dataclasses.replace(found, scores=np.linspace(0.1, 0.9, len(found)).astype(np.float32))
    rng = np.random.default_rng(0)
    order, images = rng.permutation(len(found)), rng.permutation(len(truth))
    moved = Detections(
        np.argsort(images)[found.images][order], found.labels[order], found.scores[order], found.boxes[order]
    )
    np.testing.assert_allclose(voc_ap(truth.select(images), moved).per_class, voc_ap(truth, found).per_class)


@pytest.mark.parametrize("row", [(1, 0, 0.5, A), (-1, 0, 0.5, A), (0, 2, 0.5, A), (0, -1, 0.5, A)])
def test_detections_in_unknown_images_or_of_unknown_classes_are_refused(row):
    with pytest.raises(ValueError, match=r"expected (images|labels) from 0 to"):
        voc_ap(truth_of([[(0, A)]]), found_of([row]))


def test_another_number_of_points_is_refused():
    with pytest.raises(ValueError, match="expected 11 or None"):
        voc_ap(truth_of([[(0, A)]]), found_of([]), points=101)
