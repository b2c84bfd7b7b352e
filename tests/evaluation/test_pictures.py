"""Attacks: pictures whose boxes lie elsewhere, whose names are cut off or cover each other, or that show the wrong images.

Run: pytest tests/evaluation/test_pictures.py
"""

import math

import cv2
import numpy as np
import pytest
from PIL import Image

from swav.data.targets import VOID
from swav.evaluation import pictures
from swav.evaluation.pictures import (
    SIDE,
    boxes_score,
    colours,
    draw_boxes,
    draw_map,
    draw_masks,
    map_score,
    sheet,
    shown,
    telling,
    write_picture,
)

CLASSES = ["background", "cat", "dog"]
GREY = np.full((90, 120, 3), 128, np.uint8)  # drawn three times as large
NO_BOXES = np.zeros((0, 4))
NONE = np.zeros(0, np.int64)


def is_colour(picture, colour):
    return (picture == np.array(colour)).all(axis=2)


# --- which images to show ---------------------------------------------------------------------------------------------


def test_the_best_the_median_and_the_worst_are_told():
    scores = np.array([0.3, math.nan, 0.9, 0.1, 0.5, 0.7])
    assert telling(scores) == [2, 4, 3]
    assert telling(scores, 5) == [2, 5, 4, 0, 3]
    assert telling(np.array([0.5, 0.5, 0.5, 0.5]), 2) == [0, 3]  # of equal ones the first counts as better
    assert telling(scores, 6) == [2, 5, 4, 0, 3]
    assert telling(np.array([math.nan])) == []


def test_f1_of_boxes_of_a_worked_case():
    truth, labels = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10.0]]), np.array([1, 1, 2])
    found = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [40, 0, 50, 10.0]])
    found_labels, scores = np.array([1, 1, 1, 1]), np.array([0.9, 0.8, 0.4, 0.7])
    # one right, one doubled, one unsure, one of another class: 1 hit, 3 objects, 3 detections
    assert boxes_score(truth, labels, found, found_labels, scores) == pytest.approx(2 / 6)
    assert boxes_score(truth, labels, found, found_labels, scores, min_score=0.4) == pytest.approx(4 / 7)
    assert boxes_score(truth, labels, truth, labels, np.full(3, 0.5)) == 1
    assert boxes_score(truth, labels, NO_BOXES, NONE, np.zeros(0)) == 0
    assert boxes_score(NO_BOXES, NONE, found, found_labels, scores) == 0
    assert math.isnan(boxes_score(NO_BOXES, NONE, found, found_labels, scores / 2))
    half = np.array([[0, 0, 10, 5.0]])
    assert boxes_score(truth[:1], labels[:1], half, labels[:1], np.ones(1)) == 1
    assert boxes_score(truth[:1], labels[:1], half - [0, 0, 0, 0.1], labels[:1], np.ones(1)) == 0


def test_a_second_object_is_taken_where_the_best_is_taken_already():
    truth = np.array([[0, 0, 10, 10], [0, 0, 10, 9.0]])
    found, ones = np.array([[0, 0, 10, 10], [0, 0, 10, 10.0]]), np.ones(2, np.int64)
    assert boxes_score(truth, ones, found, ones, np.array([0.9, 0.8])) == 1


def test_mean_iou_of_one_map_of_a_worked_case():
    truth = np.array([[0, 0, 1, VOID]], np.uint8)
    assert map_score(np.array([[0, 1, 1, 2]], np.uint8), truth) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert map_score(np.array([[0, 2, 1, 1]], np.uint8), truth) == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert math.isnan(map_score(truth, np.full((1, 4), VOID, np.uint8)))


# --- colours ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "least"), [(21, 30), (80, 14)])
def test_colours_are_far_from_each_other_and_from_grey(count, least):
    chosen = np.array(colours(count), np.float32)
    lab = cv2.cvtColor(chosen[None] / 255, cv2.COLOR_RGB2LAB)[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 1000 * np.eye(count)
    assert distance.min() > least
    assert np.hypot(lab[:, 1], lab[:, 2]).min() > 35
    assert colours(10) == colours(count)[:10]


# --- one picture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(90, 120), (900, 1200), (2, 300)])
def test_pictures_have_one_longer_side(shape):
    picture, factor = shown(np.zeros((*shape, 3), np.uint8))
    assert max(picture.shape[:2]) == SIDE and min(picture.shape) > 0
    assert factor == SIDE / max(shape)


def test_a_box_is_drawn_where_it_is_and_in_its_classs_colour():
    picture = draw_boxes(GREY, np.array([[20, 30, 60, 80.0]]), np.array([1]), None, CLASSES)
    colour = colours(3)[1]
    assert picture.shape == (270, 360, 3)
    edge = is_colour(picture, colour)
    rows, columns = np.flatnonzero(edge[:, 60:180].all(axis=1)), np.flatnonzero(edge[90:240].all(axis=0))
    assert set(rows) == {90, 91, 238, 239} and set(columns) == {60, 61, 178, 179}
    assert (picture[100:230, 70:170] == 128).all()


def test_a_label_lies_within_the_picture_wherever_the_box_is():
    name = "a name that is long"
    for box in ([0, 0, 20, 20], [100, 0, 120, 20], [0, 70, 20, 90], [100, 70, 120, 90], [-50, -50, 300, 300]):
        picture = draw_boxes(GREY, np.array([box], float), np.array([0]), np.array([0.875]), [name])
        inside = is_colour(picture, colours(1)[0])
        wide = pictures._width(f"{name} 0.88") + 6
        assert inside.sum(axis=1).max() >= 0.6 * wide  # the background of the whole text, less its letters
        reference = draw_boxes(GREY, np.array([[40, 40, 80, 80.0]]), np.array([0]), np.array([0.875]), [name])
        letters = (reference == 255).all(axis=2) | (reference == 25).all(axis=2)
        here = (picture == 255).all(axis=2) | (picture == 25).all(axis=2)
        assert here.sum() == letters.sum() > 50  # no letter is cut off


def test_a_name_wider_than_the_picture_is_cut():
    narrow = np.full((120, 20, 3), 128, np.uint8)
    picture = draw_boxes(narrow, np.array([[0, 40, 20, 80.0]]), np.array([0]), None, ["a name that is far too long"])
    assert picture.shape == (360, 60, 3)
    assert pictures._fitted("a name that is far too long", 54).endswith("…")
    assert pictures._width(pictures._fitted("a name that is far too long", 54)) <= 54
    assert pictures._fitted("short", 54) == "short"


def test_labels_of_boxes_in_one_place_do_not_cover_each_other():
    taken: list[pictures._Place] = []
    for _ in range(30):
        place = pictures._free_place([100, 100, 300, 250], "cat 0.50", 360, 270, taken)
        if place is not None:
            assert place.left >= 0 and place.top >= 0 and place.right <= 360 and place.bottom <= 270
            area = (place.right - place.left) * (place.bottom - place.top)
            assert sum(pictures._shared(place, other) for other in taken) <= 0.2 * area
            taken.append(place)
    assert len(taken) == 8  # above, below, and within at each end


def test_detections_below_the_least_score_are_left_out_and_the_surest_lies_on_top():
    box = np.array([[20, 30, 60, 80.0], [20, 30, 60, 80.0], [70, 30, 110, 80.0]])
    picture = draw_boxes(GREY, box, np.array([2, 1, 0]), np.array([0.9, 0.6, 0.4]), CLASSES)
    assert is_colour(picture, colours(3)[2])[120:240, 60].all()  # below the other's name
    assert not is_colour(picture, colours(3)[0]).any()
    assert is_colour(picture, colours(3)[2])[74, 62] and is_colour(picture, colours(3)[1])[92, 64]  # its name is above
    lower = draw_boxes(GREY, box, np.array([2, 1, 0]), np.array([0.9, 0.6, 0.4]), CLASSES, min_score=0.4)
    assert is_colour(lower, colours(3)[0]).any()


def test_without_objects_the_image_is_as_it_was():
    assert (draw_boxes(GREY, NO_BOXES, NONE, None, CLASSES) == shown(GREY)[0]).all()
    empty = np.zeros((0, 90, 120), np.uint8)
    assert (draw_masks(GREY, empty, NO_BOXES, NONE, np.zeros(0), CLASSES) == shown(GREY)[0]).all()


def test_a_mask_is_tinted_in_its_classs_colour_and_outlined():
    mask = np.zeros((1, 90, 120), np.bool_)
    mask[0, 40:60, 40:80] = True
    picture = draw_masks(GREY, mask, np.array([[40, 40, 80, 60.0]]), np.array([1]), None, CLASSES)
    tinted = np.round(0.45 * 128 + 0.55 * np.array(colours(3)[1]))
    assert is_colour(picture, tinted)[140:160, 130:230].all()
    assert (picture[10:100] == 128).all() and (picture[190:] == 128).all()
    outline = draw_masks(GREY, mask, np.array([[0, 0, 120, 90.0]]), np.array([1]), None, CLASSES)
    assert is_colour(outline, (255, 255, 255))[120, 120:240].all()


def test_a_map_leaves_the_background_tints_classes_and_shows_what_is_void():
    labels = np.zeros((90, 120), np.uint8)
    labels[:, 40:80], labels[:, 80:] = 2, VOID
    picture = draw_map(GREY, labels, CLASSES)
    assert picture.shape[0] > 270 and picture.shape[1] == 360
    assert (picture[:270, :120] == 128).all()
    assert is_colour(picture, np.round(0.45 * 128 + 0.55 * np.array(colours(3)[2])))[:270, 120:240].all()
    assert is_colour(picture, [np.round(0.45 * 128 + 0.55 * 224)] * 3)[:270, 240:].all()


def test_a_legend_names_what_is_there_in_as_many_lines_as_it_takes():
    one = pictures._legend([("cat", (255, 0, 0))], 360)
    many = pictures._legend([(f"class {k}", (255, 0, 0)) for k in range(20)], 360)
    assert one.shape[0] == pictures._LINE and many.shape[0] > 3 * pictures._LINE
    assert (many[:, -1] == 255).all()  # nothing is cut off at the right
    assert pictures._legend([], 360).shape == (0, 360, 3)
    nothing = draw_map(GREY, np.zeros((90, 120), np.uint8), CLASSES)
    assert (nothing[:270] == 128).all()


# --- sheets -----------------------------------------------------------------------------------------------------------


def test_a_sheet_holds_every_picture_whole_and_beside_its_own(tmp_path):
    rng = np.random.default_rng(0)
    tall = np.full((120, 60, 3), 90, np.uint8)
    rows = []
    for image in (GREY, tall):
        truth, predicted = (rng.integers(0, 200, shown(image)[0].shape, dtype=np.uint8) for _ in range(2))
        rows.append(("a title", image, truth, predicted))
    whole = sheet(rows)
    places = []
    for _, image, truth, predicted in rows:
        for picture in (shown(image)[0], truth, predicted):
            found = cv2.matchTemplate(whole, picture, cv2.TM_SQDIFF)
            x, y = cv2.minMaxLoc(found)[2]
            np.testing.assert_array_equal(whole[y:, x:][: picture.shape[0], : picture.shape[1]], picture)
            places.append((x, y))
    (x0, y0), (x1, y1), (x2, y2), (a0, b0), (a1, b1), (a2, b2) = places
    assert y0 == y1 == y2 < b0 == b1 == b2 and x0 == a0 < x1 == a1 < x2 == a2
    border = np.concatenate([whole[:8].ravel(), whole[-8:].ravel(), whole[:, :8].ravel(), whole[:, -8:].ravel()])
    assert (border == 255).all()
    for name in ("sheet.png", "sheet.webp"):
        write_picture(tmp_path / "new" / name, whole)
        with Image.open(tmp_path / "new" / name) as written:
            assert np.array(written).shape == whole.shape
            if name.endswith("png"):
                np.testing.assert_array_equal(np.array(written), whole)


def test_a_picture_that_cannot_be_written_is_not_there_in_part(tmp_path, monkeypatch):
    def cut_off(self, path, **options):
        path.write_bytes(b"RIFF")
        raise OSError("full")

    monkeypatch.setattr(Image.Image, "save", cut_off)
    with pytest.raises(OSError, match="full"):
        write_picture(tmp_path / "a.webp", np.zeros((4, 4, 3), np.uint8))
    assert not list(tmp_path.iterdir())
