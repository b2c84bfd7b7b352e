"""Attacks: a report that runs what it shows, that asks the network for something, or that fails where a part is missing.

Run: pytest tests/reporting/test_page.py
"""

import html.parser
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from swav.config import Recipe
from swav.errors import DataError
from swav.recipe_files import to_yaml
from swav.reporting.page import report
from swav.reporting.pictures import write_views
from swav.results.intervals import PairedDifference
from swav.results.paired import answers
from swav.weights.exported import metadata, read_description, usage

NASTY = "</script><script>alert('1')</script><img src=x onerror=\"alert(2)\">&amp;{{ 7 * 7 }}.jpg"
SURROGATE = "old\udcffname\ud800.jpg"


class Page(html.parser.HTMLParser):
    """What a browser would make of a page: its tags with attributes, and its visible text."""

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def write_lines(path: Path, lines) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def metrics(steps=20, **changed):
    return [
        {"step": s, "epoch": s / 10, "loss": 4.0 - s / 20, "prototypes_used": 0.5, "lr": 0.1, "seconds": 2.0 * s}
        | changed
        for s in range(1, steps + 1)
    ]


def result(weights, value, bench="knn", seed=0, **changed):
    row = {
        "bench": bench,
        "metric": "top-1",
        "value": value,
        "unit": "%",
        "n": 500,
        "protocol": "published",
        "comparable": True,
    }
    return row | {"seed": seed, "weights": str(weights), "weights_sha256": "ab" * 32} | changed


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(Recipe(data="photos", prototypes=60)))
    write_lines(folder / "metrics.jsonl", [*metrics(), {"step": 20, "epoch": 2, "knn_top1": 41.5}])
    write_views(folder / "report" / "views.png", [[np.zeros((8, 8, 3), np.uint8)] * 2])
    rows = [result("random:resnet18", 20.0), result(folder, 45.25)]
    (folder / "results.json").write_text(json.dumps({"results": rows, "not_run": []}))
    return folder


def test_a_whole_run_gives_a_balanced_page_with_every_part(run):
    page = Page(report(run))
    assert not page.unbalanced and not page.open
    for heading in ("What was learned", "How it went", "What the network saw", "Settings"):
        assert heading in page.text
    assert "+25.25" in page.text and "45.25" in page.text
    assert "kNN top-1" in page.text and "41.5" in page.text
    assert [image["src"] for image in page.all("img")] == ["report/views.png"]
    assert (run / "report/views.png").is_file()


def answered(folder, weights, right, metric="top-1 k=20"):
    """A row of protocol own, and the log that says which images are right."""
    log = folder / f"{len(right)}-{sum(right)}.json"
    log.write_text(json.dumps(answers({}, [f"{i}.png" for i in range(len(right))], {metric: np.array(right, bool)})))
    of = {"protocol": "own", "comparable": False, "log": log.name, "n": len(right)}
    return result(weights, 100 * sum(right) / len(right), metric=metric, **of)


RANDOM = [1] * 10 + [0] * 40
GAINS = {  # answers of the trained weights, to what is shown
    "gain": ([1] * 30 + [0] * 20, "+40.00"),
    "loss": ([0] * 50, "-20.00"),
    "none": ([1] * 12 + [0] * 38, "no difference that 50 images can show"),
}


@pytest.mark.parametrize("kind", GAINS)
def test_a_gain_is_coloured_only_where_its_paired_interval_leaves_0_out(run, kind):
    right, text = GAINS[kind]
    rows = [answered(run, "random:resnet18", RANDOM), answered(run, run, right)]
    (run / "results.json").write_text(json.dumps({"results": rows, "not_run": []}))
    page = Page(report(run))
    (cell,) = (attributes["class"] for attributes in page.all("td") if "difference" in attributes.get("class", ""))
    assert cell.split() == ["number", "difference", kind]
    low, high = PairedDifference(max(0, 10 - sum(right)), max(0, sum(right) - 10), 50).interval
    assert f"{text} ({100 * low:.1f} to {100 * high:.1f})" in page.text
    best = [attributes for attributes in page.all("td") if "best" in attributes.get("class", "")]
    assert len(best) == (kind == "gain")


def test_a_gain_without_answers_is_judged_as_of_independent_images_or_not_at_all(run):
    shown = {
        ("top-1", 20.0, 24.0): ("none", "no difference that 500 images can show"),  # 4 points, within 5.2
        ("top-1", 20.0, 30.0): ("gain", "+10.00"),
        ("mAP", 20.0, 60.0): ("open", "+40.00"),  # no share of images
    }
    for (metric, before, after), (kind, text) in shown.items():
        rows = [result("random:resnet18", before, metric=metric), result(run, after, metric=metric)]
        (run / "results.json").write_text(json.dumps({"results": rows, "not_run": []}))
        page = Page(report(run))
        (cell,) = (attributes["class"] for attributes in page.all("td") if "difference" in attributes.get("class", ""))
        assert cell.split()[-1] == kind and text in page.text
        assert (", not paired)" in page.text) == (kind != "open")
    seeds = [
        result(weights, value + seed, seed=seed) for seed in (0, 1) for weights, value in (("random:a", 1), (run, 9))
    ]
    (run / "results.json").write_text(json.dumps({"results": seeds, "not_run": []}))
    page = Page(report(run))
    assert "+8.00" in page.text and "number difference open" in page.source  # a mean of seeds has no such interval


def test_gains_of_two_runs_are_paired_in_one_folder_only(run, tmp_path):
    """Logs are found by paths relative to the folder: that of another run may be of other images."""
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (run / "results.json").write_text(json.dumps({"results": [answered(run, "random:r", RANDOM)], "not_run": []}))
    (other / "results.json").write_text(
        json.dumps({"results": [answered(other, "w", GAINS["gain"][0])], "not_run": []})
    )
    answered(run, "of other weights", GAINS["gain"][0])  # a log of the same name as that in the other folder
    page = Page(report(run, other=other))
    assert "+40.00" in page.text and ", not paired)" in page.text


def test_a_spread_is_not_shown_as_a_gain(run):
    rows = [result("random:resnet18", 1.0, metric="spread k=1"), result(run, 3.5, metric="spread k=1")]
    (run / "results.json").write_text(json.dumps({"results": rows, "not_run": []}))
    page = Page(report(run))
    assert "3.50" in page.text and "+2.50" not in page.text


def test_the_page_is_accessible(run):
    page = Page(report(run))
    assert page.all("html") == [{"lang": "en"}]
    assert page.all("img") and all(image["alt"] for image in page.all("img"))
    assert page.all("svg") and all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert page.all("th") and all(header.get("scope") in ("col", "row") for header in page.all("th"))


def test_nothing_on_the_page_is_fetched_or_run(run):
    write_lines(run / "bad_files.jsonl", [{"file": "http://evil.example/a.png", "reason": "text only"}])
    page = Page(report(run))
    assert "http://evil.example/a.png" in page.text
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base", "form"}
    for tag, attributes in page.tags:
        for key, value in attributes.items():
            assert not key.startswith("on"), f"{tag} has a handler {key}"
            if key in ("src", "href", "xlink:href", "srcset", "action"):
                assert value and "//" not in value and not value.startswith("data:"), f"{tag} {key}={value}"
    style = page.source.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style


@pytest.mark.parametrize(
    "where", ["bad file", "reason", "weights", "metric", "difference", "not run", "setting", "verdict"]
)
def test_text_from_anywhere_stays_text(run, where):
    def text(place):
        return NASTY if place == where else "plain"

    write_lines(run / "bad_files.jsonl", [{"file": text("bad file"), "reason": text("reason")}])
    rows = [result(text("weights"), 1.0, metric=text("metric"), comparable=False, difference=text("difference"))]
    (run / "results.json").write_text(
        json.dumps({"results": rows, "not_run": [{"bench": "svm", "reason": text("not run")}]})
    )
    (run / "config.yaml").write_text(to_yaml(Recipe(data=text("setting"))))
    (run / "report" / "verdict.json").write_text(json.dumps({"state": "healthy", "advice": text("verdict")}))
    page = Page(report(run))
    assert NASTY in page.text
    assert not page.all("script") and len(page.all("img")) == 1


def test_the_check_of_escaping_can_fail(tmp_path):
    (tmp_path / "page.html").write_text(f"<p>{NASTY}</p>")
    page = Page(tmp_path / "page.html")
    assert page.all("script") and page.all("img")
    assert NASTY not in page.text


def test_no_control_character_reaches_the_page_from_a_folder_a_setting_or_a_result(run):
    odd = "\x1b[31mred\x07\u202e"
    rows = [result(f"weights{odd}", 50.0)]
    (run / "results.json").write_text(json.dumps({"format": 1, "results": rows, "not_run": []}))
    (run / "config.yaml").write_text(to_yaml(Recipe(data=f"photos{odd}", epochs=20)))
    there = run.rename(run.with_name(f"run{odd}"))
    texts = [report(there).read_text(encoding="utf-8"), report(there, other=there).read_text(encoding="utf-8")]
    texts += [(there / f"tables.{kind}").read_text(encoding="utf-8") for kind in ("html", "md", "tex")]
    assert not [c for text in texts for c in text if not c.isprintable() and c not in "\n\t\xa0"]
    assert all("x1b" in text for text in texts[:2])  # tables of the published page hold no such row


def test_names_that_are_not_text_are_shown_by_their_code(run):
    write_lines(run / "bad_files.jsonl", [{"file": SURROGATE, "reason": "not an image"}])
    assert "old\\udcffname\\ud800.jpg" in Page(report(run)).text


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl", "results.json", "report/views.png"])
def test_a_missing_part_is_left_out(run, missing):
    (run / missing).unlink()
    page = Page(report(run))
    assert not page.unbalanced
    assert bool(page.all("img")) == (missing != "report/views.png")
    assert bool(page.all("svg")) == (missing != "metrics.jsonl")
    assert ("+25.25" in page.text) == (missing != "results.json")


def test_predictions_are_shown_where_they_lie_beside_their_log(run):
    folder = run / "segment-voc" / "a #1"
    folder.mkdir(parents=True)
    (folder / "predictions.webp").write_bytes(b"RIFF")
    rows = [
        result(run, 30.0, "segment-voc", metric="mIoU", log="segment-voc/a #1/log.jsonl", name="<b>mine"),
        result(run, 20.0, "detect-voc", metric="AP50", log="detect-voc/b/log.jsonl"),
    ]
    (run / "results.json").write_text(json.dumps({"results": rows, "not_run": []}))
    page = Page(report(run))
    sources = [image["src"] for image in page.all("img")]
    assert sources == ["report/views.png", "segment-voc/a%20%231/predictions.webp"]
    assert "segment-voc, <b>mine, protocol published, seed 0" in page.text and not page.unbalanced


def test_a_run_without_a_step_has_a_report(tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(Recipe()))
    (tmp_path / "metrics.jsonl").write_text("")
    page = Page(report(tmp_path))
    assert "No step has been logged" in page.text and "no step yet" in page.text and not page.all("svg")


def test_a_folder_of_results_alone_has_a_report_without_a_run(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"results": [result("resnet50.pth", 70.5)], "not_run": []}))
    page = Page(report(tmp_path))
    assert "70.50" in page.text and "How it went" not in page.text and "Settings" not in page.text


def test_the_lines_that_use_the_weights_are_text_that_can_be_copied(run):
    folder = run.rename(run.with_name('a <b>&amp; "run"'))
    description = {"backbone": "resnet18", "width": 1.0, "stem": "imagenet", "in_channels": 3, "size": 96, "seed": 0}
    description |= {"mean": [0.5, 0.25, 0.125], "std": [0.2, 0.2, 0.2], "step": 20, "best_step": 10}
    header = json.dumps({"__metadata__": metadata(description | {"epochs": 2, "batch": 4})}).encode()
    (folder / "export").mkdir()
    (folder / "export" / "backbone.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    page = Page(report(folder))
    found = read_description(folder / "export" / "backbone.safetensors")
    assert found is not None and "\n".join(usage(found, folder / "export")) in page.text
    assert "step 20, the last; step 10 scored best" in page.text
    assert not page.unbalanced and not page.all("b>") and "<b>&" not in page.source


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x02" + bytes(7) + b"{}", b"\x08" + bytes(7) + b"[1, 2, 3"])
def test_a_damaged_export_is_left_out(run, content):
    (run / "export").mkdir()
    (run / "export" / "backbone.safetensors").write_bytes(content)
    assert "Use the weights" not in Page(report(run)).text


@pytest.mark.parametrize("loss", [None, float("nan"), float("inf")])
def test_values_that_are_not_finite_are_gaps(run, loss):
    lines = metrics()
    lines[10]["loss"] = loss
    write_lines(run / "metrics.jsonl", lines)
    source = report(run).read_text()
    assert source.count("<polyline") == 4  # the loss in two pieces, prototypes used, learning rate
    write_lines(run / "metrics.jsonl", metrics(loss=loss))
    page = Page(report(run))
    assert "nan" not in page.source.lower().replace("nano", "") and len(page.all("svg")) == 2


def test_a_line_cut_by_a_kill_is_passed_over_and_a_damaged_one_is_said(run):
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole + '{"step": 21, "lo')
    assert "could not be read" not in Page(report(run)).text
    (run / "metrics.jsonl").write_text("garbage\n" + whole)
    assert "1 line could not be read" in Page(report(run)).text


def test_a_damaged_file_is_said_and_the_rest_is_shown(run):
    (run / "results.json").write_text("{")
    (run / "config.yaml").write_text("a: [")
    page = Page(report(run))
    assert "results.json: not JSON" in page.text and "config.yaml" in page.text and page.all("svg")


def test_seeds_become_mean_and_spread_and_remarks_are_numbered(run):
    rows = [
        result(run, value, "linear", seed, comparable=False, difference="other images")
        for seed, value in enumerate((50.0, 52.0))
    ]
    (run / "results.json").write_text(json.dumps({"results": rows}))
    text = Page(report(run)).text
    assert "51.00 ± 1.41" in text and "not comparable with published numbers: other images" in text


def test_a_benchmark_is_one_line_and_its_other_metrics_are_folded(run):
    scores = {"top-1 k=10": 41.0, "top-1 k=20": 42.0, "top-5 k=20": 80.0}
    rows = [result(run, value, metric=metric) for metric, value in scores.items()]
    rows += [result(run, 60.0 + at, "linear-stages", metric=f"top-1 feature{at}") for at in (1, 5)]
    (run / "results.json").write_text(json.dumps({"results": rows}))
    open_part, folded = report(run).read_text().split("<summary>All 5 metrics</summary>")
    assert {value for value in ("41.00", "42.00", "80.00", "61.00", "65.00") if value in open_part} == {
        "42.00",
        "65.00",
    }
    assert all(value in folded for value in ("41.00", "42.00", "80.00", "61.00", "65.00"))


def test_no_fold_where_there_is_nothing_to_fold(run):
    assert "metrics</summary>" not in report(run).read_text()


def test_time_is_summed_over_sittings(run):
    lines = metrics(4)
    lines[2]["seconds"], lines[3]["seconds"] = 1.0, 3.0  # a resume after step 2, at 4 seconds
    write_lines(run / "metrics.jsonl", lines)
    assert "0:00:07" in Page(report(run)).text


def test_two_runs_are_compared_on_a_page_of_their_own(run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text(to_yaml(Recipe(data="photos", prototypes=60, epsilon=0.03)))
    write_lines(other / "metrics.jsonl", metrics(steps=300))
    path = report(run, other=other)
    page = Page(path)
    assert path == run / "compare.html" and not (run / "report.html").exists()
    assert "run against other" in page.text and not page.unbalanced
    settings = page.text[page.text.index("those that differ come first") :]
    assert settings.index("epsilon") < settings.index("photos")


def test_a_long_run_gives_a_small_page_that_ends_at_the_last_value(run):
    write_lines(
        run / "metrics.jsonl",
        [{"step": s, "epoch": s / 1000, "loss": 5.0 if s < 20000 else 1.25} for s in range(1, 20001)],
    )
    path = report(run)
    assert path.stat().st_size < 200_000
    assert "1.25 nats" in Page(path).text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"expected config\.yaml, metrics\.jsonl or results\.json"):
        report(tmp_path)
    with pytest.raises(DataError, match="found nothing there"):
        report(tmp_path / "missing")


def test_the_same_files_give_the_same_page_and_nothing_else_is_left(run):
    before = {path.name for path in run.iterdir()}
    report(run)
    assert {path.name for path in run.iterdir()} == before | {
        ".results.lock",
        "report.html",
        "tables.html",
        "tables.md",
        "tables.tex",
        "configs",
        "tables",
    }


def test_reports_need_no_torch(run):
    code = f"import sys; from swav.reporting.page import report; report({str(run)!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
