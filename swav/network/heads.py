"""What SwAV puts on a trunk: a projection to unit embeddings, and prototypes that score them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swav.config import Recipe
from swav.network.backbone import build_trunk, in_channels_last


class SwavNetwork(nn.Module):
    """Trunk, projection head (Linear, BatchNorm, ReLU, Linear, unit norm) and prototypes (no bias).

    The trunk runs once per resolution, so its BatchNorm sees the crops of one size together; the head runs once over
    all crops, so its BatchNorm sees them all. Both are part of the method: a head run per resolution is another model.
    Scores are computed outside autocast, in float32 at least: they go through exp(1 / 0.05).

    Args:
        trunk: images [N, C, H, W] to features [N, F], with `num_features`.
        hidden: width of the head's hidden layer.
        dim: D, dimension of an embedding.
        prototypes: K; of all sets together where there are several.

    Source: section A.1; batch statistics as in the released code.
    """

    def __init__(self, trunk: nn.Module, hidden: int, dim: int, prototypes: int):
        super().__init__()
        self.trunk = trunk
        self.projection_head = nn.Sequential(
            nn.Linear(int(trunk.num_features), hidden),  # type: ignore[arg-type]
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, dim),
        )
        self.prototypes = nn.Linear(dim, prototypes, bias=False)

    def forward(
        self, crops: Sequence[Float[Tensor, "_ C _ _"]], batch: int
    ) -> tuple[Float[Tensor, "V B D"], Float[Tensor, "V B K"]]:
        """Embeddings and scores of all views.

        Args:
            crops: one tensor per kind of crop, [count * B, C, S, S], crop-major.
            batch: B.

        Returns:
            Unit embeddings [V, B, D] and their scores [V, B, K], views in the order of `crops`.
        """
        features = self._features(crops)
        embeddings = self.projection_head(features)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.to(torch.promote_types(embeddings.dtype, self.prototypes.weight.dtype))
            embeddings = nn.functional.normalize(embeddings, dim=1)
            scores = self.prototypes(embeddings)
        return torch.unflatten(embeddings, 0, (-1, batch)), torch.unflatten(scores, 0, (-1, batch))

    def _features(self, crops: Sequence[Tensor]) -> Tensor:
        by_size: dict[int, list[int]] = {}
        for kind, crop in enumerate(crops):
            by_size.setdefault(crop.shape[-1], []).append(kind)
        features: dict[int, Tensor] = {}
        for kinds in by_size.values():
            together = self.trunk(torch.cat([crops[kind] for kind in kinds]) if len(kinds) > 1 else crops[kinds[0]])
            features |= dict(zip(kinds, together.split([len(crops[kind]) for kind in kinds]), strict=True))
        return torch.cat([features[kind] for kind in range(len(crops))])


def build_network(recipe: Recipe, prototypes: int | None = None) -> SwavNetwork:
    """The network of a recipe, with fresh weights drawn from `recipe.seed` (torch's own generator is left alone).

    Args:
        recipe: settings.
        prototypes: where the recipe says `auto`; 1 will do for a trunk alone.
    """
    num_prototypes = prototypes or 1 if recipe.left_at_auto("prototypes") else sum(recipe.prototype_heads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        trunk = build_trunk(
            recipe.backbone,
            width=recipe.width,
            stem=recipe.stem,
            zero_init_residual=recipe.zero_init_residual,
            in_channels=recipe.in_channels,
        )
        network = SwavNetwork(trunk, recipe.head_hidden, recipe.head_dim, num_prototypes)
    return in_channels_last(network)  # type: ignore[return-value]
