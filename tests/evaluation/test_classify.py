"""Attacks: `swav classify` that scores an image by what has seen it, keeps another classifier than it speaks of, uses one of other data,
or names and classes that its files and its page take for something else.

Run: pytest tests/evaluation/test_classify.py
"""

import csv
import json
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image
from typer.testing import CliRunner

import swav
from swav.cli import app
from swav.data.overlap import SharedImages
from swav.data.synthetic.writers import write_shapes
from swav.errors import ConfigError, DataError
from swav.evaluation import classify as module
from swav.evaluation import classify_content, runner
from swav.evaluation.classify import classify
from swav.evaluation.classify_request import refuse_joined_labels
from swav.evaluation.logistic import LogisticLayer
from swav.evaluation.near_duplicates import Copies
from swav.evaluation.own import LabelledFeatures, Learned
from swav.evaluation.protocols.linear_own import Layer
from swav.reporting.classify_page import format_classified, write_classify_page
from swav.results.intervals import of_share, wilson
from tests.reporting.test_page import NASTY, Page

QUICK: dict[str, Any] = {"size": 16, "workers": 0, "device": "cpu", "linear.costs": [0.01, 1.0]}
WORDS = [f"{key}={value}" for key, value in QUICK.items()]


def made(data, out, **more):
    return classify(data, weights="random:tiny", out=out, **QUICK | more)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return [*csv.DictReader(file)]


@pytest.fixture
def tree(colours: Path, tmp_path: Path) -> Path:
    """Class folders, 8 images each."""
    shutil.copytree(colours / "train", tmp_path / "set")
    return tmp_path / "set"


@pytest.mark.parametrize("whole", [True, False])
def test_the_numbers_are_those_of_the_bench(colours, tree, tmp_path, whole):
    data = tree if whole else colours
    content = made(data, tmp_path / "out")
    (row,) = runner.bench(
        ["linear"], weights="random:tiny", data=data, out=tmp_path / "b", protocol="own", **QUICK
    ).results
    top = content["metrics"]["top-1"]
    assert (top["value"], top["spread"]) == pytest.approx((row.value, row.spread)) and top["interval"] == pytest.approx(
        row.interval
    )
    assert top["mean"] == pytest.approx(statistics.fmean(top["parts"])) and len(top["parts"]) == 5
    log = json.loads((tmp_path / "b" / row.log).read_text())
    scored = rows_of(tmp_path / "out" / "scored.csv")
    assert [line["path"] for line in scored] == log["answers"]["images"] and len(scored) == (24 if whole else 12)
    right = "".join("1" if line["label"] == line["predicted"] else "0" for line in scored)
    assert right == log["answers"]["right"]["top-1"]
    assert np.sum(content["confusion"]) == len(scored) and np.trace(content["confusion"]) == right.count("1")
    for its in content["per class"]:
        assert its["recall"] == pytest.approx(100 * its["right"] / its["scored"])
        assert its["interval"] == pytest.approx([100 * end for end in wilson(its["right"], its["scored"])])
    assert content == json.loads((tmp_path / "out" / "classify.json").read_text())


def always(said: int) -> Layer:
    """A layer that says one class of three, whatever it sees."""
    bias = np.where(np.arange(3) == said, 2.0, 0.0).astype(np.float32)
    flat, classes = np.zeros(1, np.float32), np.arange(3)
    return Layer(LogisticLayer(flat, flat + 1, np.zeros((3, 1), np.float32), bias, classes, 1.0, 1, True), {})


def test_an_image_is_answered_by_the_layer_that_lacks_it_or_by_that_of_all():
    folds = np.array([1, 0, 2, 0, 2, 1, 1])
    features, truth = np.zeros((7, 1), np.float32), np.array([1, 1, 2, 0, 0, 1, 2])
    names, places, copies = [*"abcdefg"], np.arange(7), Copies([], 7, True)
    known = LabelledFeatures(
        features, truth, folds, features, truth, names, None, None, places, asked_places=places, copies=copies
    )
    models, parts = [always(k) for k in range(3)], [folds == k for k in range(3)]
    found = classify_content.answers_of(Learned(None, models, parts), known, 3)
    assert found.said.tolist() == folds.tolist() and found.counts.tolist() == [[1, 0, 1], [1, 2, 0], [0, 1, 1]]
    assert [part.sum(axis=0).tolist() for part in found.parts] == [[2, 0, 0], [0, 3, 0], [0, 0, 2]]
    assert found.confidence == pytest.approx(np.e**2 / (np.e**2 + 2))
    whole = classify_content.answers_of(Learned(always(2), models, [np.ones(7, bool)] * 3), known, 3)
    assert whole.said.tolist() == [2] * 7 and whole.parts[0].sum(axis=0).tolist() == [7, 0, 0]


def test_the_files_alone_predict_what_predictions_says(tree, tmp_path, capsys, monkeypatch):
    new = tmp_path / "new"
    shutil.copytree(tree / "red", new)
    (new / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    content = bytearray((new / "0.png").read_bytes())
    content[content.index(b"IDAT") + 20] ^= 255  # its header is sound
    (new / "!.png").write_bytes(content)
    made(tree, tmp_path / "out", predict=new)
    assert "2 files without a prediction" in capsys.readouterr().err
    description = json.loads((tmp_path / "out" / "classifier.json").read_text())
    layer = safetensors.numpy.load_file(tmp_path / "out" / "classifier.safetensors")
    encoder = swav.load("random:tiny")
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert [row["path"] for row in rows] == [f"{i}.png" for i in range(8)]
    views = torch.stack([encoder.preprocess(new / row["path"], size=description["view"]["size"]) for row in rows])
    with torch.no_grad():
        features = encoder(views).numpy()
    scores = (features - layer["mean"]) / layer["scale"] @ layer["weight"].T + layer["bias"]
    likely = torch.from_numpy(scores).softmax(1).numpy()
    for row, its in zip(rows, likely, strict=True):
        assert row["label"] == description["classes"][layer["classes"][its.argmax()]]
        assert float(row["confidence"]) == pytest.approx(its.max(), abs=1e-3)
        columns = [f"p({description['classes'][k]})" for k in layer["classes"]]
        assert [*row][3:] == columns and [float(row[name]) for name in columns] == pytest.approx(its.tolist(), abs=1e-3)
    monkeypatch.setattr(module, "MOST_COLUMNS", 2)
    made(tree, tmp_path / "out", predict=new)
    fewer = rows_of(tmp_path / "out" / "predictions.csv")
    assert fewer == [{key: row[key] for key in ("path", "label", "confidence")} for row in rows]


def test_a_later_call_uses_the_classifier_only_where_nothing_has_changed(tree, tmp_path, monkeypatch, capsys):
    out, calls = tmp_path / "out", list[str]()

    def counted(*given, kept=module._made):
        calls.append("made")
        return kept(*given)

    monkeypatch.setattr(module, "_made", counted)
    first = made(tree, out)
    assert made(tree, out, predict=tree / "red" / "0.png") == first and calls == ["made"]
    assert "is of the same weights, images and settings; used as it is" in capsys.readouterr().err
    assert len(rows_of(out / "predictions.csv")) == 1
    made(tree, out, **{"linear.costs": [0.1]})
    made(tree, out, **{"linear.costs": [0.1]})
    assert len(calls) == 2
    classify(tree, weights="random:cifar10", out=out, **QUICK | {"linear.costs": [0.1]})
    assert len(calls) == 3
    picture = tree / "red" / "1.png"
    os.utime(picture, ns=(1, 1))
    classify(tree, weights="random:cifar10", out=out, **QUICK | {"linear.costs": [0.1]})
    assert len(calls) == 4
    for name in ("classify.html", "scored.csv"):  # as after a kill
        (out / name).unlink()
        classify(tree, weights="random:cifar10", out=out, **QUICK | {"linear.costs": [0.1]})
        assert (out / name).is_file()
    assert len(calls) == 6
    tensors = out / "classifier.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    classify(tree, weights="random:cifar10", out=out, **QUICK | {"linear.costs": [0.1]})
    assert len(calls) == 7 and "the tensors are not those that it describes" in capsys.readouterr().err


def test_the_command_says_what_it_has_written_and_a_dry_run_writes_nothing(tree, tmp_path):
    words = ["classify", "--weights", "random:tiny", "--data", str(tree), "--out", str(tmp_path / "out"), *WORDS]
    shown = CliRunner().invoke(app, [*words, "--predict", str(tree), "--dry-run"])
    assert shown.exit_code == 0 and not (tmp_path / "out").exists()
    assert "3 classes, of 8 to 8 images to learn from" in shown.stdout and "predict: 24 images of" in shown.stdout
    shown = CliRunner().invoke(app, [*words, "--predict", str(tree)])
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[-2:] == [
        str(tmp_path / "out/classify.html"),
        str(tmp_path / "out/predictions.csv"),
    ]
    assert "| balanced accuracy |" in shown.stdout and "| red " in shown.stdout


def test_rare_classes_and_groups_are_said(tree, tmp_path, capsys):
    for path in sorted((tree / "red").iterdir())[2:]:
        path.unlink()
    content = made(tree, tmp_path / "out")
    said = "1 class with fewer images to learn from than the 5 folds: red (2)"
    assert said in capsys.readouterr().err and said in content["few"]
    rows = [f"{path},{path.parent.name},g{i % 4}" for i, path in enumerate(sorted(tree.rglob("*.png")))]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,group", *rows]))
    content = made(tmp_path / "list.csv", tmp_path / "out")
    assert content["groups"] == 4 and content["scored"] == "in 4 folds"
    assert "3 classes with fewer groups to learn from" in content["few"]
    scored = rows_of(tmp_path / "out" / "scored.csv")
    for its in [{"class": None, "interval": content["metrics"]["top-1"]["interval"]}, *content["per class"]]:
        members = [i for i, row in enumerate(scored) if its["class"] in (None, row["label"])]
        right = np.array([scored[i]["label"] == scored[i]["predicted"] for i in members])
        assert its["interval"] == pytest.approx([100 * end for end in of_share(right, np.array(members) % 4)])


def test_labelled_images_that_cannot_be_read_are_counted_and_named(tree, tmp_path, capsys):
    (tree / "red" / "text.png").write_bytes(b"text")
    content = bytearray((tree / "red" / "7.png").read_bytes())
    content[content.index(b"IDAT") + 20] ^= 255  # its header is sound
    (tree / "red" / "7.png").write_bytes(content)
    found = made(tree, tmp_path / "out")
    assert found["images"] == {"learned": 23, "scored": 23, "unreadable": 2}
    said = capsys.readouterr().err
    assert "set: 2 labelled images left out, as they cannot be read: red/text.png: not an image" in said
    assert (
        "red/7.png: cannot be decoded" in said and ", 2 could not be read" in Page(tmp_path / "out/classify.html").text
    )


def test_names_of_users_do_no_harm(colours, tmp_path):
    folder = tmp_path / "set"
    strange = [NASTY.replace("/", "_"), 'comma, "quote"\nline', os.fsdecode(b"old\xff")]
    for name, of in zip(strange, ("blue", "grey", "red"), strict=True):
        shutil.copytree(colours / "train" / of, folder / name)
    for path in sorted(folder.rglob("*.png")):  # wrong labels, so that something is confused
        if path.stem in "01":
            path.write_bytes((colours / "train" / "grey" / "7.png").read_bytes())
    content = made(folder, tmp_path / "out", predict=folder)
    assert content["confused"] and sorted(content["classes"]) == sorted(strange)
    page = Page(tmp_path / "out" / "classify.html")
    assert not page.unbalanced and not page.open and not page.all("script")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    pictures = page.all("img")
    assert pictures and all(str(each["src"]).startswith("data:image/webp;base64,") for each in pictures)
    assert "http" not in page.source and "<script>alert" in page.text
    for name in ("scored.csv", "predictions.csv"):
        assert {row["label"] for row in rows_of(tmp_path / "out" / name)} <= set(strange)
        assert len(rows_of(tmp_path / "out" / name)) == 24


def test_a_page_of_another_file_is_refused(tmp_path):
    (tmp_path / "classify.json").write_text('{"format": 2}')
    with pytest.raises(DataError, match=r"classify\.json: expected what swav classify has written"):
        write_classify_page(tmp_path)


@pytest.mark.parametrize(
    ("classes", "wrong"),
    [
        (["cat", "dog", "cat;dog"], "cat;dog"),
        (["a|b", "b | c"], "a|b"),
        (["maillot", "maillot, tank suit"], ""),
        (["x;y", "z"], ""),
    ],
)
def test_several_classes_in_a_cell_are_refused(classes, wrong):
    if not wrong:
        refuse_joined_labels(Path("list.csv"), classes)
        return
    with pytest.raises(DataError) as caught:
        refuse_joined_labels(Path("list.csv"), classes)
    assert f"found '{wrong}', which is several" in str(caught.value) and "\n" not in str(caught.value)


def test_data_of_several_labels_are_refused_in_a_line(tree, tmp_path):
    write_shapes(tmp_path / "VOCdevkit", "voc", train=4, val=4, size=24)
    for root in (tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2007"):
        with pytest.raises(
            DataError,
            match=r"expected one class per image, found .*, whose images show several; give class folders or a CSV",
        ) as caught:
            made(root, tmp_path / "out")
        assert "\n" not in str(caught.value)
    rows = [f"{path},{name}" for path in sorted(tree.rglob("*.png")) for name in ("a", "b")]
    (tmp_path / "twice.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(SharedImages, match="twice or more, of several classes, which is not supported here") as refused:
        made(tmp_path / "twice.csv", tmp_path / "out")
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_doubles_are_counted_once_and_the_one_of_two_classes_is_named(tree, tmp_path):
    """Name and file both tell a double: 2 were 4, and one of a single class was said to be of several."""
    paths = sorted(tree.rglob("*.png"))
    rows = [f"{path},{path.parent.name}" for path in paths] + [
        f"{paths[0]},{paths[0].parent.name}",
        f"{paths[1]},other",
    ]
    (tmp_path / "twice.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(SharedImages, match=rf"found \S*{paths[1].name} twice or more, of several .*, and 1 more; list"):
        made(tmp_path / "twice.csv", tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"protocol": "smoke"}, "protocol: is set by classify itself"),
        ({"cost": 3}, r"unknown key 'cost' \(did you mean 'linear.costs'\?\)"),
    ],
)
def test_settings_are_checked_first(settings, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        classify(tmp_path / "none", weights="random:tiny", out=tmp_path / "out", **settings)


def test_what_is_missing_is_named(tree, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"nowhere: .* check the path"):
        made(tree, tmp_path / "out", predict=tmp_path / "nowhere")
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(DataError, match=r"text\.jpg: expected an image, a folder or a list"):
        made(tree, tmp_path / "out", predict=tmp_path / "text.jpg")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="expected one process"):
        made(tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_that_is_lost_later_has_no_picture_and_the_page_is_there(tree, tmp_path, monkeypatch):
    for i in range(3):
        Image.new("RGB", (20, 20), (190, 60, 60)).save(tree / "blue" / f"wrong{i}.png")
    monkeypatch.setattr(classify_content, "_keep_picture", lambda *_: False)
    content = made(tree, tmp_path / "out")
    assert content["confused"] and all(
        each["picture"] is None for pair in content["confused"] for each in pair["examples"]
    )
    assert not Page(tmp_path / "out" / "classify.html").all("img")


def test_predictions_of_an_earlier_classifier_are_told_to_be(tree, tmp_path, capsys):
    """They stay where they are, beside the files of a classifier that did not make them."""
    out, words = tmp_path / "out", "is of an earlier classifier"
    made(tree, out, predict=tree / "red")
    made(tree, out)
    assert words not in capsys.readouterr().err
    for _ in range(2):  # when it is made, and when it is taken
        made(tree, out, seed=1)
        assert (
            f"predictions.csv: {words} than the one that is there; --predict makes it anew" in capsys.readouterr().err
        )
    made(tree, out, seed=1, predict=tree / "red")
    assert words not in capsys.readouterr().err


def test_what_small_classes_mean_is_said_of_folds_and_of_a_split_apart(colours, tmp_path, capsys):
    for split, few in (("train", 4), ("val", 2)):
        shutil.copytree(colours / split, tmp_path / "set" / split)
        for image in sorted((tmp_path / "set" / split / "red").glob("*.png"))[few:]:
            image.unlink()
    made(tmp_path / "set", tmp_path / "a")
    said = capsys.readouterr().err
    assert "red (4); the choice of the cost and the spread say little of them" in said and "cannot be right" not in said
    made(tmp_path / "set" / "train", tmp_path / "b")
    assert "red (4); their numbers say little, and in a fold that holds all of a class" in capsys.readouterr().err


def test_classes_that_a_terminal_leaves_out_are_of_no_lower_recall_than_those_shown(tree, tmp_path, monkeypatch):
    content = made(tree, tmp_path / "out")
    content["per class"] = [row | {"recall": 100.0} for row in content["per class"]]
    monkeypatch.setattr("swav.reporting.classify_page.CLASSES", 1)
    assert "and 2 classes of the same or a higher recall, in classify.json" in format_classified(content)
