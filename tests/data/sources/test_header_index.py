"""Attacked: what the index of headers remembers must be true of the file as it is now; and the data are only read."""

import errno
import os
import pickle

import pytest

import swav.data.sources.decode
from swav import progress
from swav.data.sources import header_index
from swav.data.sources import walk as walk_file
from swav.data.sources.header_index import check_headers
from swav.data.sources.open import open_images
from swav.data.sources.walk import look_up, walk
from tests.data.folders import names_of, put, put_all


@pytest.fixture
def _every_index_is_kept(monkeypatch):
    monkeypatch.setattr(header_index, "WORTH_CACHING", 1)


@pytest.fixture
def headers_read(monkeypatch, _every_index_is_kept):
    read = list[str]()
    real = swav.data.sources.decode.read_header

    def reading(file, name):
        read.append(name)
        return real(file, name)

    monkeypatch.setattr(header_index, "read_header", reading)
    return read


def snapshot(root):
    return {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}


def test_headers_are_read_once_and_nothing_is_written_among_the_data(tmp_path, headers_read):
    data, cache = put_all(tmp_path / "data", "a.png", "b.png"), tmp_path / "out"
    (data / "bad.png").write_bytes(b"")
    before = snapshot(data)
    first = open_images(data, cache=cache)
    assert sorted(headers_read) == ["a.png", "b.png", "bad.png"]
    again = open_images(data, cache=cache)
    assert len(headers_read) == 3
    assert names_of(again) == names_of(first) and again.bad == first.bad == [("bad.png", "empty file")]
    assert again.rows.tobytes() == first.rows.tobytes()
    assert snapshot(data) == before and len(list(cache.iterdir())) == 1


def test_only_what_changed_is_read_again(tmp_path, headers_read):
    data = put_all(tmp_path / "data", "a.png", "b.png", "c.png")
    (data / "bad.png").write_bytes(b"")
    open_images(data)
    headers_read.clear()
    (data / "a.png").unlink()
    os.utime(data / "b.png", ns=(1, 1))
    put(data / "new.png")
    images = open_images(data)
    assert sorted(headers_read) == ["b.png", "new.png"]
    assert names_of(images) == ["b.png", "c.png", "new.png"] and images.bad == [("bad.png", "empty file")]
    (data / "bad.png").write_bytes((data / "c.png").read_bytes())
    assert open_images(data).bad == []


def test_an_error_of_the_system_is_asked_again_next_time(tmp_path, headers_read, monkeypatch):
    data = put_all(tmp_path / "data", "a.png", "b.png")
    real = swav.data.sources.decode.open_regular

    def refuse(path):
        if path.endswith(b"b.png"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(header_index, "open_regular", refuse)
    assert open_images(data).bad == [("b.png", "Permission denied")]
    monkeypatch.setattr(header_index, "open_regular", real)
    assert len(open_images(data)) == 2


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other", "pickle"])
def test_a_damaged_index_is_as_good_as_none(tmp_path, headers_read, damage):
    data, cache = put_all(tmp_path / "data", "a.png", "b.png"), tmp_path / "out"
    open_images(data, cache=cache)
    (place,) = cache.iterdir()
    content = bytearray(place.read_bytes())
    middle = content.index(b"b.png")
    content[middle] ^= 1
    damaged = {
        "empty": b"",
        "cut": bytes(content[:100]),
        "flipped": bytes(content),
        "other": b"PK\3\4",
        "pickle": pickle.dumps({}),
    }
    place.write_bytes(damaged[damage])
    headers_read.clear()
    assert len(open_images(data, cache=cache)) == 2 and len(headers_read) == 2
    assert len(open_images(data, cache=cache)) == 2 and len(headers_read) == 2  # it was made anew
    assert len(list(cache.iterdir())) == 1


def test_an_index_that_can_not_be_written_costs_nothing_but_time(tmp_path, _every_index_is_kept):
    data = put_all(tmp_path / "data", "a.png")
    (tmp_path / "file").write_text("in the way")
    assert len(open_images(data, cache=tmp_path / "file")) == 1


def test_progress_is_told_to_the_end(tmp_path, monkeypatch):
    told = []
    put_all(tmp_path, *(f"{i}.png" for i in range(70)))
    monkeypatch.setattr(progress.Progress, "update", lambda self, done: told.append((done, self.total)))
    open_images(tmp_path)
    assert told[-2:] == [(64, 70), (70, 70)]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_trouble_that_passes_while_images_are_found_costs_none_of_them(tmp_path, monkeypatch, number):
    """Every call of the system fails once or twice at first: for a folder, its entries, a file, its header."""
    data, waits = put_all(tmp_path / "data", "a/1.png", "b/2.png"), list[float]()
    failures: dict[tuple[str, str], int] = {}

    def flaky(name, real):
        def call(path, *rest, **more):
            place = (name, os.fsdecode(path) if isinstance(path, str | bytes) else "")
            failures[place] = failures.get(place, 0) + 1
            if str(data) in place[1] and failures[place] < 3:
                raise OSError(number, os.strerror(number))
            return real(path, *rest, **more)

        return call

    for module, name in ((os, "scandir"), (os, "stat"), (header_index, "open_regular")):
        monkeypatch.setattr(module, name, flaky(name, getattr(module, name)))
    monkeypatch.setattr("time.sleep", waits.append)
    found, listed = walk(data), look_up(tmp_path, [b"data/a/1.png", b"data/b/2.png"])[0]
    assert found.names == [b"a/1.png", b"b/2.png"] and not found.bad and len(listed.names) == 2 and not listed.bad
    assert check_headers(data, found.names, found.rows, None)[1] == {}
    assert len(waits) == 2 * (
        3 + 3 + 2 + 2
    )  # three folders: stat and scandir; two files: stat (of the list) and header


def test_a_long_check_of_headers_is_shown_wherever_images_are_opened(tmp_path, monkeypatch, capsys):
    put_all(tmp_path, "a.png", "b.png", "c.png")
    open_images(tmp_path)
    assert capsys.readouterr().err == ""  # a short one is not
    for module in (progress, walk_file, header_index):
        monkeypatch.setattr(module, "FIRST_SECONDS", 0.0)
    open_images(tmp_path)
    assert capsys.readouterr().err.splitlines() == ["looking for images 0", "checking headers 3/3  ETA 0:00:00"]
