"""Attacks: boxes or masks of one image given to another, categories by a wrong number, and JSON that is nearly right.

Run: pytest tests/data/sources/test_coco.py
"""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO  # type: ignore[import-untyped]

from swav.data.sources import coco
from swav.errors import DataError
from tests.data.folders import names_of
from tests.data.sources.test_annotated import photo


def splits_of(*arguments):
    """(train, val), as nothing that is known to the type checker: their targets are ObjectSets."""
    return coco.detection_splits(*arguments)


CATEGORIES = [{"id": 90, "name": "cup"}, {"id": 2, "name": "dog"}, {"id": 44, "name": "cat"}]
POLYGON = [1, 1, 4.5, 1, 4.5, 3, 1, 3]


def thing(image=30, category=2, box=(1, 1, 3, 2), **changes):
    plain = {"image_id": image, "category_id": category, "bbox": list(box), "area": 6.5, "iscrowd": 0}
    return plain | {"segmentation": [POLYGON]} | changes


def numbered(annotations):
    return [{"id": 100 + k} | each for k, each in enumerate(annotations)]


def write(home, split, annotations, images=None, categories=CATEGORIES, **photo_settings):
    """A split of two images, 30.jpg and 7.jpg, of 4 x 6 pixels."""
    if images is None:
        images = [{"id": k, "file_name": f"{k}.jpg", "height": 4, "width": 6} for k in (30, 7)]
    for image in images:
        photo(home / split / str(image["file_name"]), **photo_settings)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (home / "annotations").mkdir(parents=True, exist_ok=True)
    (home / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "sets" / "coco"
    write(home, "train2017", numbered([thing()]))
    write(home, "val2017", numbered([thing(7, 90)]))
    return home


def train_of(home, annotations, number=numbered, **changes):
    write(home, "train2017", number(annotations), **changes)
    return splits_of(home)[0]


def message(home, annotations, number=numbered, **changes):
    write(home, "train2017", number(annotations), **changes)
    with pytest.raises(DataError) as error:
        splits_of(home)
    assert error.value.exit_code == 3
    return str(error.value)


def test_objects_go_to_their_images_in_the_order_of_the_file(home):
    code = {"counts": [4, 20], "size": [4, 6]}
    train = train_of(
        home,
        [
            thing(7, 44, (0.5, 1.25, 2.5, 2), area=3),
            thing(30, 90, (0, 0, 6, 4), iscrowd=1, segmentation=code),
            thing(7, 2, (3, 3, 1, 1)),
        ],
    )
    assert names_of(train) == ["train2017/30.jpg", "train2017/7.jpg"] and train.targets.ids.tolist() == [30, 7]
    assert train.classes == ["dog", "cat", "cup"] and train.targets.class_ids == [2, 44, 90]
    first, second = train.targets[0], train.targets[1]
    assert first.boxes.tolist() == [[0, 0, 6, 4]] and first.crowd.tolist() == [True] and first.masks == [code]
    assert second.boxes.tolist() == [[0.5, 1.25, 3, 3.25], [3, 3, 4, 4]] and second.boxes.dtype == np.float32
    assert second.labels.tolist() == [1, 0] and second.area.tolist() == [3, 6.5]
    assert second.numbers.tolist() == [100, 102] and second.masks == [[POLYGON], [POLYGON]]
    assert not second.difficult.any() and train.targets.sizes.tolist() == [[4, 6], [4, 6]]
    assert train.read(0).shape == (4, 6, 3)


def test_images_without_objects_stay(home):
    _, val = splits_of(home)
    assert len(val) == 2 and [len(val.targets[i]) for i in range(2)] == [0, 1]
    train = train_of(home, [])
    assert len(train) == 2 and len(train.targets[1]) == 0
    train = train_of(home, [thing(iscrowd=1, segmentation={"counts": "PP1", "size": [4, 6]})])
    assert train.targets[0].crowd.tolist() == [True]


def test_the_set_itself_and_the_folder_that_holds_it_are_the_same(home):
    assert len(splits_of(home)[0]) == len(splits_of(home.parent)[0]) == 2
    with pytest.raises(
        DataError, match=r"expected COCO 2017 there or as coco/ below it .*found none\nunpack train2017"
    ):
        splits_of(home.parents[1])


def test_another_name_of_the_folder_is_found_if_there_is_one_only(home):
    home.rename(home.with_name("coco_tiny"))
    assert len(splits_of(home.parent)[0]) == 2
    write(home.with_name("other"), "train2017", [])
    with pytest.raises(DataError, match=r"expected one COCO 2017 .*, found .*coco_tiny and .*other; name one"):
        splits_of(home.parent)


def test_boxes_of_no_area_or_outside_are_left_out_counted_and_said(home):
    kept = [(5.5, 3.5, 9, 9), (-2, -2, 2.5, 2.5)]
    no_area, outside = (
        [(1, 1, 0, 2), (1, 1, 2, 0), (1, 1, -1, 2)],
        [(6, 0, 2, 2), (0, 4, 2, 2), (-2, 0, 2, 2), (0, -2, 2, 2)],
    )
    train = train_of(home, [thing(box=box) for box in (*no_area, *kept, *outside)])
    assert train.targets[0].boxes.tolist() == [[5.5, 3.5, 14.5, 12.5], [-2, -2, 0.5, 0.5]]
    assert train.targets.dropped == {coco.NO_AREA: 3, coco.OUTSIDE: 4}
    assert train.note.endswith("; 7 objects left out: 3 of no area, 4 outside the image")
    assert train.targets[0].masks == [[POLYGON], [POLYGON]] and train.targets[0].numbers.tolist() == [103, 104]


@pytest.mark.parametrize(
    "numbers", [[0, 1], [5, 5], [-1, 3], [None, 3], ["a", "b"], [1.5, 2], [True, 2], [2**70, 1], "absent"]
)
def test_annotations_that_their_numbers_do_not_distinguish_are_numbered_from_1(home, numbers):
    rows = [thing(7), thing(30)]
    if numbers != "absent":
        rows = [{"id": number} | each for number, each in zip(numbers, rows, strict=True)]
    train = train_of(home, rows, number=list)
    assert [train.targets[i].numbers.tolist() for i in range(2)] == [[2], [1]]


def test_without_size_area_and_marks_they_come_from_image_and_box(home):
    images = [{"id": 30, "file_name": "30.jpg"}, {"id": 7, "file_name": "7.jpg", "height": None, "width": 0}]
    bare = {"image_id": 30, "category_id": 2, "bbox": [1, 4, 3, 1.5]}
    train = train_of(home, [bare], images=images, orientation=6)
    assert train.targets.sizes.tolist() == [[6, 4], [6, 4]] and train.read(0).shape == (6, 4, 3)
    assert train.targets[0].area.tolist() == [4.5] and train.targets[0].masks == [] and not train.targets[0].crowd[0]


def test_the_annotated_size_decides_whether_exif_turns_an_image(home):
    assert train_of(home, [], orientation=6).read(0).shape == (4, 6, 3)
    images = [{"id": 30, "file_name": "30.jpg", "height": 6, "width": 4}]
    assert train_of(home, [], images=images, orientation=6).read(0).shape == (6, 4, 3)
    assert "30.jpg: expected 4x6 pixels, as annotated, found 6x4" in message(home, [], images=images, orientation=1)


def test_a_missing_image_is_refused_or_in_smoke_left_out(home):
    (home / "train2017/30.jpg").unlink()
    with pytest.raises(DataError, match=r"found none at train2017/30.jpg"):
        splits_of(home)
    train, _ = splits_of(home, None, True)
    assert names_of(train) == ["train2017/7.jpg"] and "1 listed images are not there" in train.note
    assert train.targets.ids.tolist() == [7] and len(train.targets[0]) == 0


def test_a_missing_json_is_named(home):
    (home / "annotations/instances_val2017.json").unlink()
    with pytest.raises(DataError, match=r"instances_val2017.json: expected annotations, found No such file"):
        splits_of(home, None, True)


@pytest.mark.parametrize(
    "rows, said",
    [
        ([thing(), thing(31)], "the unknown image 31 in annotation 101"),
        ([thing(31), thing(32)], "the unknown image 31 in annotation 100 and 1 more"),
        ([thing(category=1)], "the unknown category 1 in annotation 100"),
        ([thing(image="30")], "image_id '30', no whole number"),
        ([thing(box=(1, 2, 3))], "inhomogeneous|reshape"),
        ([thing(box=(1, 2, 3, "x"))], "could not convert"),
        ([thing(box=(1, 2, 3, float("nan")))], "no finite box and area in annotation 100"),
        ([thing(area=float("inf"))], "no finite box and area in annotation 100"),
        ([thing(segmentation=[[1, 2, 3]])], "a segmentation in annotation 100 that is neither"),
        ([thing(segmentation=[[1, 2, 3, 4, 5, "6"]])], "a segmentation in annotation 100 that is neither"),
        ([thing(segmentation={"counts": [1]})], "a segmentation in annotation 100 that is neither"),
        (
            [thing(segmentation={"counts": [20], "size": [4, 5]})],
            "a mask of 5x4 pixels in annotation 100, whose image has 6x4",
        ),
        ([thing(segmentation={"counts": [1, 22], "size": [4, 6]})], "a mask of 23 pixels in annotation 100"),
        (["text"], "AttributeError|TypeError"),
        ([{"image_id": 30, "category_id": 2}], "KeyError: 'bbox'"),
    ],
)
def test_annotations_that_cannot_be_true_are_refused_by_number(home, rows, said):
    assert re.search(said, message(home, rows, number=numbered if isinstance(rows[0], dict) else list))


def test_images_and_categories_that_cannot_be_true_are_refused(home):
    image = {"id": 30, "file_name": "30.jpg", "height": 4, "width": 6}
    assert "no image" in message(home, [], images=[])
    assert "image 30 twice" in message(home, [], images=[image, image])
    assert "a category twice" in message(home, [], categories=[*CATEGORIES, CATEGORIES[0]])
    assert "id 'x', no whole number" in message(home, [], images=[image | {"id": "x"}])
    assert "expected the categories of train2017, found that 3, new" in message(
        home, [], categories=[*CATEGORIES, {"id": 3, "name": "new"}]
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"images": 3}', "[" * 100_000, '{"images": [], "a": "\udcff"}'])
def test_damaged_json_is_named(home, text):
    (home / "annotations/instances_train2017.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"instances_train2017.json: expected images, annotations and categories"):
        splits_of(home)


NUMBER = st.one_of(st.integers(-9, 9999), st.floats(-1e6, 1e6), st.sampled_from([1e-7, 1e22, 0.1]))
POLYGONS = st.lists(
    st.lists(st.tuples(NUMBER, NUMBER), max_size=5).map(lambda points: [x for xy in points for x in xy]), max_size=3
)
CODES = st.fixed_dictionaries(
    {"counts": st.sampled_from([[24], "PP1", 'a"segmentation": [[1,2,3,4,5,6]]']), "size": st.just([4, 6])}
)
WORDS = st.sampled_from(["x", '"segmentation": [[1, 2, 3, 4, 5, 6]]', '\\"segmentation": [[1,2,3,4,5,6]]', "\\", '"'])


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.one_of(POLYGONS, CODES, st.none()), WORDS), max_size=4),
    st.sampled_from([None, 1, (",", ":"), (" ,\n", " :  ")]),
)
def test_masks_that_are_cut_out_as_text_are_those_that_json_reads(rows, style):
    annotations = [
        thing(segmentation=mask, id=k + 1, word=word) | {word: [POLYGON]} for k, (mask, word) in enumerate(rows)
    ]
    layout = {"separators": style} if isinstance(style, tuple) else {"indent": style}
    content = json.dumps({"images": [{"id": 30}], "annotations": annotations, "categories": CATEGORIES}, **layout)
    found = coco._parsed(content.encode())
    expected = [mask if isinstance(mask, dict) else [each for each in mask or [] if len(each) >= 6] for mask, _ in rows]
    assert [json.loads(text) for text in found.texts] == (expected if any(mask for mask, _ in rows) else [])
    assert [row["word"] for row in found.annotations] == [word for _, word in rows]


def test_coco_tiny_is_what_pycocotools_reads(data_root, capsys):
    splits = splits_of(data_root)
    assert [len(images) for images in splits] == [62, 43]
    assert [sum(map(len, (images.targets[i] for i in range(len(images))))) for images in splits] == [541, 443]
    assert [sum(images.targets[i].crowd.sum() for i in range(len(images))) for images in splits] == [6, 8]
    for images, split in zip(splits, coco.SPLITS, strict=True):
        truth = COCO(data_root / f"coco_tiny/annotations/instances_{split}.json")
        assert (
            images.targets.class_ids == truth.getCatIds() and len(images.classes) == 80 and images.targets.dropped == {}
        )
        for i in range(len(images)):
            its_own = images.targets[i]
            rows = truth.loadAnns(truth.getAnnIds(int(images.targets.ids[i])))
            assert its_own.numbers.tolist() == [row["id"] for row in rows]
            assert list(its_own.masks) == [row["segmentation"] for row in rows]
            boxes = np.array([row["bbox"] for row in rows])
            assert np.allclose(its_own.boxes, np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]), rtol=1e-6)
            assert [images.targets.class_ids[k] for k in its_own.labels] == [row["category_id"] for row in rows]
            assert its_own.crowd.tolist() == [row["iscrowd"] for row in rows]
            assert np.allclose(its_own.area, [row["area"] for row in rows])
        assert images.read(0).shape[:2] == tuple(images.targets.sizes[0])
