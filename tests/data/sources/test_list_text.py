"""Attacks: a list that any editor or spreadsheet may have saved, and an error that leaves the user to guess.

Run: pytest tests/data/sources/test_list_text.py
"""

import codecs
import os

import pytest

from swav.data.sources.list_text import as_name, read_lines, without_label
from swav.data.sources.lists import imagenet_splits
from swav.data.sources.open import labelled_splits, open_images
from swav.data.sources.walk import read_list
from swav.errors import DataError
from tests.data.folders import names_of, put_all

NAMES = ["a/1.png", "b/two words, and a comma.png", "b/é.png"]
ENCODINGS = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16 big-endian": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "utf-16 without a mark": lambda text: text.encode("utf-16-le"),
    "utf-32": lambda text: text.encode("utf-32"),
}


@pytest.fixture
def root(tmp_path):
    return put_all(tmp_path, *NAMES)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", " \n", "\t \r\n", "\r"])
def test_any_encoding_and_end_of_line_gives_the_same_names(root, encoding, end):
    (root / "list.txt").write_bytes(ENCODINGS[encoding](end.join([*NAMES, ""])))
    assert read_list(root / "list.txt").names == [os.fsencode(name) for name in NAMES]
    header = end.join(["label ; path", *(f"{name[0]} ; {name}" for name in NAMES), ""])
    (root / "list.csv").write_bytes(ENCODINGS[encoding](header))
    found = read_list(root / "list.csv")
    assert found.names == [os.fsencode(name) for name in NAMES] and found.labels == ["a", "b", "b"]


@pytest.mark.parametrize("separator", ["\t", ";", ",", " ", "  ", " , "])
def test_a_label_behind_a_path_is_a_label(root, separator):
    (root / "list.txt").write_text("".join(f"{name}{separator}{k}\n" for k, name in enumerate(NAMES)))
    found = read_list(root / "list.txt")
    assert found.names == [os.fsencode(name) for name in NAMES] and found.labels == ["0", "1", "2"]


def test_a_path_that_ends_like_a_label_stays_a_path(root):
    names = ["a/x 0", "a/x,1", "a/x;2"]
    for name in names:
        (root / name).write_bytes((root / "a/1.png").read_bytes())
    (root / "list.txt").write_text("\n".join(names))
    assert names_of(open_images(root / "list.txt")) == names and read_list(root / "list.txt").labels is None


def test_blanks_at_the_end_of_a_files_own_name_count(root):
    (root / "a/1.png ").write_bytes((root / "a/1.png").read_bytes())
    (root / "list.txt").write_text("a/1.png \na/1.png\t\n")
    (root / "list.csv").write_text("path\na/1.png \n b/é.png\n")
    assert read_list(root / "list.txt").names == [b"a/1.png ", b"a/1.png"]
    assert read_list(root / "list.csv").names == [b"a/1.png ", "b/é.png".encode()]


def test_a_missing_label_among_others_is_named_by_its_line(root):
    (root / "list.txt").write_text("a/1.png 3\n\na/1.png\na/1.png 4\n")
    with pytest.raises(DataError, match="label in line 3, as in the others"):
        read_list(root / "list.txt")


@pytest.mark.parametrize(
    "line, parts",
    [
        ("a b/c d.png 7", ("a b/c d.png", "7")),
        ("a.png,n01", ("a.png", "n01")),
        ("a.png\tgolden retriever", ("a.png", "golden retriever")),
        ("a b/c.png", None),
        ("a.png", None),
        (" 7", None),
    ],
)
def test_a_label_is_one_word_and_no_path(line, parts):
    assert without_label(line) == parts


def test_the_header_may_be_written_in_any_case_and_a_wrong_one_is_shown_whole(root):
    (root / "list.csv").write_text('"Path"\tLABEL\tSplit\n' + "".join(f"{name}\t{name[0]}\ttrain\n" for name in NAMES))
    assert read_list(root / "list.csv").splits == ["train"] * 3
    (root / "list.csv").write_text("paths;label\n")
    with pytest.raises(DataError, match=r"found 'paths;label' \(did you mean 'paths'\?\)"):
        read_list(root / "list.csv")


def test_the_home_folder_is_found_in_lists(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    (root / "lists").mkdir()
    (root / "lists/list.txt").write_text("~/a/1.png\n")
    (root / "lists/list.csv").write_text("path,label\n~/a/1.png,x\n")
    for kind in ("txt", "csv"):
        assert names_of(open_images(f"~/lists/list.{kind}")) == [f"{root}/a/1.png"]
    assert as_name("~nobody-of-this-name/x") == b"~nobody-of-this-name/x"


def test_what_is_no_text_is_refused(root):
    (root / "list.txt").write_bytes(b"a.png\n\0\0b")
    with pytest.raises(DataError, match="bytes that are no text"):
        read_list(root / "list.txt")
    (root / "list.txt").write_bytes(codecs.BOM_UTF16_LE + b"a\0b")
    with pytest.raises(DataError, match="damaged utf-16"):
        read_list(root / "list.txt")
    (root / "list.txt").write_bytes(b"\n \n\xff.png\n")
    assert read_lines(root / "list.txt", "a list") == [(3, "\udcff.png")]


# -- the lists of ImageNet


def flat(root, lines="{name}\t{label}\n", start=b""):
    put_all(root, "train/x/1.png", "train/y/2.png", "val/3.png", "val/4.png")
    (root / "meta").mkdir()
    for split, rows in (("train", [("x/1.png", 0), ("y/2.png", 1)]), ("val", [("4.png", 0), ("3.png", 1)])):
        text = "".join(lines.format(name=name, label=label, split=split) for name, label in rows)
        (root / f"meta/{split}.txt").write_bytes(start + text.encode())
    return root


@pytest.mark.parametrize(
    "lines, start",
    [
        ("{name} {label}\n", b"\xef\xbb\xbf"),
        ("{name}\t{label}\r\n", b""),
        ("{name}, {label} \n", b""),
        ("{split}/{name};{label}\n", b""),
        ("./{split}/{name} {label}\n", b""),
        ("{split}\\{name} {label}\n", b""),
        ("{name} n{label}\n", b""),
    ],
)
def test_a_list_of_imagenet_is_read_however_it_was_saved(tmp_path, lines, start):
    for splits in (imagenet_splits(flat(tmp_path, lines, start)), labelled_splits(tmp_path)):
        train, val = splits
        assert names_of(train) == ["x/1.png", "y/2.png"] and names_of(val) == ["4.png", "3.png"]
        assert val.labels is not None and val.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda root: (root / "val/3.png").unlink(), r"list of val, found none at 3\.png"),
        (lambda root: (root / "val/3.png").rename(root / "val/3.PNG"), r"3\.PNG is there: names must be"),
        (lambda root: (root / "val").rename(root / "valid"), r"they are there below .*valid"),
    ],
)
def test_an_error_names_the_split_and_the_likely_cause(tmp_path, change, said):
    change(flat(tmp_path))
    with pytest.raises(DataError, match=said):
        imagenet_splits(tmp_path)


def test_an_odd_line_is_named_with_its_list(tmp_path):
    flat(tmp_path)
    for line in ("3.png", "3.png seven"):
        (tmp_path / "meta/val.txt").write_text(f"4.png 0\n{line}\n")
        with pytest.raises(DataError, match=rf"val\.txt: .*line 2 of the list of val, found '{line}'"):
            imagenet_splits(tmp_path)
    (tmp_path / "meta/val.txt").unlink()
    with pytest.raises(DataError, match=r"(?s)val\.txt: expected the list of val.*caffe_ilsvrc12"):
        imagenet_splits(tmp_path)


def test_a_list_of_ones_own_in_the_wrong_folder_says_where_its_images_are(tmp_path):
    flat(tmp_path)
    with pytest.raises(DataError, match=r"found 2 files of which none is readable; .*they are there below .*/train: "):
        open_images(tmp_path / "meta/train.txt")
