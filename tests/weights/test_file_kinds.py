"""Attacks: files that are no weights, under a name of weights: each is named for what it is, in one line.

Run: pytest tests/weights/test_file_kinds.py
"""

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from swav.errors import CheckpointError
from swav.weights.containers import open_weights
from swav.weights.sources import check_source
from swav.weights.state_dicts import tensors_by_name


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


def arrays() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    return buffer.getvalue()


INDEX = {
    "metadata": {},
    "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
}
KINDS = [
    ("model.safetensors.index.json", json.dumps(INDEX, indent=2).encode(), "the index of weights in 2 files (model-00001"),
    ("one.index.json", b'{"weight_map": {"a": "one.safetensors"}}', "in 1 file (one.safetensors); give that one"),
    ("config.json", b'{"architectures": ["ResNet"]}', "JSON with architectures, not weights"),
    ("w.pth", b'{"error": "Repository not found"}', "an error of a server ('Repository not found')"),
    ("w.pth", b'{"broken": ', "begins as JSON"),
    ("w.onnx", b"\x08\x09\x22\x01x" + bytes(300), "an ONNX graph"),
    ("w.bin", b"\x08\x08\x12\x07pytorch\x1a\x052.3.1:" + bytes(500), "an ONNX graph"),
    ("saved_model.pb", b"\x08\x01\x12\xf4\x0f" + b"\x01" * 600, "a graph of TensorFlow"),
    ("model.ckpt.index", bytes(300) + b"\x57\xfb", "a part of a checkpoint of TensorFlow"),
    ("model.ckpt-7.data-00000-of-00001", b"\x3f\x11" * 300, "a part of a checkpoint of TensorFlow"),
    ("checkpoint", b'model_checkpoint_path: "model.ckpt-7"\n', "a part of a checkpoint of TensorFlow"),
    ("m.tflite", b"\x1c\x00\x00\x00TFL3" + bytes(100), "a model of TensorFlow"),
    ("m.h5", b"\x89HDF\r\n\x1a\n" + bytes(600), "an HDF5 file, as Keras writes"),
    ("m.keras", zipped("metadata.json", "config.json", "model.weights.h5"), "a model of Keras"),
    ("tf.zip", zipped("export/saved_model.pb", "export/variables/v.index"), "a zip file with a model of TensorFlow"),
    ("w.zip", zipped("weights/readme.txt", "weights/w.pth"), "a zip file that holds weights/w.pth; unpack it"),
    ("w.zip", zipped("a.txt", "b.txt", "c.txt", "d.txt"), "a zip file that holds a.txt, b.txt, c.txt and 1 more"),
    ("w.zip", zipped(), "an empty zip file"),
    ("f.npz", arrays(), "NumPy arrays (.npz)"),
    ("f.npy", b"\x93NUMPY\x01\x00" + bytes(90), "a NumPy array"),
    ("d2.pkl", pickle.dumps({"conv1": np.ones(3, dtype=np.float32)}), "a pickle of NumPy arrays, as Detectron2 writes"),
    ("w.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n", "a Git LFS pointer"),
    ("w.pth", b"<!DOCTYPE html><html><head><title>Google Drive - Virus\n scan</title>", "a web page ('Google Drive - Virus scan')"),
    ("w.pth", b"\xef\xbb\xbf\n <HTML><body>", "a web page; the download went wrong"),
    ("w.pth", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page ('AccessDenied')"),
    ("w.pth", b"Entry not found", "a text ('Entry not found')"),
    ("w.pth", bytes(5000), "zeros, as an interrupted download leaves"),
    ("w.pth.gz", b"\x1f\x8b\x08" + bytes(50), "a gzip archive; unpack it"),
    ("w.7z", b"7z\xbc\xaf\x27\x1c" + bytes(50), "a 7z archive"),
    ("cat.jpg", b"\xff\xd8\xff\xe0" + bytes(50), "a JPEG image"),
    ("w.gguf", b"GGUF\x03\x00\x00\x00" + bytes(50), "a GGUF file"),
    ("w.bin", b"\x01\x02\x03\x04\xff\xfe" + b"\x91" * 50, "another file (it begins with"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "words"), KINDS, ids=[f"{name} {words[:20]}" for name, _, words in KINDS])
def test_what_is_no_weights_is_named_in_a_line(name, content, words, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_weights(path)
    message = str(caught.value)
    assert words in message and len(message.splitlines()) == 1 and message.isprintable()


def test_a_name_in_a_zip_or_a_page_cannot_write_to_the_terminal(tmp_path):
    for number, content in enumerate(
        (zipped("\x1b[31mred"), b"<html><title>\x1b[31mred</title>", b'{"error": "\x1b[31mred"}')
    ):
        path = tmp_path / f"{number}.pth"
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            open_weights(path)
        assert str(caught.value).isprintable()


def test_a_wrong_kind_is_known_before_torch_is_imported(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(CheckpointError, match="HDF5"):
        check_source(str(path))


def optimiser() -> dict[str, object]:
    layer = torch.nn.Linear(3, 2)
    sgd = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    layer(torch.ones(1, 3)).sum().backward()
    sgd.step()
    return sgd.state_dict()


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (optimiser, "the state of an optimiser (state, param_groups), without the network"),
        (lambda: {"epoch": 3, "optimizer": optimiser()}, "an optimiser's state and no network (epoch, optimizer)"),
        (lambda: torch.ones(100, 512), "one tensor [100, 512], of features perhaps"),
        (lambda: [torch.ones(3)], "found nothing by name"),
        (lambda: torch.nn.Sequential(torch.nn.Linear(2, 2)), "a whole pickled model (objects of"),
        (lambda: {"model": torch.nn.Linear(2, 2)}, "a whole pickled model"),
        (lambda: {"lr_scheduler": {"last_epoch": 3}}, "found lr_scheduler; save the model's state_dict()"),
        (lambda: {"shadow_params": [torch.ones(3)], "decay": 0.99}, "found shadow_params, decay"),
    ],
)
def test_a_file_of_torch_without_a_network_is_named_in_a_line(tree, words, tmp_path: Path):
    torch.save(tree(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        tensors_by_name(open_weights(tmp_path / "w.pth"))
    assert words in str(caught.value) and len(str(caught.value).splitlines()) == 1
