"""What SwAV puts on a backbone: a projection to unit embeddings, and prototypes that score them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swav.config import Recipe
from swav.network.backbone import build_trunk, in_channels_last


class ProjectionHead(nn.Sequential):
    """Linear, BatchNorm, ReLU, Linear, unit norm: features [N, F] to embeddings [N, D].

    In training its BatchNorm must see the features of all crops in one call, as in SwavNetwork.

    Args:
        features: F, of the backbone.
        hidden: width of the hidden layer.
        dim: D, dimension of an embedding.

    Source: section A.1.
    """

    def __init__(self, features: int, hidden: int = 2048, dim: int = 128):
        super().__init__(
            nn.Linear(features, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, dim),
        )

    def forward(self, features: Float[Tensor, "N F"]) -> Float[Tensor, "N D"]:
        """Unit embeddings of features. Under autocast only their direction is computed in less than float32."""
        embeddings: Tensor = super().forward(features)  # type: ignore[no-untyped-call]
        with torch.autocast(embeddings.device.type, enabled=False):
            own: Tensor = self[-1].weight  # type: ignore[assignment]
            return nn.functional.normalize(embeddings.to(torch.promote_types(embeddings.dtype, own.dtype)), dim=1)


class Prototypes(nn.Linear):
    """Cluster centres [K, D], without bias: unit embeddings [N, D] to scores [N, K], which are cosines for unit rows.

    Rows are made unit vectors at the start of each step, by algorithm.normalize_prototypes_(prototypes.weight). Scores are never
    computed under autocast: they go through exp(1 / 0.05).

    Args:
        dim: D, dimension of an embedding.
        count: K.

    Source: section 3.1.
    """

    def __init__(self, dim: int = 128, count: int = 3000):
        super().__init__(dim, count, bias=False)

    def forward(self, embeddings: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        """Scores of embeddings."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return super().forward(embeddings.to(torch.promote_types(embeddings.dtype, self.weight.dtype)))


class SwavNetwork(nn.Module):
    """Trunk, projection head and prototypes.

    The backbone runs once per resolution, so its BatchNorm sees the crops of one size together; the head runs once over
    all crops, so its BatchNorm sees them all. Both are part of the method: a head run per resolution is another model.
    Scores are computed outside autocast, in float32 at least: they go through exp(1 / 0.05).

    Args:
        trunk: the backbone, images [N, C, H, W] to features [N, F].
        hidden: width of the head's hidden layer.
        dim: D, dimension of an embedding.
        prototypes: K; of all sets together where there are several.
        num_features: F; None: as the backbone's attribute of that name says.

    Source: section A.1; batch statistics as in the released code.
    """

    def __init__(self, trunk: nn.Module, hidden: int, dim: int, prototypes: int, num_features: int | None = None):
        super().__init__()
        self.trunk = trunk
        self.num_features = int(trunk.num_features) if num_features is None else num_features  # type: ignore[arg-type]
        self.projection_head = ProjectionHead(self.num_features, hidden, dim)
        self.prototypes = Prototypes(dim, prototypes)

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
        embeddings = self.projection_head(self._features(crops))
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
        prototypes: where the recipe says `auto`; 1 will do for a backbone alone.
    """
    num_prototypes = prototypes or 1 if recipe.left_at_auto("prototypes") else sum(recipe.prototype_sets)
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
