"""What a pre-training run needs before its first step, as far as it can be known without torch.

A wrong path is then reported at once, before seconds go into the import of torch. Whatever passes is checked as a whole
where it is used (setup.py).
"""

from pathlib import Path

from swav.config import Recipe
from swav.data.sources.open import check_images
from swav.errors import ConfigError
from swav.files import CHECKPOINTS, check_writable
from swav.weights.sources import check_source


def check_pretraining(wanted: Recipe, out: Path, dry_run: bool) -> None:
    """Refuse a run whose images, starting weights or folder cannot be had. Writes nothing.

    Args:
        wanted: settings, of which some may be `auto`.
        out: the run's folder.
        dry_run: whether nothing is going to be written.

    Raises:
        ConfigError: `data` is missing, or `init` names nothing.
        DataError: there are no images.
        MachineError: `out` cannot be written.
    """
    if wanted.data is None:
        raise ConfigError("data: expected data=PATH (a folder of images, a list file, or CIFAR), found nothing")
    check_images(wanted.data)
    if wanted.init is not None and not (out / CHECKPOINTS).exists():  # a run that resumes does not read it again
        check_source(wanted.init)
    if not dry_run:
        check_writable(out)
