"""Attacks: documentation that does not run: snippets that fail, commands with an option or a setting that is gone.

A fence says how its code is checked: `python` is executed, `python quoted` stands in the source, each line of `sh` is parsed (and
executed, or tried with `--dry-run`, where its data exist here), `sh unchecked` needs what a test has not: NOT_CHECKED counts those.
Run: pytest tests/test_docs.py
"""

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer
from PIL import Image

import swav
from swav import cli
from swav.config import Recipe, WeightOptions
from swav.evaluation.catalog import CATALOG
from swav.evaluation.request import read_request
from swav.evaluation.settings import SuiteSettings
from swav.recipe_files import load_recipe, parse_overrides, recipe_names, recipe_text

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_CHECKED = {"docs/install.md": 1}  # installs PyTorch by pip from its own index: needs a network
NOT_YET = {"embed", "export"}  # named by the README's table of what is missing

KINDS = {"python", "python quoted", "sh", "sh unchecked", "text"}
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
SETTING = re.compile(r"([a-z_0-9.-]+)=\S*")


class Block(NamedTuple):
    """Code between fences: where it begins, its kind, its text."""

    place: str
    kind: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    lines = [text[: found.start()].count("\n") + 1 for found in FENCE.finditer(text)]
    name = page.relative_to(ROOT)
    return [Block(f"{name}:{line}", *map(str, pair)) for line, pair in zip(lines, FENCE.findall(text), strict=True)]


WHOLE = "docs/own_loop.md"  # one program in parts: tests/test_own_loop.py runs it
ALL = [block for page in PAGES for block in blocks(page)]


def lines_of(block: Block) -> Iterator[list[str]]:
    """Words of each command of a shell block: variables set there put in, comments and redirections left out."""
    variables = dict[str, str]()
    for line in block.text.splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        words = shlex.split(line, comments=True)
        if len(words) == 1 and re.fullmatch(r"[a-z]+=.*", words[0]):
            name, _, variables[name] = words[0].partition("=")
        elif words:
            yield words[: words.index(">")] if ">" in words else words


def swav_words(words: Sequence[str]) -> list[str] | None:
    """What follows `swav`, `python -m swav` or `torchrun ... -m swav`; None if the command is another."""
    if words[0] in ("torchrun", "python") and "-m" in words and words[words.index("-m") + 1] == "swav":
        return list(words[words.index("-m") + 2 :])
    return list(words[1:]) if words[0] == "swav" else None


def parsed(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Verb and parameters of a command line, its settings checked as the command does; nothing is run."""
    command: Any = typer.main.get_command(cli.app)
    verb, rest = "", list(words)
    while hasattr(command, "commands"):
        verb, *rest = rest
        command = command.commands[verb]
    found: dict[str, Any] = command.make_context(verb, rest).params
    if verb == "pretrain":
        load_recipe(found["recipe"], parse_overrides(found["settings"] or []))
    if verb == "bench":
        names = [name for name in found["names"] if "=" not in name]
        read_request(names, found["weights"], parse_overrides([name for name in found["names"] if "=" in name]))
    return verb, found


COMMANDS = [
    (block.place, words)
    for block in ALL
    if block.kind == "sh"
    for line in lines_of(block)
    if (words := swav_words(line)) is not None
]
OF_RECIPES = [
    (name, words)
    for name in recipe_names()
    for line in recipe_text(name).splitlines()
    if line.startswith("# Command: ")
    for part in re.split(r" +\(|&&|or: |\)$", line.removeprefix("# Command: "))
    if part.strip() and (words := swav_words(shlex.split(part))) is not None
]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the documentation's code runs: photos/, labelled/, a finished run/, mine.yaml."""
    folder = tmp_path_factory.mktemp("workshop")
    rng = np.random.default_rng(0)
    for i in range(240):  # more than the 200 neighbours of kNN are for training
        label = folder / "labelled" / ("val" if i % 10 == 0 else "train") / f"class{i % 3}" / f"{i}.png"
        for path in [label, folder / "photos" / f"{i}.png"] if i < 64 else [label]:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(path)
    small: dict[str, Any] = {"batch": 16, "queue_length": 0, "epochs": 1, "knn_every_epochs": 0, "prototypes": 8}
    whole: dict[str, Any] = {"width": 1, "stem": "imagenet", "workers": 0, "precision": "fp32"}
    swav.pretrain("tiny", out=folder / "run", data=str(folder / "photos"), **small, **whole)
    (folder / "mine.yaml").write_text((ROOT / "swav/recipes/tiny.yaml").read_text())
    return folder


@pytest.fixture
def at_work(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inside the workshop, where estimates take no time."""
    monkeypatch.chdir(workshop)
    monkeypatch.setattr("swav.training.estimate.SECONDS", 0.1)
    monkeypatch.setattr("swav.evaluation.resources.SAMPLE", 2)
    return workshop


def test_every_fence_says_how_it_is_checked_and_those_that_are_not_are_counted():
    assert {block.kind for block in ALL} <= KINDS
    counted = Counter(block.place.partition(":")[0] for block in ALL if block.kind.endswith(" unchecked"))
    assert counted == NOT_CHECKED


@pytest.mark.parametrize(
    "block",
    [block for block in ALL if block.kind == "python" and not block.place.startswith(WHOLE)],
    ids=lambda block: block.place,
)
def test_every_snippet_runs(block, at_work):
    exec(compile(block.text, block.place, "exec"), {"__name__": "snippet"})


def test_there_are_snippets():
    assert (
        len([block for block in ALL if block.kind == "python" and not block.place.startswith(WHOLE)]) >= 2
        and len(COMMANDS) >= 20
    )


def test_quoted_code_stands_in_the_source():
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "swav").rglob("*.py")))
    quoted = [block for block in ALL if block.kind == "python quoted"]
    assert len(quoted) >= 5 and not [block.place for block in quoted if block.text not in code]


@pytest.mark.parametrize(("place", "words"), COMMANDS + OF_RECIPES, ids=lambda value: str(value))
def test_every_command_line_is_one(place, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("epochs: 5\n")
    verb, _ = parsed([word.rstrip("/") for word in words])
    assert verb in words


def runs_here(words: Sequence[str]) -> bool:
    """Whether what a command reads is in the workshop, and it takes a moment."""
    named = [word.partition("=")[2] for word in words if re.match(r"(data|init)=", word)]
    named += [
        words[i + 1].removeprefix("random:")
        for i, word in enumerate(words)
        if word in ("--weights", "--data", "--labelled", "--init")
    ]
    if words[0] == "report" or words[:2] == ["data", "scan"]:
        named += [word for word in words[1:] if word != "scan"]
    sized = any(word.startswith("batch=") for word in words)  # larger than the workshop's few images
    return (
        words[:2] != ["data", "shapes"]
        and words[0] != "demo"
        and not sized
        and all(Path(name).exists() for name in named)
    )


def tried(words: Sequence[str]) -> tuple[str, ...]:
    """The command with `--dry-run`, where it is one that takes long."""
    at_once = {"--dry-run", "--print-slurm"} & set(words) or words[0] not in ("pretrain", "bench", "compare")
    return tuple(words) if at_once else (*words, "--dry-run")


@pytest.mark.slow
def test_commands_whose_data_are_here_run(at_work, tmp_path, capsys):
    chosen = {tried(words): place for place, words in COMMANDS if runs_here(words)}
    for number, (typed, place) in enumerate(chosen.items()):
        words = list(typed)
        if words[0] in ("pretrain", "compare"):  # run/ holds a run with other settings
            words[words.index("--out") + 1] = str(tmp_path / f"out{number}")
        try:
            cli.app(words, standalone_mode=False)
        except Exception as error:
            raise AssertionError(f"{place}: swav {' '.join(words)}: {error}") from error
    ran = Counter(words[0] for words in chosen)
    assert set(ran) == {"bench", "compare", "data", "doctor", "pretrain", "recipes", "report"} and ran["pretrain"] >= 2
    assert "prototypes = " in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_named_in_a_sentence_have_that_verb_those_options_and_those_settings(page):
    known = {*Recipe.model_fields, *SuiteSettings.model_fields, *WeightOptions.model_fields, "key", "data"}
    for bench, entry in CATALOG.items():
        fields = {*entry.settings.model_fields, *entry.settings_of("own").model_fields}
        known |= {field for name in fields for field in (name, f"{bench}.{name}")}
    code = [found[1] for found in INLINE.finditer(FENCE.sub("", page.read_text(encoding="utf-8")))]
    for span in code:
        words = span.split()
        options, settings_given = [], [word for word in words if SETTING.fullmatch(word)]
        if words[0] == "swav" and len(words) > 1 and words[1] not in NOT_YET:
            command: Any = typer.main.get_command(cli.app)
            for word in words[1:]:
                if not hasattr(command, "commands"):
                    break
                command = command.commands[word]
            options = [word for word in words if word.startswith("--")]
            assert set(options) <= {name for each in getattr(command, "params", []) for name in each.opts}, span
        if words[0] == "swav" or len(settings_given) == len(words):
            wrong = [word for word in settings_given if word.partition("=")[0] not in known]
            assert not wrong, span


def test_what_is_said_to_be_missing_is_missing():
    assert not NOT_YET & set(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


def test_other_commands_of_the_documentation_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    lines = [(block.place, line) for block in ALL if block.kind == "sh" for line in lines_of(block)]
    others = [(place, words) for place, words in lines if swav_words(words) is None]
    spans = [(str(page), found[1].split()) for page in PAGES for found in INLINE.finditer(page.read_text())]
    others += [(place, words) for place, words in spans if words[0] == "make" or words[:1] == ["python"]]
    for place, words in others:
        match words:
            case ["make", *named]:
                assert set(word for word in named if "=" not in word) <= set(targets), place
            case ["python", script, *_] if script.startswith(("benchmarks/", "tools/")):
                assert (ROOT / script).is_file(), place
            case [".", ".venv/bin/activate"] | ["export", *_] | ["swav"]:
                pass
            case _:
                raise AssertionError(f"{place}: expected a command that a test knows, found {' '.join(words)}")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_the_source_that_a_sentence_names_exist(page):
    spans = [found[1] for found in INLINE.finditer(FENCE.sub("", page.read_text(encoding="utf-8")))]
    paths = [span for span in spans if re.fullmatch(r"[a-z_0-9]+(/[a-z_0-9]+)*/[a-z_0-9]+\.(py|toml)", span)]
    others = ("export/backbone.py",)  # written by a run
    assert not [
        path
        for path in paths
        if path not in others and not any((ROOT / home / path).is_file() for home in ("", "swav"))
    ]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["pretrain", "auto", "bach=3", "--out", "run"], "batch"),
        (["bench", "knn", "knn.kk=3", "--weights", "run", "--data", "x", "--out", "run"], "knn.k"),
        (["bench", "knn", "--data", "x", "--out", "run"], "weights"),
        (["recipes", "--all"], "--all"),
    ],
)
def test_the_check_of_commands_can_fail(words, complaint):
    with pytest.raises(Exception, match=complaint):
        parsed(words)
