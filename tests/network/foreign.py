"""Other projects' weight files, made as they make them: the same names, wrappers, formats and bystanders, on a small network.

Names are those of the projects' files; lightly's, solo-learn's (1.0.2) and MMPretrain's were read off the packages.
"""

import argparse
import contextlib
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from swav.network.backbone import ResNet
from swav.network.heads import SwavNetwork

State = dict[str, Tensor]


def network(
    block: Any = "bottleneck", layers: tuple[int, ...] = (3, 4, 6, 3), stem: Any = "imagenet", width: float = 0.125
) -> SwavNetwork:
    """A ResNet-50 with narrow layers, a head of 16-8 and 12 prototypes; statistics and biases as after training."""
    made = SwavNetwork(ResNet(block, layers, width=width, stem=stem), hidden=16, dim=8, prototypes=12)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            state = module.state_dict()
            for name, tensor in state.items():
                if name in ("weight", "running_var"):
                    tensor.uniform_(0.5, 1.5)
                elif name in ("bias", "running_mean"):
                    tensor.normal_(0, 0.3)
            state["num_batches_tracked"].fill_(7)
    made.prototypes.weight.data.copy_(nn.functional.normalize(made.prototypes.weight.data, dim=1))
    return made.eval()


def put(prefix: str, module: nn.Module) -> State:
    return OrderedDict((prefix + name, tensor) for name, tensor in module.state_dict().items())


def _bystander(module: str, name: str) -> type:
    return type(name, (), {"__module__": module, "__qualname__": name})


# Objects of packages that are not installed here, which these projects save beside the weights.
AccuracyMeter = _bystander("classy_vision.meters.accuracy_meter", "AccuracyMeter")
DictConfig = _bystander("omegaconf.dictconfig", "DictConfig")
HistoryBuffer = _bystander("mmengine.logging.history_buffer", "HistoryBuffer")


@contextlib.contextmanager
def importable(*kinds: type) -> Iterator[None]:
    """Pickle asks for an object's class by name when it saves it. Afterwards the classes are gone again."""
    stubs: dict[str, types.ModuleType] = {}
    for kind in kinds:
        for i in range(kind.__module__.count(".") + 1):
            name = kind.__module__.rsplit(".", i)[0]
            stubs.setdefault(name, types.ModuleType(name))
        setattr(stubs[kind.__module__], kind.__name__, kind)
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name in stubs:
            del sys.modules[name]


def history_buffer() -> Any:
    """As mmengine's: an object with arrays in its state."""
    made = HistoryBuffer()
    made.__dict__.update(_max_length=1_000_000, _log_history=np.ones(5), _count_history=np.ones(5, dtype=np.int64))
    return made


def optimiser(module: nn.Module) -> dict[str, Any]:
    sgd = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    copies = [parameter.detach().clone() for parameter in module.parameters()]
    sgd.step()
    for parameter, copy in zip(module.parameters(), copies, strict=True):
        parameter.data.copy_(copy)
    return sgd.state_dict()


def swav_flat(net: SwavNetwork, prefix: str = "module.") -> State:
    return (
        put(prefix, net.trunk)
        | put(f"{prefix}projection_head.", net.projection_head)
        | put(f"{prefix}prototypes.", net.prototypes)
    )


def swav_training(net: SwavNetwork) -> Any:
    return {
        "epoch": 200,
        "state_dict": swav_flat(net),
        "optimizer": optimiser(net),
        "amp": {"loss_scaler0": {"loss_scale": 1.0}},
    }


def vissl(net: SwavNetwork) -> Any:
    heads = put("0.projection_head.", net.projection_head) | put("0.prototypes0.", net.prototypes)
    model = {"trunk": put("_feature_blocks.", net.trunk), "heads": heads}
    base = {"model": model, "meters": [AccuracyMeter()]}
    return {
        "phase_idx": 199,
        "loss": {"queue": torch.ones(3)},
        "classy_state_dict": {"train": True, "base_model": base, "optimizer": optimiser(net)},
    }


def vissl_extracted(net: SwavNetwork) -> Any:
    return {"model_state_dict": put("trunk.base_model._feature_blocks.", net.trunk)}


def open_mmlab(net: SwavNetwork, norm: str, prototypes: str) -> State:
    """BatchNorm stands in the file twice: by its own name and in the neck's Sequential."""
    neck = put("neck.projection_neck.", net.projection_head) | put(f"neck.{norm}.", net.projection_head[1])
    return put("backbone.", net.trunk) | neck | put(f"{prototypes}.", net.prototypes)


def mmselfsup_0(net: SwavNetwork) -> Any:
    meta = {"mmcv_version": "1.4.2", "time": "Mon Dec 13 2021", "epoch": 200, "iter": 1000800}
    return {"meta": meta, "state_dict": open_mmlab(net, "bn", "head.prototypes"), "optimizer": optimiser(net)}


def mmengine(net: SwavNetwork, prototypes: str) -> Any:
    return {
        "meta": {"cfg": "model = dict()", "seed": np.int64(0), "experiment_name": "swav"},
        "state_dict": open_mmlab(net, "norm" if "module" in prototypes else "bn", prototypes),
        "message_hub": {
            "log_scalars": OrderedDict({"train/loss": history_buffer()}),
            "runtime_info": OrderedDict(iter=1),
            "resumed_keys": {},
        },
        "optimizer": optimiser(net),
        "param_schedulers": [{"last_step": 200, "_global_step": 1}],
    }


def extracted(net: SwavNetwork) -> Any:
    return {"state_dict": put("", net.trunk), "author": "MMSelfSup"}


def lightly(net: SwavNetwork, numbered: bool) -> Any:
    trunk = nn.Sequential(*net.trunk.children(), nn.AdaptiveAvgPool2d(1)) if numbered else net.trunk
    net.projection_head.get_parameter("0.bias").data.zero_()  # the head has no bias before its BatchNorm
    head = put("projection_head.layers.", net.projection_head)
    del head["projection_head.layers.0.bias"]
    prototypes = {"prototypes.heads.0.weight": net.prototypes.weight, "prototypes.heads.0.bias": torch.zeros(12)}
    return {
        "epoch": 99,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": put("backbone.", trunk) | head | prototypes,
        "callbacks": {},
        "optimizer_states": [optimiser(net)],
        "hparams_name": "kwargs",
    }


def lightly_small(net: SwavNetwork) -> State:
    """A ResNetGenerator, with its word for the shortcut."""
    return {name.replace("downsample", "shortcut"): tensor for name, tensor in put("backbone.", net.trunk).items()}


def solo_learn(net: SwavNetwork, trunk: str = "backbone.") -> Any:
    weight = net.prototypes.weight.detach()
    prototypes = {"prototypes.weight_g": torch.ones(12, 1), "prototypes.weight_v": 3 * weight}
    classifier = {"classifier.weight": torch.randn(10, 256), "classifier.bias": torch.zeros(10)}
    state = put(trunk, net.trunk) | classifier | put("projector.", net.projection_head) | prototypes
    return {"state_dict": state, "hyper_parameters": DictConfig(), "queue": torch.ones(2, 8)}


def torchvision(net: SwavNetwork) -> State:
    return put("", net.trunk) | {"fc.weight": torch.randn(1000, 256), "fc.bias": torch.zeros(1000)}


def timm_training(net: SwavNetwork) -> Any:
    return {"epoch": 5, "arch": "resnet50", "args": argparse.Namespace(lr=0.1), "state_dict": torchvision(net)}


Written = Callable[[SwavNetwork], Any]

# {name: (what is saved, the layout that must be found, whether head and prototypes are in it)}
LAYOUTS: dict[str, tuple[Written, str, bool]] = {
    "facebookresearch, released": (swav_flat, "facebookresearch/swav", True),
    "facebookresearch, training": (swav_training, "facebookresearch/swav", True),
    "facebookresearch, no module.": (lambda net: swav_flat(net, ""), "facebookresearch/swav", True),
    "VISSL": (vissl, "VISSL", True),
    "VISSL, extracted": (vissl_extracted, "VISSL", False),
    "MMSelfSup 0.x": (mmselfsup_0, "MMSelfSup 0.x", True),
    "MMSelfSup 1.x": (lambda net: mmengine(net, "head.loss.prototypes"), "MMSelfSup 1.x", True),
    "MMPretrain": (lambda net: mmengine(net, "head.loss_module.prototypes"), "MMPretrain", True),
    "extracted backbone": (extracted, "extracted by MMSelfSup", False),
    "lightly, named": (lambda net: lightly(net, numbered=False), "lightly", True),
    "lightly, numbered": (lambda net: lightly(net, numbered=True), "lightly", True),
    "solo-learn": (solo_learn, "solo-learn", True),
    "solo-learn 1.0.2": (lambda net: solo_learn(net, "encoder."), "solo-learn", True),
    "torchvision": (torchvision, "torchvision or timm", False),
    "timm, training": (timm_training, "torchvision or timm", False),
}


def write(path: Path, tree: Any, form: str = "zip") -> Path:
    """Saves a file in one of three formats: zip, legacy or safetensors."""
    if form == "safetensors":
        save_file(dict(tree), path)
        return path
    with importable(AccuracyMeter, DictConfig, HistoryBuffer):
        torch.save(tree, path, _use_new_zipfile_serialization=form == "zip")
    return path


def plain_cnn() -> nn.Module:
    """A network that no backbone of ours is, for model=module:function."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def no_features() -> nn.Module:
    return nn.Conv2d(3, 8, 3)
