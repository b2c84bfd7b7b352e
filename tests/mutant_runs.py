"""Wrong variants of swav's source, each against the one fast test that must fail under it.

    make mutants                       runs all, prints the table; exit 1 if a variant survives
    python -m tests.mutant_runs NAME   runs some
    python -m tests.mutant_runs -l     lists them

The table is mutant_patches.toml; those on codes, loss and step, which every change should meet, are mutants.py. A variant is
applied in a copy of the package, never in place. Each runs in a fork of this process, which has imported everything but swav:
that saves most of the time of a start.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 600.0  # for all tests on the right source, on a busy machine
FEW = 3  # mutants, for which it does not pay to import what only some tests need
SLOW_IMPORTS = (
    *("torch", "torchvision.transforms", "torchvision.models.resnet", "scipy.stats", "cv2"),
    *("sklearn.svm", "sklearn.metrics", "sklearn.neighbors", "pydantic", "beartype.claw"),
)


class Mutant(NamedTuple):
    """A wrong variant.

    Attributes:
        name: what is wrong with it.
        file: below swav/.
        old, new: text of the file, there exactly once, and what replaces it.
        test: path below tests/ and function, FILE::FUNCTION, or with the parameters, FILE::FUNCTION[ID].
    """

    name: str
    file: str
    old: str
    new: str
    test: str

    @property
    def source(self) -> str:
        """The wrong source.

        Raises:
            ValueError: the old text does not occur, or several times: the mutant is stale.
        """
        text = (ROOT / "swav" / self.file).read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise ValueError(
                f"mutant '{self.name}': expected its old text once in swav/{self.file}, found it {count} times"
            )
        return text.replace(self.old, self.new)


def table() -> list[Mutant]:
    """All of mutant_patches.toml."""
    content = tomllib.loads((Path(__file__).parent / "mutant_patches.toml").read_text(encoding="utf-8"))
    return [Mutant(**fields) for fields in content["mutant"]]


class Recorder:
    """A plugin of pytest's that notes how each test ended: passed, failed, or skipped (errors outside of it are failures)."""

    def __init__(self) -> None:
        self.ended: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.ended[report.nodeid] = report.outcome


def run_tests(tests: Sequence[str], folder: Path) -> tuple[dict[str, str], str]:
    """Runs tests in a fork, with the swav of a folder; how each of them ended, and what was printed.

    A test of several parameters has failed if it fails for any. One that is missing from the answer was not run: its file
    cannot be imported, or the process died.
    """
    output, answer = folder / "output.txt", folder / "answer.json"
    answer.unlink(missing_ok=True)
    process = multiprocessing.get_context("fork").Process(target=_run_here, args=(tests, folder, output, answer))
    process.start()
    process.join(LIMIT_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    found: dict[str, str] = json.loads(answer.read_text()) if answer.exists() else {}
    ended = {}
    for test in tests:
        of_it = {how for name, how in found.items() if name == f"tests/{test}" or name.startswith(f"tests/{test}[")}
        if of_it:
            ended[test] = "failed" if "failed" in of_it else "passed" if of_it == {"passed"} else "skipped"
    return ended, output.read_text(errors="replace")


def _run_here(tests: Sequence[str], folder: Path, output: Path, answer: Path) -> None:
    """In the fork: imports swav from the folder, and from nowhere else."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        sys.dont_write_bytecode = True  # of a file that is changed twice within a second, and keeps its size
        sys.path.insert(0, str(folder))
        os.environ["PYTHONPATH"] = str(folder)  # for processes that a test starts
        os.chdir(ROOT)
        import pytest

        options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "--import-mode=importlib"]
        options += ["--jaxtyping-packages=swav,typechecker.check", "-m", "not slow and not long and not gpu"]
        recorder = Recorder()
        pytest.main([*options, *(f"tests/{test}" for test in tests)], plugins=[recorder])
        used = Path(sys.modules["swav"].__file__ or "").resolve().parents[1]
        assert used == folder, f"expected swav of {folder}, found it of {used}"
        answer.write_text(json.dumps(recorder.ended))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


@contextlib.contextmanager
def _copied() -> Iterator[Path]:
    """A folder with a copy of the package."""
    with tempfile.TemporaryDirectory(prefix="swav-mutants-") as folder:
        shutil.copytree(ROOT / "swav", Path(folder, "swav"), ignore=shutil.ignore_patterns("__pycache__"))
        yield Path(folder).resolve()


def outcomes(mutants: Iterable[Mutant], say: Callable[[str], object]) -> dict[str, bool]:
    """Runs the tests of the mutants on the right source, then each mutant's on its own.

    Args:
        say: takes the lines of the table, and what pytest printed where a mutant is not as it should be.

    Returns:
        {name: whether its test passes on the right source and fails on the mutant's}.

    Raises:
        ValueError: a mutant is stale.
    """
    mutants = list(mutants)
    sources = [mutant.source for mutant in mutants]
    for name in SLOW_IMPORTS if len(mutants) > FEW else ["torch"]:
        importlib.import_module(name)
    found = dict[str, bool]()
    with _copied() as folder:
        right, printed = run_tests(list(dict.fromkeys(mutant.test for mutant in mutants)), folder)
        if any(right.get(mutant.test) != "passed" for mutant in mutants):
            say(printed[-5000:])
        for mutant, source in zip(mutants, sources, strict=True):
            began = time.monotonic()
            how = "(not run)"
            if right.get(mutant.test) != "passed":
                said = f"its test: {right.get(mutant.test, 'not run')} without it"
            else:
                path = folder / "swav" / mutant.file
                before = path.read_text(encoding="utf-8")
                path.write_text(source, encoding="utf-8")
                ended, printed = run_tests([mutant.test], folder)
                path.write_text(before, encoding="utf-8")
                how = ended.get(mutant.test, how)
                said = {"failed": "yes", "passed": "NO"}.get(how, how)
            found[mutant.name] = how == "failed"
            say(row(mutant, said, f"{time.monotonic() - began:.1f} s"))
            if how == "(not run)" and right.get(mutant.test) == "passed":
                say(printed[-3000:])
    return found


def row(mutant: Mutant, failed: str, took: str) -> str:
    return f"{mutant.name:44} {failed:8} {took:>7}  {mutant.test}"


def main(words: list[str]) -> int:
    known = {mutant.name: mutant for mutant in table()}
    if words == ["-l"]:
        print("\n".join(known))
        return 0
    if unknown := [word for word in words if word not in known]:
        print(f"unknown mutant '{unknown[0]}'; -l lists them", file=sys.stderr)
        return 2
    began = time.monotonic()
    print(f"{'mutant':44} {'fails':8} {'':>7}  test", flush=True)
    chosen = [known[word] for word in words] or list(known.values())
    found = outcomes(chosen, lambda text: print(text, flush=True))
    wrong = [name for name, fails in found.items() if not fails]
    print(f"{len(found)} mutants, {len(found) - len(wrong)} fail their test, {time.monotonic() - began:.0f} s")
    if wrong:
        print(f"not as they should be: {'; '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
