"""What every test stands on: one thread, one seed, no trace of a launcher, real data where there is some.

    SWAV_DATA    small real data sets; tests that need one are skipped, with the reason, where it is absent
    SWAV_GOLDEN  another folder of golden files, in the place of tests/golden (read by golden_files.py)

Nothing of swav is imported here: pytest reads this file before shapes and types begin to be checked.
"""

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from tests.processes import LAUNCHER_VARIABLES, Processes, processes, warm_up

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("SWAV_DATA") or ROOT.parent / "shared" / "data")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)

# Examples are the same in every run, and no limit on their time: a busy machine is not a failure.
PHASES = [hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink]  # explaining takes minutes
hypothesis.settings.register_profile(
    "swav", deadline=None, derandomize=True, max_examples=50, database=None, phases=PHASES
)
hypothesis.settings.load_profile("swav")


def pytest_collection_finish(session: pytest.Session) -> None:
    if any({"two_processes", "four_processes"} & set(getattr(item, "fixturenames", ())) for item in session.items):
        warm_up()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of small real data sets."""
    if not DATA.is_dir():
        pytest.skip(f"no real data: {DATA} does not exist; name the folder in SWAV_DATA")
    return DATA


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """A test that leaves a signal ignored fails, not those after it: their processes would inherit that."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    after = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


@pytest.fixture
def commands_in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For commands that run in this process: they leave signals ignored and other streams behind, as theirs would end."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _one_thread_one_seed_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)  # for code that uses the global generator
    random.seed(0)


@pytest.fixture(scope="session", name="two_processes")
def _two_processes() -> Iterator[Processes]:
    """`two_processes(function, *arguments)` -> [result of rank 0, result of rank 1], in a gloo group."""
    with processes(2) as pool:
        yield pool


@pytest.fixture(scope="session", name="four_processes")
def _four_processes() -> Iterator[Processes]:
    """The same with four."""
    with processes(4) as pool:
        yield pool
