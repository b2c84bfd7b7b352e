"""Attacks: labels of other images, a prefix doubled, missing images that pass, a reading that is quadratic.

Run: pytest tests/data/sources/test_lists.py
"""

import json
import time

import numpy as np
import pytest

from swav.data.sources.lists import inat18_splits, places205_splits, read_inat_json
from swav.data.synthetic.shapes import scene
from swav.data.synthetic.writers import write_shapes
from swav.errors import DataError


def labels_of(images):
    assert images.labels is not None
    return images.labels.tolist()


HALVES = {"places205": places205_splits, "inat18": inat18_splits}
NAMES = {"places205": "Places205", "inat18": "iNaturalist2018"}


@pytest.fixture(params=list(HALVES))
def drawn(request, tmp_path):
    write_shapes(tmp_path / NAMES[request.param], request.param, train=20, val=10, size=24)
    return request.param, tmp_path


def test_images_and_labels_are_those_of_the_lists_from_the_set_or_above_it(drawn):
    layout, root = drawn
    for place in (root, root / NAMES[layout]):
        train, val = HALVES[layout](place, root / "cache")
        assert (len(train), len(val)) == (20, 10) and train.classes == val.classes and len(train.classes or []) == 10
        assert labels_of(train) == [i % 10 for i in range(20)]
        for split, images in (("train", train), ("val", val)):
            for i in (0, 7):
                assert np.abs(images.read(i).astype(int) - scene(0, split, i, 24).image).mean() < 12  # JPEG


def test_a_missing_image_is_named_and_forgiven_by_smoke_only(drawn):
    layout, root = drawn
    train, _ = HALVES[layout](root)
    (train.root / train.name(3)).unlink()
    with pytest.raises(DataError, match=train.name(3)) as error:
        HALVES[layout](root)
    assert error.value.exit_code == 3
    fewer, _ = HALVES[layout](root, None, True)
    assert len(fewer) == 19 and "1 listed images are not there" in fewer.note
    assert labels_of(fewer) == [i % 10 for i in range(20) if i != 3]


@pytest.mark.parametrize("layout", list(HALVES))
def test_what_is_missing_is_told_with_the_way_to_get_it(layout, tmp_path):
    with pytest.raises(DataError, match=f"(?s){NAMES[layout]}.*unpack.*--layout {layout}"):
        HALVES[layout](tmp_path)


def test_a_list_without_its_half_or_with_an_odd_line_is_refused(tmp_path):
    write_shapes(tmp_path, "places205", train=10, val=10, size=16)
    lists = tmp_path / "trainvalsplit_places205"
    text = (lists / "val_places205.csv").read_text()
    (lists / "val_places205.csv").write_text(text + "a/b.jpg seven\n")
    with pytest.raises(DataError, match="line 11"):
        places205_splits(tmp_path)
    (lists / "val_places205.csv").write_text(text + "a/b.jpg 99\n")
    with pytest.raises(DataError, match="class 99 only in val"):
        places205_splits(tmp_path)
    (lists / "val_places205.csv").unlink()
    with pytest.raises(DataError, match="val_places205"):
        places205_splits(tmp_path)


def test_the_lists_made_of_the_json_do_as_well_with_and_without_the_prefix(tmp_path):
    write_shapes(tmp_path, "inat18", train=10, val=10, size=16)
    expected = inat18_splits(tmp_path)
    (tmp_path / "meta").mkdir()
    for split, images, prefix in (("train", expected[0], ""), ("val", expected[1], "train_val2018/")):
        lines = [f"{prefix}{images.name(i)} {labels_of(images)[i]}\n" for i in range(10)]
        (tmp_path / "meta" / f"{split}.txt").write_text("".join(lines))
        (tmp_path / f"{split}2018.json").unlink()
    found = inat18_splits(tmp_path)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.fingerprint == theirs.fingerprint and labels_of(ours) == labels_of(theirs)


def test_a_json_is_read_in_linear_time_whatever_the_order_of_its_annotations(tmp_path):
    def seconds(count):
        rows = [{"image_id": i, "category_id": i % 7} for i in reversed(range(count))]
        images = [{"id": i, "file_name": f"train_val2018/{i}.jpg"} for i in range(count)]
        (tmp_path / "x.json").write_text(json.dumps({"images": images, "annotations": rows}))
        began = time.process_time()
        names, labels = read_inat_json(tmp_path / "x.json")
        took = time.process_time() - began
        assert labels == [str(i % 7) for i in range(count)] and names[-1] == f"{count - 1}.jpg".encode()
        return took

    assert seconds(40_000) < 3  # pairs compared would be 1.6e9


def test_an_image_without_a_category_is_refused(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}))
    with pytest.raises(DataError, match=r"a\.jpg"):
        read_inat_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(DataError, match="expected JSON"):
        read_inat_json(tmp_path / "x.json")
