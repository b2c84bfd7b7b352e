"""What a pre-training run needs before its first step, as far as it can be known without torch.

A wrong path is then reported at once, before seconds go into the import of torch. Whatever passes is checked as a whole
where it is used (setup.py).
"""

import os
from pathlib import Path

from swav.config import Recipe
from swav.data.sources.open import check_images
from swav.data.sources.walk import image_among
from swav.errors import ConfigError, printable
from swav.files import CHECKPOINTS, check_writable, is_run, refuse_inside
from swav.weights.sources import check_source


def check_pretraining(wanted: Recipe, out: Path, dry_run: bool) -> None:
    """Refuse a run whose images, starting weights or folder cannot be had. Writes nothing.

    Args:
        wanted: settings, of which some may be `auto`.
        out: the run's folder.
        dry_run: whether nothing is going to be written.

    Raises:
        ConfigError: `data` is missing, codes could not be balanced, `init` names nothing, or `out` is new and inside of the
            data, or holds images.
        DataError: there are no images.
        MachineError: `out` cannot be written.
    """
    if wanted.data is None:
        raise ConfigError("data: expected data=PATH (a folder of images, a list file, or CIFAR), found nothing")
    if not (out / CHECKPOINTS).exists():  # a run that is there resumes
        require_balance(wanted, 1)
    check_images(wanted.data)
    refuse_inside(out, wanted.data, resumes=is_run(out))
    if not is_run(out) and out.is_dir() and (image := image_among(os.fsencode(out))):
        raise ConfigError(  # what holds a run is left out of the images
            f"--out {out}: expected a new folder or a run's, found images in it ({printable(os.fsdecode(image))}); use another"
        )
    if wanted.init is not None and not (out / CHECKPOINTS).exists():  # a run that resumes does not read it again
        check_source(wanted.init)
    if not dry_run:
        check_writable(out)


def require_balance(recipe: Recipe, processes: int) -> None:
    """Refuse settings under which every code is the same whatever the images: then there is nothing to learn. Values that are
    still to be derived fit with anything.

    Args:
        processes: over which the batch is shared.

    Raises:
        ConfigError: a set of one prototype, or one image in the balance.
    """
    if not recipe.left_at_auto("prototypes") and min(recipe.prototype_sets) < 2:
        raise ConfigError(
            f"prototypes: expected at least 2 in each set, found {', '.join(map(str, recipe.prototype_sets))}; with one every image has the same code, and "
            "nothing is learned"
        )
    if recipe.left_at_auto("batch", "queue_length") or recipe.queue_length:
        return
    local = recipe.sinkhorn == "local"
    if (recipe.batch // processes if local else recipe.batch) < 2:
        of_each = f" over {processes} processes with sinkhorn=local" if local and processes > 1 else ""
        raise ConfigError(
            f"batch: expected at least 2 images in the balance of the codes, found batch={recipe.batch}{of_each} without a queue; its "
            "codes are all equal, and nothing is learned. Use a larger batch, or queue_length=N"
        )
