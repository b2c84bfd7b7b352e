"""Attacks: tables that are not the page's, a number in the wrong cell or beside numbers that it may not be compared with, an
average over results that differ by more than the seed, an empty cell without a reason, a name that breaks a format.

Run: pytest tests/results/test_tables.py
"""

import dataclasses
import html.parser
import re
import statistics

import pytest

from swav.results.published import Published, read_published
from swav.results.render import html as as_html
from swav.results.render import latex, markdown, plain
from swav.results.results import Results
from swav.results.tables import page_tables

CONFIG = ["Self-Supervised Config"]
FEATURES = [f"Feature{i}" for i in range(1, 6)]

# The page, by hand: title, headings, its own row.
THE_PAGE = [
    (
        "VOC SVM / Low-shot SVM",
        [*CONFIG, "Best Layer", "SVM", "k=1", "k=2", "k=4", "k=8", "k=16", "k=32", "k=64", "k=96"],
        "feature5 87.00 44.68 55.41 67.64 73.67 78.14 81.58 83.98 85.15",
    ),
    ("ImageNet Linear Evaluation", CONFIG + FEATURES, "16.98 34.96 49.26 65.98 70.74"),
    (
        "ImageNet Linear Evaluation and Fine-tuning",
        ["Algorithm", "Backbone", "Epoch", "Batch Size", "Linear Eval", "Fine-tuning", "Links"],
        "ResNet50 200 256 70.5 /",
    ),
    ("Places205 Linear Evaluation", CONFIG + FEATURES, "23.33 35.45 43.13 51.98 55.09"),
    ("ImageNet Nearest-Neighbor Classification", [*CONFIG, "k=10", "k=20", "k=100", "k=200"], "60.5 60.6 59.0 57.6"),
    ("Pascal VOC 2007 + 2012", [*CONFIG, "AP50"], "77.64"),
    (
        "COCO2017",
        [*CONFIG, "mAP(Box)", "AP50(Box)", "AP75(Box)", "mAP(Mask)", "AP50(Mask)", "AP75(Mask)"],
        "40.2 60.5 43.9 36.3 57.5 38.8",
    ),
    ("Pascal VOC 2012 + Aug", [*CONFIG, "mIOU"], "63.73"),
]
OWN_NAME = "resnet50_8xb32-mcrop-2-6-coslr-200e_in1k-224-96"

PAGE_ROW = Published(
    label="SwAV, page",
    method="SwAV",
    backbone="resnet50",
    source="a zoo, table 1",
    values={"knn": {"top-1 k=10": 60.5, "top-1 k=20": 60.6}, "linear": {"top-1": 70.5}},
    epochs=200,
    batch=256,
    page=True,
    config="config_of_the_page",
    url="https://example.org/a|b(c)",
)
SIBLING = Published(
    label="Other & Co",
    method="Other",
    backbone="vit",
    source="arXiv 0000.00000, table 2",
    values={"knn": {"top-1 k=20": 55.125}},
    note="another split",
)
NASTY = "a|b<script>alert(1)</script>&_%$#{}~^\\ [x](javascript:y) *bold* `c` \udcff\ud800\nnew\tline -- \u202eabc 漢é"


def result(bench="knn", metric="top-1 k=10", value=50.0, **changed):
    row = {
        "bench": bench,
        "metric": metric,
        "value": value,
        "unit": "%",
        "n": 50000,
        "protocol": "published",
        "comparable": True,
        "difference": "",
        "seed": 0,
        "weights": "runs/mine",
        "weights_sha256": "0123456789abcdef" * 4,
        "versions": {"swav": "0.1.0"},
        "config": {"size": 224, "network": {"backbone": "resnet18", "width": 1.0}},
        "log": None,
    }
    return row | changed


def smoke(bench="knn", metric="top-1 k=10", **changed):
    return result(
        bench,
        metric,
        **{"protocol": "smoke", "comparable": False, "difference": "10 classes instead of 1,000"} | changed,
    )


def tables_of(results=(), not_run=(), published=(PAGE_ROW, SIBLING)):
    return page_tables(Results.from_json({"results": list(results), "not_run": list(not_run)}), published)


def table(tables, title="ImageNet Nearest-Neighbor Classification", comparable=True):
    found = [one for one in tables if one.title == title and one.comparable == comparable]
    assert len(found) <= 1
    return found[0] if found else None


def texts(row):
    return [cell.text for cell in row.cells]


def ours(one):
    return [row for row in one.rows if row.kind == "ours"]


def notes_of(one, cell):
    return [one.notes[mark - 1] for mark in cell.marks]


# -- the page


def test_the_published_file_fills_the_page_as_it_is():
    tables = page_tables(Results(), read_published()[:1])
    assert [one.title for one in tables] == [title for title, *_ in THE_PAGE]
    for one, (_, headings, numbers) in zip(tables, THE_PAGE, strict=True):
        assert list(one.headings) == headings
        (row,) = one.rows
        first = "SwAV" if "Algorithm" in headings else OWN_NAME
        assert texts(row)[: len(numbers.split()) + 1] == [first, *numbers.split()]
        assert row.kind == "page"


def test_an_empty_folder_has_every_table_of_the_page():
    assert [one.title for one in tables_of(published=())] == [title for title, *_ in THE_PAGE]


def test_tables_that_the_page_does_not_have_are_there_where_something_was_measured():
    titles = [one.title for one in tables_of([result("inat18", "top-1 feature5"), result("semisup", "top-5 1%")])]
    assert titles.index("iNaturalist2018 Linear Evaluation") == 4
    assert titles[-1] == "ImageNet with few labels"


def test_ours_stand_first_then_the_page_s_row_then_the_same_training_elsewhere_then_the_others():
    again = dataclasses.replace(PAGE_ROW, label="SwAV, elsewhere", page=False)
    longer = dataclasses.replace(again, label="SwAV, 400 epochs", epochs=400)
    one = table(tables_of([result()], published=(PAGE_ROW, SIBLING, longer, again)))
    assert [row.kind for row in one.rows] == ["ours", "page", "published", "sibling", "sibling"]
    assert [row.cells[0].text for row in one.rows[2:]] == ["SwAV, elsewhere", "Other & Co", "SwAV, 400 epochs"]


def test_a_published_number_is_never_rounded_and_a_missing_one_is_a_stroke():
    assert texts(table(tables_of()).rows[1]) == ["Other & Co", "/", "55.125", "/", "/"]


def test_published_rows_name_source_note_and_address():
    page, sibling = table(tables_of()).rows
    assert (page.kind, sibling.kind) == ("page", "sibling")
    assert "a zoo, table 1" in page.source.text and "config_of_the_page" in page.source.text
    assert page.source.url == "https://example.org/a|b(c)"
    assert "another split" in sibling.source.text
    assert "another split" in markdown(tables_of())


def test_published_low_shot_of_another_best_layer_fills_its_columns_and_its_row_says_so():
    one = table(page_tables(Results(), read_published()), "VOC SVM / Low-shot SVM")
    (row,) = [row for row in one.rows if row.cells[0].text.startswith("Relative location")]
    assert texts(row)[1:5] == ["feature4", "65.52", "20.36", "23.12"]
    assert "low-shot on feature4, its best layer, where ours is on the last stage" in row.source.text
    assert "low-shot on" not in one.rows[0].source.text  # of the page's it is the last


# -- what may stand beside what


@pytest.mark.parametrize(
    "other", [{"comparable": False, "difference": "10 classes"}, {"protocol": "smoke"}, {"comparable": "yes"}]
)
def test_what_is_not_comparable_never_shares_a_table_with_published_numbers(other):
    tables = tables_of([result(value=51.0), result(value=12.0, metric="top-1 k=20", **other)])
    for one in tables:
        assert not (one.comparable and any("12.0" in text for row in one.rows for text in texts(row)))
        assert one.comparable or {row.kind for row in one.rows} == {"ours"}
    others = table(tables, comparable=False)
    assert tables.index(others) == tables.index(table(tables)) + 1
    assert others.headings == table(tables).headings
    assert texts(ours(table(tables))[0])[1:3] == ["51.0", "–"]
    assert texts(others.rows[0])[1:3] == ["–", "12.0"]
    assert any("not comparable" in note for note in notes_of(others, others.rows[0].cells[0]))


def test_a_row_says_why_it_is_not_comparable():
    one = table(tables_of([smoke()]), comparable=False)
    assert one.rows[0].cells[0].text == "runs/mine, smoke"
    assert notes_of(one, one.rows[0].cells[0])[1] == "not comparable: 10 classes instead of 1,000"


def test_smoke_and_page_never_share_a_row_even_if_neither_is_comparable():
    tables = tables_of([smoke(), result(metric="top-1 k=20", comparable=False, difference="50 images")])
    assert len(table(tables, comparable=False).rows) == 2


def test_other_tensors_under_the_same_name_have_a_row_of_their_own():
    rows = [result(), result(metric="top-1 k=20", weights_sha256="ff" * 32)]
    assert [texts(row)[1:3] for row in ours(table(tables_of(rows)))] == [["50.0", "–"], ["–", "50.0"]]


def test_several_weights_give_several_rows_by_name():
    rows = [result(name="First"), result(weights="runs/b", name="Second"), result(weights="runs/c")]
    assert [texts(row)[0] for row in ours(table(tables_of(rows)))] == ["First", "Second", "runs/c"]


def test_weights_that_share_a_name_are_told_apart():
    rows = [result(name="Mine", weights="a"), result(name="Mine", weights="b")]
    assert [texts(row)[0] for row in ours(table(tables_of(rows)))] == ["Mine (a)", "Mine (b)"]


# -- numbers


def test_seeds_give_mean_and_sample_deviation_and_their_number():
    values = [70.13, 70.94, 69.02]
    (row,) = ours(table(tables_of([result(value=v, seed=i) for i, v in enumerate(values)])))
    assert texts(row)[1] == f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
    assert texts(row)[0] == "runs/mine, 3 seeds"


def test_different_numbers_of_seeds_are_told_by_benchmark():
    rows = [result("svm", "mAP best layer"), *(result("lowshot", "mAP k=1", seed=i) for i in range(3))]
    (row,) = ours(table(tables_of(rows), "VOC SVM / Low-shot SVM"))
    assert texts(row)[0] == "runs/mine, seeds: svm 1, lowshot 3"


def test_results_that_differ_by_more_than_the_seed_are_not_averaged():
    rows = [smoke(value=10.0, difference="8 epochs"), smoke(value=30.0, difference="9 epochs", seed=1)]
    found = table(tables_of(rows), comparable=False).rows
    assert [texts(row)[1] for row in found] == ["10.0", "30.0"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "70"])
def test_what_is_no_number_is_passed_over(value):
    assert ours(table(tables_of([result(value=value)]))) == []


def test_the_best_layer_is_named():
    stages = [result("svm", f"mAP feature{i}", value) for i, value in enumerate((10, 20, 60, 55, 50), start=1)]
    rows = [*stages, result("svm", "mAP best layer", 60)]
    (row,) = ours(table(tables_of(rows), "VOC SVM / Low-shot SVM"))
    assert texts(row)[1:3] == ["feature3", "60.00"]


def test_stages_of_other_trunks_fill_the_columns_and_the_rest_is_told():
    rows = [result("linear-stages", f"top-1 feature{i} (blocks.{2 * i})", 10.0 * i) for i in range(1, 7)]
    one = table(tables_of(rows), "ImageNet Linear Evaluation")
    (row,) = ours(one)
    assert texts(row)[1:] == ["10.00", "20.00", "30.00", "40.00", "50.00"]
    said = " ".join(notes_of(one, row.cells[0]))
    assert "Feature3 is blocks.6" in said and "feature6 (blocks.12): 60.00" in said


def test_metrics_with_longer_names_are_not_taken_for_the_page_s():
    rows = [result("lowshot", metric) for metric in ("mAP k=1, cost by trainval", "spread k=1", "mAP k=1 feature5")]
    rows += [result("knn", "top-5 k=10"), result("knn", "top-1 k=5")]
    assert not any(ours(one) for one in tables_of(rows))


def test_fine_tuning_is_semi_supervision_with_all_labels():
    network = {"backbone": "resnet50", "width": 2.0, "epochs": 400, "batch": 512}
    rows = [result("semisup", "top-1 100%", 75.25, config={"network": network}), result("semisup", "top-1 10%", 1.0)]
    (row,) = ours(table(tables_of(rows), "ImageNet Linear Evaluation and Fine-tuning"))
    assert texts(row)[:-1] == ["runs/mine", "ResNet50 (width 2)", "400", "512", "–", "75.2"]


# -- what could not be run


def test_what_could_not_be_run_says_why_in_its_cells():
    rows = tables_of([result()], [{"bench": "places205", "reason": "no list", "expected": "the lists"}])
    one = table(rows, "Places205 Linear Evaluation")
    (row,) = ours(one)
    assert texts(row) == ["runs/mine", *["–"] * 5]
    for cell in row.cells[1:]:
        assert notes_of(one, cell) == ["places205 was not run: no list; needs the lists"]


def test_a_reason_for_one_metric_or_one_weights_stays_there():
    results = [result("lowshot", "mAP k=1"), result("lowshot", "mAP k=1", weights="runs/b")]
    reasons = [{"bench": "lowshot", "metric": "mAP k=96", "weights": "runs/b", "reason": "few", "expected": "more"}]
    one = table(tables_of(results, reasons), "VOC SVM / Low-shot SVM")
    marked = [["few" in " ".join(notes_of(one, cell)) for cell in row.cells[1:]] for row in ours(one)]
    assert marked == [[False] * 10, [False] * 9 + [True]]


def test_every_empty_cell_of_ours_says_why():
    rows = [result(), smoke(metric="top-1 k=20"), result("svm", "mAP best layer", config={"network": {}})]
    tables = tables_of(rows, [{"bench": "svm", "weights": "timm:x", "reason": "no stages", "expected": "a ResNet"}])
    one = table(tables)
    (row,) = ours(one)
    said = [" ".join(notes_of(one, cell)) for cell in row.cells[1:]]
    assert said[0] == "" and "another protocol" in said[1] and "gave no number of this column" in said[2]
    one = table(tables, "VOC SVM / Low-shot SVM")
    row, other = ours(one)
    assert "no stages" in " ".join(notes_of(one, other.cells[2]))
    assert "swav bench lowshot" in " ".join(notes_of(one, row.cells[3]))
    for one in tables:
        assert all(cell.marks for row in ours(one) for cell in row.cells if cell.text == "–")


def test_weights_without_any_result_have_a_row_that_says_why():
    reasons = [{"bench": "knn", "weights": "timm:x", "reason": "no stages", "expected": "a ResNet"}]
    (row,) = ours(table(tables_of([], reasons)))
    assert texts(row) == ["timm:x", *["–"] * 4]
    (row,) = ours(table(tables_of([], [{"bench": "knn", "reason": "no data", "expected": "data"}])))
    assert texts(row)[0] == "not run"


def test_no_reason_is_given_for_what_was_measured_under_another_protocol():
    tables = tables_of([smoke(), result(metric="top-1 k=20")], [{"bench": "knn", "reason": "old", "expected": "x"}])
    (row,) = ours(table(tables))
    given = ["old" in " ".join(notes_of(table(tables), cell)) for cell in row.cells[1:]]
    assert given == [False, False, True, True]


# -- the formats


class Parsed(html.parser.HTMLParser):
    """Tags with attributes, text, and rows of cells."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.text, self.unbalanced = [], [], "", []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def nasty_tables():
    published = [PAGE_ROW, Published(NASTY, NASTY, NASTY, NASTY, {"linear": {"top-1": 1.0}}, note=NASTY, url=NASTY)]
    results = [
        smoke(bench="linear", metric="top-1", weights=NASTY, weights_sha256=NASTY, difference=NASTY),
        result("linear", "top-1", name=NASTY, config={"network": {"backbone": NASTY, "epochs": NASTY}}),
        result("linear-stages", f"top-1 feature1 ({NASTY})", weights=NASTY),
    ]
    return tables_of(results, [{"bench": "knn", "reason": NASTY, "expected": NASTY}], published)


def test_hostile_names_are_text_in_html():
    source = as_html(nasty_tables())
    page = Parsed(source)
    assert page.unbalanced == [] and page.open == []
    assert not {tag for tag, _ in page.tags} & {"script", "b", "img"}
    assert plain(NASTY) in page.text
    for _, attributes in page.tags:
        assert not any(key.startswith("on") for key in attributes)
        assert not str(attributes.get("href", "")).startswith(("javascript", "//"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    jumps = [attributes["href"][1:] for _, attributes in page.tags if str(attributes.get("href")).startswith("#")]
    assert jumps and set(jumps) <= set(ids)
    source.encode()


def test_hostile_names_are_text_in_markdown():
    source = markdown(nasty_tables())
    source.encode()
    rest = source.replace("<sup>", "").replace("</sup>", "")
    assert "<" not in rest and ">" not in rest
    assert not re.search(r"(?<!\\)(?:\\\\)*`", source)
    assert not re.search(r"(?<!\\)\]\(javascript", source)
    for block in re.split(r"\n(?!\|)", source):
        rows = [line for line in block.split("\n") if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows}) <= 1


def test_hostile_names_are_text_in_latex():
    source = latex(nasty_tables())
    source.encode()
    assert set(re.findall(r"[^\x00-\x7f]", source)) <= {"é"}
    body = source.partition(r"\small")[2]
    known = "section|subsection|subsubsection|begin|end|toprule|midrule|bottomrule|endhead|footnotesize|raggedright|"
    known += "arraybackslash|textsuperscript|par|textbackslash|textasciitilde|textasciicircum|pm|textendash|allowbreak|anychar|times|ldots"
    for command in re.findall(r"\\([a-zA-Z]+)", body):
        assert re.fullmatch(known, command), command
    inside = re.sub(r"\\begin\{longtable\}\[l\]\{.*\}", "", body)
    assert not re.search(r"[<>|]", re.sub(r"\\\([<>|]\\\)", "", inside))
    inside = re.sub(r"\\[a-zA-Z]+|\\[\\{}$&#%_()]", "", inside)
    assert not re.search(r"[$#%^\\_]", inside)
    assert "--" not in inside
    assert inside.count("{") == inside.count("}")
    for block in re.findall(r"\\endhead\n(.*?)\\bottomrule", body, re.DOTALL):
        lines = block.splitlines()
        assert all(line.endswith(r"\\") for line in lines)
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines}) <= 1
