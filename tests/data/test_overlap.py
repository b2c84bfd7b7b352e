"""Attacks: images that are learned from and scored at once, because a folder, a class, a file or a strip is a link to another.

Run: pytest tests/data/test_overlap.py
"""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from swav.data.overlap import SharedImages
from swav.data.sources.catalog import DATASETS, require_disjoint
from swav.data.sources.open import labelled_splits
from swav.data.storage import Files


def write_halves(folder, val=True):
    rng = np.random.default_rng(0)
    for split in ("train", "val") if val else ("train",):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{split}{i}.png")
    return folder


def both(folder, cache):
    return require_disjoint(DATASETS["labelled"].find(folder, cache, False))


def test_halves_without_a_common_file_are_not_refused_though_all_are_links(tmp_path):
    source = write_halves(tmp_path / "source")
    for path in source.rglob("*.png"):
        link = tmp_path / "links" / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    train, score = both(tmp_path / "links", tmp_path / "cache")
    assert (len(train), len(score)) == (8, 8)


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_half_that_is_a_link_to_the_other_is_refused_by_both_paths(tmp_path, name):
    folder = write_halves(tmp_path / "set", val=False)
    (folder / name).symlink_to("train")
    with pytest.raises(SharedImages, match=rf"set/train: .*set/{name} \(a link\)") as caught:
        both(folder, tmp_path / "cache")
    assert caught.value.exit_code == 3


def test_a_class_folder_that_is_a_link_is_found_by_its_files(tmp_path):
    folder = write_halves(tmp_path / "set")
    shutil.rmtree(folder / "val" / "b")
    (folder / "val" / "b").symlink_to("../train/b")
    with pytest.raises(SharedImages, match=r"train/b/train0\.png and \S+val/b/train0\.png to be one file and 3 more"):
        both(folder, tmp_path / "cache")


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_one_file_that_is_linked_into_both_halves_is_found(tmp_path, link):
    folder = write_halves(tmp_path / "set")
    link(folder / "train" / "a" / "train2.png", folder / "val" / "a" / "other.png")
    with pytest.raises(SharedImages, match=r"train/a/train2\.png and \S+val/a/other\.png to be one file"):
        both(folder, tmp_path / "cache")


def test_a_link_among_the_images_of_a_list_and_of_a_tree_is_found(tmp_path):
    folder = write_halves(tmp_path / "set")
    (folder / "link.png").symlink_to(folder / "train" / "a" / "train1.png")
    rows = [f"{path},{path.parent.name},train" for path in sorted((folder / "train").rglob("*.png"))]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows, f"{folder}/link.png,a,val"]))
    with pytest.raises(SharedImages, match=r"train1\.png and \S+link\.png to be one file"):
        labelled_splits(tmp_path / "list.csv", tmp_path / "cache")
    for i in range(1, 4):  # all of a class are one file: some of them are scored
        path = folder / "train" / "a" / f"train{i}.png"
        path.unlink()
        os.link(folder / "train" / "a" / "train0.png", path)
    with pytest.raises(SharedImages, match="one file"):
        labelled_splits(folder / "train", tmp_path / "cache")


@pytest.mark.parametrize("inode", [0, 7])
def test_a_file_system_that_numbers_no_files_or_gives_two_one_number_is_not_believed(tmp_path, inode):
    train, score = labelled_splits(write_halves(tmp_path / "set"), tmp_path / "cache")
    for split, size in ((train, 100), (score, 100 if inode == 0 else 101)):
        assert isinstance(split.storage, Files)
        split.storage.inodes = np.full((len(split), 2), (1, inode), dtype=np.uint64)
        split.rows["size"] = size
    require_disjoint((train, score))


def test_a_linked_strip_or_batch_of_cifar_is_found(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        np.save(tmp_path / f"labels_{split}.npy", np.arange(4, dtype=np.uint8) % 2)
        strip = Image.fromarray(rng.integers(0, 256, (128, 32, 3), dtype=np.uint8))
        strip.save(tmp_path / split / "0.webp", lossless=True)
    labelled_splits(tmp_path)
    (tmp_path / "test" / "0.webp").unlink()
    (tmp_path / "test" / "0.webp").symlink_to("../train/0.webp")
    with pytest.raises(SharedImages, match=r"train/0\.webp#0 and \S+test/0\.webp#0 to be one file and 3 more"):
        labelled_splits(tmp_path)
    binary = tmp_path / "binary"
    binary.mkdir()
    (binary / "data_batch_1.bin").write_bytes(bytes(3073 * 2))
    (binary / "test_batch.bin").symlink_to("data_batch_1.bin")
    with pytest.raises(SharedImages, match=r"data_batch_1\.bin#0 and \S+test_batch\.bin#0"):
        labelled_splits(binary)
