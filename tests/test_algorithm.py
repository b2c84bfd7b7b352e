"""Attacks: wrong mathematics. Codes and loss against an independent NumPy version, closed forms, linear programming and
what theory says stays as it is; the queue against its promises; two processes against one.

Run: pytest tests/test_algorithm.py
"""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from swav.algorithm import Queue, normalize_prototypes_, sinkhorn_codes, swapped_loss
from swav.config import MIN_EPSILON
from tests import checks

SEEDS = st.integers(0, 2**32 - 1)
BATCHES, PROTOTYPES = st.integers(1, 16), st.integers(1, 12)
EPSILONS = st.floats(MIN_EPSILON, 1.0)


@st.composite
def crop_scores(draw: st.DrawFn) -> tuple[torch.Tensor, list[int]]:
    """Scores [V, B, K] of some crops, and which of them give codes."""
    views = draw(st.integers(2, 6))
    code_views = draw(st.lists(st.integers(0, views - 1), min_size=1, max_size=views, unique=True))
    return checks.cosines(draw(SEEDS), views, draw(BATCHES), draw(PROTOTYPES)), code_views


# -- codes


@given(SEEDS, BATCHES, PROTOTYPES, EPSILONS, st.integers(1, 10))
def test_codes_equal_an_independent_version(seed, batch, prototypes, epsilon, iterations):
    checks.codes_equal_the_oracle(checks.cosines(seed, batch, prototypes), epsilon, iterations)


@given(SEEDS, BATCHES, PROTOTYPES, EPSILONS, st.integers(1, 50))
def test_codes_of_a_sample_sum_to_one_for_any_iterations(seed, batch, prototypes, epsilon, iterations):
    checks.codes_are_assignments(checks.cosines(seed, batch, prototypes), epsilon, iterations)


@given(SEEDS, st.integers(1, 10))
def test_a_constant_per_prototype_changes_no_code(seed, iterations):
    checks.codes_ignore_a_constant_per_prototype(checks.cosines(seed, 16, 12), iterations)


def test_a_constant_per_sample_changes_codes_so_it_must_not_be_subtracted():
    checks.codes_feel_a_constant_per_sample(checks.cosines(0, 16, 12))


@given(SEEDS)
def test_codes_follow_permutations_of_samples_and_prototypes(seed):
    checks.codes_follow_permutations(checks.cosines(seed, 16, 12))


@given(SEEDS)
def test_many_iterations_give_every_prototype_the_same_mass(seed):
    checks.many_iterations_balance_the_prototypes(checks.cosines(seed, 16, 12))


@pytest.mark.parametrize("seed", range(5))
def test_many_iterations_solve_the_transport_problem_of_linear_programming(seed):
    batch, prototypes, epsilon = 6, 3, 0.02
    scores = checks.cosines(seed, batch, prototypes)
    plan = sinkhorn_codes(scores, epsilon, iterations=3000).numpy() / batch
    np.testing.assert_allclose(plan.sum(axis=0), 1 / prototypes, atol=1e-4)
    sums = [np.kron(np.eye(batch), np.ones(prototypes)), np.kron(np.ones(batch), np.eye(prototypes))]
    masses = np.concatenate([np.full(batch, 1 / batch), np.full(prototypes, 1 / prototypes)])
    best = -linprog(-scores.numpy().ravel(), A_eq=np.concatenate(sums), b_eq=masses).fun
    reached = (plan * scores.numpy()).sum()
    # entropy of the plan is at most ln K above that of the solution: so much may be lost, and nothing gained
    assert best - epsilon * math.log(prototypes) <= reached <= best + 1e-3


@given(
    st.lists(st.lists(st.sampled_from([-1.0, 1.0, 0.0]), min_size=5, max_size=5), min_size=1, max_size=8),
    st.floats(0, 1).map(lambda x: MIN_EPSILON ** (1 - x)),
    st.sampled_from([1, 3, 100]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_codes_are_finite_in_float32_down_to_the_smallest_epsilon_for_any_cosines(rows, epsilon, iterations, dtype):
    checks.codes_are_assignments(torch.tensor(rows, dtype=dtype), epsilon, iterations)


def test_codes_are_finite_where_a_prototype_or_a_sample_is_as_far_as_can_be():
    scores = torch.full((64, 100), 1.0)
    scores[:, 7], scores[3], scores[3, 7] = -1.0, -1.0, 1.0  # exp(2 / epsilon) apart: e^2000
    checks.codes_are_assignments(scores, MIN_EPSILON)
    checks.codes_are_assignments(-scores, MIN_EPSILON)


@given(SEEDS, EPSILONS.filter(lambda epsilon: epsilon >= 0.01))
def test_codes_in_float32_are_those_in_float64(seed, epsilon):
    scores = checks.cosines(seed, 16, 12)
    # rounding of a cosine (6e-8) over epsilon, a few iterations
    checks.close(sinkhorn_codes(scores.float(), epsilon), sinkhorn_codes(scores, epsilon), 1e-6 / epsilon)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype):
    scores = checks.cosines(0, 4, 8, 6).to(dtype)
    codes = sinkhorn_codes(scores[0])
    assert codes.dtype == torch.float32
    assert torch.equal(codes, sinkhorn_codes(scores[0].float()))
    loss = swapped_loss(scores, codes[None], (0,))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, swapped_loss(scores.float(), codes[None], (0,)))


def test_float64_stays_float64():
    scores = checks.cosines(0, 2, 8, 6)
    codes = sinkhorn_codes(scores[0])
    assert codes.dtype == swapped_loss(scores, codes[None], (0,)).dtype == torch.float64


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.0, 3), (-0.05, 3), (0.05, 0)])
def test_codes_refuse_settings_without_a_meaning(epsilon, iterations):
    with pytest.raises(ValueError, match="expected epsilon > 0 and iterations >= 1"):
        sinkhorn_codes(torch.zeros(2, 3), epsilon, iterations)


# -- loss


@given(crop_scores(), st.floats(0.05, 2.0), SEEDS)
def test_loss_equals_an_independent_version(crops, temperature, seed):
    scores, code_views = crops
    noise = np.random.default_rng(seed).standard_normal((len(code_views), *scores.shape[1:]))
    checks.loss_equals_the_oracle(scores, torch.from_numpy(noise).softmax(dim=2), code_views, temperature)


@given(crop_scores(), st.floats(0.05, 2.0))
def test_gradient_is_the_closed_form(crops, temperature):
    scores, code_views = crops
    checks.gradient_is_the_closed_form(scores, code_views, temperature)


@pytest.mark.parametrize("code_views", [(0, 1), (2,), (1, 3, 0)])
def test_gradient_agrees_with_finite_differences(code_views):
    scores = checks.cosines(0, 4, 3, 5).requires_grad_()
    codes = torch.stack([sinkhorn_codes(scores[view]) for view in code_views])
    assert torch.autograd.gradcheck(lambda s: swapped_loss(s, codes, code_views), scores)


def test_no_gradient_flows_through_codes():
    scores = checks.cosines(0, 3, 4, 5).requires_grad_()
    assert not sinkhorn_codes(scores[0]).requires_grad
    codes = sinkhorn_codes(scores[0])[None].requires_grad_()
    swapped_loss(scores, codes, (0,)).backward()
    assert codes.grad is None
    assert scores.grad is not None and not scores.grad[0].any() and scores.grad[1:].any()


def test_the_collapsed_state_has_the_loss_ln_k():
    scores = torch.zeros(8, 4, 3000, dtype=torch.float64)
    codes = torch.stack([sinkhorn_codes(scores[view]) for view in (0, 1)])
    checks.close(swapped_loss(scores, codes, (0, 1)), math.log(3000))


def test_any_sequence_of_crop_indices_will_do_and_each_code_stays_with_its_crop():
    scores = checks.cosines(0, 4, 8, 6)
    codes = torch.stack([sinkhorn_codes(scores[view]) for view in (0, 1)])
    expected = swapped_loss(scores, codes, (0, 1))
    kinds: list[Sequence[int]] = [[0, 1], range(2)]
    for code_views in kinds:
        assert torch.equal(swapped_loss(scores, codes, code_views), expected)
    checks.close(swapped_loss(scores, codes.flip(0), (1, 0)), expected)
    assert abs(swapped_loss(scores, codes, (1, 0)) - expected) > 1e-3


@pytest.mark.parametrize(
    ("views", "codes", "code_views", "complaint"),
    [
        (1, 1, (0,), "at least 2 crops"),
        (3, 2, (0,), "2 different crop indices below 3"),
        (3, 2, (0, 0), "2 different crop indices below 3"),
        (3, 1, (3,), "1 different crop indices below 3"),
        (3, 1, (-1,), "1 different crop indices below 3"),
    ],
)
def test_loss_refuses_crops_that_do_not_fit(views, codes, code_views, complaint):
    with pytest.raises(ValueError, match=complaint):
        swapped_loss(torch.zeros(views, 4, 5), torch.full((codes, 4, 5), 0.2), code_views)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_are_left_as_they_are(dtype):
    scores = checks.cosines(0, 4, 8, 6).to(dtype)
    codes = sinkhorn_codes(scores[0])[None]
    kept = scores.clone(), codes.clone()
    sinkhorn_codes(scores[0])
    swapped_loss(scores, codes, (0,))
    assert torch.equal(scores, kept[0]) and torch.equal(codes, kept[1])


# -- two processes


@pytest.mark.parametrize("code_views", [(0, 1), (3,)])
def test_two_processes_give_the_codes_loss_and_gradients_of_one(two_processes, code_views):
    checks.two_processes_equal_one(two_processes, checks.cosines(0, 4, 16, 12), code_views)


# -- prototypes


def test_normalised_prototypes_are_unit_vectors_in_place():
    prototypes = torch.nn.Linear(5, 7, bias=False).weight
    before, place = prototypes.detach().clone(), prototypes.data_ptr()
    normalize_prototypes_(prototypes)
    assert prototypes.data_ptr() == place and prototypes.requires_grad
    torch.testing.assert_close(prototypes.detach(), before / before.norm(dim=1, keepdim=True))


# -- queue


def embeddings(first: float, batch: int) -> torch.Tensor:
    """[2, batch, 3], numbered from `first`; the second crop's are 100 higher."""
    numbers = torch.arange(first, first + batch, dtype=torch.float32)
    return torch.stack([numbers, numbers + 100])[:, :, None].expand(2, batch, 3)


def numbers(queue: Queue) -> list[float]:
    return list(queue.embeddings[0, :, 0].tolist())


def test_the_queue_is_full_only_when_every_place_was_filled():
    queue = Queue(5, 3, 2)
    fullness = []
    for step in range(4):
        fullness.append(queue.full)
        queue.push(embeddings(2.0 * step, 2))
    assert fullness == [False, False, False, True]


@given(st.integers(1, 8), st.lists(st.integers(1, 8), max_size=8))
def test_the_queue_holds_the_last_embeddings_newest_batch_first(length, batches):
    queue, expected, first = Queue(length, 3, 2), [0.0] * length, 1.0
    for batch in (min(batch, length) for batch in batches):
        pushed = embeddings(first, batch)
        queue.push(pushed)
        expected = (pushed[0, :, 0].tolist() + expected)[:length]
        first += batch
    assert numbers(queue) == expected
    assert queue.full == (first - 1 >= length)
    filled = queue.embeddings[0] > 0
    assert torch.equal(queue.embeddings[1][filled], queue.embeddings[0][filled] + 100)


def test_a_push_longer_than_the_queue_is_refused():
    queue = Queue(3, 3, 2)
    with pytest.raises(ValueError, match=r"at most 3 embeddings per push .* found 4"):
        queue.push(embeddings(1, 4))
    assert not queue.embeddings.any() and not queue.full


def test_a_push_with_the_flag_set_leaves_every_embedding_as_it_is():
    queue = Queue(4, 3, 2)
    queue.push(embeddings(1, 2))
    before = queue.embeddings.clone()
    queue.push(embeddings(3, 2), skip=torch.tensor(True))
    assert torch.equal(queue.embeddings, before)
    queue.push(embeddings(3, 2), skip=torch.tensor(False))
    assert numbers(queue) == [3, 4, 1, 2]


def test_the_queue_keeps_values_not_the_graph_nor_the_memory_of_what_is_pushed():
    queue = Queue(2, 3, 2)
    pushed = embeddings(1, 2).clone().requires_grad_()
    queue.push(pushed)
    with torch.no_grad():
        pushed.zero_()
    assert not queue.embeddings.requires_grad and numbers(queue) == [1, 2]


def test_a_queue_goes_on_from_its_state():
    queue, other = Queue(5, 3, 2), Queue(5, 3, 2)
    queue.push(embeddings(1, 3))
    other.load_state_dict({key: value.clone() for key, value in queue.state_dict().items()})
    for each in (queue, other):
        each.push(embeddings(4, 2))
    assert other.full and queue.full
    assert torch.equal(other.embeddings, queue.embeddings)
