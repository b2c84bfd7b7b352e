"""Segmentation networks of MMSegmentation 0.x as ours: names of their tensors.

    ours.load_state_dict(from_mmseg(torch.load("latest.pth", weights_only=True)["state_dict"]))

`ours` is `Fcn(trunk, trunk.stage_channels, classes)` with a ResNet (imagenet stem) as its trunk; theirs is an EncoderDecoder of
the plain ResNet with FCNHeads, the auxiliary one on layer3.
"""

import re
from collections.abc import Mapping

from torch import Tensor

MMSEG = [
    (r"^backbone\.", "trunk."),
    (r"^decode_head\.", "head."),
    (r"^auxiliary_head\.", "auxiliary."),
]
_IN_HEAD = [(r"\.conv_seg\.", ".classifier."), (r"\.conv\.weight$", ".0.weight"), (r"\.bn\.(\w+)$", r".1.\1")]


def from_mmseg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a whole network of MMSegmentation 0.x.

    Raises:
        KeyError: a tensor has no place in ours.
    """
    return {_renamed(name): x for name, x in state.items()}


def _renamed(name: str) -> str:
    for pattern, new in MMSEG:
        renamed, count = re.subn(pattern, new, name)
        if count:
            break
    else:
        raise KeyError(f"{name}: no tensor of ours")
    if new == "trunk.":
        return renamed
    for pattern, new in _IN_HEAD:
        renamed = re.sub(pattern, new, renamed)
    return renamed
