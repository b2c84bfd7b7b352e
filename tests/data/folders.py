"""Folders of small images of one colour each, for tests of what a path holds."""

from PIL import Image


def put(path, colour=(10, 20, 30), size=(8, 6), file_format=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, file_format)
    return path


def put_all(root, *names):
    """An image per name, each of a colour of its own."""
    for i, name in enumerate(names):
        put(root / name, (i % 256, i // 256, 0))
    return root


def splits(root, train=("cat/1.png", "dog/1.png"), val=("cat/2.png", "dog/2.png"), score="val"):
    """A data set with train/ and a folder to score."""
    put_all(root, *(f"train/{name}" for name in train))
    return put_all(root, *(f"{score}/{name}" for name in val))


def names_of(images):
    return [images.name(i) for i in range(len(images))]
