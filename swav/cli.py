"""The command line: what a user types, in the words of the settings.

torch is imported inside the verbs, so that `--help` and a typo answer at once.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from swav.command_line import Command, Group, complete_bench, complete_recipes, complete_settings
from swav.errors import EXIT_INTERRUPTED, ConfigError, SignalExit, SwavError
from swav.files import REPORT, check_writable, is_run, out_folder, refuse_inside
from swav.output import deliver, print_path, protect_output, say
from swav.signals import StopRequest
from swav.version import swav_version

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
data_app = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data", help="Look at a data set, or make one.")

Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder for everything that is written.", callback=out_folder)
]
Siblings = Annotated[
    bool, typer.Option("--siblings", help="Show published rows of other methods in tables.md and tables.tex too.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings, listed below.", autocompletion=complete_settings),
]


def _print_version(wanted: bool) -> bool:
    if wanted:
        import importlib.metadata
        import platform

        torch = importlib.metadata.version("torch")
        deliver(f"swav {swav_version()} (Python {platform.python_version()}, torch {torch}), Apache-2.0")
        raise typer.Exit
    return wanted


@app.callback()
def swav(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Pre-train a vision backbone on images without labels by SwAV, and measure what it learned."""


@app.command(cls=Command, short_help="Everything once, on drawn images, in a few minutes.")
def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where the demo is written.", callback=out_folder)
    ] = Path("swav-demo"),
) -> None:
    """Pre-train and evaluate a small network on drawn shapes: no download, no GPU, a few minutes."""
    check_writable(out)
    _say_that_it_begins(f"demo in {out}")
    from swav import demo as demo_module

    demo_module.demo(out)


@app.command(cls=Command, short_help="Pre-train on images without labels; again: resume.")
def pretrain(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A name of `swav recipes`, or a YAML file.", autocompletion=complete_recipes
        ),
    ],
    out: Out,
    settings: Settings = None,
    dry_run: DryRun = False,
    full: Annotated[
        bool, typer.Option("--full", help="With --dry-run: every reason, and all settings as YAML.")
    ] = False,
    print_slurm: Annotated[
        bool, typer.Option("--print-slurm", help="Print a batch script for SLURM that does this, and do nothing.")
    ] = False,
) -> None:
    """Pre-train a network on images without labels. Rerun the same command to resume."""
    began = time.monotonic()
    from swav.config import TIMM
    from swav.recipe_files import load_recipe, parse_overrides

    if full and not dry_run:
        raise ConfigError("pretrain: --full: expected --dry-run beside it")
    wanted = load_recipe(recipe, parse_overrides(settings or []))
    if wanted.backbone.startswith(TIMM):  # settings are checked before data, though timm takes seconds to be asked
        from swav.network.backbone import check_backbone

        check_backbone(wanted.backbone, ())
    if _is_alone():
        from swav.training.preflight import check_pretraining

        check_pretraining(wanted, out, dry_run or print_slurm)
    if print_slurm:
        from swav.training.slurm import batch_script

        deliver(batch_script(["pretrain", recipe, *(settings or []), "--out", str(out)]).rstrip("\n"))
        return
    _say_that_it_begins(f"pre-training on {wanted.data}, in {out}")
    from swav.training import loop

    folder = loop.run_or_resume(wanted, out, dry_run, began, full)
    if _is_first_process() and not dry_run:
        print_path(folder)


@app.command(cls=Command)
def bench(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME... KEY=VALUE",
            help="Benchmarks (knn, linear, linear-stages, places205, inat18, semisup, svm, lowshot, detect-voc, detect-coco, "
            "segment-voc, segment-cityscapes, segment-linear; all), then settings (protocol=own: kNN, linear and "
            "segment-linear on labels of your own).",
            autocompletion=complete_bench,
        ),
    ],
    weights: Annotated[
        list[str],
        typer.Option(
            "--weights", metavar="W", help="A run, a checkpoint, a weight file, or random:NAME; may be several."
        ),
    ],
    data: Annotated[
        str, typer.Option("--data", metavar="ROOT", help="The labelled data set, or a folder of data sets.")
    ],
    out: Out,
    dry_run: DryRun = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results as JSON.")] = False,
    siblings: Siblings = False,
) -> None:
    """Measure what weights have learned. Results go to DIR/results.json, and into the published page's tables beside it."""
    from swav.evaluation.places import check_places
    from swav.evaluation.request import read_request
    from swav.recipe_files import parse_overrides
    from swav.weights.sources import expanded

    benches = [name for name in names if "=" not in name]
    overrides = parse_overrides([name for name in names if "=" in name])
    weights = [expanded(source) for source in weights]
    request = read_request(benches, weights, overrides)
    if _is_alone():
        check_places(request, Path(data), out, dry_run)
    _say_that_it_begins(f"{', '.join(request.candidates)} of {', '.join(request.labels)} on {data}")
    from swav.evaluation import runner

    results, measured, not_run = runner.measure(
        benches, weights=weights, data=data, out=out, dry_run=dry_run, **overrides
    )
    if not _is_first_process():
        return
    if siblings and not dry_run:
        from swav.results.render import write_tables

        write_tables(out, siblings=True)
    if as_json:
        deliver(json.dumps(results.model_dump(), indent=1))
    elif not dry_run:
        from swav.results.console import format_differences, format_results

        shown = format_results(results.results, not_run, measured)
        differences = format_differences(results.results, weights, out, measured)
        written = [str(out / name) for name in ("results.json", "tables.html", REPORT)]
        deliver("\n".join(filter(None, [shown, differences, *written])))


@app.command(cls=Command, short_help="Find out whether training on your images is worth it.")
def compare(
    data: Annotated[str, typer.Option("--data", metavar="IMAGES", help="The images to train on.")],
    out: Out,
    settings: Settings = None,
    labelled: Annotated[
        str | None,
        typer.Option("--labelled", metavar="L", help="A labelled data set to score by; else --data's own labels."),
    ] = None,
    init: Annotated[
        str | None, typer.Option("--init", metavar="W", help="Existing weights, scored as they are and adapted.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option("--hours", metavar="H", help="Time for each training; else as `auto` finds right.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Find out whether training is worth it: random, given, trained and adapted weights on your labels. Rerun to resume."""
    from swav.data.sources.open import check_images
    from swav.recipe_files import load_recipe, parse_overrides

    overrides = parse_overrides(settings or [])
    load_recipe("auto", overrides | {"data": data, "hours": hours})
    if _is_alone():
        check_images(data)
        refuse_inside(out, data, resumes=is_run(out / "scratch"))
        if not dry_run:
            check_writable(out)
    _say_that_it_begins(f"comparison on {data}, in {out}")
    from swav import comparison

    comparison.refuse_own_keys(overrides)
    comparison.compare(data, out=out, labelled=labelled, init=init, hours=hours, dry_run=dry_run, **overrides)


@app.command(cls=Command, short_help="What this machine has for training, what it lacks, what to do.")
def doctor(
    data: Annotated[
        str | None, typer.Option("--data", metavar="PATH", help="Images: how fast they are made ready is measured.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="A folder for runs: is it fast, and is there room?")
    ] = None,
) -> None:
    """Check versions, devices, memory, disk and limits of this machine, and say what to do about each. Changes nothing."""
    from swav import doctor as doctor_module

    doctor_module.doctor(data, out)


@app.command(cls=Command)
def report(
    folder: Path,
    other: Annotated[Path | None, typer.Argument(help="A second run, to compare.")] = None,
    siblings: Siblings = False,
) -> None:
    """Write (again) the report of a run or of results, or compare two."""
    from swav.reporting import page

    print_path(page.report(folder, other=other, siblings=siblings))


@app.command(cls=Command)
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this one, with every default.", autocompletion=complete_recipes)
    ] = None,
) -> None:
    """List the recipes, or print one resolved."""
    from swav.recipe_files import describe_recipe, list_recipes

    deliver(list_recipes() if name is None else describe_recipe(name))


@data_app.command("scan", cls=Command, short_help="What is there, and what would be trained on.")
def scan_data(
    path: str,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="white_level and alpha, as for pretrain.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count a data set's images, formats, sizes, duplicates and unreadable files, and say what would be trained on."""
    from swav.config import DecodingSettings
    from swav.data.scan import render_scan, scan
    from swav.data.sources.pixels import decoding_of
    from swav.recipe_files import parse_overrides, validated
    from swav.signals import note_nothing_to_save

    wanted = validated(DecodingSettings, parse_overrides(settings or []), "settings")
    note_nothing_to_save("a scan changes nothing; run the same command again for all of it")
    found = scan(path, how=decoding_of(wanted))
    deliver(json.dumps(found, indent=1) if as_json else render_scan(found))


@data_app.command(cls=Command, short_help="Write the drawn data set `shapes`.")
def shapes(
    folder: Path,
    layout: Annotated[
        str, typer.Option(help="imagenet, voc, voc0712, coco, cityscapes, places205, inat18")
    ] = "imagenet",
    train: Annotated[int, typer.Option(min=1, help="Training images.")] = 2000,
    val: Annotated[int, typer.Option(min=1, help="Validation images.")] = 500,
    size: Annotated[int, typer.Option(min=16, help="Side of an image [pixels].")] = 64,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write the drawn data set `shapes`: ten classes that neither colour nor raw pixels tell apart."""
    folder = out_folder(folder)
    check_writable(folder)
    from swav.data.synthetic.writers import LAYOUTS, write_shapes
    from swav.progress import FIRST_SECONDS, Progress

    twice = layout in LAYOUTS and bool(LAYOUTS[layout].second_train)
    with Progress("drawing shapes", val + train * (1 + twice), delay=FIRST_SECONDS) as progress:
        write_shapes(folder, layout, train=train, val=val, size=size, seed=seed, progress=progress)
    print_path(folder)


def main() -> None:
    """Run the command; every expected failure becomes one message and an exit code."""
    # Threads that wait for each other spin briefly, then sleep. Spinning for long would take a core from the loader's
    # worker, sleeping at once costs a wake-up per layer (12 % of a small network's step). Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # Where a process dies, torch's own threads print a page of C++ frames each; what there is to know we say.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    protect_output()
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    with StopRequest(at_once=True) as stop:
        try:
            code = _run(lambda: app(arguments, prog_name="swav", standalone_mode=False), debug)
            stop.ignore()  # a launcher that sees the first process end signals the others; all end with their own code
        except SignalExit as late:
            code = late.exit_code
    sys.exit(code)


def _say_that_it_begins(what: str) -> None:
    """Before seconds go into an import, say that the settings are accepted."""
    if _is_first_process() and "torch" not in sys.modules:
        from swav.errors import printable

        say(f"{printable(what)}: loading PyTorch")


def _is_alone() -> bool:
    """Whether this is the only process. Of several, the first checks paths for all, once they can speak with each other."""
    return os.environ.get("WORLD_SIZE", "1") == "1"


def _is_first_process() -> bool:
    """Of those that torchrun started, or the only one."""
    rank = os.environ.get("RANK", "0")
    return not rank.isdecimal() or int(rank) == 0


def _is_ours_to_tell(error: BaseException) -> bool:
    """Let one of several processes report an error: the one that met it, or the first where all did."""
    if isinstance(error, SwavError | SignalExit) and error.reported_elsewhere is not None:
        return not error.reported_elsewhere
    return _is_first_process()


def _run(command: Callable[[], Any], debug: bool) -> int:
    try:
        result = command()
        return result if isinstance(result, int) else 0
    except (SwavError, TyperException) as error:
        if debug:
            raise
        if isinstance(error, SwavError):
            message = str(error)
        elif " COMMAND " in str(error):  # nothing was asked: the help is the answer
            print(error)
            return error.exit_code
        else:
            message = f"{error.format_message().rstrip('.')}; `swav --help` lists the commands"
        if _is_ours_to_tell(error):
            say(f"swav: {message}")
        return int(error.exit_code)
    except SignalExit as error:
        return _ended(error)
    except typer.Exit as leave:
        return leave.exit_code
    except (KeyboardInterrupt, typer.Abort):
        say("swav: interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, SignalExit):
            cause = cause.__cause__ or cause.__context__
        if cause is None or debug:
            raise
        return _ended(cause)  # an import that was cut short, as its library reports it


def _ended(end: SignalExit) -> int:
    if _is_ours_to_tell(end):
        say(f"swav: {end}")
    return end.exit_code
