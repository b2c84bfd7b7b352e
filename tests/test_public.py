"""Attacked: the public door: names that are missing or are Any, an import that loads torch, versions that are not this code's, calls that
only one way of writing them allows.

Run: pytest tests/test_public.py; with -m slow too: mypy reads all of swav, half a minute.
"""

import ast
import inspect
import pydoc
import subprocess
import sys
import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest

import swav
from swav.errors import ConfigError
from swav.evaluation.request import resolve
from swav.reporting.page import report
from swav.training.loop import pretrain

ROOT = Path(__file__).parents[1]


def python(code: str, **more: Any) -> str:
    said: str = subprocess.check_output([sys.executable, "-c", code], text=True, **more)
    return said.strip()


def test_the_import_loads_nothing_but_itself():
    code = "import sys; before = set(sys.modules); import swav; dir(swav); print(*sorted(set(sys.modules) - before))"
    loaded = python(code).split()
    assert "swav" in loaded and {name.partition(".")[0] for name in loaded} <= {"swav"} | sys.stdlib_module_names
    assert not [name for name in loaded if name.startswith("swav.")]


def test_every_name_is_there_and_no_other():
    public = [name for name in dir(swav) if not name.startswith("__") or name == "__version__"]
    assert public == sorted(swav.__all__) and len(public) > 15
    assert all(getattr(swav, name) is not None for name in public)
    with pytest.raises(AttributeError, match="module 'swav' has no attribute 'pretran'"):
        getattr(swav, "pre" + "tran")


def test_type_checkers_are_told_the_same_homes_as_python():
    block = next(node for node in ast.parse((ROOT / "swav/__init__.py").read_text()).body if isinstance(node, ast.If))
    told = {part.module: tuple(a.name for a in part.names) for part in block.body if isinstance(part, ast.ImportFrom)}
    assert told == vars(swav)["_HOMES"]


def test_help_begins_with_every_name_and_says_what_each_takes():
    text = pydoc.plain(pydoc.render_doc(swav))
    beginning = text.partition("PACKAGE CONTENTS")[0]
    assert not [name for name in swav.__all__ if name not in beginning and name != "__version__"]
    for start in ("pretrain(\n", "bench(\n", "classify(\n", "load(\n", "report(\n", "sinkhorn_codes(\n"):
        assert f"    {start}" in text or f"    {start.strip()}" in text
    assert f"VERSION\n    {swav.__version__}" in text


@pytest.mark.parametrize(
    "name", ["pretrain", "bench", "classify", "load", "report", "sinkhorn_codes", "swapped_loss", "MultiCrop"]
)
def test_no_parameter_is_any_and_everything_is_explained(name):
    function = getattr(swav, name)
    hints = inspect.signature(function).parameters.values()
    assert hints and not [hint for hint in hints if hint.annotation in (Any, inspect.Parameter.empty)]
    assert "Any" not in str([hint.annotation for hint in hints])
    assert len(str(inspect.getdoc(function)).splitlines()[0]) > 20


def test_the_version_is_that_of_the_code_that_runs(tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert swav.__version__ == project["version"]
    # as a checkout on PYTHONPATH, which is not installed; and as files alone
    (tmp_path / "swav").mkdir()
    for file in ("__init__.py", "version.py"):
        (tmp_path / "swav" / file).write_text((ROOT / "swav" / file).read_text())
    code = "import swav; print(swav.__version__)"
    isolated = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "swav"\nversion = "9.8.7"\n')
    assert python(code, env=isolated, cwd=tmp_path) == "9.8.7"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\nversion = "1.0"\n')
    assert python(code, env=isolated, cwd=tmp_path) != "1.0"
    of_metadata = "import importlib.metadata as m\nm.version = lambda _: '7.7'\n"
    assert python(of_metadata + code, env=isolated, cwd=tmp_path) == "7.7"
    missing = "import importlib.metadata as m\ndef gone(_): raise m.PackageNotFoundError\nm.version = gone\n"
    assert python(missing + code, env=isolated, cwd=tmp_path) == "unknown"


def test_settings_of_one_benchmark_are_a_mapping_or_dotted():
    dotted = resolve(["knn", "linear-stages"], {"size": 64, "knn.k": [5], "knn.size": 32, "linear-stages.epochs": 7})
    for name in ("linear-stages", "linear_stages"):
        nested = {"size": 64, "knn": {"k": [5], "size": 32}, name: {"epochs": 7}}
        assert resolve(["knn", "linear-stages"], nested) == dotted


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"knn": {"k": 5}, "knn.k": 6}, r"knn\.k: given twice, found 5 and 6"),
        ({"knn": 5}, "knn: expected settings of this benchmark, as knn={'size': 224}, found 5"),
        ({"knm": {"k": 5}}, r"knm\.k: unknown benchmark 'knm' \(did you mean 'knn'\?\)"),
        ({"knn": {"kk": 5}}, r"unknown key 'knn\.kk'"),
        ({"svm": {"folds": 3}}, r"svm\.folds: svm is not among the benchmarks asked for"),
    ],
    ids=str,
)
def test_settings_of_one_benchmark_that_are_wrong_are_named(settings, words):
    with pytest.raises(ConfigError, match=words):
        resolve(["knn"], settings)


def test_a_path_is_taken_wherever_a_string_is(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("epochs: 3\n")
    for name in ("nowhere", "nothing"):
        with pytest.raises(swav.DataError, match=name):
            pretrain(tmp_path / "mine.yaml", out=tmp_path / "run", data=tmp_path / name)
    with pytest.raises(ConfigError, match=f"weights '{tmp_path}/none'"):
        swav.bench("knn", weights=tmp_path / "none", data=str(tmp_path), out=tmp_path / "out")
    with pytest.raises(swav.DataError, match="none"):
        report(str(tmp_path / "none"), other=tmp_path / "none")
    given = {"semisup": {"list": tmp_path / "l.txt", "fraction": 0.1}}
    assert resolve(["semisup"], given)[1]["semisup"].model_dump()["list"] == str(tmp_path / "l.txt")


SCRIPT = """
from pathlib import Path
from typing import assert_type
import torch
import swav
run = swav.pretrain("auto", out="run", data=Path("photos"), epochs=5, crops=[{"count": 2, "size": 32, "scale": [0.2, 1]}])
assert_type(run, Path)
encoder = swav.load(run)
assert_type(encoder, swav.Encoder)
assert_type(encoder.preprocess("a.jpg"), torch.Tensor)
results = swav.bench("knn", weights=[run, encoder], name=["file", "mine"], data="labelled", out=run, knn={"k": [5, 10]})
views = swav.MultiCrop([(2, 64, (0.2, 1.0))])("a.jpg", epoch=0, sample=0)
codes = swav.sinkhorn_codes(swav.Prototypes(16, 30)(swav.ProjectionHead(8, 32, 16)(torch.rand(4, 8))))
assert_type((views, codes, swav.__version__), tuple[list[torch.Tensor], torch.Tensor, str])
try:
    assert_type(swav.report(run, other=Path("other")), Path)
except swav.SwavError as error:
    print(error.exit_code, results)
"""
WRONG = {
    'swav.pretran("auto", out="run")': 'Module has no attribute "pretran"',
    'swav.pretrain("auto", "run")': "Too many positional arguments",
    'swav.bench("knn", weight="run", data="d", out="o")': 'Missing named argument "weights"',
    'swav.bench(5, weights="run", data="d", out="o")': 'Argument 1 to "bench" has incompatible type "int"',
    "swav.load(3)": 'Argument 1 to "load" has incompatible type "int"',
    "swav.sinkhorn_codes([0.5])": 'Argument 1 to "sinkhorn_codes" has incompatible type "list[float]"',
}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_users_script_passes_mypy_strict_and_a_wrong_one_does_not(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "right.py").write_text(SCRIPT)
    (tmp_path / "wrong.py").write_text("import swav\n" + "\n".join(WRONG) + "\n")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--config-file=",
        "right.py",
        "wrong.py",
    ]
    environment = {"MYPYPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    lines = done.stdout.splitlines()
    assert not [line for line in lines if line.startswith("right.py")]
    for number, message in enumerate(WRONG.values(), start=2):
        assert any(line.startswith(f"wrong.py:{number}: error: ") and message in line for line in lines), done.stdout


def test_the_hints_of_the_door_can_be_resolved():
    for name in ("pretrain", "report"):
        assert typing.get_type_hints(getattr(swav, name))["return"] is Path
