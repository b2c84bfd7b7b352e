"""The backbone: image to features. Our ResNets (resnet.py) by name, and any model of timm's, with fresh weights.

Every backbone has `num_features` (F), `stages(images)`, and `stage_names` and `stage_channels`, which agree with it.
"""

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swav.config import TIMM
from swav.errors import ConfigError, did_you_mean
from swav.network.resnet import DEPTHS, ResNet

__all__ = [
    "BACKBONES",
    "ResNet",
    "TimmTrunk",
    "build_trunk",
    "check_backbone",
    "count_parameters",
    "in_channels_last",
    "timm_options",
    "timm_shape",
]

BACKBONES: dict[str, Callable[..., ResNet]] = {
    name: functools.partial(ResNet, block, layers) for name, (block, layers) in DEPTHS.items()
}


class TimmTrunk(nn.Module):
    """A model of timm's without its classifier, with its own pooling and fresh weights (never downloaded).

    Vision transformers are made to take images of any size that their patches divide. Stages are the model's own: the
    feature stages of a hierarchical model, every block of a plain transformer, as [N, C, H, W]; their names are timm's.

    Attributes:
        name: of the model in timm.

    Args:
        name: of the model in timm, without a tag (a tag names weights).
        in_channels: C of the images.

    Raises:
        ConfigError: timm has no such model, or it gives no features [N, F].
    """

    def __init__(self, name: str, in_channels: int = 3):
        super().__init__()
        shape = timm_shape(name, in_channels)
        self.name, self.model = name, _timm_model(name, in_channels)
        self.num_features, self.stage_names, self.stage_channels = shape.num_features, shape.names, shape.channels

    def stages(self, images: Float[Tensor, "N C H W"]) -> list[Tensor]:
        """Feature maps after each of `stage_names`."""
        maps: list[Tensor] = self.model.forward_intermediates(images, intermediates_only=True)  # type: ignore[operator]
        return maps

    def forward(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N F"]:
        return self.model(images)  # type: ignore[no-any-return]


class TimmShape(NamedTuple):
    """What a model of timm's gives: F features, and the names and channels of its stages (none, where it has none)."""

    num_features: int
    names: list[str]
    channels: list[int]


def check_backbone(name: str, sizes: Sequence[int], in_channels: int = 3) -> None:
    """Find out, without weights and without time, whether a backbone exists and takes images of these sides.

    Raises:
        ConfigError: it does not.
    """
    if name.startswith(TIMM):
        model = name.removeprefix(TIMM)
        timm_shape(model, in_channels)
        for size in sorted(set(sizes)):
            _on_meta(model, in_channels, size)


@functools.cache
def timm_shape(name: str, in_channels: int = 3) -> TimmShape:
    """Run a model without weights at the size that it was made for (see TimmTrunk)."""
    size = _timm().get_pretrained_cfg(name).input_size[-1] if _is_timm(name) else 0
    model, features = _on_meta(name, in_channels, size)
    if features.ndim != 2:
        raise ConfigError(f"backbone {TIMM}{name}: expected features [N, F], found {list(features.shape)}; use another")
    info = getattr(model, "feature_info", None)
    if info is None or not hasattr(model, "forward_intermediates"):
        return TimmShape(features.shape[1], [], [])
    intermediates: Callable[..., list[Tensor]] = model.forward_intermediates  # type: ignore[assignment]
    maps = intermediates(_image(in_channels, size), intermediates_only=True)
    names = [stage["module"] for stage in (info if isinstance(info, list) else info.info)]
    if len(names) != len(maps):
        names = [f"stage {i + 1}" for i in range(len(maps))]
    return TimmShape(features.shape[1], names, [m.shape[1] for m in maps])


@functools.cache
def _on_meta(name: str, in_channels: int, size: int) -> tuple[nn.Module, Tensor]:
    """The model on the meta device, which computes shapes and nothing else, and its features of one image."""
    with torch.device("meta"):
        model = _timm_model(name, in_channels).eval()
        try:
            return model, model(_image(in_channels, size))
        except Exception as error:  # a model may raise anything at a size that it was not made for
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ConfigError(
                f"backbone {TIMM}{name}: does not take crops of {size} pixels ({reason}); use other crops or another model"
            ) from None


def _image(in_channels: int, size: int) -> Tensor:
    return torch.zeros(1, in_channels, size, size, device="meta")


def _timm_model(name: str, in_channels: int) -> nn.Module:
    if not _is_timm(name):
        known, bare = _timm().list_models(), name.partition(".")[0]
        near = f" (did you mean '{bare}'?)" if bare in known else did_you_mean(bare, known)
        raise ConfigError(f"backbone {TIMM}{name}: expected one of timm's {len(known)} models, without a tag{near}")
    model: nn.Module = _timm().create_model(name, pretrained=False, **timm_options(name, in_channels))
    return model


@functools.cache
def timm_options(name: str, in_channels: int) -> dict[str, Any]:
    """Arguments of timm.create_model for a backbone: no classifier, and crops of any size where the model can take them."""
    options = {"num_classes": 0, "in_chans": in_channels}
    try:
        with torch.device("meta"):
            _timm().create_model(name, pretrained=False, dynamic_img_size=True, **options)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        return options
    return options | {"dynamic_img_size": True}


def _is_timm(name: str) -> bool:
    # not timm's own is_model, which takes off a tag; and hf-hub:NAME would be fetched
    return name in _timm().list_models()


def _timm() -> ModuleType:
    """Imported where it is asked for: it takes seconds."""
    import timm

    return timm


def build_trunk(name: str, *, width: float, stem: str, zero_init_residual: bool, in_channels: int) -> nn.Module:
    """A backbone with fresh weights: one of BACKBONES, or timm:NAME (whose shape and initialisation are timm's own)."""
    if name.startswith(TIMM):
        return TimmTrunk(name.removeprefix(TIMM), in_channels)
    return BACKBONES[name](width=width, stem=stem, zero_init_residual=zero_init_residual, in_channels=in_channels)


def count_parameters(module: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in module.parameters())


def in_channels_last(module: nn.Module) -> nn.Module:
    """Store 4-d weights with channels last, the layout in which convolutions are fastest. Changes no value."""
    return module.to(memory_format=torch.channels_last)
