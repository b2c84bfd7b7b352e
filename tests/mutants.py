"""Ten wrong variants of codes, loss and step, found in the field or likely there; and which check notices each.

    python -m tests.mutants     prints the table

A variant replaces a piece of swav itself, so every check, the golden training steps too, runs the real code around it.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from swav import algorithm, dist
from swav.config import Recipe
from swav.network import heads
from swav.training import optim, step
from tests import checks, golden_files
from tests.processes import Processes, processes

GOLDEN = Path(__file__).parent / "golden"
real_rate = optim.learning_rate
real_codes, real_loss, real_network = algorithm.sinkhorn_codes, algorithm.swapped_loss, heads.SwavNetwork.__init__


def _own_code(scores: Tensor, codes: Tensor, *rest: Any) -> Tensor:
    return real_loss(scores, codes.flip(0), *rest)


def _no_mean_over_views(scores: Tensor, *rest: Any) -> Tensor:
    return real_loss(scores, *rest) * (len(scores) - 1)


def _temperature_twice(scores: Tensor, codes: Tensor, code_views: Any, temperature: float = 0.1) -> Tensor:
    return real_loss(scores / temperature, codes, code_views, temperature)


def _shift_per_sample(scores: Tensor, *rest: Any, **named: Any) -> Tensor:
    return real_codes(scores - scores.amax(dim=1, keepdim=True), *rest, **named)


def _no_balancing(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    return (scores / epsilon).softmax(dim=1)


def _network_with_bias(self: Any, trunk: nn.Module, hidden: int, dim: int, prototypes: int) -> None:
    real_network(self, trunk, hidden, dim, prototypes)
    self.prototypes = nn.Linear(dim, prototypes)


def _alone(x: Tensor) -> Tensor:
    return x


def _rate_of_the_next_step(recipe: Recipe, step: int, *steps: Any) -> float:
    return real_rate(recipe, step + 1, *steps)


_EVERY_VIEW = property(lambda self: tuple(range(self.num_views)))
_LOCAL_SUMS = SimpleNamespace(all_reduce_sum=_alone, all_reduce_max=dist.all_reduce_max)
_LOCAL_MAXIMUM = SimpleNamespace(all_reduce_sum=dist.all_reduce_sum, all_reduce_max=_alone)

# name -> (where, which name, what in its place); codes and loss have two names, as the loop imports them
MUTANTS: dict[str, list[tuple[Any, str, Any]]] = {
    "own code predicted": [(algorithm, "swapped_loss", _own_code), (step, "swapped_loss", _own_code)],
    "no 1/(V-1)": [(algorithm, "swapped_loss", _no_mean_over_views), (step, "swapped_loss", _no_mean_over_views)],
    "codes from local crops": [(Recipe, "code_views", _EVERY_VIEW)],
    "prototypes with bias": [(heads.SwavNetwork, "__init__", _network_with_bias)],
    "no all-reduce": [(algorithm, "dist", _LOCAL_SUMS)],
    "local maximum": [(algorithm, "dist", _LOCAL_MAXIMUM)],
    "per-sample shift": [
        (algorithm, "sinkhorn_codes", _shift_per_sample),
        (step, "sinkhorn_codes", _shift_per_sample),
    ],
    "temperature twice": [
        (algorithm, "swapped_loss", _temperature_twice),
        (step, "swapped_loss", _temperature_twice),
    ],
    "no balancing": [(algorithm, "sinkhorn_codes", _no_balancing), (step, "sinkhorn_codes", _no_balancing)],
    "rate of the next step": [(step, "learning_rate", _rate_of_the_next_step)],
}
UNMUTATED = "(none)"


def _golden(name: str, run: checks.Run, steps: int | None = None) -> None:
    if steps is None:
        difference = golden_files.largest_difference(GOLDEN / name, run)
    else:
        difference = golden_files.trace_difference(golden_files.read_json(GOLDEN / name), run, steps)
    assert difference < golden_files.TOLERANCE


def _loss_oracle(_: checks.Run) -> None:
    codes = torch.rand(2, 6, 7, dtype=torch.float64).softmax(dim=2)
    checks.loss_equals_the_oracle(checks.cosines(1, 5, 6, 7), codes, (0, 1))


def _invariants(_: checks.Run) -> None:
    scores = checks.cosines(2, 16, 12)
    checks.codes_are_assignments(scores)
    checks.codes_ignore_a_constant_per_prototype(scores)
    checks.codes_feel_a_constant_per_sample(scores)
    checks.codes_follow_permutations(scores)


CHECKS: dict[str, Callable[[checks.Run], None]] = {
    "oracle: codes": lambda run: checks.codes_equal_the_oracle(checks.cosines(0, 16, 12)),
    "oracle: loss": _loss_oracle,
    "invariants": _invariants,
    "balance": lambda run: checks.many_iterations_balance_the_prototypes(checks.cosines(3, 16, 12)),
    "gradient": lambda run: checks.gradient_is_the_closed_form(checks.cosines(4, 4, 6, 7), (0, 1)),
    "largest crops": lambda run: checks.largest_crops_give_the_codes(),
    "cosines": lambda run: checks.scores_are_cosines(),
    "two = one": lambda run: checks.two_processes_equal_one(run, checks.cosines(5, 4, 8, 7), (0, 1)),
    "golden codes": lambda run: _golden("sinkhorn.npz", run),
    "golden loss": lambda run: _golden("loss.npz", run),
    "golden step": lambda run: _golden("trace_two_views_world1.json", run, steps=2),
    "golden step, 2 processes": lambda run: _golden("trace_plain_world2.json", run, steps=1),
}


@contextlib.contextmanager
def applied(name: str) -> Iterator[None]:
    """swav with a wrong piece in it."""
    with contextlib.ExitStack() as stack:
        for place, attribute, wrong in MUTANTS.get(name, []):
            stack.enter_context(mock.patch.object(place, attribute, wrong))
        yield


def called_with(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function under a mutant; for the other processes."""
    with applied(name):
        return function(*arguments)


def checks_failed(name: str, pool: Processes) -> list[str]:
    """The checks that a mutant does not pass."""

    def run(function: Callable[..., Any], *arguments: Any) -> list[Any]:
        return pool(called_with, name, function, *arguments)

    failed = []
    with applied(name):
        for check, function in CHECKS.items():
            torch.manual_seed(0)
            try:
                function(run)
            except AssertionError:
                failed.append(check)
    return failed


def row(name: str, failed: list[str]) -> str:
    return f"{name:24} {', '.join(failed) or '-'}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(row("mutant", ["checks that it fails"]))
    with processes(2) as started:
        for mutant in (*MUTANTS, UNMUTATED):
            print(row(mutant, checks_failed(mutant, started)), flush=True)
