"""Where in a file of weights the network's tensors are: projects wrap a state_dict in dicts, and its names in prefixes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from swav.errors import CheckpointError
from swav.weights.containers import WeightFile
from swav.weights.pickle_vm import TensorRef, shown

# Names under which projects put the state_dict in a file, one in another too. VISSL's is three dicts deep.
WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net", "model_state", "checkpoint")
VISSL_PLACE = ("classy_state_dict", "base_model", "model")
# Modules that torch puts around others, anywhere in a name: torch.compile, FSDP, and recomputed activations.
WRAPPING_MODULES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_AVERAGES = ("ema", "teacher", "momentum", "swa")  # in names of copies that are averaged over the training
_MAX_DEPTH = 6


def tensors_by_name(file: WeightFile, prefix: str | None = None) -> dict[str, TensorRef]:
    """The state_dict of a file, wherever it lies in it, without the names of modules that only wrap others.

    Args:
        file: of weights.
        prefix: of the names that are wanted: they may lie beside the state_dict, under the names of dicts joined by dots.

    Raises:
        CheckpointError: there is none.
    """
    tree = file.tree if isinstance(file.tree, dict) else {}
    vissl: Any = tree
    for name in VISSL_PLACE:
        vissl = vissl.get(name) if isinstance(vissl, dict) else None
    everything = _plain(dict(_joined(file.tree)))
    flat = (_own(tree), dict(_joined(tree, depth=2)))
    found = [
        dict(_joined(vissl, depth=2)),
        *(_unwrapped(tree.get(name)) for name in WRAPPERS),
        *(tensors for tensors in flat if 2 * len(tensors) >= len(everything)),  # a queue beside the networks is none
        everything,
    ]
    tensors = _plain(next(filter(None, found), {}))
    if prefix and not any(name.startswith(prefix) for name in tensors):
        tensors = {name: stored for name, stored in everything.items() if name.startswith(prefix)} or tensors
    if tensors:
        return tensors
    raise CheckpointError(f"{file.path}: expected tensors by name (a state_dict), found {_what_it_is(file)}")


def averages_beside(file: WeightFile, taken: Mapping[str, TensorRef], names: Sequence[str]) -> str:
    """The prefix of a backbone that was averaged over the training and is not among the tensors that are taken; empty: none.

    Args:
        file: of weights.
        taken: tensors, by name.
        names: of the backbone's tensors, without a prefix.
    """
    keys = {stored.key for stored in taken.values()}
    tensors = _plain(dict(_joined(file.tree)))
    for name, stored in tensors.items():
        start = name.removesuffix(names[0])
        if (
            start != name
            and stored.key not in keys
            and any(word in start.lower() for word in _AVERAGES)
            and all(start + rest in tensors for rest in names)
        ):
            return start
    return ""


def _unwrapped(value: Any) -> dict[str, TensorRef]:
    """The tensors of a dict, or of a wrapper in it."""
    if own := _own(value):
        return own
    inner = (_unwrapped(value[name]) for name in WRAPPERS if isinstance(value, dict) and name in value)
    return next(filter(None, inner), {})


def _own(value: Any) -> dict[str, TensorRef]:
    return dict(_joined(value, depth=1))


def _joined(value: Any, depth: int = _MAX_DEPTH) -> Iterator[tuple[str, TensorRef]]:
    """Tensors in dicts within dicts, as in {"trunk": {...}, "heads": {...}}, and in short lists, by their names joined by dots."""
    if isinstance(value, list | tuple) and depth > 1:
        value = {str(i): one for i, one in enumerate(value) if isinstance(one, dict)} if len(value) < 10 else {}
    for name, inner in value.items() if isinstance(value, dict) else ():
        if not isinstance(name, str):
            continue  # an optimiser's state is by number
        if isinstance(inner, TensorRef):
            yield name, inner
        elif depth > 1:
            yield from ((f"{name}.{rest}", stored) for rest, stored in _joined(inner, depth - 1))


def _plain(tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    plain = {unwrapped_name(name): stored for name, stored in tensors.items()}
    return plain if len(plain) == len(tensors) else dict(tensors)


def unwrapped_name(name: str) -> str:
    """A tensor's name, or its beginning, without modules that torch puts around others."""
    for wrapping in WRAPPING_MODULES:
        name = name.replace(wrapping, "")
    return name


def _what_it_is(file: WeightFile) -> str:
    """Describe a file in which no tensor has a name."""
    tree = file.tree
    if isinstance(tree, TensorRef):
        return f"one tensor {list(tree.shape)}, of features perhaps"
    holds = ", ".join(shown(str(name)) for name in list(tree)[:6]) if isinstance(tree, dict) else ""
    if isinstance(tree, dict) and "param_groups" in tree:
        return f"the state of an optimiser ({holds}), without the network; give the file of the weights beside it"
    if any(
        isinstance(value, dict) and "param_groups" in value
        for value in (tree.values() if isinstance(tree, dict) else ())
    ):
        return f"an optimiser's state and no network ({holds}); give the file of the weights beside it"
    objects = f"objects of {', '.join(shown(name) for name in sorted(file.inert)[:3])}" if file.inert else ""
    if any(name.startswith("torch.nn.modules.") for name in file.inert):
        return f"a whole pickled model ({objects}); save its state_dict()"
    return ", and ".join(filter(None, [holds or "nothing by name", objects])) + "; save the model's state_dict()"
