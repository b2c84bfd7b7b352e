"""Attacked: numbers without labels that say something else than they claim, on features whose answer is known.

Run: pytest tests/test_label_free.py
"""

import numpy as np
import pytest
import torch

from swav.label_free import (
    cluster_agreement,
    effective_rank,
    lidar,
    neighbour_overlap,
    neighbour_survival,
    rotation_accuracy,
    view_retrieval,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def neighbours_by_hand(features, k):
    x = features.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity = x @ x.T
    np.fill_diagonal(similarity, -np.inf)
    return [set(row) for row in np.argsort(-similarity, axis=1)[:, :k].tolist()]


def pairs(first, second):
    return torch.stack([first, second], dim=1)


def test_a_view_is_found_among_others_only_where_it_is_the_nearest():
    x = drawn(50, 16)
    assert (view_retrieval(pairs(x, x * 3 + 0.01 * drawn(50, 16, seed=1))) == 2).all()
    assert (view_retrieval(pairs(x, x.roll(1, dims=0))) == 0).all()
    half = torch.cat([x[:25], x[25:].roll(1, dims=0)])
    assert view_retrieval(pairs(x, half)).tolist() == [2] * 25 + [0] * 25


def test_each_view_looks_among_the_views_of_each_other_kind():
    x = drawn(40, 16)
    lost = torch.stack([x, x + 0.01 * drawn(40, 16, seed=1), drawn(40, 16, seed=2)], dim=1)
    assert view_retrieval(lost).float().mean() == pytest.approx(2, abs=0.5)  # of six


@pytest.mark.parametrize("k", [1, 7])
def test_shared_neighbours_are_those_that_a_sort_finds(k):
    x, y = drawn(60, 8), drawn(60, 8) + drawn(60, 8, seed=2)
    expected = np.mean(
        [len(a & b) / k for a, b in zip(neighbours_by_hand(x, k), neighbours_by_hand(y, k), strict=True)]
    )
    assert neighbour_survival(x, y, k) == pytest.approx(expected)
    assert neighbour_overlap(x, drawn(60, 5, seed=3), k) < 0.4
    assert neighbour_survival(x, x, k) == 1


def test_an_image_is_no_neighbour_of_itself_even_among_equal_ones():
    x = torch.ones(30, 4)
    assert 0 <= neighbour_survival(x, x, 5) <= 1


@pytest.mark.parametrize("rank", [3, 12])
def test_lidar_counts_the_directions_in_which_images_differ_more_than_their_views(rank):
    means = drawn(400, rank) @ torch.linalg.qr(drawn(64, rank, seed=1))[0].T
    views = means[:, None] + 1e-3 * drawn(400, 6, 64, seed=2)
    assert lidar(views) == pytest.approx(rank, rel=0.15)


def test_lidar_does_not_change_with_the_scale_of_features_or_of_one_of_their_directions():
    views = drawn(200, 1, 16) + 0.3 * drawn(200, 4, 16, seed=1)
    stretched = views * torch.linspace(0.5, 3, 16)
    assert lidar(views * 1000 + 5) == pytest.approx(lidar(views), rel=1e-6)
    assert lidar(stretched) == pytest.approx(lidar(views), rel=0.05)


def test_a_turn_that_features_show_is_found_and_one_that_they_hide_is_not():
    marks = torch.eye(4)[:, None].expand(4, 80, 4)
    shown = torch.cat([drawn(4, 80, 12), marks + 0.1 * drawn(4, 80, 4, seed=1)], dim=2)
    assert rotation_accuracy(shown) == 100
    assert rotation_accuracy(drawn(1, 400, 12).expand(4, 400, 12)) == pytest.approx(25, abs=3)


def test_clusters_agree_where_views_fall_into_them_and_not_where_they_are_drawn():
    centres = 5 * drawn(6, 10)
    which = torch.arange(120) % 6
    first, second = centres[which] + 0.1 * drawn(120, 10, seed=1), centres[which] + 0.1 * drawn(120, 10, seed=2)
    assert cluster_agreement(first, second, 6) == pytest.approx(1)
    assert (
        abs(cluster_agreement(first, second[torch.randperm(120, generator=torch.Generator().manual_seed(0))], 6)) < 0.1
    )


def test_the_effective_rank_forgets_what_all_features_have_in_common():
    x = drawn(500, 20)
    assert effective_rank(x + 100) == pytest.approx(effective_rank(x), rel=1e-4)
    assert effective_rank(x) > 19


def test_features_that_are_not_of_the_same_images_are_refused():
    with pytest.raises(ValueError, match=r"expected features \[N, F\] of two views"):
        neighbour_survival(drawn(20, 4), drawn(19, 4))
