"""Plausible mistakes on the command line: the message that a person needs, the exit code, and nothing else done.

Run: pytest tests/test_thirty_mistakes.py
"""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swav import cli
from swav.command_words import Words, bench_keys, place_for_bench, place_for_pretrain, recipe_keys, sort_words
from swav.config import TOPICS, USUAL_NAMES, Recipe
from swav.errors import ConfigError
from swav.help_pages import EXAMPLES, FIRST_STEPS
from swav.recipe_files import GROUPS, describe_recipe, recipe_names, validated
from swav.strict_yaml import read_yaml
from tests.test_project import imports_torch

pytestmark = pytest.mark.usefixtures("commands_in_process")

# What is typed, the exit code, and what the message must hold.
MISTAKES = [
    ("pretrian auto data=photos --out r", 2, "did you mean 'pretrain'"),
    ("train data=photos", 2, "swav pretrain auto data=photos/ --out run"),
    ("photos/", 2, "write swav pretrain auto data=photos/ --out run"),
    ("tiny photos", 2, "it is a recipe; write swav pretrain tiny photos --out run"),
    ("knn --weights a", 2, "it is a benchmark; write swav bench knn --weights a"),
    ("--verison", 2, "did you mean '--version'"),
    ("pretrain", 2, "expected a recipe, found none (`swav recipes` lists them); write swav pretrain auto data=FOLDER --out run"),
    ("pretrain data=photos", 2, "write swav pretrain auto data=photos --out run"),
    ("pretrain photos/ --out r", 2, "write swav pretrain auto data=photos/ --out r"),
    ("pretrain auot photos --out r", 2, "did you mean 'auto'"),
    ("pretrain auto photos", 2, "expected --out DIR, found none; as `swav pretrain auto data=photos/ --out run`"),
    ("pretrain auto --out r", 2, "data: expected data=PATH"),
    ("pretrain auto photso --out r", 2, "expected key=value or a path that exists, found 'photso'"),
    ("pretrain auto data=photso --out r", 3, "photso: expected a folder of images or a list"),
    ("pretrain auto photos epochs = 3 --out r", 2, "without blanks, found 'epochs = 3'; write epochs=3"),
    ("pretrain auto photos epochs= 3 --out r", 2, "write epochs=3"),
    ("pretrain auto photos epochs 3 --out r", 2, "found 'epochs 3'; write epochs=3"),
    ("pretrain auto photos epochs:3 --out r", 2, "found 'epochs:3'; write epochs=3"),
    ("pretrain auto photos epochs=three --out r", 2, "expected a whole number of at least 1 or auto, found 'three'"),
    ("pretrain auto photos --epoch 3 --out r", 2, "unknown option '--epoch' (did you mean '--epochs'?)"),
    ("pretrain auto photos --learning-rate 3 --out r", 2, "did you mean '--lr'"),
    ("pretrain auto photos batch_size=64 --out r", 2, "did you mean 'batch'"),
    ("pretrain auto photos --epochs --out r", 2, "--epochs: expected a value behind it, found nothing"),
    ("pretrain auto photos --out r --out s", 2, "--out is given twice"),
    ("pretrain auto photos data=photos --out r", 2, "data: given twice"),
    ("pretrain auto photos device=gpu --out r", 2, "found 'gpu'; use device=cuda"),
    ("pretrain auto photos device=mps --out r", 2, "Apple's GPUs are not supported, use device=cpu"),
    ("pretrain auto photos crops=224 --out r", 2, "as crops='[{count: 2, size: 224, scale: [0.14, 1]}]'"),
    ("pretrain auto photos -o r", 2, "did you mean '--out'"),
    ("pretrain tiny photos --out r", 3, "one batch of 64 images, found 3; use batch=2"),
    ("pretrain missing.yaml photos --out r", 2, "recipe 'missing.yaml': no such file"),
    ("pretrain auto photos init=missing.pth --out r", 2, "found no such file or folder"),
    ("bench kn --weights random:resnet18 --data photos --out r", 2, "did you mean 'knn'"),
    ("bench --weights random:resnet18 photos --out r", 2, "expected the name of a benchmark"),
    ("bench knn --weights missing.pth --data photos --out r", 2, "found no such file or folder"),
    ("bench knn --weights resnet50 --data photos --out r", 2, "random:resnet50 is this network with random weights"),
    ("bench knn random:resnet50 --data photos --out r", 2, "expected --weights before weights"),
    ("bench knn --weights random:resnet18 --data photos photos --out r", 2, "expected one data set, found 'photos' and 'photos'"),
    ("bench knn --weights random:resnet18 photos --out r knn.kk=3", 2, "did you mean 'knn.k'"),
    ("bench knn protocol=published --weights random:tiny --data labelled --out r", 3, "knn.k: expected at most 4"),
    ("compare photos --out r --hours soon", 2, "--hours: expected a number, found 'soon'"),
    ("data photos", 2, "write swav data scan photos"),
    ("data scna photos", 2, "did you mean 'scan'"),
    ("data shapes drawn --train none", 2, "--train: expected a whole number of at least 1, found 'none'"),
    ("report", 2, "expected FOLDER, found none; as `swav report run`"),
    ("report nowhere", 3, "found nothing there"),
    ("recipes tyny", 2, "did you mean 'tiny'"),
]  # fmt: skip


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photos/ and labelled/, in which commands are typed."""
    for i in range(3):
        draw(tmp_path / "photos" / f"{i}.png", i)
    for i in range(8):
        draw(tmp_path / "labelled" / ("train", "val")[i // 4] / f"class{i % 2}" / f"{i}.png", 10 + i)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def swav(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command line in this process; returns exit code, standard output and standard error."""

    def run(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["swav", *shlex.split(line)])
        with pytest.raises(SystemExit) as leave:
            cli.main()
        out, err = capfd.readouterr()
        return int(leave.value.code or 0), out, err

    return run


def test_there_are_thirty():
    assert len(MISTAKES) >= 30 and len({line for line, _, _ in MISTAKES}) == len(MISTAKES)


@pytest.mark.parametrize(("line", "code", "words"), MISTAKES, ids=lambda value: str(value)[:60])
def test_a_mistake_gets_the_line_that_a_person_needs(line, code, words, swav, at_home):
    before = sorted(at_home.rglob("*"))
    found, printed, complaint = swav(line)
    assert (found, printed) == (code, ""), complaint
    assert words in complaint, complaint
    assert complaint.startswith("swav: ") and len(complaint.splitlines()) <= 3 and "Traceback" not in complaint
    typed = {word.partition("=")[0].lstrip("-") for word in shlex.split(line)}
    assert not any(f"did you mean '{word}'" in complaint for word in typed), "the hint repeats what was typed"
    assert sorted(at_home.rglob("*")) == before


# -- what is accepted


def pretrain(line: str) -> list[str]:
    keys = recipe_keys()
    options = {"--out": "DIR", "--dry-run": ""}
    return place_for_pretrain("pretrain", sort_words("pretrain", shlex.split(line), options, keys), keys)


def bench(line: str) -> list[str]:
    keys = bench_keys()
    options = {"--out": "DIR", "--weights": "W", "--data": "ROOT", "--json": "", "--dry-run": ""}
    return place_for_bench("bench", sort_words("bench", shlex.split(line), options, keys, ["--weights"]), keys)


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("auto photos", "auto data=photos"),
        ("auto --data photos --epochs 3 --batch=4", "auto data=photos epochs=3 batch=4"),
        ("--epochs 3 auto data=photos --out r", "auto epochs=3 data=photos --out r"),
        ("photos auto out=r", "auto data=photos --out r"),
        ("auto --knn-every-epochs 2", "auto knn_every_epochs=2"),
        ("auto --compile --hard_codes false photos", "auto data=photos compile=true hard_codes=false"),
        ("auto --compile photos", "auto data=photos compile=true"),
        ("auto --mean [-1,0,1] --lr -1", "auto mean=[-1,0,1] lr=-1"),
        ("auto --dry-run photos", "auto data=photos --dry-run"),
        ("tiny tiny", "tiny data=tiny"),
        ("auto init=a=b", "auto init=a=b"),
        ("auto -- photos", "auto data=photos"),
    ],
)
def test_words_of_any_form_become_the_settings(line, meant, at_home):
    (at_home / "tiny").mkdir()
    assert pretrain(line) == shlex.split(meant)


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("knn --weights a.pth b.pth --out r", "knn --weights a.pth --weights b.pth --out r"),
        ("knn --weights random:tiny timm:x photos", "knn --weights random:tiny --weights timm:x --data photos"),
        ("--weights random:tiny knn linear photos", "knn linear --weights random:tiny --data photos"),
        ("knn weights=a.pth data=photos", "knn --weights a.pth --data photos"),
        ("knn --weights a.pth --weights b.pth c/d", "knn --weights a.pth --weights b.pth --weights c/d"),
        ("knn --knn.k [1] --linear-stages.batch 8 --size=32", "knn knn.k=[1] linear-stages.batch=8 size=32"),
        ("svm photos --weights a.pth", "svm --weights a.pth --data photos"),
    ],
)
def test_a_bare_path_is_the_data_and_names_of_benchmarks_win(line, meant, at_home):
    (at_home / "svm").mkdir()
    assert bench(line) == shlex.split(meant)


@pytest.mark.parametrize("line", ["pretrain auto photos --out r", "pretrain auto --data photos --out=r", "pretrain --data=photos out=r auto"])  # fmt: skip
def test_every_form_reaches_the_command(line, swav, at_home, monkeypatch):
    seen: list[Any] = []

    def run_or_resume(wanted, out, *_):
        seen.append((wanted.data, str(out)))
        return out

    monkeypatch.setattr("swav.training.loop.run_or_resume", run_or_resume)
    assert swav(line)[0] == 0
    assert seen == [("photos", "r")]


# -- help


def test_version_help_and_their_short_forms(swav):
    code, printed, _ = swav("--version")
    assert code == 0 and printed.startswith("swav ") and "Apache-2.0" in printed
    helps = [swav(line)[1] for line in ("-h", "--help", "help")]
    assert helps[0] == helps[1] == helps[2] and FIRST_STEPS in helps[0]
    assert swav("help pretrain") == swav("pretrain -h") == swav("pretrain --help")
    assert swav("help data scan")[1] == swav("data scan -h")[1] != ""


def test_help_fits_a_terminal_and_cuts_no_sentence(swav):
    lines = [
        line for name in ("", "pretrain", "bench", "data", "compare") for line in swav(f"{name} -h")[1].splitlines()
    ]
    assert max(len(line) for line in lines if not line.startswith("  swav") and "torchrun" not in line) <= 86
    assert not [line for line in lines if line.endswith("...") and "Usage" not in line]


def test_topics_and_groups_hold_everything_once():
    keys = [key for its in TOPICS.values() for key in its]
    assert sorted(keys) == sorted(Recipe.model_fields)
    assert sorted(name for its in GROUPS.values() for name in its) == sorted(recipe_names())
    known = {*Recipe.model_fields, "out"}
    assert set(USUAL_NAMES.values()) <= known and not set(USUAL_NAMES) & known


def test_the_help_of_pretrain_names_every_setting_and_that_of_bench_every_benchmark(swav):
    told = swav("pretrain -h")[1].split()
    assert set(Recipe.model_fields) <= set(told)
    told = swav("bench -h")[1].split()
    assert {f"{name.partition('.')[0]}:" for name in bench_keys() if "." in name} <= set(told)


def test_a_recipe_as_printed_is_a_recipe():
    for name in recipe_names():
        assert validated(Recipe, read_yaml(describe_recipe(name), name), name)


def test_every_example_is_one_that_is_accepted(at_home):
    (at_home / "labelled" / "x").mkdir()
    for where, lines in EXAMPLES.items():
        for line in lines:
            words = shlex.split(line)
            rest = words[words.index("pretrain" if "pretrain" in words else where.split()[-1]) + 1 :]
            if where == "pretrain":
                assert pretrain(" ".join(map(shlex.quote, rest)))[0] in recipe_names()
            if where == "bench":
                assert bench(" ".join(map(shlex.quote, rest)))


def test_commands_of_others_are_left_alone():
    found = sort_words("classify", ["--weights", "a.pth", "b.pth", "photos"], {"--weights": "W"}, {}, ["--weights"])
    assert found == Words(["photos"], [], ["--weights", "a.pth", "--weights", "b.pth"], {"--weights"})
    with pytest.raises(ConfigError, match="given twice"):
        sort_words("classify", ["--out", "a", "out=b"], {"--out": "DIR"}, {})


@pytest.mark.parametrize("line", ["pretrain -h", "bench -h", "recipes", "pretrain auto x= 3", "bench knnn --weights a --data b --out c", "--version"])  # fmt: skip
def test_help_and_typos_answer_without_torch(line):
    run = "import swav.cli, sys\nsys.argv = ['swav', *{!r}]\ntry: swav.cli.main()\nexcept SystemExit: pass"
    assert not imports_torch(run.format(shlex.split(line)))


def test_windows_is_refused_in_one_line():
    code = "import sys; sys.platform = 'win32'; from swav.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        done.returncode == 4
        and len(done.stderr.splitlines()) == 1
        and "Windows" in done.stderr
        and "WSL" in done.stderr
    )


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["swav", "pre"], ["pretrain"]),
        (["swav", "pretrain", "swav_2"], ["swav_200ep", "swav_200ep_bs256"]),
        (["swav", "pretrain", "auto", "warm"], ["warmup_epochs=", "warmup_start_lr="]),
        (["swav", "pretrain", "auto", "--warm"], ["--warmup_epochs", "--warmup_start_lr"]),
        (["swav", "bench", "detect"], ["detect-voc", "detect-coco"]),
        (["swav", "data", "sc"], ["scan"]),
    ],
)
def test_a_shell_completes_commands_recipes_settings_and_benchmarks(typed, offered, monkeypatch, capfd):
    monkeypatch.setenv("_SWAV_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(typed))
    monkeypatch.setenv("COMP_CWORD", str(len(typed) - 1))
    with pytest.raises(SystemExit):
        cli.app([], prog_name="swav", standalone_mode=False)
    assert capfd.readouterr().out.split() == offered
