"""What `--help` says beside options: what to do first, settings by topic, examples. No torch here."""

from collections.abc import Iterable, Mapping

WIDTH = 79

FIRST_STEPS = """
What to do first, second, third:
  1. Look at your images:     swav data scan photos/
  2. See what would be done:  swav pretrain auto data=photos/ --out run --dry-run
  3. Train (again: resume):   swav pretrain auto data=photos/ --out run
  4. Score, beside random weights, on images with labels:
     swav bench knn linear --weights run random:run --data labelled/ --out run
  5. Read run/report.html, which `swav report run` writes anew.
`swav demo` shows all of it at once, on drawn images, in a few minutes.
`swav COMMAND --help` lists a command's options and settings, with examples;
`--debug` behind any command shows where an error came from.
"""

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "demo": ("swav demo",),
    "pretrain": (
        "swav pretrain auto data=photos/ --out run",
        "swav pretrain auto data=photos/ --out run --dry-run",
        "swav pretrain auto data=photos/ hours=12 --out run",
        "swav pretrain auto data=photos/ init=weights.pth --out run",
        "torchrun --nproc-per-node 8 -m swav pretrain swav_200ep data=imagenet/ --out run",
    ),
    "bench": (
        "swav bench knn linear --weights run --data labelled/ --out scores",
        "swav bench knn --weights run random:run swav.pth --data labelled/ --out scores",
        "swav bench linear lr=0.1 linear.epochs=50 --weights run --data labelled/ --out scores",
        "swav bench all protocol=smoke --weights run --data datasets/ --out scores --dry-run",
    ),
    "compare": (
        "swav compare --data photos/ --labelled labelled/ --hours 2 --out worth",
        "swav compare --data photos/ --labelled labelled/ --init weights.pth --out worth",
    ),
    "doctor": ("swav doctor", "swav doctor --data photos/ --out runs/"),
    "report": ("swav report run", "swav report run other-run"),
    "recipes": ("swav recipes", "swav recipes auto"),
    "data": ("swav data scan photos/", "swav data shapes drawn/"),
    "data scan": ("swav data scan photos/", "swav data scan photos/ --json"),
    "data shapes": ("swav data shapes drawn/", "swav data shapes drawn/ --layout voc --train 200 --val 50"),
}

HOW_TO_SET = """
`key=value`, `--key value` and `--key=value` are one thing; a bare path is the data.
"""


def page(where: str) -> str:
    """The text under a command's options.

    Args:
        where: the command, as `data scan`; "" is `swav` itself.
    """
    if not where:
        return FIRST_STEPS
    parts = [_examples(where)]
    if where in ("pretrain", "compare"):
        parts = [HOW_TO_SET, _recipe_settings(), *parts]
    if where == "bench":
        parts = [HOW_TO_SET, _bench_settings(), *parts]
    return "".join(parts)


def _examples(where: str) -> str:
    lines = "".join(f"  {line}\n" for line in EXAMPLES.get(where, ()))
    return lines and f"\nExamples:\n{lines}"


def _recipe_settings() -> str:
    from swav.config import TOPICS

    usual = _described(("data", "epochs", "hours", "batch", "micro_batch", "init", "device", "workers"))
    topics = "".join(_listed(topic, keys) for topic, keys in TOPICS.items())
    return (
        f"\nSettings, most used:\n{usual}\nAll settings by topic (`swav recipes auto` says what each means):\n{topics}"
    )


def _described(keys: Iterable[str]) -> str:
    from swav.config import Recipe

    return "".join(_wrapped(f"  {key:<14}", str(Recipe.model_fields[key].description)) for key in keys)


def _bench_settings() -> str:
    from swav.config import WeightOptions
    from swav.evaluation.catalog import CATALOG
    from swav.evaluation.settings import BenchSettings, SuiteSettings

    shared = {*SuiteSettings.model_fields, *BenchSettings.model_fields}
    lines = [_listed("all together", SuiteSettings.model_fields), _listed("each of them", BenchSettings.model_fields)]
    lines.append(_listed("weight files", WeightOptions.model_fields))
    for name, entry in CATALOG.items():
        own = [key for key in entry.settings.model_fields if key not in shared]
        lines.append(_listed(name, own) if own else "")
    return f"\nSettings by topic; `{next(iter(CATALOG))}.key=value` reaches one benchmark (docs/protocols.md):\n{''.join(lines)}"


def _listed(topic: str, keys: Iterable[str]) -> str:
    return _wrapped(f"  {topic + ':':<20}", " ".join(keys))


def _wrapped(head: str, text: str) -> str:
    import textwrap

    lines = textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)
    return "".join(f"{line}\n" for line in lines)
