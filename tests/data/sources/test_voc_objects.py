"""Attacks: boxes shifted or lost, a part taken for an object, a year that is missing without a word, a hostile XML.

Run: pytest tests/data/sources/test_voc_objects.py
"""

import shutil
import time
from xml.etree import ElementTree

import numpy as np
import pytest

from swav.data.sources import voc_objects
from swav.errors import DataError
from tests.data.folders import names_of
from tests.data.sources.test_annotated import photo


def splits_of(*arguments):
    """(train, val), as nothing that is known to the type checker: their targets are ObjectSets."""
    return voc_objects.detection_splits(*arguments)


def item(name="cat", box=(1, 1, 3, 4), difficult=0, more=""):
    corners = "".join(f"<{tag}>{x}</{tag}>" for tag, x in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    mark = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{more}{mark}<bndbox>{corners}</bndbox></object>"


def xml(*items, size=(4, 6)):
    said = "" if size is None else f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return f"<annotation>{said}{''.join(items)}</annotation>"


def put(kit, year, split, name, text, **photo_settings):
    home = kit / year
    photo(home / "JPEGImages" / f"{name}.jpg", **photo_settings)
    for folder in ("Annotations", "ImageSets/Main"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    (home / "Annotations" / f"{name}.xml").write_text(text)
    with (home / f"ImageSets/Main/{split}.txt").open("a") as file:
        file.write(f"{name}\n")


@pytest.fixture
def kit(tmp_path):
    """Both years: two and one images to learn from, one to score."""
    kit = tmp_path / "voc" / "VOCdevkit"
    put(kit, "VOC2007", "trainval", "000005", xml(item("dog", (2, 1, 6, 4)), item("cat", (1, 2, 3, 3), 1)))
    put(kit, "VOC2007", "trainval", "000002", xml())
    put(kit, "VOC2007", "test", "000001", xml(item("person")))
    put(kit, "VOC2012", "trainval", "2008_000003", xml(item("tvmonitor", ("1", "1.7", "4.70000076293945", "3"))))
    return kit


def put_first(kit, text, **photo_settings):
    """Another annotation, and if wanted another image, in place of the first to learn from."""
    (kit / "VOC2007/Annotations/000005.xml").write_text(text)
    if photo_settings:
        photo(kit / "VOC2007/JPEGImages/000005.jpg", **photo_settings)


def boxes_of(images, i):
    return images.targets[i].boxes.tolist()


def test_both_years_are_one_set_with_boxes_as_annotated(kit):
    train, val = splits_of(kit)
    names = ["VOC2007/JPEGImages/000005.jpg", "VOC2007/JPEGImages/000002.jpg", "VOC2012/JPEGImages/2008_000003.jpg"]
    assert names_of(train) == names and names_of(val) == ["VOC2007/JPEGImages/000001.jpg"] and train.root == kit
    assert train.classes == val.classes == list(voc_objects.CLASSES) == sorted(voc_objects.CLASSES)
    first = train.targets[0]
    assert first.boxes.tolist() == [[2, 1, 6, 4], [1, 2, 3, 3]] and first.boxes.dtype == np.float32
    assert [train.classes[k] for k in first.labels] == ["dog", "cat"]
    assert first.area.tolist() == [5 * 4, 3 * 2]  # the last pixel belongs to the box
    assert first.difficult.tolist() == [False, True] and not first.crowd.any() and first.masks == []
    assert [train.targets[i].numbers.tolist() for i in range(3)] == [[1, 2], [], [3]]
    assert train.targets.sizes.tolist() == [[4, 6]] * 3 and train.targets.ids.tolist() == [0, 1, 2]
    assert len(train.targets[1]) == 0 and train.read(2).shape == (4, 6, 3)
    assert "alone" not in train.note and "left out" not in train.note


def test_decimals_of_voc2012_are_cut_off(kit):
    assert boxes_of(splits_of(kit)[0], 2) == [[1, 1, 4, 3]]


def test_parts_are_no_objects_and_a_missing_mark_is_not_difficult(kit):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    put_first(kit, xml(item("person", (1, 1, 5, 3), None, part)))
    train, _ = splits_of(kit)
    assert boxes_of(train, 0) == [[1, 1, 5, 3]] and not train.targets[0].difficult.any()


def test_boxes_of_no_area_or_outside_are_left_out_counted_and_said(kit):
    kept = [(6, 4, 6, 4), (0, 0, 1, 1), (-3, -3, 9, 9), (6, 1, 9, 4)]
    no_area, outside = [(3, 1, 2, 4), (1, 3, 4, 2)], [(7, 1, 9, 4), (1, 5, 6, 9), (-3, 1, 0, 4), (1, -5, 6, 0)]
    put_first(kit, xml(*(item(box=box) for box in (*no_area, *kept, *outside))))
    train, val = splits_of(kit)
    assert boxes_of(train, 0) == [list(box) for box in kept]
    assert train.targets.dropped == {voc_objects.NO_AREA: 2, voc_objects.OUTSIDE: 4}
    assert train.note.endswith("; 6 objects left out: 2 of no area, 4 outside the image")
    assert train.targets[2].numbers.tolist() == [5] and val.targets.dropped == {} and "left out" not in val.note


def test_objects_that_are_all_difficult_are_kept(kit):
    put_first(kit, xml(item(difficult=1), item(difficult=1)))
    assert splits_of(kit)[0].targets[0].difficult.tolist() == [True, True]


@pytest.mark.parametrize("size", [None, (0, 0), (0, 6)])
@pytest.mark.parametrize("orientation, upright", [(1, (4, 6)), (8, (6, 4))])
def test_without_a_size_the_upright_image_has_it(kit, size, orientation, upright):
    put_first(kit, xml(item(box=(1, 6, 4, 6)), size=size), orientation=orientation)
    train, _ = splits_of(kit)
    assert train.targets.sizes[0].tolist() == list(upright) and train.read(0).shape[:2] == upright
    assert len(train.targets[0]) == (1 if upright == (6, 4) else 0)


def test_the_annotated_size_decides_whether_exif_turns_an_image(kit):
    put_first(kit, xml(*[item()], size=(4, 6)), orientation=6)
    assert splits_of(kit)[0].read(0).shape[:2] == (4, 6)
    put_first(kit, xml(*[item()], size=(6, 4)), orientation=6)
    assert splits_of(kit)[0].read(0).shape[:2] == (6, 4)
    put_first(kit, xml(*[item()], size=(6, 5)), orientation=6)
    with pytest.raises(DataError, match=r"000005.jpg: expected 5x6 pixels, as annotated, found 6x4"):
        splits_of(kit)


def test_other_classes_than_vocs_are_those_found(kit):
    put_first(kit, xml(item("star"), item("cat")))
    train, val = splits_of(kit)
    assert train.classes == val.classes == ["cat", "person", "star", "tvmonitor"]
    assert train.targets[0].labels.tolist() == [2, 0] and val.targets[0].labels.tolist() == [1]


def test_2007_alone_is_an_error_but_in_smoke_taken_and_said(kit):
    shutil.rmtree(kit / "VOC2012")
    with pytest.raises(DataError, match=r"expected VOC2012 beside VOC2007, found no VOC2012/.*\n.*May-2012.tar"):
        splits_of(kit)
    train, val = splits_of(kit, None, True)
    assert len(train) == 2 and "VOC2007 alone: VOC2012 is not there" in train.note and "(VOC2007 alone" not in val.note


@pytest.mark.parametrize("here", [False, True])
def test_2007_itself_does_not_borrow_what_lies_beside_it(kit, monkeypatch, here):
    root = "." if here else kit / "VOC2007"
    monkeypatch.chdir(kit / "VOC2007")
    with pytest.raises(DataError, match="VOC2007 was named: name the folder above it"):
        splits_of(root)
    train, _ = splits_of(root, None, True)
    assert names_of(train) == ["VOC2007/JPEGImages/000005.jpg", "VOC2007/JPEGImages/000002.jpg"]
    assert train.read(0).shape == (4, 6, 3)


@pytest.mark.parametrize("below", ["", "..", "../.."])
def test_the_kit_and_folders_above_it_are_the_same(kit, below):
    assert len(splits_of(kit / below)[0]) == 3


def test_a_missing_image_is_refused_or_in_smoke_left_out_with_its_annotation(kit):
    (kit / "VOC2007/JPEGImages/000005.jpg").unlink()
    (kit / "VOC2007/Annotations/000005.xml").unlink()
    with pytest.raises(
        DataError, match=r"Annotations/000005.xml: expected the objects of an image, found No such file"
    ):
        splits_of(kit)
    train, _ = splits_of(kit, None, True)
    assert names_of(train)[0] == "VOC2007/JPEGImages/000002.jpg" and "1 listed images are not there" in train.note
    assert train.targets.ids.tolist() == [1, 2] and boxes_of(train, 1) == [[1, 1, 4, 3]]


def test_an_image_without_its_annotation_is_refused_even_in_smoke(kit):
    (kit / "VOC2007/Annotations/000005.xml").unlink()
    with pytest.raises(DataError, match=r"000005.xml: expected the objects of an image, found No such file"):
        splits_of(kit, None, True)


def test_an_empty_list_is_refused(kit):
    (kit / "VOC2007/ImageSets/Main/test.txt").write_text("\n")
    with pytest.raises(DataError, match=r"test.txt: expected an id of an image in each line, found none") as error:
        splits_of(kit)
    assert error.value.exit_code == 3


@pytest.mark.parametrize(
    "text, said",
    [
        ("<annotation><size>", "no element found"),
        ("", "no element found"),
        (xml(item(box=("a", 1, 2, 3))), "could not convert"),
        (xml(item(box=("nan", 1, 2, 3))), "NaN"),
        (xml(item(box=("inf", 1, 2, 3))), "infinity"),
        (xml(item(box=("1e30", 1, 2, 3))), "1e.30 in bndbox/xmin"),
        (xml(item(name="")), "no name in <object>"),
        (xml("<object><name>cat</name></object>"), "no bndbox/xmin in <object>"),
        ('<!DOCTYPE a [<!ENTITY x "y">]>' + xml(item("&x;")), "entities"),
    ],
)
def test_a_damaged_annotation_is_named(kit, text, said):
    put_first(kit, text)
    with pytest.raises(DataError, match=rf"000005.xml: expected the objects of an image as VOC writes them, .*{said}"):
        splits_of(kit)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_do_not_expand(kit, encoding):
    """Ten to the ninth power of a word."""
    levels = "".join(f'<!ENTITY l{k} "{f"&l{k - 1};" * 10}">' for k in range(1, 10))
    bomb = f'<!DOCTYPE a [<!ENTITY l0 "bomb">{levels}]><annotation><size>&l9;</size></annotation>'
    (kit / "VOC2007/Annotations/000005.xml").write_bytes(bomb.encode(encoding))
    began = time.perf_counter()
    with pytest.raises(DataError, match=r"000005.xml"):
        splits_of(kit)
    assert time.perf_counter() - began < 2


def test_real_annotations_are_read_as_an_independent_reader_reads_them(data_root):
    train, val = splits_of(data_root / "voc07", None, True)
    assert (len(train), len(val)) == (160, 140) and train.classes == list(voc_objects.CLASSES)
    number = {name: k for k, name in enumerate(sorted(voc_objects.CLASSES))}
    count = difficult = 0
    for images in (train, val):
        assert images.targets.dropped == {}
        for i in range(len(images)):
            name = images.name(i).replace("JPEGImages", "Annotations").replace(".jpg", ".xml")
            root, its_own = ElementTree.parse(images.root / name).getroot(), images.targets[i]
            for j, item in enumerate(root.findall("object")):
                x0, y0, x1, y1 = (int(item.findtext(f"bndbox/{tag}", "")) for tag in ("xmin", "ymin", "xmax", "ymax"))
                assert its_own.boxes[j].tolist() == [x0, y0, x1, y1]
                assert its_own.labels[j] == number[item.findtext("name", "")]
                assert its_own.difficult[j] == (item.findtext("difficult") == "1")
            assert len(its_own) == j + 1
            count, difficult = count + len(its_own), difficult + int(its_own.difficult.sum())
        assert images.targets.sizes[:, 0].tolist() == images.rows["height"].tolist()
    assert (count, difficult) == (908, 195)
