"""Attacks: our own tests. Each of ten wrong variants must fail a check; the right one must fail none.

(A public test of SwAV's loss passes four of them: it feeds identity matrices and asks for a loss below 0.5.)
Run: pytest tests/test_mutants.py -rP, or python -m tests.mutants for the table alone
"""

import pytest

from tests import mutants


@pytest.mark.parametrize("name", mutants.MUTANTS)
def test_a_wrong_variant_fails_a_check(name, two_processes):
    failed = mutants.checks_failed(name, two_processes)
    print(mutants.row(name, failed))
    assert failed


def test_the_right_one_fails_none(two_processes):
    assert mutants.checks_failed(mutants.UNMUTATED, two_processes) == []
