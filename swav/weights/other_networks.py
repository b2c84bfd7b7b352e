"""Describe a state_dict that holds no whole backbone of ours, by the names of its tensors, so that the right file can be found."""

import re
from collections.abc import Sequence

import torch

from swav.config import TIMM
from swav.errors import counted
from swav.weights.fits import Model, Shape, Tensors, compared
from swav.weights.pickle_vm import shown
from swav.weights.transformers import Transformer, file_shapes, timm_model, transformers

_OF_YOURS = "model=module:function names a function of yours that makes"
# (in one of its names, what it is, what to do), the first that applies. A name alone proves little, so each is one that
# networks for images on their own do not have.
_KINDS = (
    (
        r"[._]lora_(A|B|down|up)\b|\blora_(A|B)\b",
        "a LoRA, which is changes to another network's weights",
        "merge it into them, and give the result",
    ),
    (r"(^|[._])_?flat_param(_|$)", "a shard of FSDP's", "gather the whole state_dict, and save that"),
    (
        r"(^|\.)(logit_scale|text_projection|text_model\.|text\.|txt_)",
        "a network for images and texts, as CLIP is",
        f"{_OF_YOURS} its image part, prefix=TEXT its place",
    ),
    (
        r"(^|\.)(word_embeddings|embed_tokens|tok_embeddings|token_embedding|wte|lm_head)\.weight$",
        "a network for texts",
        "give weights of a network for images",
    ),
    (
        r"(^|\.)(diffusion_model|down_blocks|up_blocks|first_stage_model)\.",
        "a network that makes images (a diffusion model, or its autoencoder)",
        "give weights of a network that describes them",
    ),
    (
        r"(^|\.)(res2\.0\.conv1|stem\.conv1\.norm)\.",
        "a network in Detectron2's names",
        "give the backbone under torchvision's",
    ),
    (
        r"(^|\.)(proposal_generator|rpn|rpn_head|roi_heads?|bbox_head|bbox_embed|bbox_embedding|dfl)\."
        r"|(^|\.)head\.(classification|regression)_head(s?)\.",
        "a detector, without a backbone that is known here",
        "give the weights that its backbone began with",
    ),
    (
        r"(^|\.)(prompt_encoder|mask_decoder)\.",
        "Segment Anything's network",
        f"{_OF_YOURS} its image_encoder, with features [N, F]",
    ),
    (r"(^|\.)storage_tokens$", "a DINOv3 in its own names", f"give timm's file of it, with model={TIMM}NAME"),
    (
        r"\.attention\.attention\.query\.|(^|\.)embedder\.embedder\.convolution\.",
        "a network in the names of Hugging Face's transformers",
        f"give its file from the project or from timm, or {_OF_YOURS} it",
    ),
    (
        r"(^|\.)encoder\.layers\.encoder_layer_\d+\.",
        "a vision transformer in torchvision's names",
        f"give timm's file of it, with model={TIMM}NAME, or {_OF_YOURS} it, without its classifier",
    ),
)
# {(blocks of the third stage, shape of a first block's 3x3 convolution): a ResNet in torchvision's names, which timm shares}
_RESNETS: dict[tuple[int, Shape], str] = {
    (23, (64, 64)): "resnet101",
    (36, (64, 64)): "resnet152",
    (6, (128, 128)): "wide_resnet50_2",
    (23, (128, 128)): "wide_resnet101_2",
    (6, (128, 4)): "resnext50_32x4d",
    (23, (256, 8)): "resnext101_32x8d",
}


def found_instead(tensors: Tensors) -> str:
    """Describe a file in which no backbone of ours begins, with what to do, as the end of a sentence."""
    if kind := kind_of(tensors):
        return f", found {kind}"
    if found := list(transformers(tensors)):
        return f", found {_of_transformers(tensors, found)}"
    names = ", ".join(map(shown, list(tensors)[:4]))
    if len(tensors) < 4:
        shapes = ", ".join(f"{shown(name)} {list(stored.shape)}" for name, stored in tensors.items())
        return f", found {shapes}: features or part of a network, not its weights"
    if not any(len(stored.shape) > 3 for stored in tensors.values()):
        return (
            f", found {len(tensors)} without a convolution among them ({names} ...): heads on features, or part of a network; "
            "give the weights of the backbone"
        )
    return (
        " (layer1.0.conv1.weight behind any prefix, or children by number with "
        f"room for activation and max-pool), found {len(tensors)} others: {names} ...\n"
        f"model={TIMM}NAME or module:function names another network that they are of"
    )


def kind_of(tensors: Tensors) -> str:
    """Describe a file without a backbone, with what to do; return an empty string where its names do not tell."""
    if (layer := _lone_layer(tensors)) is not None:
        outputs, inputs = tensors[layer].shape
        return (
            f"a linear layer alone ({shown(layer)} {[outputs, inputs]}: from {inputs} features to {outputs} classes), as an "
            "evaluation on frozen features leaves it; give the weights that it was trained on"
        )
    for pattern, kind, advice in _KINDS:
        if (name := next((name for name in tensors if re.search(pattern, name)), None)) is not None:
            return f"{kind} ({counted(len(tensors), 'tensor')}, {shown(name)} among them); {advice}"
    return ""


def timms_instead(tensors: Tensors, prefix: str) -> str | None:
    """The ResNet of timm's whose tensors are all there under a prefix, and nothing else of its modules; None: none of the usual."""
    blocks = {match[1] for name in tensors if (match := re.match(rf"{re.escape(prefix)}layer3\.(\d+)\.", name))}
    convolution = tensors.get(f"{prefix}layer1.0.conv2.weight")
    name = _RESNETS.get((len(blocks), convolution.shape[:2])) if convolution is not None else None
    return name if name is not None and _is(name, tensors, prefix) else None


def _of_transformers(tensors: Tensors, found: Sequence[Transformer]) -> str:
    one = found[0]
    more = f" and {len(found) - 1} more (prefix=TEXT says which)" if len(found) > 1 else ""
    what = f"a vision transformer at '{shown(one.prefix)}'{more}: {one}"
    name = next((name for name in one.timm_names if _is(name, tensors, one.prefix)), None)
    if name is None:
        return f"{what}; model={TIMM}NAME says which of timm's it is, or model=module:function makes it"
    return f"{what}; model={TIMM}{name} reads it, if its heads have 64 channels as usual (no tensor shows that)"


def _is(name: str, tensors: Tensors, prefix: str) -> bool:
    """Whether all tensors of a model of timm's are there, and no other of its modules."""
    with torch.device("meta"):
        model, _ = timm_model(name, tensors, prefix)
    own = Model(name, file_shapes(model, tensors))
    return compared(own, prefix, False, {each: each for each in tensors}, tensors).faults == 0


def _lone_layer(tensors: Tensors) -> str | None:
    """The name of a matrix beside which there are at most its bias and a BatchNorm before it."""
    matrices = [name for name, tensor in tensors.items() if len(tensor.shape) > 1]
    if len(matrices) != 1 or len(tensors[matrices[0]].shape) != 2:
        return None
    outputs, inputs = tensors[matrices[0]].shape
    bias = matrices[0].removesuffix("weight") + "bias"
    rest = {name: tensor.shape for name, tensor in tensors.items() if name != matrices[0]}
    fits = all(shape == () or shape == ((outputs,) if name == bias else (inputs,)) for name, shape in rest.items())
    return matrices[0] if fits else None
