"""Attacks: a protocol's numbers that differ between its docstring, docs/protocols.md and the settings that are run.

The settings are the source. Phrases are made of them, and must stand in both texts; no other number may stand in the parts of a
docstring that describe the protocol. Published results are in published.toml: the page repeats them, no docstring does.
Run: pytest tests/evaluation/test_protocol_texts.py
"""

import importlib
import re
import string
from pathlib import Path
from typing import Any

import pytest

from swav.evaluation import logistic, own
from swav.evaluation.catalog import CATALOG
from swav.evaluation.protocols import semisup
from swav.evaluation.settings import KnnOwnSettings
from swav.results.published import read_published
from tests.evaluation import phrases_dense

PAGE = (Path(__file__).parents[2] / "docs/protocols.md").read_text(encoding="utf-8")
# Of no influence on a published number, or told in words only.
UNSAID = {
    *phrases_dense.UNSAID,
    "train_images",
    "score_images",
    "seed",
    "precision",
    "device",
    "workers",
    "white_level",
    "alpha",
    "score_every_epochs",
    "list",
    "samples",
}
UNSAID_OF = {
    **phrases_dense.UNSAID_OF,
    "places205": {"crop_scale"},  # has no meaning there
    "semisup": {"lr_trunk", "lr_head"},  # auto: semisup.RATES
    "lowshot": {"layers", "tolerance", "positive_weight"},  # "as for the SVM", see below
}
CROP = ["random resized crop of the size ({size}; area {crop_scale}, aspect 3/4-4/3), flip p {flip}"]
SCORING = ["Scoring: short side to 256/224 of the size, centre crop of the size"]
IMAGENET = ["ImageNet-1k", "({trained})", "({scored})"]
SGD = ["learning rate {lr}, momentum {momentum}, Nesterov, weight decay {weight_decay}, batch {batch}"]
STEPS = ["{epochs} epochs, learning rate x .1 after {steps_and}"]
COSTS = ["{costs}"]
LABELS = ["1 % (12,811 images)", "10 % (128,116)", "1percent.txt, 10percent.txt"]  # of SimCLR: semisup.OFFICIAL

# Phrases of the docstring, of the settings' defaults; and of the page's section.
DOCSTRING = {
    **phrases_dense.DOCSTRING,
    "knn": [*IMAGENET, "short side to 256/224 of the size", "({size})", "T = {temperature}", "k = {k}"],
    "linear": [
        *(*IMAGENET, *CROP, *SCORING, "N(0, .01)"),
        "learning rate {lr}, momentum {momentum}, no Nesterov, weight decay {weight_decay}, batch {batch}",
        *("{epochs} epochs, cosine to 0", "lr(e) = {lr} (1 + cos(pi e / {epochs})) / 2"),
    ],
    "linear-stages": [
        *(*IMAGENET, *CROP, *SCORING, *SGD, *STEPS, "by factors of {factors}", "weights from N(0, {lighting})"),
        "(eigenvalues .2175 .0188 .0045)",
    ],
    "places205": [
        *(
            "({trained})",
            "({scored})",
            "{classes} classes",
            "Places205, by",
            "_places205.csv",
            "short side to 256/224 of the size ({size})",
        ),
        *("flip p {flip}", *SGD, *STEPS),
    ],
    "inat18": [
        *(
            "iNaturalist 2018, by",
            "({trained})",
            "({scored})",
            "{classes} classes",
            "train2018",
            "val2018",
            *CROP,
            *SCORING,
            *SGD,
            *STEPS,
        ),
    ],
    "semisup": [
        *("ImageNet-1k", "({scored})", *LABELS, *CROP, *SCORING, "momentum {momentum}, no Nesterov, {no} weight decay"),
        *("batch {batch}", "{epochs} epochs, learning rates x .2 after {steps_and}"),
        "learning rates of backbone and layer {few} (1 %), {many} (10 %)",
    ],
    "svm": [
        *(
            "PASCAL VOC 2007",
            "({trained} images)",
            "({scored})",
            "{classes} classes",
            "both sides to {size}",
            "over {folds} stratified folds",
        ),
        *(*COSTS, "positives at {twice} the cost", "to {tolerance}", "short side to 256"),
    ],
    "lowshot": [
        "k = {k}",
        "19 k",
        "{draws} per k",
        "both sides to {size}",
        *COSTS,
        "short side to 256",
        "{1..5}",
        "of {trained} rows",
        "{classes} columns; 1 positive, 0 negative, -1 not in the sample",
    ],
}
SECTION = {
    **phrases_dense.SECTION,
    "knn": ["(224)", "k = {k}", "exp(cosine / {temperature})"],
    "linear": [
        *(
            "random resized crop of {size} (area {crop_scale} of the image), horizontal flip with probability {flip}",
            "N(0, .01)",
        ),
        "SGD, learning rate {lr}, momentum {momentum}, weight decay {weight_decay}, no Nesterov",
        "cosine to 0 over {epochs} epochs, constant within an epoch; batch {batch}",
    ],
    "linear-stages": [
        "learning rate {lr}, momentum {momentum}, Nesterov, weight decay {weight_decay}, batch {batch}, steps of x .1",
        *(
            "| {epochs}; {steps} |",
            "(area {crop_scale}), flip {flip}, brightness",
            "by {factors}, lighting {lighting} |",
            "of {size}",
        ),
    ],
    "places205": ["random crop {size}, flip {flip} | {epochs}; {steps} |"],
    "inat18": ["random resized crop of {size} (area {crop_scale}), flip {flip} | {epochs}; {steps} |"],
    "semisup": [
        "{fraction_percent} of the labels (`semisup.fraction`): {epochs} epochs, batch {batch}, SGD with momentum {momentum}",
        "learning rates of backbone and layer {few_at} at 1 %, {many_at} at 10 %, x .2 after {steps_and}",
    ],
    "svm": [
        *(
            "both sides to {size}",
            "of {costs_short}, per class",
            "over {folds} stratified folds",
            "solved to {tolerance}",
        ),
        *("positives at {twice} the cost",),
    ],
    "lowshot": ["k = {k}, five samples each"],
}
MADE_OF = {  # what a phrase's field is made of, where it is not the setting itself
    **phrases_dense.MADE_OF,
    "steps_and": "steps",
    "costs_short": "costs",
    "factors": "jitter",
    "twice": "positive_weight",
    "no": "weight_decay",
    "fraction_percent": "fraction",
}
PROTOCOL_PARTS = ("Data", "Transform", "Optimiser", "Schedule", "Vote", "Search", "Samples")
DENSE_PARTS = (*PROTOCOL_PARTS, "Layer", "Moco", "Swav")  # those of phrases_dense.py, whose layers have numbers


def number(value: float) -> str:
    """As the texts write it: .3, 1e-6, 100."""
    if 0 < value < 1e-3:
        return re.sub("e-0", "e-", f"{value:.0e}")
    if float(value).is_integer() and value >= 1000:
        return f"{value:,.0f}"
    return f"{value:g}".removeprefix("0" if 0 < value < 1 else "")


def listed(values: tuple[float, ...], last: str = ", ") -> str:
    texts = [number(value) for value in values]
    return last.join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def facts(bench: str) -> dict[str, str]:
    """What phrases are made of: settings of the published protocol, as texts."""
    settings = CATALOG[bench].settings()
    values: dict[str, Any] = settings.model_dump()
    values |= phrases_dense.values_of(bench)
    found = {key: number(x) for key, x in values.items() if isinstance(x, int | float)}
    found |= {key: listed(x) for key, x in values.items() if isinstance(x, tuple)}
    found |= {key: x for key, x in phrases_dense.values_of(bench).items() if isinstance(x, str)}
    if CATALOG[bench].published:
        sizes = (f"{n:,}" for n in settings.published.values())
        found |= dict(zip(("trained", "scored", "classes"), sizes, strict=True))
    if "crop_scale" in values:
        found["crop_scale"] = "-".join(map(number, values["crop_scale"]))
    if "steps" in values:
        found["steps_and"] = listed(values["steps"], " and ")
    if "jitter" in values:
        found["factors"] = f"{number(1 - values['jitter'])}-{number(1 + values['jitter'])}"
    if "costs" in values:
        powers = [i for i in range(100) if 0.5**i in values["costs"] and i]
        assert (
            values["costs"]
            == (1.0, 10.0, 100.0, *(0.5**i for i in powers))
            == (
                *values["costs"][:3],
                *(0.5**i for i in range(powers[0], powers[-1] + 1)),
            )
        )
        found["costs"] = f"C of 1, 10, 100, 0.5^{powers[0]} ... 0.5^{powers[-1]}"
        found["costs_short"] = f"1, 10, 100, .5^{powers[0]} ... .5^{powers[-1]}"
        found["twice"] = {2.0: "twice"}[values["positive_weight"]]
    if bench == "semisup":
        found["few"], found["many"] = (listed(semisup.RATES[few], " and ") for few in (True, False))
        found |= {"few_at": found["few"], "many_at": found["many"]}
        found["no"] = {0.0: "no"}[values["weight_decay"]]
        found["fraction_percent"] = " and ".join(f"{100 * share:g} %" for share in values["fraction"])
    return found


def docstring(bench: str) -> str:
    return str(importlib.import_module(CATALOG[bench].module).__doc__)


def part(bench: str, name: str) -> str:
    """A paragraph of a protocol's docstring, as one line; empty if there is none."""
    found = re.search(rf"^{name} +(.*(?:\n {{4,}}.*)*)", docstring(bench), flags=re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def section(bench: str) -> str:
    """The page's section of a benchmark, as one line."""
    (found,) = [text for text in PAGE.split("\n## ") if f"`{bench}`" in text.splitlines()[0]]
    return " ".join(found.split())


def fields_of(templates: list[str]) -> set[str]:
    return {name for text in templates for _, name, _, _ in string.Formatter().parse(braces(text)) if name}


def braces(template: str) -> str:
    """`{1..5}` is a text and no field."""
    return template.replace("{1..5}", "{{1..5}}")


@pytest.mark.parametrize("bench", CATALOG)
def test_the_docstring_says_the_settings_and_no_other_number(bench):
    phrases = [braces(text).format_map(facts(bench)) for text in DOCSTRING[bench]]
    text = " ".join(docstring(bench).split())
    assert not [phrase for phrase in phrases if phrase not in text]
    for name in DENSE_PARTS if bench in phrases_dense.DOCSTRING else PROTOCOL_PARTS:
        rest = part(bench, name)
        for phrase in sorted(phrases, key=len, reverse=True):
            rest = rest.replace(phrase, " ")
        assert not re.findall(r"(?<![a-z_])\.?\d[\d,.e-]*", rest), f"{name}: {rest}"


@pytest.mark.parametrize("bench", CATALOG)
def test_the_page_says_the_settings(bench):
    phrases = [text.format_map(facts(bench)) for text in SECTION[bench]]
    assert phrases and not [phrase for phrase in phrases if phrase not in section(bench)]


@pytest.mark.parametrize("bench", CATALOG)
def test_every_setting_that_shapes_the_number_is_said(bench):
    said = {MADE_OF.get(name, name) for name in fields_of(DOCSTRING[bench]) | fields_of(SECTION[bench])}
    fields = set(CATALOG[bench].settings.model_fields) - UNSAID - UNSAID_OF.get(bench, set())
    assert not fields - said


def test_lowshot_is_solved_as_the_svm_is_and_the_lists_of_few_labels_are_the_shares_of_the_settings():
    svm, lowshot = facts("svm"), facts("lowshot")
    assert {key: svm[key] for key in ("costs", "twice", "tolerance", "trained", "scored", "classes", "size")} == {
        key: lowshot[key] for key in ("costs", "twice", "tolerance", "trained", "scored", "classes", "size")
    }
    assert (
        dict(zip(CATALOG["semisup"].settings().model_dump()["fraction"], (12_811, 128_116), strict=True))
        == semisup.OFFICIAL
    )


def test_cityscapes_is_trained_as_voc12aug_is():
    shared = phrases_dense.UNSAID_OF["segment-cityscapes"]
    voc, cityscapes = facts("segment-voc"), facts("segment-cityscapes")
    assert shared <= voc.keys() and {key: voc[key] for key in shared} == {key: cityscapes[key] for key in shared}


@pytest.mark.parametrize("name", ["moco", "swav"])
def test_the_page_has_a_row_for_each_variant_and_no_other_benchmark_has_one(name):
    assert [bench for bench, entry in CATALOG.items() if name in entry.variants] == ["detect-voc"]
    assert part("detect-voc", name.capitalize()).startswith(f"protocol={name}")
    assert [line for line in section_lines("`detect-voc`") if line.startswith(f"| `protocol={name}`")]


@pytest.mark.parametrize("bench", CATALOG)
def test_the_docstring_says_what_smoke_changes_and_no_other_number(bench):
    text = re.sub(r"VOC \d{4}", "", part(bench, "Smoke"))
    numbers = [int(found.replace(",", "")) for found in re.findall(r"\d[\d,]*(?<!,)", text)]
    expected = [
        n
        for key, x in CATALOG[bench].smoke.items()
        for n in ([max(x)] if key == "k" else x if isinstance(x, tuple) else [x])
    ]
    assert sorted(numbers) == sorted(expected)


def test_the_page_says_what_smoke_changes():
    rows = {}
    for bench, entry in CATALOG.items():
        values = entry.settings(**entry.smoke).model_dump()
        length = (
            f"{values['iterations']} iterations"
            if "iterations" in entry.smoke
            else (
                "; ".join([f"{values['epochs']}", *([listed(values["steps"])] if "steps" in values else [])])
                if "epochs" in values
                else ""
            )
        )
        trained = f"{values['train_images']:,}" if "train_images" in entry.smoke else "all"
        images = f"{trained} + {values['score_images']:,}"
        rows[bench] = [
            "",
            f" `{bench}` ",
            *(f" {x} " if x != "" else " " for x in (values["size"], images, length, values.get("batch", ""))),
        ]
    found = {
        line.split("|")[1].strip(" `"): line.split("|")[:6]
        for line in section_lines("protocol=smoke")
        if line.startswith("| `")
    }
    assert found == rows
    assert f"k = {listed(CATALOG['lowshot'].smoke['k'])} |" in PAGE


def test_the_texts_of_protocol_own_say_its_settings():
    page = " ".join("\n".join(section_lines("protocol=own")).split())
    for bench, key in (("knn", "k"), ("linear", "costs")):
        entry = CATALOG[bench].own
        assert entry is not None
        values = listed(entry.settings().model_dump()[key])
        text = " ".join(str(importlib.import_module(entry.module).__doc__).split())
        phrase = {"k": f"k = {values}", "costs": f"C of {values}"}[key]
        assert phrase in text and phrase in page
    temperature = number(KnnOwnSettings().temperature)
    assert f"T = {temperature}" in str(importlib.import_module(CATALOG["knn"].module_of("own")).__doc__)
    assert f"temperature {temperature}" in page and f"to {number(logistic.TOLERANCE)} of the gradient" in page
    assert own.FOLDS == 5 and "five stratified folds" in page


def section_lines(title: str) -> list[str]:
    (found,) = [text for text in PAGE.split("\n## ") if title in text.splitlines()[0]]
    return found.splitlines()


def test_the_page_says_of_which_sizes_published_numbers_are():
    for bench, entry in CATALOG.items():
        if not entry.published:
            continue
        settings = entry.settings
        (line,) = [
            line for line in PAGE.splitlines() if line.count("|") == 6 and re.search(rf"^\| [A-Za-z].*`{bench}`", line)
        ]
        assert [cell.strip() for cell in line.split("|")[3:6]] == [f"{n:,}" for n in settings.published.values()]


def results_of(bench: str) -> list[str]:
    """The published page's numbers, as it writes them."""
    values = read_published()[0].values.get(bench, {}).values()
    decimals = 1 if bench in ("knn", "linear", "detect-coco") else 2
    return list(dict.fromkeys(f"{value:.{decimals}f}" for value in values))


@pytest.mark.parametrize(
    "bench",
    [
        *("knn", "linear", "linear-stages", "places205", "svm", "lowshot"),
        *("detect-voc", "detect-coco", "segment-voc"),
    ],
)
def test_the_page_repeats_the_published_results(bench):
    expected = results_of(bench)
    row = [line for line in section_lines(f"`{bench}`") if line.startswith(("| published", f"| `{bench}`"))]
    found = re.findall(r"(?<![\d.])\d\d\.\d+\b", " ".join(row))
    assert expected and found == expected


@pytest.mark.parametrize("bench", CATALOG)
def test_no_docstring_repeats_published_results(bench):
    assert not re.findall(r"(?<![\d.])\d\d\.\d+\b", docstring(bench))


def test_the_check_of_docstrings_can_fail(monkeypatch):
    module = importlib.import_module("swav.evaluation.protocols.linear")
    for right, wrong in (
        ("momentum .9", "momentum .8"),
        ("batch 256", "batch 256 or 512"),
        ("Schedule    100", "Schedule    90"),
    ):
        assert right in str(module.__doc__)
        monkeypatch.setattr(module, "__doc__", str(module.__doc__).replace(right, wrong))
        with pytest.raises(AssertionError):
            test_the_docstring_says_the_settings_and_no_other_number("linear")
        monkeypatch.undo()
