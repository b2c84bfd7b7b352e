"""The SwAV network: batch statistics per resolution in the backbone, over all crops in the head; views keep their order.

Run: pytest tests/network/test_heads.py
"""

import torch

from swav.config import Recipe
from swav.network.backbone import ResNet, count_parameters
from swav.network.heads import ProjectionHead, Prototypes, SwavNetwork, build_network
from swav.recipe_files import load_recipe


def small_network() -> SwavNetwork:
    return SwavNetwork(ResNet("basic", (1, 1, 1, 1), width=0.125), hidden=16, dim=8, prototypes=12)


def crops(*kinds: tuple[int, int], batch: int = 4) -> list[torch.Tensor]:
    return [torch.randn(count * batch, 3, size, size) for count, size in kinds]


def test_the_trunk_runs_once_per_resolution_and_the_head_once():
    network = small_network()
    network(crops((2, 32), (3, 16)), 4)
    assert network.get_buffer("trunk.bn1.num_batches_tracked") == 2
    assert network.get_buffer("projection_head.1.num_batches_tracked") == 1


def test_kinds_of_one_size_share_a_pass_though_they_are_not_neighbours():
    network = small_network()
    network(crops((1, 32), (2, 16), (1, 32)), 4)
    assert network.get_buffer("trunk.bn1.num_batches_tracked") == 2


def test_views_come_back_in_the_order_of_the_crops():
    network = small_network().eval()
    kinds = crops((1, 32), (2, 16), (1, 32))
    embeddings, scores = network(kinds, 4)
    assert embeddings.shape == (4, 4, 8)
    assert scores.shape == (4, 4, 12)
    for view, images in enumerate([kinds[0], kinds[1][:4], kinds[1][4:], kinds[2]]):
        alone, _ = network([images], 4)
        torch.testing.assert_close(embeddings[view], alone[0])


def test_embeddings_are_unit_vectors_and_scores_are_cosines_of_unit_prototypes():
    network = small_network()
    with torch.no_grad():
        network.prototypes.weight.copy_(torch.nn.functional.normalize(network.prototypes.weight, dim=1))
    embeddings, scores = network(crops((2, 32)), 4)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2, 4))
    torch.testing.assert_close(scores, embeddings @ network.prototypes.weight.T)
    assert network.prototypes.bias is None


def test_scores_are_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings, scores = small_network()(crops((2, 32)), 4)
    assert embeddings.dtype == scores.dtype == torch.float32


def test_a_recipe_gives_the_same_weights_for_its_seed_and_leaves_torchs_generator_alone():
    recipe = load_recipe("tiny")
    before = torch.get_rng_state()
    first, second = build_network(recipe), build_network(recipe)
    other = build_network(recipe.model_copy(update={"seed": 1}))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.prototypes.weight, other.prototypes.weight)


def test_resnet50_with_head_and_prototypes_has_the_published_size():
    with torch.device("meta"):
        network = build_network(load_recipe("swav_200ep_bs256"))
    assert round(count_parameters(network) / 1e6, 1) == 28.4  # the size named in the original's tracker


def test_head_and_prototypes_alone_give_the_embeddings_and_scores_of_the_network():
    network = build_network(load_recipe("tiny", {"width": 0.125, "head_hidden": 16, "head_dim": 8, "prototypes": 12}))
    network.eval()
    images = torch.rand(4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings, scores = network([images], 4)
        own = network.projection_head(network.trunk(images))
        own_scores = network.prototypes(own)
    assert own.dtype == own_scores.dtype == torch.float32
    assert torch.equal(own[None], embeddings) and torch.equal(own_scores[None], scores)
    torch.testing.assert_close(own.norm(dim=1), torch.ones(4))
    assert torch.equal(own_scores, own @ network.prototypes.weight.T)


def test_the_paper_is_the_default_of_head_and_prototypes():
    recipe = Recipe()
    head, prototypes = ProjectionHead(2048), Prototypes()
    assert [tuple(tensor.shape) for tensor in head.parameters() if tensor.ndim == 2] == [
        (recipe.head_hidden, 2048),
        (recipe.head_dim, recipe.head_hidden),
    ]
    assert prototypes.weight.shape == (recipe.prototypes, recipe.head_dim) and prototypes.bias is None
