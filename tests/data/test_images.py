"""Attacked: the right images, in one order, with the right labels, from whatever shape of data set; and nothing hangs,
nothing is written among the data, nothing stale is believed, nothing broken gets into the sequence.
"""

import json
import os
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from swav.data.images import Images
from swav.data.scan import render_scan, scan
from swav.data.sources.decode import Unreadable
from swav.data.sources.open import labelled_splits, open_images
from swav.data.sources.walk import walk
from swav.data.storage import InMemory
from swav.errors import DataError
from tests.data.folders import names_of, put, put_all, splits


def labels_of(images):
    assert images.labels is not None and images.labels.dtype == np.int64
    return images.labels.tolist()


def message(call, *arguments, **settings):
    with pytest.raises(DataError) as caught:
        call(*arguments, **settings)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3
    return str(caught.value)


# -- what is found


def test_a_tree_is_read_whole_in_the_order_of_its_bytes(tmp_path):
    wanted = ["B.png", "a-b/x.png", "a/2/deep.JPG", "a/10.png", "a/9.PNG", "z.jpeg", "é.png", "\U0001f600.png"]
    put_all(tmp_path, *wanted)
    images = open_images(tmp_path)
    assert names_of(images) == sorted(wanted, key=os.fsencode)
    assert images.labels is None and images.bad == [] and images.root == tmp_path


def test_a_pixel_read_is_the_one_of_its_name(tmp_path):
    put_all(tmp_path, *(f"{i}.png" for i in range(12)))
    images = open_images(tmp_path)
    for i in range(12):
        pixels = images.read(i)
        assert pixels[0, 0].tolist() == [int(Path(images.name(i)).stem), 0, 0] and pixels.shape == (6, 8, 3)


def test_hidden_files_and_leavings_of_other_systems_are_no_data(tmp_path):
    put_all(tmp_path, "a.png", ".b.png", ".git/c.png", "__MACOSX/d.png", "@eaDir/e.png")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    images = open_images(tmp_path)
    assert names_of(images) == ["a.png"] and images.bad == [] and images.others == {}


def test_a_run_written_inside_of_the_data_does_not_change_them_and_is_named(tmp_path):
    put_all(tmp_path, "a.png")
    before = open_images(tmp_path)
    for name in ("out", "deep/out"):
        put(tmp_path / name / "report" / "views.png")
        (tmp_path / name / "config.yaml").write_text("x: 1")
        (tmp_path / name / "checkpoints").mkdir()
    images = open_images(tmp_path)
    assert images.fingerprint == before.fingerprint
    assert (
        images.note
        == before.note + "; without 2 folders of runs, which hold config.yaml and checkpoints/: deep/out, out"
    )


@pytest.mark.parametrize(
    "names", [("config.yaml", "metrics.jsonl"), ("config.yaml",), ("metrics.jsonl", "checkpoints")]
)
def test_a_folder_that_only_resembles_a_runs_is_data(tmp_path, names):
    put_all(tmp_path, "a/1.png", "b/2.png", "b/3.png")
    for name in names:
        (tmp_path / "b" / name).write_text("camera: A")
    images = open_images(tmp_path)
    assert names_of(images) == ["a/1.png", "b/2.png", "b/3.png"] and "runs" not in images.note


def test_linked_files_and_folders_are_followed_and_loops_end(tmp_path):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    put_all(elsewhere, "b.png", "deep/c.png")
    put_all(data, "a.png", "sub/d.png")
    (data / "linked").symlink_to(elsewhere)
    (data / "e.png").symlink_to(elsewhere / "b.png")
    (data / "sub" / "up").symlink_to(data)
    (elsewhere / "deep" / "back").symlink_to(elsewhere)
    (data / "aaa-first-by-name").symlink_to(data / "sub")
    (data / "zzz-last-by-name").symlink_to(data / "sub")
    (data / "self").symlink_to(data / "self")
    assert names_of(open_images(data)) == ["a.png", "e.png", "linked/b.png", "linked/deep/c.png", "sub/d.png"]


def test_folders_that_link_to_each_other_do_not_multiply(tmp_path):
    for i in range(8):
        put(tmp_path / f"{i}" / "x.png")
        for j in range(8):
            if i != j:
                (tmp_path / f"{i}" / f"to{j}").symlink_to(tmp_path / f"{j}")
    assert len(open_images(tmp_path)) == 8


def test_what_is_not_a_regular_file_is_never_opened(tmp_path, monkeypatch):
    put_all(tmp_path, "a.png", "folder.jpg/b.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)  # a socket's address must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jpg")
        assert walk(tmp_path).names == [b"a.png", b"folder.jpg/b.png"]
        images = open_images(tmp_path)
    assert names_of(images) == ["a.png", "folder.jpg/b.png"]
    assert [name for name, _ in images.bad] == ["dangling.jpg", "pipe.jpg", "socket.jpg"]


def test_names_that_are_no_utf8_and_names_with_control_characters_survive(tmp_path):
    odd = [b"\xff\xfe.png", b"new\nline.png", b"esc\x1b[31m.png", b"-rf.png", b"quote'\".png", b"a" * 251 + b".png"]
    for name in odd:
        (tmp_path / os.fsdecode(name)).write_bytes(put(tmp_path / "x.png").read_bytes())
    (tmp_path / "x.png").unlink()
    (tmp_path / "bad\udcff\n.jpg").write_bytes(b"")
    images = open_images(tmp_path)
    assert sorted(map(os.fsencode, names_of(images))) == sorted(odd)
    assert [images.read(i).shape for i in range(len(images))] == [(6, 8, 3)] * 6
    text = render_scan(json.loads(json.dumps(scan(tmp_path))))
    text.encode()  # no surrogates reach the terminal
    assert "\x1b" not in text and "bad\\udcff\\n.jpg: empty file" in text


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    put_all(tmp_path, "a.png", "locked/b.png")
    real = os.scandir  # root may read everything, so the refusal is played

    def refuse(path):
        if os.fsencode(path).endswith(b"locked/"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    images = open_images(tmp_path)
    assert names_of(images) == ["a.png"] and images.bad == [("locked/", "folder: Permission denied")]


@settings(max_examples=30, deadline=None)
@given(st.sets(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20), max_size=6))
def test_any_name_that_the_system_takes_is_found(tmp_path_factory, stems):
    root = tmp_path_factory.mktemp("names")
    wanted = [f"x{stem}.png" for stem in stems]
    for name in wanted:
        (root / name).write_bytes(b"x")
    assert [os.fsdecode(name) for name in walk(root).names] == sorted(wanted, key=os.fsencode)


# -- what is refused


def test_a_missing_path_is_said(tmp_path):
    assert "no such path" in message(open_images, tmp_path / "nowhere")
    assert "a\\x00b\\n: expected a folder" in message(open_images, "a\0b\n")


def test_an_empty_folder_is_said(tmp_path):
    assert "found no file" in message(open_images, tmp_path)


def test_a_folder_without_images_says_which_extensions_it_has_and_what_helps(tmp_path):
    for name in ("a.heic", "b.heic", "c.txt", "README"):
        (tmp_path / name).write_bytes(b"x")
    text = message(open_images, tmp_path)
    assert "2 .heic" in text and "1 .txt" in text and "1 without extension" in text and "convert to JPEG or PNG" in text


def test_a_folder_with_one_text_named_jpg_names_the_file_and_the_reason(tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    text = message(open_images, tmp_path)
    assert "none is readable" in text and "a.jpg" in text and "not an image" in text


def test_a_file_that_is_no_list_is_refused(tmp_path):
    assert "give its folder" in message(open_images, put(tmp_path / "a.png"))


def test_an_empty_half_is_refused_even_where_the_other_is_full(tmp_path):
    splits(tmp_path)
    for path in (tmp_path / "val").rglob("*.png"):
        path.unlink()
    assert "val" in message(open_images, tmp_path, "val")
    assert len(open_images(tmp_path)) == 2


# -- broken files


def test_the_header_check_leaves_out_what_it_finds_broken(tmp_path):
    put_all(tmp_path, "good.png", "png-named.jpg")
    (tmp_path / "png-named.jpg").write_bytes((tmp_path / "good.png").read_bytes())
    (tmp_path / "zero.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:20])
    images = open_images(tmp_path)
    assert names_of(images) == ["good.png", "png-named.jpg"]
    assert [name for name, _ in images.bad] == ["cut.png", "text.jpg", "zero.jpg"]
    assert all(reason for _, reason in images.bad)


def test_files_that_break_later_are_unreadable_by_name(tmp_path):
    put_all(tmp_path, "changed.png", "cut.png", "gone.png", "pipe.png")
    images = open_images(tmp_path)
    (tmp_path / "gone.png").unlink()
    (tmp_path / "pipe.png").unlink()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:45])
    (tmp_path / "changed.png").write_text("not any more")
    for i, name in enumerate(names_of(images)):
        with pytest.raises(Unreadable) as caught:
            images.read(i)
        assert caught.value.name == name and caught.value.reason
        assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason


# -- halves and labels


def test_train_beside_val_is_one_data_set_of_which_train_is_trained_on(tmp_path):
    splits(tmp_path)
    put_all(tmp_path, "extra.png", "test/cat/3.png")
    train, score = open_images(tmp_path), open_images(tmp_path, "val")
    assert names_of(train) == ["train/cat/1.png", "train/dog/1.png"]
    assert names_of(score) == ["val/cat/2.png", "val/dog/2.png"]
    assert "train/ of" in train.note and "val/ is left for scoring" in train.note
    assert names_of(open_images(tmp_path, "all")) == names_of(train) + names_of(score)


def test_test_serves_where_there_is_no_val(tmp_path):
    splits(tmp_path, score="test")
    bank, score = labelled_splits(tmp_path)
    assert names_of(score) == ["test/cat/2.png", "test/dog/2.png"]
    assert bank.classes == score.classes == ["cat", "dog"] and labels_of(score) == [0, 1]


def test_train_alone_is_no_data_set_of_halves(tmp_path):
    put_all(tmp_path, "train/1.png", "other/2.png")
    assert len(open_images(tmp_path)) == 2


def test_classes_that_differ_between_halves_are_named(tmp_path):
    splits(tmp_path, train=("cat/1.png", "dog/1.png", "ox/1.png"), val=("cat/2.png", "dog/2.png", "yak/2.png"))
    text = message(labelled_splits, tmp_path)
    assert "only in train: ox" in text and "only in val: yak" in text
    assert len(open_images(tmp_path)) == 3  # pre-training doesn't care
    both = open_images(tmp_path, "all")
    assert both.classes == ["cat", "dog", "ox", "yak"] and labels_of(both) == [0, 1, 2, 0, 1, 3]


def test_flat_halves_have_no_labels_and_that_is_said(tmp_path):
    splits(tmp_path, train=("1.png", "2.png"), val=("3.png",))
    assert open_images(tmp_path).labels is None
    assert "expected labels" in message(labelled_splits, tmp_path)


def test_class_folders_are_split_by_a_fixed_seed_for_scoring_only(tmp_path):
    put_all(tmp_path, *(f"{name}/{i:02}.png" for name in "ab" for i in range(20)))
    bank, score = labelled_splits(tmp_path)
    assert (len(bank), len(score)) == (32, 8) and np.bincount(labels_of(score)).tolist() == [4, 4]
    assert sorted(names_of(bank) + names_of(score)) == names_of(open_images(tmp_path))
    assert names_of(labelled_splits(tmp_path)[1]) == names_of(score) == names_of(open_images(tmp_path, "val"))
    assert "20 %" in score.note and "seed" in score.note
    for images in (bank, score):
        assert [(images.classes or [])[label] for label in labels_of(images)] == [name[0] for name in names_of(images)]


@pytest.mark.parametrize(
    "names", [["a/1.png", "b/2.png", "3.png"], ["a/1.png", "a/2.png"], ["2023/01/1.png", "2024/01/2.png"]]
)
def test_a_tree_that_is_not_class_folders_has_no_labels(tmp_path, names):
    put_all(tmp_path, *names)
    assert open_images(tmp_path).labels is None
    assert "expected labels" in message(open_images, tmp_path, "val")


def test_a_broken_file_takes_its_label_along(tmp_path):
    splits(tmp_path, train=("cat/1.png", "cat/2.png", "dog/3.png"))
    (tmp_path / "train/cat/1.png").write_bytes(b"")
    images = open_images(tmp_path)
    assert names_of(images) == ["train/cat/2.png", "train/dog/3.png"] and labels_of(images) == [0, 1]


def test_a_class_of_which_nothing_is_readable_does_not_shift_the_others(tmp_path):
    splits(tmp_path, train=("a/1.png", "b/2.png", "c/3.png"), val=("a/1.png", "c/3.png"))
    (tmp_path / "train/b/2.png").write_bytes(b"")
    bank, score = labelled_splits(tmp_path)
    assert bank.classes == score.classes == ["a", "c"] and labels_of(bank) == labels_of(score) == [0, 1]


# -- lists


def test_a_text_list_keeps_its_order_and_takes_paths_relative_to_itself(tmp_path):
    put_all(tmp_path, "data/b.png", "data/a, with comma.png", "data/odd.extension.png")
    (tmp_path / "data/odd.extension.png").rename(tmp_path / "data/odd.extension")
    absolute = put(tmp_path / "elsewhere/c.png")
    lines = ["data/b.png", "", "data/a, with comma.png", str(absolute), "data/odd.extension", "data/missing.png"]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    images = open_images(tmp_path / "list.txt")
    assert names_of(images) == ["data/b.png", "data/a, with comma.png", str(absolute), "data/odd.extension"]
    assert images.bad == [("data/missing.png", "No such file or directory")]
    assert images.read(2).shape == (6, 8, 3)


def test_a_csv_gives_labels_and_splits(tmp_path):
    put_all(tmp_path, *(f"{i}.png" for i in range(6)))
    rows = [
        "split,path,label,more",
        "training,0.png,10,x",
        "train,1.png,9,x",
        "val,2.png,9,x",
        "val,3.png,10,x",
        "test,5.png,10,x",
        'train,"4.png",9,x',
    ]
    path = tmp_path / "list.csv"
    path.write_text("\n".join(rows))
    bank, score = labelled_splits(path)
    assert names_of(bank) == names_of(open_images(path)) == ["0.png", "1.png", "4.png"]
    assert names_of(score) == names_of(open_images(path, "val")) == ["2.png", "3.png"]
    assert bank.classes == ["9", "10"] and labels_of(bank) == [1, 0, 0] and labels_of(score) == [0, 1]
    assert names_of(open_images(path, "all")) == ["0.png", "1.png", "2.png", "3.png", "4.png"]


@pytest.mark.parametrize(
    "there, chosen",
    [(("test", "val", "validation", "valid"), "val"), (("test", "validation", "valid"), "valid"), (("test",), "test")],
)
def test_a_csv_and_folders_choose_the_same_half_and_name_it(tmp_path, there, chosen):
    rows = ["path,label,split"]
    for split in ("train", *there):
        for name in "ab":
            put(tmp_path / split / name / "1.png")
            rows.append(f"{split}/{name}/1.png,{name},{split}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    for train, score in (labelled_splits(tmp_path), labelled_splits(tmp_path / "list.csv")):
        assert names_of(score) == [f"{chosen}/a/1.png", f"{chosen}/b/1.png"]
        assert names_of(train) == ["train/a/1.png", "train/b/1.png"]
        assert chosen in score.note.split(" of ")[0].split("split is ")[-1] and f"{chosen}" in train.note


def test_a_csv_whose_split_leaves_nothing_to_score_says_so(tmp_path):
    put_all(tmp_path, "0.png", "1.png")
    (tmp_path / "list.csv").write_text("path,label,split\n0.png,a,train\n1.png,b,train\n")
    assert len(open_images(tmp_path / "list.csv")) == 2
    assert "list.csv" in message(labelled_splits, tmp_path / "list.csv")


def test_a_csv_without_split_is_trained_on_whole_and_a_fifth_is_scored(tmp_path):
    put_all(tmp_path, *(f"{i}.png" for i in range(10)))
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(10)))
    assert len(open_images(tmp_path / "list.csv")) == 10
    assert [len(images) for images in labelled_splits(tmp_path / "list.csv")] == [8, 2]


@pytest.mark.parametrize(
    "content, said",
    [
        ("a.png,cat\n", "expected a header"),
        ("", "expected a header"),
        ("path,label\na.png\n", "expected a label in line 2"),
        ("path,label,split\na.png,cat,trian\n", "found 'trian'"),
    ],
)
def test_a_wrong_csv_says_where(tmp_path, content, said):
    put(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text(content)
    assert said in message(open_images, tmp_path / "list.csv")


def test_a_csv_without_labels_says_so_when_they_are_needed(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("path\na.png\n")
    assert len(open_images(tmp_path / "list.csv")) == 1
    assert "column label" in message(labelled_splits, tmp_path / "list.csv")


# -- the sequence


def test_select_keeps_images_labels_and_names_together(tmp_path):
    put_all(tmp_path, *(f"{name}/{i}.png" for name in "abc" for i in range(4)))
    images = open_images(tmp_path)
    chosen = images.select(np.array([7, 0, 7]))
    assert names_of(chosen) == [images.name(7), images.name(0), images.name(7)]
    assert labels_of(chosen) == [1, 0, 1] and np.array_equal(chosen.read(0), images.read(7))
    assert len(images.select([])) == 0


def test_the_fingerprint_tells_names_sizes_and_order_but_not_place_or_time(tmp_path):
    for folder in ("one", "two"):
        put_all(tmp_path / folder, "a.png", "b.png")
    os.utime(tmp_path / "two" / "a.png", (1, 1))
    one, two = open_images(tmp_path / "one"), open_images(tmp_path / "two")
    assert one.fingerprint == two.fingerprint and len(one.fingerprint) == 64
    assert one.select([1, 0]).fingerprint != one.fingerprint != one.select([0]).fingerprint
    put(tmp_path / "two" / "b.png", size=(90, 70))
    assert open_images(tmp_path / "two").fingerprint != one.fingerprint


def test_the_content_fingerprint_tells_other_pixels_of_the_same_names_and_sizes_too(tmp_path):
    put(tmp_path / "a.bmp")
    before = open_images(tmp_path)
    about = (tmp_path / "a.bmp").stat()
    put(tmp_path / "a.bmp", (90, 20, 30))
    os.utime(tmp_path / "a.bmp", ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    after = open_images(tmp_path)
    assert after.fingerprint == before.fingerprint and after.content_fingerprint != before.content_fingerprint
    packed = [
        Images(InMemory(tmp_path, [b"x#0"], before.rows[:1], np.full((1, 2, 2, 3), value, np.uint8)))
        for value in (1, 2, 1)
    ]
    assert len({images.fingerprint for images in packed}) == 1
    assert [images.content_fingerprint == packed[0].content_fingerprint for images in packed] == [True, False, True]


def test_a_folder_whose_images_are_all_a_runs_says_so(tmp_path):
    put(tmp_path / "run/a.png")
    (tmp_path / "run/config.yaml").touch()
    (tmp_path / "run/checkpoints").mkdir()
    with pytest.raises(
        DataError, match=r"expected images, found none; without 1 folder of runs, .*: run; name a folder"
    ):
        open_images(tmp_path)


def test_what_was_left_out_is_said_of_drawn_halves_too(tmp_path):
    for name in ("a/1.png", "a/2.png", "a/3.png", "b/1.png", "b/2.png", "b/3.png", "a/run/x.png"):
        put(tmp_path / name)
    (tmp_path / "a/run/config.yaml").touch()
    (tmp_path / "a/run/checkpoints").mkdir()
    for split in labelled_splits(tmp_path):
        assert "without 1 folder of runs" in split.note and split.left_out


def test_it_survives_pickling(tmp_path):
    splits(tmp_path)
    images = open_images(tmp_path)
    copy = pickle.loads(pickle.dumps(images))
    assert names_of(copy) == names_of(images) and copy.fingerprint == images.fingerprint
    assert np.array_equal(copy.read(1), images.read(1)) and labels_of(copy) == [0, 1]


# -- real data


def test_imagenette_is_two_halves_of_ten_classes(data_root):
    train, score = labelled_splits(data_root / "imagenette")
    assert (len(train), len(score)) == (5000, 1000) and train.bad == score.bad == []
    assert np.bincount(labels_of(score)).tolist() == [100] * 10 and train.classes == score.classes
    assert train.read(4999).shape == (224, 224, 3)


def test_every_photograph_is_near_what_pillow_makes_of_it(data_root):
    images = open_images(data_root / "photos")
    assert len(images) == 64
    for i in range(0, 64, 8):
        with Image.open(images.root / images.name(i)) as image:
            assert np.abs(images.read(i).astype(int) - np.asarray(image.convert("RGB"))).mean() < 0.5
