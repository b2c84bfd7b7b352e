"""What `auto` chooses where a run starts from existing weights (`init=W`): their network, and a schedule that does not spoil them.

Fresh head and prototypes learn first, on a backbone that stands still; then the backbone follows at a low rate, for a short time; and
the run ends where it does harm. The order and the bounds are those that others report (docs/log.md); the numbers are ours. No torch here.
"""

from swav.errors import counted
from swav.training.choices import Choices, MachineAndData, between

LATER = frozenset({"freeze_backbone_steps", "knn_every_epochs"})  # chosen once the length of the run is known
BACKBONE_LR_FACTOR = 0.1
HEAD_FIRST = 0.1  # of the steps
PASSES, LEAST_SEEN, MOST_SEEN = 50, 128_000, 1_300_000  # over the folder; images, at least and at most
EVALUATIONS = 10  # at least, to find harm in time


def network(choices: Choices, facts: MachineAndData) -> None:
    """What does not depend on the images: the backbone is that of the weights, and so are the normalisation and the widths of a
    head that comes along."""
    if facts.start is None:
        return
    for key, value in facts.start.settings.items():
        choices.choose(key, value, f"that of {facts.start.name}")
    if facts.start.head is not None:
        for key, value in zip(("head_hidden", "head_dim"), facts.start.head, strict=True):
            choices.choose(key, value, f"that of {facts.start.name}, whose head comes along")
    choices.choose(
        "backbone_lr_factor", BACKBONE_LR_FACTOR, "adapting: existing weights are soon spoilt at the full rate"
    )
    choices.choose("freeze_prototypes_steps", 0, "adapting: head and prototypes learn from the first step")
    choices.choose("stop_when_worse", True, "adapting: existing weights may be the better ones")


def head_first(choices: Choices, facts: MachineAndData) -> None:
    """Head and prototypes learn on a backbone that stands still, in the first tenth of the steps."""
    if facts.start is not None:
        steps = choices.recipe.epochs * max(1, facts.num_images // choices.recipe.batch)
        choices.choose(
            "freeze_backbone_steps",
            int(HEAD_FIRST * steps),
            f"adapting: {HEAD_FIRST:.0%} of {counted(steps, 'step')}, for head and prototypes alone",
        )


def evaluations(choices: Choices, facts: MachineAndData) -> None:
    """Often enough to find harm in time, once the length of the run is known."""
    if facts.start is not None:
        every = max(1, min(10, choices.recipe.epochs // EVALUATIONS))
        choices.choose("knn_every_epochs", float(every), "adapting: often enough to find harm early")


def epochs(num_images: int, fresh: int) -> tuple[int, str]:
    """Passes over the images where no time is given, and why.

    Args:
        fresh: passes of a run that starts from fresh weights.
    """
    wanted = between(PASSES * num_images, LEAST_SEEN, MOST_SEEN)
    count = between(round(wanted / num_images), 1, fresh)
    return count, f"adapting: {count * num_images:,} images seen; existing weights need few"
