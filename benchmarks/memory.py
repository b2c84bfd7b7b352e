"""Peak memory of a training step by batch: all of it at once, and in micro-batches.

    python benchmarks/memory.py                                      ResNet-50, 2x224 + 6x96, on what there is
    python benchmarks/memory.py imagenette --plain 64 128 256 512 --batch 4096 --micro 64

Every row is a process of its own: the real step on random pixels, which lie in memory as uint8 as the loader delivers
them. On a GPU its allocator's peak, on a CPU that of the whole process. Results with their machine:
benchmarks/results/memory.md.
"""

import argparse
import subprocess
import sys

COLUMNS = "| batch | at a time | peak [GB] | of it uint8 views [GB] | seconds a step |\n|---|---|---|---|---|"


def measure(name: str, batch: int, micro_batch: int) -> str:
    """A row of the table."""
    import time

    import torch

    from swav.data.augment.photometric import NUM_PARAMS
    from swav.data.device import MicroBatches
    from swav.data.loader import Batch
    from swav.network.heads import build_network
    from swav.recipe_files import load_recipe
    from swav.system import computes_in_bf16, memory_gb, pick_device
    from swav.training.auto import derive
    from swav.training.choices import MachineAndData
    from swav.training.step import Trainer
    from swav.views import view_spec

    device = pick_device()
    wanted = load_recipe(name, {"batch": batch, "micro_batch": micro_batch, "queue_length": 0, "workers": 0})
    recipe, _ = derive(wanted, MachineAndData(10 * batch, device=device.type, has_bf16=computes_in_bf16(device)))
    trainer = Trainer(recipe, build_network(recipe).to(device), steps_per_epoch=10)
    views = [torch.randint(256, (c.count * batch, c.size, c.size, 3), dtype=torch.uint8) for c in recipe.crops]
    neutral = [torch.zeros(len(kind), NUM_PARAMS) for kind in views] if device.type == "cuda" else None
    given = Batch(0, views, neutral, torch.arange(batch), [])
    began = time.perf_counter()
    loss = trainer.step(MicroBatches(given, view_spec(recipe), device, recipe.images_per_forward(1)), 0)[0].item()
    seconds = time.perf_counter() - began
    assert loss > 0
    size = sum(kind.nbytes for kind in views) / 1e9
    return f"| {batch} | {recipe.images_per_forward(1)} | {memory_gb(device):.2f} | {size:.2f} | {seconds:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="swav_200ep_bs256")
    parser.add_argument("--plain", type=int, nargs="*", default=[16, 32, 64], help="batches taken all at once")
    parser.add_argument("--batch", type=int, default=4096, help="the batch taken in micro-batches")
    parser.add_argument("--micro", type=int, nargs="*", default=[64], help="sizes of these")
    parser.add_argument("--row", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(measure(options.recipe, *options.row), flush=True)
        return
    print(COLUMNS, flush=True)
    for batch, micro_batch in [(plain, 0) for plain in options.plain] + [(options.batch, m) for m in options.micro]:
        row = [sys.executable, __file__, options.recipe, "--row", str(batch), str(micro_batch)]
        subprocess.run(row, check=True)


if __name__ == "__main__":
    main()
