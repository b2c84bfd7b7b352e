"""What network a file of weights holds, found from its tensors' names and shapes alone.

Projects give the same ResNet different names: a prefix (`module.`, `backbone.`), or children by number. Any one of them
that makes the whole backbone fit is accepted. A layout adds where the project keeps head and prototypes, and how it
normalised images.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from swav.errors import CheckpointError
from swav.weights.fits import Fit, Model, Shape, Tensors, compared
from swav.weights.other_networks import found_instead, kind_of, timms_instead
from swav.weights.pickle_vm import shown

Triple = tuple[float, float, float]

STD: Triple = (0.229, 0.224, 0.225)
ORIGINAL_STD: Triple = (0.228, 0.224, 0.225)  # a slip that the released runs and their evaluations share


@dataclasses.dataclass(frozen=True)
class KeyLayout:
    """Where a project keeps the parts of a SwAV network.

    Attributes:
        name: of the project.
        backbone: what its keys begin with.
        head: what those of the projection head (a Sequential) begin with; empty: not kept.
        prototypes: likewise.
        marks: beginnings of keys, one of which distinguishes this layout from others with the same backbone; none: nothing need.
        beside: a name beside the state_dict that does.
        std: that images were divided by, where that is known. (All subtract the same mean.)
        padding: of a 3x3 first convolution, which no tensor shows.
        needs: names of the backbone's that all must be there.
    """

    name: str
    trunk: str
    head: str = ""
    prototypes: str = ""
    marks: tuple[str, ...] = ()
    beside: str = ""
    std: Triple | None = None
    padding: int = 1
    needs: tuple[str, ...] = ()

    def behind(self, outer: str) -> "KeyLayout":
        """The layout in a module that wraps the network."""
        parts = {key: outer + value for key in ("head", "prototypes") if (value := getattr(self, key))}
        marks = tuple(outer + name for name in self.marks)
        return dataclasses.replace(self, trunk=outer + self.trunk, marks=marks, **parts)


def _marked_by_its_head(
    name: str, trunk: str, head: str, prototypes: str, std: Triple | None, padding: int = 1
) -> KeyLayout:
    return KeyLayout(name, trunk, head, prototypes, (head, prototypes), std=std, padding=padding)


_OF_DINOV2 = ("mask_token", "blocks.0.ls1.gamma")
# The first that applies is taken. lightly 1.6, solo-learn 1.0.2 (which says `encoder.`) and MMPretrain 1.2 were checked
# against the packages, the others against descriptions of their files.
LAYOUTS = (
    _marked_by_its_head(
        "facebookresearch/swav", "module.", "module.projection_head.", "module.prototypes.", ORIGINAL_STD
    ),
    _marked_by_its_head("facebookresearch/swav", "", "projection_head.", "prototypes.", ORIGINAL_STD),  # no `module.`
    KeyLayout("VISSL", "trunk._feature_blocks.", "heads.0.projection_head.", "heads.0.prototypes0."),
    KeyLayout("VISSL", "trunk.base_model._feature_blocks.", "heads.0.projection_head.", "heads.0.prototypes0."),
    KeyLayout("VISSL", "_feature_blocks."),
    KeyLayout(
        "MMSelfSup 0.x", "backbone.", "neck.projection_neck.", "head.prototypes.", ("head.prototypes.",), std=STD
    ),
    KeyLayout("MMSelfSup 1.x", "backbone.", "neck.projection_neck.", "head.loss.prototypes.", ("head.loss.",), std=STD),
    KeyLayout(
        "MMPretrain",
        "backbone.",
        "neck.projection_neck.",
        "head.loss_module.prototypes.",
        ("head.loss_module.",),
        std=STD,
    ),
    KeyLayout("MMSelfSup or MMPretrain", "backbone.", "neck.projection_neck.", beside="meta", std=STD),
    KeyLayout("extracted by MMSelfSup", "", beside="author", std=STD),
    _marked_by_its_head("lightly", "backbone.", "projection_head.layers.", "prototypes.heads.0.", STD),
    _marked_by_its_head("solo-learn", "backbone.", "projector.", "prototypes.", None, 2),
    _marked_by_its_head("solo-learn", "encoder.", "projector.", "prototypes.", None, 2),
    KeyLayout("DINOv2", "teacher.backbone.", needs=_OF_DINOV2, std=STD),
    KeyLayout("DINOv2", "", needs=_OF_DINOV2, std=STD),
    # With `student.` beside it; the teacher is what they evaluate. A ResNet's is in DDP, a transformer's is not.
    KeyLayout("DINO", "teacher.backbone.", std=STD),
    KeyLayout("DINO", "teacher.module.backbone.", std=STD),
    KeyLayout("DINO of lightly", "teacher_backbone.", std=STD),
    KeyLayout("torchvision or timm", "", marks=("fc.",), std=STD),
)
_KNOWN = {layout.name for layout in LAYOUTS}
_WRAPPER = re.compile(r"(module|model|net|network|learner|method|lit_model|ema|ema_model|state_dict)\.")


def layout_of(prefix: str, tensors: Tensors, tree: Any) -> KeyLayout:
    """The layout of a file whose backbone has this prefix, as it is or in modules that wrap it (DDP's, Lightning's)."""
    outer = ""
    while True:
        for layout in LAYOUTS:
            layout = layout.behind(outer)
            marked = not layout.marks or any(name.startswith(layout.marks) for name in tensors)
            beside = not layout.beside or (isinstance(tree, dict) and layout.beside in tree)
            if layout.trunk == prefix and marked and beside and all(prefix + name in tensors for name in layout.needs):
                return layout
        if (wrapper := _WRAPPER.match(prefix, len(outer))) is None:
            return KeyLayout(f"names that begin with '{shown(prefix)}'" if prefix else "plain names", prefix)
        outer += wrapper[0]


# -- the backbone


def find_trunk(
    path: Path, tensors: Tensors, models: Callable[[Shape | None], Sequence[Model]], prefix: str | None, tree: Any
) -> Fit:
    """The one model whose whole backbone is in the file.

    Args:
        path: of the file, for messages.
        tensors: of the file, by name.
        models: those that may be meant, for the shape of the first convolution (None: it is not there).
        prefix: of the backbone's names, where the user says it.
        tree: of the file.

    Raises:
        CheckpointError: no model's whole backbone is there, or more than one.
    """
    fits = list(_fits(tensors, models, prefix))
    whole = [fit for fit in fits if fit.faults == 0]
    if len(whole) > 1:  # a project's own backbone goes before a copy that it keeps, as a momentum teacher
        known = [fit for fit in whole if layout_of(fit.prefix, tensors, tree).name in _KNOWN]
        whole = known if len(known) == 1 else whole
    if len(whole) == 1:
        return whole[0]
    if whole:
        found = ", ".join(f"'{shown(fit.prefix)}'" for fit in whole)
        raise CheckpointError(
            f"{path}: expected one backbone, found {len(whole)}, at {found}; say which: prefix={shown(whole[0].prefix)}"
        )
    _raise_no_fit(path, tensors, fits, tree)


def _fits(tensors: Tensors, models: Callable[[Shape | None], Sequence[Model]], prefix: str | None) -> Iterator[Fit]:
    for numbered, names in _spellings(tensors):
        for start in _starts(names, models(None)) if prefix is None else [prefix]:
            first = names.get(f"{start}conv1.weight")
            for model in models(tensors[first].shape if first else None):
                yield compared(model, start, numbered, names, tensors)


def _spellings(tensors: Tensors) -> Iterator[tuple[bool, dict[str, str]]]:
    """{name as ours: the file's name}: as it is (but for lightly's word for the shortcut), and with children named."""
    plain = {name.replace(".shortcut.", ".downsample."): name for name in tensors}
    yield False, plain
    if any(".shortcut." in name for name in tensors):
        yield False, {name: name for name in tensors}  # some of timm's networks say so too
    children: dict[str, dict[int, dict[str, str]]] = {}  # {"backbone.": {4: {"0.conv1.weight": the file's name}}}
    for name, given in plain.items():
        if match := re.match(r"(|.*?\.)(\d{1,4})\.(.*)", name):
            children.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = given
    for start, by_number in children.items():
        if stages := _stages(by_number, tensors):
            yield (
                True,
                {
                    f"{start}{stages.get(number, number)}.{rest}": given
                    for number, names in by_number.items()
                    for rest, given in names.items()
                },
            )


def _stages(by_number: Mapping[int, Mapping[str, str]], tensors: Tensors) -> dict[int, str]:
    """Names of a Sequential's children, {4: "layer1"}; empty where they are no ResNet's.

    Between bn1 and layer1 there must be room for the activation, and for the max-pool under a 7x7 convolution: a
    Sequential without them is another network, though all of its tensors fit (lightly's tutorials with ResNetGenerator).
    """
    numbers = sorted(by_number)
    first = by_number[numbers[0]].get("weight")
    shape = tensors[first].shape if first else ()
    gaps = [after - before for before, after in itertools.pairwise(numbers[:6])]
    allowed = ([1, 3, 1, 1, 1], [1, 2, 1, 1, 1]) if shape[-1:] == (3,) else ([1, 3, 1, 1, 1],)
    names = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    return dict(zip(numbers, names, strict=False)) if len(shape) == 4 and gaps in allowed else {}


def _starts(names: Mapping[str, str], models: Sequence[Model]) -> list[str]:
    """What a backbone's names may begin with: all that comes before one of a few names that every such backbone has."""
    anchors = {"layer1.0.conv1.weight", "layer4.0.conv1.weight"}
    for model in models:
        if not anchors & set(model.shapes):
            anchors |= {next(iter(model.shapes)), [*model.shapes][-1]}
    return list(dict.fromkeys(name.removesuffix(end) for name in names for end in anchors if name.endswith(end)))


def _raise_no_fit(path: Path, tensors: Tensors, fits: Sequence[Fit], tree: Any) -> NoReturn:
    if not fits:
        raise CheckpointError(f"{path}: expected a backbone's tensors{found_instead(tensors)}")
    near = min(fits, key=lambda fit: fit.faults)
    if 2 * len(near.places) < len(near.model.shapes) and (kind := kind_of(tensors)):
        raise CheckpointError(f"{path}: expected a backbone's tensors, found {kind}")
    layout = layout_of(near.prefix, tensors, tree)
    first = near.prefix + "conv1.weight"
    shape = tensors[first].shape if first in tensors else ()
    if len(shape) == 4 and shape[1] not in (1, 3):
        raise CheckpointError(
            f"{path}: expected a network for colour images (3 channels) or grey ones (1), found one for {shape[1]} channels "
            f"({shown(first)} {list(shape)}); such images are not read here"
        )
    faults = [
        f"{word} {', '.join(which[:3])}{f' and {len(which) - 3} more' if len(which) > 3 else ''}"
        for word, which in (("missing", near.missing), ("wrong shape", near.wrong), ("too many", near.surplus))
        if which
    ]
    timms = timms_instead(tensors, near.prefix) if near.prefix + "layer1.0.conv1.weight" in tensors else None
    advice = "model=NAME or module:function names the network, prefix=TEXT its place"
    if timms is not None:
        advice = f"model=timm:{timms} reads it" + (f", with prefix={shown(near.prefix)}" if near.prefix else "")
    raise CheckpointError(
        f"{path}: expected the whole backbone of a known network, found none; nearest: {near.model.name} in the layout of "
        f"{layout.name}, {len(near.places)} of {len(near.model.shapes)} keys at '{shown(near.prefix)}'\n"
        f"{'; '.join(faults)}\n{advice}"
    )


# -- what stands on it


def head_places(tensors: Tensors, layout: KeyLayout, features: int) -> dict[str, str]:
    """{name in our projection head: the file's name}; empty where there is no Linear, BatchNorm, ReLU, Linear."""
    if not layout.head:
        return {}
    there = {name.removeprefix(layout.head): name for name in tensors if name.startswith(layout.head)}
    needed = {"0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight", "3.bias"}
    if not needed <= set(there) <= needed | {"0.bias", "1.num_batches_tracked"}:
        return {}
    first, last = (tensors[there[key]].shape for key in ("0.weight", "3.weight"))
    if len(first) != 2 or len(last) != 2 or first[1] != features or last[1] != first[0]:
        return {}
    vectors = {key: last[0] if key == "3.bias" else first[0] for key in there if len(tensors[there[key]].shape) == 1}
    fits = all(tensors[there[key]].shape == (size,) for key, size in vectors.items())
    return there if fits and needed - {"0.weight", "3.weight"} <= set(vectors) else {}


# A plain weight, or a weight-normalised one: as torch named its parts before 2.0 (magnitude, direction), and since.
PROTOTYPE_KEYS = (
    ("weight",),
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


def prototype_places(tensors: Tensors, layout: KeyLayout, dim: int) -> tuple[str, ...]:
    """Names of the prototypes' tensors, as PROTOTYPE_KEYS; empty where there are none of that dimension."""
    for keys in PROTOTYPE_KEYS if layout.prototypes else ():
        names = tuple(layout.prototypes + key for key in keys)
        if all(name in tensors for name in names):
            shape = tensors[names[-1]].shape
            return names if len(shape) == 2 and shape[1] == dim else ()
    return ()
