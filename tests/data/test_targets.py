"""Attacks: objects or maps of one image taken for another's, masks that shift, content that does not show a change.

Run: pytest tests/data/test_targets.py
"""

import functools
import json
import multiprocessing
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swav.data.targets import VOID, LabelMaps, Objects, ObjectSets, fingerprint
from swav.errors import DataError

MASKS: tuple[Any, ...] = (
    [[1.5, 2.0, 3.25, 4.0, 5.0, 6.0]],
    {"counts": [3, 4], "size": [1, 7]},
    {"counts": "0a\\", "size": [2, 2]},
    [],
)


def objects_of(number, count, masks=True):
    """Objects that differ in every field from those of every other number."""
    numbers = np.arange(1, count + 1) + 1000 * number
    return Objects(
        boxes=np.stack([numbers, numbers + 1, numbers + 2, numbers + 3], axis=1).astype(np.float32),
        labels=numbers % 5,
        difficult=numbers % 2 == 0,
        crowd=numbers % 3 == 0,
        area=(numbers * 0.5).astype(np.float32),
        numbers=numbers,
        masks=[MASKS[j % len(MASKS)] for j in range(count)] if masks else (),
    )


def sets_of(counts, masks=True, **changes):
    parts = [objects_of(i, count, masks) for i, count in enumerate(counts)]
    n = len(counts)
    values: dict[str, Any] = {
        "sizes": np.arange(2 * n).reshape(n, 2),
        "ids": np.arange(n) + 7,
        "dropped": {"of no area": 2},
        "class_ids": [2, 3, 5, 7, 11],
    }
    return ObjectSets(parts, list("abcde"), **(values | changes)), parts


def flat_of(parts):
    """The objects of all images as one, without masks."""
    fields: dict[str, Any] = {
        name: np.concatenate([getattr(each, name) for each in parts]) for name in Objects._fields[:-1]
    }
    return Objects(**fields)


def assert_same(found, expected):
    for name in Objects._fields[:-1]:
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
        assert getattr(found, name).dtype == getattr(expected, name).dtype, name
    assert list(found.masks) == list(expected.masks)


@given(st.lists(st.integers(0, 5), max_size=6), st.booleans(), st.data())
def test_a_choice_has_the_objects_of_its_images_in_its_order(counts, masks, data):
    whole, parts = sets_of(counts, masks)
    places = st.lists(st.integers(0, len(counts) - 1), max_size=8) if counts else st.just([])
    chosen = np.array(data.draw(places), dtype=np.int64)
    some = whole.select(chosen)
    assert len(some) == len(chosen) and some.class_ids == [2, 3, 5, 7, 11] and some.dropped == {"of no area": 2}
    for place, i in enumerate(chosen.tolist()):
        assert_same(some[place], parts[i])
        assert some.ids[place] == i + 7 and some.sizes[place].tolist() == [2 * i, 2 * i + 1]
    assert whole.select(np.arange(len(counts))).content() == whole.content()
    if len(chosen):
        assert_same(some.select(np.array([len(chosen) - 1]))[0], parts[chosen[-1]])


def test_flat_arrays_hold_the_same_as_objects_of_each_image():
    whole, parts = sets_of([2, 0, 3])
    flat = flat_of(parts)
    texts = [json.dumps(mask).encode() for each in parts for mask in each.masks]
    settings = {"sizes": whole.sizes, "ids": whole.ids, "class_ids": whole.class_ids}
    again = ObjectSets.from_flat(flat, np.array([2, 0, 3]), whole.classes, mask_texts=texts, **settings)
    assert again.content() == whole.content()
    with pytest.raises(ValueError, match="expected one of each of 5 objects or none, found 4"):
        ObjectSets.from_flat(flat, np.array([2, 0, 3]), whole.classes, mask_texts=texts[1:], **settings)


def test_classes_are_numbered_from_1_where_the_data_set_has_no_numbers():
    assert sets_of([1], class_ids=None)[0].class_ids == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("field", [*Objects._fields, "sizes", "ids", "class_ids", "counts"])
def test_content_shows_a_change_of_every_field(field):
    whole, parts = sets_of([2, 1])
    if field in ("sizes", "ids"):
        other, _ = sets_of([2, 1], **{field: getattr(whole, field) + 1})
    elif field == "class_ids":
        other, _ = sets_of([2, 1], class_ids=[2, 3, 5, 7, 12])
    elif field == "counts":  # the same objects, of other images
        flat = flat_of(parts)
        texts = [json.dumps(mask).encode() for each in parts for mask in each.masks]
        settings = {"sizes": whole.sizes, "ids": whole.ids, "class_ids": whole.class_ids, "mask_texts": texts}
        other = ObjectSets.from_flat(flat, np.array([1, 2]), whole.classes, **settings)
    else:
        value = getattr(parts[0], field)
        changed = [[[9.0] * 6], value[1]] if field == "masks" else ~value if value.dtype == bool else value + 1
        parts = [Objects(**(dict(zip(Objects._fields, parts[0], strict=True)) | {field: changed})), parts[1]]
        other = ObjectSets(parts, whole.classes, sizes=whole.sizes, ids=whole.ids, class_ids=whole.class_ids)
    assert other.content() != whole.content() and fingerprint(other) != fingerprint(whole)


def test_the_fingerprint_shows_other_names_of_classes():
    whole, parts = sets_of([1])
    other = ObjectSets(parts, list("abcdf"), sizes=whole.sizes, ids=whole.ids, class_ids=whole.class_ids)
    assert other.content() == whole.content() and fingerprint(other) != fingerprint(whole)


def read_length(name):
    """A map of as many rows as its name has letters."""
    return np.full((len(name), 2), VOID, np.uint8)


def maps_of(names, sizes=None, stamp=b"1"):
    return LabelMaps(names, ["x", "y"], read_length, [stamp] * len(names), sizes)


def test_a_choice_of_maps_keeps_files_sizes_and_stamps_together():
    maps = LabelMaps(["a", "bb", "ccc"], ["x"], read_length, [b"1", b"2", b"3"], np.array([[1, 2], [2, 2], [3, 2]]))
    some = maps.select(np.array([2, 0, 2]))
    assert some.paths == ["ccc", "a", "ccc"] and some.stamps == [b"3", b"1", b"3"] and some[0].shape == (3, 2)
    assert some.sizes is not None and some.sizes[:, 0].tolist() == [3, 1, 3]
    assert maps_of(["a"]).select(np.array([0, 0])).sizes is None


def test_a_map_of_another_size_is_refused_by_name():
    maps = maps_of(["a", "bb"], np.array([[1, 2], [2, 3]]))
    assert maps[0].shape == (1, 2)
    with pytest.raises(DataError, match=r"bb: expected the class of each of 3x2 pixels.*found 2x2"):
        maps[1]


def test_content_of_maps_shows_names_stamps_and_sizes():
    sizes = np.array([[1, 2]])
    others = [maps_of(["b"], sizes), maps_of(["a"], sizes, b"2"), maps_of(["a"], sizes + 1), maps_of(["a"])]
    assert len({each.content() for each in [maps_of(["a"], sizes), *others]}) == 5
    assert maps_of(["a", "b"]).content() != maps_of(["b", "a"]).content()


def contents(targets):
    return [each.content() for each in targets]


def test_targets_reach_spawned_processes_and_pickles_whole():
    targets = [sets_of([2, 0, 1])[0], LabelMaps(["ab"], ["x"], functools.partial(read_length), [b"1"])]
    assert contents(pickle.loads(pickle.dumps(targets))) == contents(targets)
    assert_same(pickle.loads(pickle.dumps(targets[0]))[2], objects_of(2, 1))
    assert pickle.loads(pickle.dumps(targets[1]))[0].shape == (2, 2)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(contents, (targets,)) == contents(targets)
