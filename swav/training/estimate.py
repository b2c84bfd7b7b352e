"""A look ahead before the first step: how many images fit into memory, how fast a run will be, what it will take.

What is measured is the step that a run makes (Trainer.step), by this process alone: all but what goes between processes
(gradients, BatchNorm's statistics, sums of Sinkhorn-Knopp), the queue's rows in the balance, and compiling. Networks made
here are thrown away.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from swav import dist
from swav.algorithm import koleo_loss, swapped_loss
from swav.config import Recipe
from swav.data.device import MicroBatches
from swav.data.images import Images
from swav.data.loader import Loader, batches_in_memory
from swav.errors import MachineError, counted
from swav.files import warn_once
from swav.network.backbone import count_parameters
from swav.network.heads import SwavNetwork, build_network
from swav.progress import per_second
from swav.system import available_memory
from swav.training.auto import in_words, power_of_two
from swav.training.budget import evaluation_share
from swav.training.step import Crops, Trainer
from swav.views import view_spec

SECONDS = 6.0  # of steps that are timed
LIMIT_SECONDS = 20.0  # after which what was seen must do
CPU_SHARE, GPU_SHARE = 0.5, 0.9  # of the available memory that a step may take: on a CPU others live there too
_OVERHEAD = 1.3  # of a CPU step over the values it keeps: gradients, scratch space of the kernels; measured 1.1 to 1.4
_IMPORTED_LATER = 200_000_000  # what optimisers import, and workers take for themselves [bytes]
_CPU_STEP_SECONDS = 1.0  # a probing step on a CPU is made of as few images as take about so long


# -- memory


def batch_fits(recipe: Recipe, device: torch.device, most: int) -> tuple[int, str]:
    """The most images at a time, up to `most`, that a process has memory for; and how that was found.

    On a GPU tried: see `max_batch_that_fits`. On a CPU by the rule that a step may take CPU_SHARE of the memory that is
    available now, shared by all processes of a machine: see `cpu_bytes`. (A CPU that runs out of memory kills; there is
    nothing to try.)

    Args:
        recipe: machine, views, network and prototypes settled.

    Raises:
        MachineError: not even one image fits.
    """

    def found() -> int:
        if device.type == "cuda":
            return max_batch_that_fits(_gpu_peak(recipe, device), most, int(GPU_SHARE * available_memory(device)))
        return min(most, _fits_cpu(recipe))

    count = min(dist.on_all_ranks(found))
    how = (
        "tried on this GPU"
        if device.type == "cuda"
        else f"half of the {_gb(available_memory(device))} that are available"
    )
    if count < 1:
        raise MachineError(
            f"expected memory for a step of at least one image, found too little on {device.type}: use smaller crops or a "
            "smaller backbone, or end other programs"
        )
    return count, how


def max_batch_that_fits(peak: Callable[[int], int | None], most: int, budget: int) -> int:
    """`most`, or else the largest power of two below it, whose step stays within a budget; 0 if none does.

    Two small steps tell what an image takes, hence how many fit; steps of that size, halved as often as needed, verify.

    Args:
        peak: bytes at the peak of a step of so many images; None where memory ran out.
        budget: bytes.
    """
    size = min(16, power_of_two(most))
    few, more = peak(size // 2) if size > 1 else None, peak(size)
    if few is not None and more is not None and more > few:
        per_image = (more - few) / (size - size // 2)
        room = size + int((budget - more) / per_image)
        size = most if room >= most else power_of_two(room) if room > 0 else size
    while size and ((used := peak(size)) is None or used > budget):
        size = power_of_two(size - 1) if size > 1 else 0
    return size


def _gpu_peak(recipe: Recipe, device: torch.device) -> Callable[[int], int | None]:
    steps = _Steps(recipe, device)

    def peak(images: int) -> int | None:
        if recipe.koleo > 0 and images < 2:  # such a step cannot be made
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            crops = _random_crops(recipe, images, device)
            for _ in range(2):  # the second has the optimiser's state and the kernels' scratch space in place
                steps.make([crops], images)
        except torch.OutOfMemoryError:
            return None
        return torch.cuda.max_memory_reserved(device)

    return peak


def _fits_cpu(recipe: Recipe) -> int:
    fixed, per_image = cpu_bytes(recipe)
    budget = CPU_SHARE * available_memory(torch.device("cpu")) / _processes_here()
    return max(0, int((budget - fixed) / per_image))


def check_memory(recipe: Recipe, device: torch.device, resumes: bool) -> None:
    """Warn where a step on a CPU probably takes more memory than there is: the system would end the run without a word.

    The estimate is 2 to 30 % above what was measured, so a warning leaves the decision to the user. What a step of a single
    image certainly takes is refused where it is more than there is. (On a GPU the attempt is refused by torch, with advice.)

    Args:
        recipe: settled.
        resumes: whether there is a run whose micro_batch cannot be another.

    Raises:
        MachineError: not even one image fits.
    """
    if device.type != "cpu":
        return
    found = dist.on_all_ranks(lambda: (available_memory(device), *cpu_bytes(recipe)))
    room, fixed, per_image = min(room for room, _, _ in found) // _processes_here(), *found[0][1:]
    at_a_time, least = recipe.images_per_forward(dist.world_size()), 2 if recipe.koleo else 1
    fixed += _loader_bytes(recipe) + _IMPORTED_LATER
    certainly = fixed + round(least * per_image / _OVERHEAD)
    each = " of each process" if _processes_here() > 1 else ""
    if certainly > room:
        raise MachineError(
            f"memory: expected room for a step{each} with {counted(least, 'image')} at a time ({_gb(certainly)}), found {_gb(room)} "
            "available; use a smaller batch=N, smaller crops, fewer workers=N or a smaller backbone, or end other programs"
        )
    takes = fixed + at_a_time * per_image
    if takes <= room or dist.rank():
        return
    most = max(least, int((CPU_SHARE * room - fixed) / per_image))
    fewer = max(count for count in range(1, at_a_time + 1) if at_a_time % count == 0 and count <= most)
    advice = "use smaller crops, fewer workers=N or a smaller backbone"
    if least <= fewer < at_a_time:
        advice = (
            f"use micro_batch={fewer} (codes stay those of the whole batch, BatchNorm's statistics are of {counted(fewer, 'image')}), "
            "a smaller batch=N or smaller crops"
        )
    if resumes:
        advice = f"end other programs, or begin again (another --out): {advice}"
    warn_once(
        f"memory: a step{each} with {counted(at_a_time, 'image')} at a time takes about {_gb(takes)}, {_gb(room)} are available: "
        f"the system may end this run without a word; {advice}"
    )


def _loader_bytes(recipe: Recipe) -> int:
    """Batches of uint8 views in memory, of one process."""
    share = recipe.batch // dist.world_size()
    pixels = sum(crop.count * crop.size**2 * 3 for crop in recipe.crops)
    return batches_in_memory(share, recipe.workers) * share * pixels


def cpu_bytes(recipe: Recipe) -> tuple[int, int]:
    """What a training step takes on a CPU: bytes whatever the batch, and per image.

    Shapes alone tell what a forward keeps for the backward (the backbone runs without weights or pixels), times _OVERHEAD.
    """
    with torch.device("meta"):
        network = build_network(recipe)
    weights, half = 4 * count_parameters(network), recipe.precision != "fp32"
    fixed = _checkpoint_bytes(recipe, network) + weights + (weights // 2 if half else 0)
    return fixed, round(_OVERHEAD * _kept_per_image(recipe, network, torch.bfloat16 if half else torch.float32))


def _kept_per_image(recipe: Recipe, network: SwavNetwork, dtype: torch.dtype) -> float:
    """Bytes that a forward keeps for the backward, of an image's crops.

    Args:
        network: on the meta device; its head is moved to the CPU.
        dtype: that the backbone computes in.
    """
    images = 2
    trunk, head = network.trunk.to(dtype), network.projection_head.to_empty(device="cpu")
    prototypes = network.prototypes.to_empty(device="cpu")
    crops = [crop.to(dtype) for crop in _random_crops(recipe, images, torch.device("meta"))]
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address comes twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), _CpuAttention():
        rows = sum(len(trunk(kind)) for kind in crops)
        embeddings = head(torch.zeros(rows, network.num_features))
        scores = prototypes(embeddings).unflatten(0, (-1, images))
        codes = torch.zeros(len(recipe.code_views), images, scores.shape[2])
        swapped_loss(scores, codes, recipe.code_views, recipe.temperature)
        if not recipe.left_at_auto("koleo") and recipe.koleo:
            koleo_loss(embeddings.unflatten(0, (-1, images))[list(recipe.code_views)])
    return sum(storage.nbytes() for place, storage in kept.items() if place not in weights) / images


class _CpuAttention(TorchFunctionMode):
    """On the meta device attention keeps the matrix of all pairs, on a CPU it does not: take the kernel of the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            function is nn.functional.scaled_dot_product_attention
            and len(args) == 3
            and not (kwargs or {}).get("attn_mask")
        ):
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args)[0]
        return function(*args, **(kwargs or {}))


def _checkpoint_bytes(recipe: Recipe, network: nn.Module) -> int:
    """Weights, the optimiser's state (one number more per weight, or two), and a teacher's weights."""
    numbers = (2 if recipe.optimizer in ("larc", "lars") else 3) + bool(recipe.teacher_momentum)
    return 4 * count_parameters(network) * numbers


def _processes_here() -> int:
    """Of this run on this machine, which share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", dist.world_size()))


# -- speed


def throughput(images: Images, recipe: Recipe, device: torch.device) -> float:
    """Images per second of all processes together, by training for some seconds on the data itself.

    Args:
        recipe: settled but for the length of the run.
    """
    return dist.world_size() * min(dist.on_all_ranks(lambda: _own_throughput(images, recipe, device)))


def _own_throughput(images: Images, recipe: Recipe, device: torch.device) -> float:
    processes = dist.world_size()
    at_a_time = recipe.images_per_forward(processes)
    micro_batches = (
        1 if at_a_time == recipe.batch // processes else 2
    )  # of two micro-batches an image costs what it costs of many
    steps, count = _Steps(recipe, device), micro_batches * at_a_time
    if device.type == "cpu":
        count = _short_enough(recipe, steps, count)
    batch, views = count * processes, view_spec(recipe)
    loader = Loader(
        images,
        views,
        batch=batch,
        workers=recipe.workers,
        rank=dist.rank(),
        world_size=processes,
        start_step=0,
        total_steps=1_000_000,
        steps_per_epoch=len(images) // batch,
        on_device=device.type == "cuda",
    )
    settling = 2 * recipe.workers + 2  # until then batches come that were made while the first step was slow
    ends: list[float] = []
    try:
        for made in loader:
            steps.make(MicroBatches(made, views, device, count // micro_batches), count)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            ends.append(time.monotonic())
            enough = len(ends) > settling and ends[-1] - ends[settling] > SECONDS
            if enough or (len(ends) > 2 and ends[-1] - ends[0] > LIMIT_SECONDS):
                break
    finally:
        loader.close()
    begin = min(settling, len(ends) - 2)
    return count * (len(ends) - 1 - begin) / (ends[-1] - ends[begin])


def _short_enough(recipe: Recipe, steps: "_Steps", most: int) -> int:
    """Fewer images, where a step of `most` would take long: on a CPU its time is in proportion to them."""
    steps.make([_random_crops(recipe, 2, torch.device("cpu"))], 2)  # the first step takes memory and builds kernels
    images, seconds = 2, 0.0
    while images < most and seconds < _CPU_STEP_SECONDS / 3:
        images = min(2 * images, most)
        crops = _random_crops(recipe, images, torch.device("cpu"))
        began = time.monotonic()
        steps.make([crops], images)
        seconds = time.monotonic() - began
    return min(images, most)


# -- a step


class _Steps:
    """Makes steps of any number of images as a run would, of this process alone, with learning rates of 0.

    Args:
        recipe: machine, views, network and prototypes settled.
    """

    def __init__(self, recipe: Recipe, device: torch.device):
        # the optimiser that takes most; KoLeo takes next to nothing, and needs two images
        settled: dict[str, Any] = {"optimizer": "adam", "epsilon": 0.05, "koleo": 0.0}
        settled = {key: value for key, value in settled.items() if recipe.left_at_auto(key)}
        later = ("lr", "final_lr", "warmup_epochs", "queue_length", "freeze_prototypes_steps", "freeze_backbone_steps")
        settled |= dict.fromkeys(later, 0)
        settled |= {"batch": 1, "micro_batch": 0, "epochs": 1, "compile": False}
        with dist.single_process():
            self.trainer = Trainer(
                recipe.model_copy(update=settled), build_network(recipe).to(device), steps_per_epoch=1
            )

    def make(self, micro_batches: Sequence[Crops], images: int) -> None:
        """Make a step of so many images, in one micro-batch or several."""
        self.trainer.batch = images
        try:
            with dist.single_process():
                self.trainer.step(micro_batches, 0)
        finally:  # where memory ran out, too
            self.trainer.optimizer.zero_grad()


def _random_crops(recipe: Recipe, images: int, device: torch.device) -> list[Tensor]:
    return [
        torch.randn(crop.count * images, recipe.in_channels, crop.size, crop.size, device=device)
        .contiguous(memory_format=torch.channels_last)
        for crop in recipe.crops
    ]  # fmt: skip


# -- forecast


def estimate_run(
    images: Images, scored: int, recipe: Recipe, device: torch.device, out: Path, speed: float | None = None
) -> str:
    """Lines on the time, memory and disk that a run will take, and how far off they may be.

    Args:
        scored: images that each kNN evaluation runs through the network.
        recipe: settled.
        out: the run's folder; it need not exist.
        speed: images per second, where they are known.
    """
    if speed is None:
        speed = throughput(images, recipe, device)
    evaluations = math.ceil(recipe.epochs / max(1, round(recipe.knn_every_epochs))) if scored else 0
    scoring = evaluations * evaluation_share(recipe, len(images), scored) * len(images) / speed
    trained = recipe.epochs * (len(images) // recipe.batch * recipe.batch)
    disk = (recipe.keep_checkpoints + 2) * _checkpoint_bytes(
        recipe, build_network(recipe)
    )  # the best, and the one being written
    free = shutil.disk_usage(next(folder for folder in (out, *out.absolute().parents) if folder.exists())).free
    memory, room = _memory(recipe, device), available_memory(device)
    where = "of the GPU" if device.type == "cuda" else "a process"
    lines = [
        f"time       {in_words(trained / speed + scoring)} at {per_second(speed)}"
        + (f", {in_words(scoring)} of it for kNN" if evaluations else ""),
        f"memory     {_gb(memory)} {where}, of {_gb(room)} available" + (": TOO MUCH" if memory > room else ""),
        f"disk       {_gb(disk)} of checkpoints, of {_gb(free)} free" + (": TOO MUCH" if disk > free else ""),
        f"measured   in {SECONDS:g} s of steps on this machine, as busy as it is now: the time may be off by a third, "
        "memory by half, disk by a tenth",
    ]
    return "\n".join(lines)


def _memory(recipe: Recipe, device: torch.device) -> int:
    at_a_time = recipe.images_per_forward(dist.world_size())
    if device.type == "cuda":
        peak = _gpu_peak(recipe, device)(at_a_time)
        return available_memory(device) + 1 if peak is None else peak
    fixed, per_image = cpu_bytes(recipe)
    return _BARE_PROCESS + fixed + _loader_bytes(recipe) + at_a_time * per_image


_BARE_PROCESS = 800_000_000  # Python with torch and this package, before a network is built [bytes]


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 5e7 else f"{count / 1e6:.1f} MB"
