"""Attacked: packed images must come out as they went in, each with its own label, and a damaged file must not shift them."""

import pickle

import numpy as np
import pytest
from PIL import Image

from swav.data.scan import scan
from swav.data.sources.open import labelled_splits, open_images
from swav.errors import DataError
from tests.data.memory import require_at_most, tracing


def labels_of(images):
    assert images.labels is not None and images.labels.dtype == np.int64
    return images.labels.tolist()


def message(call, *arguments, **settings):
    with pytest.raises(DataError) as caught:
        call(*arguments, **settings)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3
    return str(caught.value)


def binary_cifar(folder, files, label_bytes, per_file=3):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images = {}
    for name in files:
        labels = rng.integers(0, 10, (per_file, label_bytes), dtype=np.uint8)
        pixels = rng.integers(0, 256, (per_file, 32, 32, 3), dtype=np.uint8)
        images[name] = (labels, pixels)
        planes = pixels.transpose(0, 3, 1, 2).reshape(per_file, -1)
        (folder / name).write_bytes(np.concatenate([labels, planes], axis=1).tobytes())
    return images


@pytest.mark.parametrize("nested", [False, True])
def test_the_binary_version_of_cifar10(tmp_path, nested):
    folder = tmp_path / "cifar-10-batches-bin" if nested else tmp_path
    files = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    written = binary_cifar(folder, files, label_bytes=1)
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    train, score = labelled_splits(tmp_path)
    assert (len(train), len(score)) == (15, 3) and train.classes == list("abcdefghij")
    labels, pixels = written["data_batch_2.bin"]
    assert train.name(4) == "data_batch_2.bin#1" and labels_of(train)[4] == labels[1, 0]
    assert np.array_equal(train.read(4), pixels[1]) and train.read(4).flags.writeable


def test_the_binary_version_of_cifar100_is_labelled_by_the_fine_classes(tmp_path):
    written = binary_cifar(tmp_path, ["train.bin", "test.bin"], label_bytes=2)
    bank = open_images(tmp_path)
    assert labels_of(bank) == written["train.bin"][0][:, 1].tolist() and len(bank.classes or []) == 100


def test_a_cut_binary_file_is_refused_and_pickles_are_never_opened(tmp_path):
    binary_cifar(tmp_path / "bin", ["data_batch_1.bin", "test_batch.bin"], label_bytes=1)
    path = tmp_path / "bin" / "data_batch_1.bin"
    path.write_bytes(path.read_bytes()[:-1])
    assert "multiple of 3073" in message(open_images, tmp_path / "bin")
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "data_batch_1").write_bytes(pickle.dumps({}))
    assert "binary version" in message(open_images, tmp_path / "python")


def strips(root, per_strip=4, count=3):
    rng = np.random.default_rng(1)
    all_pixels = {}
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        pixels = rng.integers(0, 256, (count, per_strip, 32, 32, 3), dtype=np.uint8)
        for i in range(count):
            Image.fromarray(pixels[i].reshape(-1, 32, 3)).save(root / split / f"{i:03}.webp", lossless=True)
        np.save(root / f"labels_{split}.npy", (np.arange(count * per_strip) % 2).astype(np.uint8))
        all_pixels[split] = pixels.reshape(-1, 32, 32, 3)
    (root / "classes.txt").write_text("odd\neven\n")
    return all_pixels


def test_strips_are_cut_into_their_images(tmp_path):
    pixels = strips(tmp_path)
    train, score = labelled_splits(tmp_path)
    assert len(train) == len(score) == 12 and train.classes == ["odd", "even"]
    assert train.name(7) == "train/001.webp#3" and labels_of(train)[7] == 1
    assert all(np.array_equal(train.read(i), pixels["train"][i]) for i in range(12))
    assert np.array_equal(open_images(tmp_path, "all").select([13]).read(0), pixels["test"][1])


def test_a_broken_strip_is_left_out_with_its_labels(tmp_path):
    pixels = strips(tmp_path)
    broken = tmp_path / "train" / "001.webp"
    broken.write_bytes(broken.read_bytes()[:3000])
    images = open_images(tmp_path)
    assert len(images) == 8 and [name for name, _ in images.bad] == ["train/001.webp"]
    assert np.array_equal(images.read(5), pixels["train"][9]) and labels_of(images) == [0, 1] * 4


def test_hidden_files_of_other_systems_are_no_strips(tmp_path):
    pixels = strips(tmp_path)
    (tmp_path / "train" / "._0.webp").write_bytes(b"\x00\x05\x16\x07")
    assert len(open_images(tmp_path)) == len(pixels["train"])


def test_strips_that_do_not_fit_their_labels_are_refused(tmp_path):
    strips(tmp_path)
    np.save(tmp_path / "labels_train.npy", np.zeros(11, dtype=np.uint8))
    assert "11 labels and 12 images" in message(open_images, tmp_path)
    np.save(tmp_path / "labels_train.npy", np.array([{}] * 12, dtype=object), allow_pickle=True)
    assert "whole numbers" in message(open_images, tmp_path)


@pytest.mark.parametrize("with_classes", [True, False])
def test_one_flipped_bit_in_the_labels_is_refused_or_gives_a_class_that_there_is_and_takes_no_memory(
    tmp_path, with_classes
):
    strips(tmp_path, per_strip=2, count=1)
    if not with_classes:
        (tmp_path / "classes.txt").unlink()
    path = tmp_path / "labels_train.npy"
    good = path.read_bytes()
    places = [i for i, byte in enumerate(good) if byte != ord(" ")]  # the header is padded with blanks

    def read():
        try:
            images = open_images(tmp_path)
        except DataError as error:
            assert str(error).count("\n") <= 2 and error.exit_code == 3
        else:
            count = len(images.classes or [])
            most = 2 if with_classes else 3  # the next one, at most
            assert max(labels_of(images)) < count <= most

    with tracing():
        for bit in [8 * place + bit for place in places for bit in range(8)]:
            damaged = bytearray(good)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            require_at_most(5e6, read)


@pytest.mark.parametrize(
    ("dtype", "values"), [("<i8", [0, 1 << 40]), ("<i8", [0, -1]), ("<u4", [0, 7]), ("<u8", [0, (1 << 63) + 1])]
)
def test_labels_out_of_the_row_of_classes_are_refused(tmp_path, dtype, values):
    strips(tmp_path)
    (tmp_path / "classes.txt").unlink()
    np.save(tmp_path / "labels_train.npy", np.array([*values, *[1, 0] * 5], dtype=dtype))
    assert "labels" in message(open_images, tmp_path)


def test_cifar10_strips_have_the_mean_of_cifar10(data_root):
    images = open_images(data_root / "cifar10", "val")
    assert len(images) == 10_000 and np.bincount(labels_of(images)).tolist() == [1000] * 10
    pixels = np.stack([images.read(i) for i in range(0, 10_000, 10)])
    assert np.abs(pixels.mean((0, 1, 2)) / 255 - (0.4914, 0.4822, 0.4465)).max() < 0.01


def test_scan_counts_packed_images_too(tmp_path):
    strips(tmp_path)
    found = scan(tmp_path)
    assert found["images"] == 24 and found["classes"]["images"] == {"odd": 12, "even": 12}
    assert found["bytes"] == sum(path.stat().st_size for path in tmp_path.rglob("*.webp"))
