"""Attacks: a benchmark that reads another data set than its own, or takes folders of data sets for classes.

Run: pytest tests/data/sources/test_catalog.py
"""

import shutil

import numpy as np
import pytest
from PIL import Image

from swav.data.sources.catalog import DATASETS, LABELLED_HOMES, NOT_CLASSES, labelled, require_disjoint
from swav.data.synthetic.writers import write_shapes
from swav.errors import DataError


def write_imagenet(folder, per_class=2):
    """train/CLASS/ and val/CLASS/; of pixels that tell which image it is."""
    for split in ("train", "val"):
        for k, name in enumerate(("n01", "n02")):
            (folder / split / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = np.full((16, 16, 3), 40 * k + 10 * i + (split == "val"), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{split}_{k}{i}.png")
    return folder


def flattened(folder):
    """As ImageNet's archives leave it: val/ without class folders, and the lists."""
    (folder / "meta").mkdir()
    for split in ("train", "val"):
        files = sorted((folder / split).glob("*/*.png"))
        names = [path.name if split == "val" else f"{path.parent.name}/{path.name}" for path in files]
        labels = [int(path.parent.name[-1]) - 1 for path in files]
        lines = [f"{name} {label}\n" for name, label in zip(names, labels, strict=True)]
        (folder / "meta" / f"{split}.txt").write_text("".join(reversed(lines)))
        if split == "val":
            for path in files:
                path.rename(folder / "val" / path.name)
            for empty in ("n01", "n02"):
                (folder / "val" / empty).rmdir()
    return folder


def shown(images):
    """{pixel: label}: what each image shows, however it is ordered and named."""
    return {int(images.read(i)[0, 0, 0]): int(images.labels[i]) for i in range(len(images))}


def test_imagenet_with_a_flat_val_is_the_same_set_as_in_class_folders(tmp_path):
    folders = labelled(write_imagenet(tmp_path / "a" / "imagenet"), tmp_path)
    flat = labelled(flattened(write_imagenet(tmp_path / "b" / "imagenet")).parent, tmp_path)
    assert [shown(split) for split in flat] == [shown(split) for split in folders] and len(shown(flat[1])) == 4


def test_a_flat_val_whose_list_names_a_missing_image_is_an_error_and_smoke_leaves_it_out(tmp_path):
    root = flattened(write_imagenet(tmp_path / "imagenet"))
    (root / "val" / "val_00.png").unlink()
    with pytest.raises(DataError, match="val_00"):
        labelled(root, tmp_path)
    _, val = labelled(root, tmp_path, True)
    assert len(val) == 3 and "1 listed images are not there" in val.note


@pytest.mark.parametrize("other", NOT_CLASSES)
def test_a_folder_of_other_data_sets_is_not_a_folder_of_classes(tmp_path, other):
    (tmp_path / other).mkdir()
    with pytest.raises(DataError, match=rf"found other data sets only \({other}\)"):
        labelled(tmp_path, tmp_path)
    for home in LABELLED_HOMES:
        write_imagenet(tmp_path / home)
        assert len(labelled(tmp_path, tmp_path)[0]) == 4
        shutil.rmtree(tmp_path / home)


def test_voc_is_found_one_folder_deeper_but_not_guessed_among_two(tmp_path):
    write_shapes(tmp_path / "voc07" / "VOCdevkit", "voc", train=40, val=20, size=16)
    find = DATASETS["voc07"].find
    assert len(find(tmp_path, tmp_path / "cache", False)[0]) == 40
    shutil.copytree(tmp_path / "voc07", tmp_path / "copy")
    with pytest.raises(DataError, match=r"expected one PASCAL VOC 2007 below it, found .*copy.* and .*voc07"):
        find(tmp_path, tmp_path / "cache", False)


def test_boxes_and_maps_are_found_in_one_folder_of_data_sets(tmp_path):
    for layout, name in (("voc0712", "VOCdevkit"), ("coco", "coco"), ("cityscapes", "cityscapes")):
        write_shapes(tmp_path / name, layout, train=8, val=4, size=32)
    counts = {}
    for name in ("voc0712", "coco", "voc12aug", "cityscapes", "segmented"):
        DATASETS[name].seek(tmp_path)
        train, val = require_disjoint(DATASETS[name].find(tmp_path, tmp_path / "cache", False))
        assert train.targets is not None and val.targets is not None and train.classes == val.classes
        assert [len(train.targets), len(val.targets)] == [len(train), len(val)]
        counts[name] = (len(train), len(val))
    assert counts == {
        "voc0712": (16, 4),
        "coco": (8, 4),
        "voc12aug": (6, 2),
        "cityscapes": (8, 4),
        "segmented": (6, 2),
    }


@pytest.mark.parametrize("name", ["voc0712", "coco", "voc12aug", "cityscapes", "segmented"])
def test_what_is_not_there_is_said_with_the_way_to_get_it(tmp_path, name):
    for find in (DATASETS[name].seek, lambda root: DATASETS[name].find(root, None, True)):
        with pytest.raises(DataError, match=r": expected .*, found none\n(unpack|put) ") as error:
            find(tmp_path)
        assert str(tmp_path) in str(error.value) and len(str(error.value).splitlines()) <= 3


def test_every_data_set_says_what_is_expected_where():
    assert all("--data" in data_set.expected for data_set in DATASETS.values())
