"""Vision transformers in files of weights: recognised by their tensors' names and shapes, and brought to timm's form."""

import dataclasses
import math
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from swav.network.backbone import timm_options
from swav.weights.fits import Tensors
from swav.weights.pickle_vm import TensorRef

_PATCHES = "patch_embed.proj.weight"
_SIZES = {  # {(channels, blocks): timm's word}; all have 64 channels a head, huge 80
    (192, 12): "tiny",
    (384, 12): "small",
    (768, 12): "base",
    (1024, 24): "large",
    (1280, 32): "huge",
    (1536, 40): "giant",  # DINOv2's; others that bear this word are narrower
}
LARGEST = 224  # of images, where a transformer takes any: what the benchmarks are made for [pixels]


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A vision transformer in a file.

    Attributes:
        prefix: of its names.
        channels, blocks: of its tokens, and how many.
        patch: side of the patches [pixels].
        positions: tokens that have one; 0: they are not in a list.
        registers: tokens beside class and patches.
        of_dinov2: whether it is built as DINOv2's are.
    """

    prefix: str
    channels: int
    blocks: int
    patch: int
    positions: int
    registers: int
    of_dinov2: bool

    @property
    def timm_name(self) -> str | None:
        """The plain vision transformer of timm's that has so many blocks and channels; None: none of the usual ones."""
        registers = f"_reg{self.registers}" if self.registers else ""
        return self._in_timm("vit", f"{registers}_dinov2" if self.of_dinov2 else "_224")

    @property
    def timm_names(self) -> list[str]:
        """That, and others that have as many: with a token for distillation, with relative positions."""
        names = (self.timm_name, self._in_timm("deit", "_224", "_distilled"), self._in_timm("beit", "_224"))
        return [name for name in names if name is not None]

    def _in_timm(self, family: str, ending: str, kind: str = "") -> str | None:
        import timm

        word = _SIZES.get((self.channels, self.blocks))
        name = f"{family}_{word}{kind}_patch{self.patch}{ending}"
        usual = word is not None and (word != "giant" or self.of_dinov2)
        return name if usual and timm.is_model(name) else None

    def __str__(self) -> str:
        side = math.isqrt(self.positions) * self.patch
        made = f", made for images of {side} pixels" if side else ""
        blocks = f"{self.blocks} blocks of " if self.blocks else ""  # where there are stages, they are not counted
        return f"{blocks}{self.channels} channels, patches of {self.patch} pixels{made}"


def transformers(tensors: Tensors) -> Iterator[Transformer]:
    """Yield the vision transformers in a file."""
    for name, stored in tensors.items():
        if not name.endswith(_PATCHES) or len(stored.shape) != 4:
            continue
        prefix = name.removesuffix(_PATCHES)
        own = {key.removeprefix(prefix): tensor.shape for key, tensor in tensors.items() if key.startswith(prefix)}
        numbers = {int(match[1]) for key in own if (match := re.match(r"blocks\.(\d+)\.", key))}
        registers = own.get("reg_token", (1, 0))[1]
        yield Transformer(
            prefix,
            channels=stored.shape[0],
            blocks=len(numbers),
            patch=stored.shape[-1],
            positions=own["pos_embed"][1] if len(own.get("pos_embed", ())) == 3 else 0,
            registers=registers,
            of_dinov2="mask_token" in own and "blocks.0.ls1.gamma" in own,
        )


def with_timms_names(tensors: Tensors) -> dict[str, TensorRef]:
    """The tensors of a file; those of a DINOv2 under timm's names: blocks without the chunk that they are in, registers, SwiGLU."""
    if not any(name.endswith(_PATCHES) for name in tensors):
        return dict(tensors)
    renamed = {}
    for name, stored in tensors.items():
        name = re.sub(r"\bblocks\.\d+\.(\d+\.)", r"blocks.\1", name)
        name = re.sub(r"\bregister_tokens$", "reg_token", name)
        renamed[name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")] = stored
    return renamed if len(renamed) == len(tensors) else dict(tensors)


def timm_model(name: str, tensors: Tensors, prefix: str | None) -> tuple[nn.Module, int]:
    """A model of timm's with fresh weights; a transformer as large as the positions in the file.

    Args:
        name: of the model, in timm.
        tensors: of the file.
        prefix: of its names, where the user says it.

    Returns:
        The model, and the side of images that it was made for.
    """
    import timm

    options = timm_options(name.partition(".")[0], 3)
    model: nn.Module = timm.create_model(name, pretrained=False, **options)
    if _is_for_grey(model, tensors, prefix):
        options = timm_options(name.partition(".")[0], 1)
        model = timm.create_model(name, pretrained=False, **options)
    size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1]
    if not takes_any_size(model):
        return model, size
    patch: int = model.patch_embed.patch_size[0]  # type: ignore[union-attr, index, assignment]
    sizes = {
        size_of
        for found in transformers(tensors)
        if (prefix is None or found.prefix == prefix)
        and (size_of := patch * (_side(found.positions, int(model.num_prefix_tokens)) or 0))  # type: ignore[arg-type]
    }
    if len(sizes) == 1 and sizes != {size}:
        (size,) = sizes
        model = timm.create_model(name, pretrained=False, img_size=size, **options)
    return model, size


def classifier_names(name: str) -> frozenset[str]:
    """Names of the tensors that a model of timm's has with its classifier only, which may lie in a module that features need too."""
    import timm

    options = timm_options(name.partition(".")[0], 3)
    with torch.device("meta"):
        own, whole = (timm.create_model(name, pretrained=False, **options | more) for more in ({}, {"num_classes": 2}))
    return frozenset(whole.state_dict()) - frozenset(own.state_dict())


def channels_of_images(model: nn.Module) -> int:
    """C of the images that a network is for: 1 where its first convolution takes one channel, 3 otherwise."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return 1 if first is not None and first.in_channels == 1 else 3


def _is_for_grey(model: nn.Module, tensors: Tensors, prefix: str | None) -> bool:
    """Whether a file has the first convolution of a model for colour images with one channel instead."""
    found = next(((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), None)
    if found is None:
        return False
    name, convolution = found
    out, _, *kernel = convolution.weight.shape
    given = [stored.shape for key, stored in tensors.items() if key.endswith(f"{prefix or ''}{name}.weight")]
    return bool(given) and all(shape == (out, 1, *kernel) for shape in given)


def takes_any_size(model: nn.Module) -> bool:
    """Whether a model of timm's interpolates its positions to the size of the images."""
    return bool(getattr(model, "dynamic_img_size", False)) and isinstance(
        getattr(model, "pos_embed", None), nn.Parameter
    )


def _side(positions: int, most: int) -> int | None:
    """Patches along a side, of that many positions, up to `most` of which are not a patch's (of the class, of registers)."""
    return next(
        (math.isqrt(positions - n) for n in range(most + 1) if math.isqrt(positions - n) ** 2 == positions - n), None
    )


def image_size(native: int, patch: int) -> int:
    """Side of images to score a transformer of any size by: its own, at most LARGEST, in whole patches."""
    return min(native, LARGEST // patch * patch)


def file_shapes(model: nn.Module, tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's tensors as a file has them: with registers, DINOv2's positions begin with the class token's."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if _adds_position_to_class(model):
        first, positions, channels = shapes["pos_embed"]
        if any(found.positions == positions + 1 for found in transformers(tensors)):
            shapes["pos_embed"] = (first, positions + 1, channels)
    return shapes


def converted(model: nn.Module, state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A file's tensors as the model has them: timm's class token has its position added, where there are registers.

    Args:
        model: that they are for.
        state: from names behind `prefix`.
        prefix: of the names.
    """
    positions = state.get(f"{prefix}pos_embed")
    if positions is None or not _adds_position_to_class(model):
        return state
    own = model.get_parameter("pos_embed").shape[1]
    if positions.shape[1] == own:
        return state
    with torch.no_grad():
        token = state[f"{prefix}cls_token"] + positions[:, :1]
    return state | {f"{prefix}cls_token": token, f"{prefix}pos_embed": positions[:, 1:]}


def _adds_position_to_class(model: nn.Module) -> bool:
    return bool(getattr(model, "no_embed_class", False)) and getattr(model, "reg_token", None) is not None
