"""Describe a file that holds no weights: by its first bytes, its name, and the entries of a zip file. No torch."""

import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from swav.errors import counted, printable

# {how a file begins: what it is}
_MAGIC: dict[bytes, str] = {
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself (git lfs pull)",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes; swav reads PyTorch's weights",
    b"\x93NUMPY": "a NumPy array, of features perhaps",
    b"GGUF": "a GGUF file, of a language model",
    b"\x1f\x8b": "a gzip archive; unpack it, and give the file in it",
    b"BZh": "a bzip2 archive; unpack it, and give the file in it",
    b"\xfd7zXZ\x00": "an xz archive; unpack it, and give the file in it",
    b"\x28\xb5\x2f\xfd": "a zstandard archive; unpack it, and give the file in it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it, and give the file in it",
    b"PK\x05\x06": "an empty zip file; fetch it again",
    b"Rar!": "a RAR archive; unpack it, and give the file in it",
    b"%PDF-": "a PDF document",
    b"\x89PNG\r\n\x1a\n": "a PNG image; images go to data=",
    b"\xff\xd8\xff": "a JPEG image; images go to data=",
}
_TENSORFLOW = "of TensorFlow; swav reads PyTorch's weights"


def what_it_is(path: Path, start: bytes) -> str:
    """Describe a file.

    Args:
        path: of the file.
        start: its first 512 bytes.
    """
    if not start:
        return "an empty file"
    if not any(start):
        return "zeros, as an interrupted download leaves; fetch it again"
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            return kind
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it, and give the file in it"
    if start[4:8] == b"TFL3":
        return f"a model {_TENSORFLOW}"
    if re.search(r"\.(index|data-\d+-of-\d+|meta)$", path.name) or start.startswith(b"model_checkpoint_path:"):
        return f"a part of a checkpoint {_TENSORFLOW}"
    if path.suffix == ".pb":
        return f"a graph {_TENSORFLOW}"
    if path.suffix == ".onnx" or _is_onnx(start):
        return "an ONNX graph; give the PyTorch weights that it was made from"
    return _text(path, start) or f"another file (it begins with {start[:8]!r})"


def _is_onnx(start: bytes) -> bool:
    """A protobuf that gives its version, and then the name of the program that made it."""
    return start[0] == 8 and 0 < start[1] < 32 and start[2:3] == b"\x12" and start[4 : 4 + start[3]].isalnum()


def _text(path: Path, start: bytes) -> str:
    """Describe a text; return an empty string for other files."""
    text = start.decode("utf-8-sig", errors="replace").lstrip()
    if text[:1] == "<":
        title = re.search(r"<(?:title|Code)>([^<]*)", text, re.IGNORECASE)
        said = f" ({printable(' '.join(title[1].split()))[:60]!r})" if title and title[1].strip() else ""
        return f"a web page{said}; the download went wrong"
    if text[:1] == "{":
        return _json(path)
    if "\ufffd" not in text[:-4] and all(c.isprintable() or c.isspace() for c in text):
        return f"a text ({printable(' '.join(text.split()))[:40]!r}), not weights"
    return ""


def _json(path: Path) -> str:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig")) if path.stat().st_size < 10_000_000 else None
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        return "a text that begins as JSON, not weights"
    if isinstance(content.get("weight_map"), dict):
        parts = sorted({str(part) for part in content["weight_map"].values()})
        advice = "give that one" if len(parts) == 1 else "one file is read: save the tensors of all in one"
        return f"the index of weights in {counted(len(parts), 'file')} ({_listed(parts, 1)}); {advice}"
    if "error" in content:
        return f"an error of a server ({printable(str(content['error']))[:60]!r}); the download went wrong"
    return f"JSON with {_listed(list(content), 4)}, not weights"


def what_zip_it_is(entries: Sequence[zipfile.ZipInfo]) -> str:
    """Describe a zip file that torch.save did not write, by its entries."""
    names = [info.filename for info in entries]
    if names and all(name.endswith(".npy") for name in names):
        return "NumPy arrays (.npz), of features perhaps"
    if "model.weights.h5" in names:
        return "a model of Keras; swav reads PyTorch's weights"
    if any(name.endswith("saved_model.pb") for name in names):
        return f"a zip file with a model {_TENSORFLOW}"
    weights = [name for name in names if Path(name).suffix in (".pth", ".pt", ".tar", ".ckpt", ".safetensors", ".bin")]
    return f"a zip file that holds {_listed(weights or names, 3)}; unpack it, and give the file in it"


def _listed(names: Sequence[str], most: int) -> str:
    shown = ", ".join(printable(name)[:60] for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown or "nothing"
