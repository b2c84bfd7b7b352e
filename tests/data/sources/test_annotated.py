"""Attacks: an image turned by EXIF under boxes that are not, or not turned under boxes that are; and a size that fits neither.

Run: pytest tests/data/sources/test_annotated.py
"""

import pickle

import numpy as np
import pytest
from PIL import Image

from swav.data.sources.annotated import find_one, fitted, read_ids, upright_size
from swav.data.sources.decode import decode, orientation_of
from swav.data.sources.open import open_images
from swav.data.sources.pixels import ORIENTATION
from swav.data.storage import Files, joined
from swav.errors import DataError

WIDE = (4, 6)  # height, width as stored


def photo(path, orientation=1, size=WIDE, file_format=None, seed=0):
    """An image as stored, with a mark of how it is to be turned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, file_format, exif=exif, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return pixels


def stored_of(path):
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotation_that_exchanges_the_sides_can_be_left_out_and_no_other(tmp_path, orientation, ending):
    path = tmp_path / f"a.{ending}"
    photo(path, orientation)
    data = path.read_bytes()
    assert orientation_of(data) == orientation
    upright, kept = decode(data, "a"), decode(data, "a", keep_shape=True)
    assert upright.shape[:2] == (WIDE[::-1] if orientation >= 5 else WIDE) and kept.shape[:2] == WIDE
    if orientation < 5:
        assert np.array_equal(kept, upright)
    elif ending != "jpg":
        assert np.array_equal(kept, stored_of(path))
    assert kept.flags.writeable and kept.flags.c_contiguous


@pytest.mark.parametrize("size, turned", [(WIDE, False), (WIDE[::-1], True)])
def test_an_image_is_read_the_way_in_which_it_has_the_annotated_size(tmp_path, size, turned):
    photo(tmp_path / "a.png", 6)
    photo(tmp_path / "b.png", 1, size)
    photo(tmp_path / "c.png", 3, size)
    images = fitted(open_images(tmp_path, "all"), np.array([size] * 3), "; noted")
    assert [images.read(i).shape[:2] for i in range(3)] == [size] * 3
    assert np.array_equal(images.read(0), decode((tmp_path / "a.png").read_bytes(), "a", keep_shape=not turned))
    assert np.array_equal(images.read(2), stored_of(tmp_path / "c.png")[::-1, ::-1])  # half a turn: both sizes agree
    assert images.note.endswith("; noted")


def test_a_square_image_is_turned(tmp_path):
    photo(tmp_path / "a.png", 6, (5, 5))
    images = fitted(open_images(tmp_path, "all"), np.array([[5, 5]]))
    assert np.array_equal(images.read(0), np.rot90(stored_of(tmp_path / "a.png"), -1))


@pytest.mark.parametrize("orientation, size", [(1, WIDE[::-1]), (3, WIDE[::-1]), (6, (4, 5)), (1, (8, 12))])
def test_an_image_that_has_the_annotated_size_neither_way_is_refused(tmp_path, orientation, size):
    photo(tmp_path / "a.png", orientation)
    with pytest.raises(
        DataError, match=rf"a.png: expected {size[1]}x{size[0]} pixels, as annotated, found 6x4"
    ) as error:
        fitted(open_images(tmp_path, "all"), np.array([size]))
    assert error.value.exit_code == 3


def test_the_way_of_reading_stays_with_its_image(tmp_path):
    for name, orientation in (("a", 6), ("b", 6), ("c", 1)):
        photo(tmp_path / f"{name}.jpg", orientation)
    whole = fitted(open_images(tmp_path, "all"), np.array([WIDE, WIDE[::-1], WIDE]))
    assert [whole.read(i).shape[:2] for i in range(3)] == [WIDE, WIDE[::-1], WIDE]
    some = pickle.loads(pickle.dumps(whole.select([1, 0]).reading_as_pillow()))
    assert [some.read(i).shape[:2] for i in range(2)] == [WIDE[::-1], WIDE]
    plain = open_images(tmp_path, "all")
    both = joined([plain.storage, whole.storage])
    assert [both.read(i).shape[:2] for i in range(6)] == [WIDE[::-1], WIDE[::-1], WIDE, WIDE, WIDE[::-1], WIDE]
    assert isinstance(both, Files) and isinstance(joined([plain.storage]), Files)
    assert bytes(joined([plain.storage, plain.storage]).content()) == bytes(plain.storage.content()) * 2
    assert whole.content_fingerprint != plain.content_fingerprint


def test_the_size_of_an_upright_image_is_read_from_its_file(tmp_path):
    photo(tmp_path / "a.jpg", 6)
    photo(tmp_path / "b.png", 1)
    (tmp_path / "c.png").write_bytes(b"text")
    assert [upright_size(tmp_path, name) for name in (b"a.jpg", b"b.png", b"c.png", b"d.png")] == [
        WIDE[::-1],
        WIDE,
        (0, 0),
        (0, 0),
    ]


def test_lists_of_ids_are_checked(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("000001 \n\n000002\r\n")
    assert read_ids(path, "how") == ["000001", "000002"]
    path.write_text("\n \n")
    with pytest.raises(DataError, match="found none"):
        read_ids(path, "how")
    path.write_text("a\nb\na\n")
    with pytest.raises(DataError, match="expected each image once, found a twice"):
        read_ids(path, "how")
    path.write_bytes(b"\xff\xfa")
    with pytest.raises(DataError, match="bytes that are no text"):
        read_ids(path, "how")
    with pytest.raises(DataError, match="No such file or directory\nhow"):
        read_ids(tmp_path / "other.txt", "how")


def test_one_data_set_is_found_at_the_nearest_depth_and_two_are_not_guessed_between(tmp_path):
    def find():
        return find_one(tmp_path, ("", "x", "*"), lambda path: (path / "mark").is_file(), "a set", "how")

    with pytest.raises(DataError, match="expected a set, found none\nhow"):
        find()
    for name in (".hidden", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mark").touch()
    assert find() == tmp_path / "a"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mark").touch()
    with pytest.raises(DataError, match=r"expected one a set, found .*a and .*b; name one"):
        find()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mark").touch()
    assert find() == tmp_path / "x"
