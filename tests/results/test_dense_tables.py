"""Attacks: results of detection and segmentation in another column than the page's, under its numbers by another source's protocol,
or nowhere.

Run: pytest tests/results/test_dense_tables.py
"""

import html
import re
from typing import Any

import pytest

from swav.results.console import format_results
from swav.results.published import read_published
from swav.results.render import html as as_html
from swav.results.render import latex, markdown
from swav.results.results import Results
from swav.results.tables import page_tables
from tests.results.example import row

VOC, COCO = "Pascal VOC 2007 + 2012", "COCO2017"
AUG, CITYSCAPES = "Pascal VOC 2012 + Aug", "Cityscapes"
BOTH = [f"{kind} {name}" for kind in ("box", "mask") for name in ("AP", "AP50", "AP75")]
PUBLISHED = [
    *(row("detect-voc", name, value, n=4952) for name, value in (("AP50", 77.641), ("AP", 48.2), ("AP75", 52.3))),
    *(row("detect-coco", name, 30.0 + i, n=5000) for i, name in enumerate(BOTH)),
    row("segment-voc", "mIoU", 63.728, n=1449),
    row("segment-cityscapes", "mIoU", 71.5, n=500),
]


def of_protocol(protocol, *rows):
    return [one | {"protocol": protocol, "comparable": False, "difference": f"protocol {protocol}"} for one in rows]


def own(value=41.25, **changed):
    fields: dict[str, Any] = {"protocol": "own", "comparable": False, "difference": "protocol own", "n": 40}
    return row("segment-linear", "mIoU", value, **fields | {"interval": [38.1, 44.02]} | changed)


def content_of(rows, not_run=()):
    return Results.from_json({"results": rows, "not_run": list(not_run)})


def tables_of(rows, not_run=()):
    return page_tables(content_of(rows, not_run), read_published())


def ours(tables, title, comparable=True):
    """Texts of our rows of a table, or None where there is no such table."""
    found = [one for one in tables if one.title == title and one.comparable == comparable]
    assert len(found) <= 1
    return [[cell.text for cell in one.cells] for one in found[0].rows if one.kind == "ours"] if found else None


def texts_of(source):
    """What an HTML or Markdown page says, without tags."""
    return html.unescape(re.sub(r"<[^>]+>", " ", source)).replace("\\", "")


def test_published_results_stand_in_the_page_s_columns_above_its_row():
    tables = tables_of(PUBLISHED)
    assert ours(tables, VOC) == [["Ours | fast", "77.64"]]
    assert ours(tables, COCO) == [["Ours | fast", *(f"{30 + i}.0" for i in range(6))]]
    assert ours(tables, AUG) == [["Ours | fast", "63.73"]]
    assert ours(tables, CITYSCAPES) == [["Ours | fast", "71.50"]]
    for one in tables:
        if one.title in (VOC, COCO, AUG):
            assert [row.kind for row in one.rows[:2]] == ["ours", "page"]
        if one.title == CITYSCAPES:
            assert one.comparable and [row.kind for row in one.rows] == ["ours"]
    assert all(one.comparable for one in tables)


@pytest.mark.parametrize("protocol", ["moco", "swav", "smoke"])
@pytest.mark.parametrize("claimed", [False, True])
def test_another_protocol_never_shares_a_column_with_the_page(protocol, claimed):
    other = [one | {"comparable": claimed} for one in of_protocol(protocol, row("detect-voc", "AP50", 82.5))]
    tables = tables_of([*PUBLISHED, *other])
    assert ours(tables, VOC) == [["Ours | fast", "77.64"]]
    assert ours(tables, VOC, comparable=False) == [[f"Ours | fast, {protocol}", "82.50"]]
    (one,) = [one for one in tables if one.title == VOC and not one.comparable]
    assert {row.kind for row in one.rows} == {"ours"} and any(f"protocol {protocol}" in note for note in one.notes)


def test_moco_and_swav_share_no_row():
    rows = [
        *of_protocol("moco", row("detect-voc", "AP50", 82.5)),
        *of_protocol("swav", row("detect-voc", "AP50", 82.6)),
    ]
    assert ours(tables_of(rows), VOC, comparable=False) == [
        ["Ours | fast, moco", "82.50"],
        ["Ours | fast, swav", "82.60"],
    ]


def test_the_linear_probe_stands_in_the_table_of_protocol_own_with_its_interval():
    rows = [own(), row("knn", "top-1 k=20", 50.0, protocol="own", comparable=False, interval=[45.0, 55.0])]
    tables = tables_of(rows)
    last = tables[-1]
    assert last.section[0] == "Protocol own" and "segmentation" in last.section[1] and not last.comparable
    assert last.headings[1:] == ("segment-linear mIoU", "knn top-1 k=20")
    assert [cell.text for cell in last.rows[0].cells][1:] == ["41.2 (38.1 to 44.0)", "50.0 (45.0 to 55.0)"]
    assert not any("segment-linear" in heading for one in tables[:-1] for heading in one.headings)
    assert not any(one.title == "segment-linear" for one in tables)


def test_several_seeds_of_the_linear_probe_are_mean_and_spread():
    tables = tables_of([own(value, seed=seed) for seed, value in enumerate((40.0, 42.0))])
    assert [cell.text for cell in tables[-1].rows[0].cells] == ["Ours | fast, own, 2 seeds", "41.00 ± 1.41"]


def test_the_linear_probe_by_smoke_has_a_table_of_its_own_that_is_not_comparable():
    tables = tables_of(of_protocol("smoke", row("segment-linear", "mIoU", 20.0)))
    assert ours(tables, "segment-linear") is None
    assert ours(tables, "segment-linear", comparable=False) == [["Ours | fast, smoke", "20.00"]]


def test_what_was_not_run_says_so_in_the_columns_of_its_table():
    lacking = [
        {"bench": bench, "reason": f"no {bench}", "expected": "it"}
        for bench in ("detect-voc", "detect-coco", "segment-voc", "segment-cityscapes")
    ]
    tables = tables_of([row("knn", "top-1 k=10", 50.0)], lacking)
    for title, bench in (
        (VOC, "detect-voc"),
        (COCO, "detect-coco"),
        (AUG, "segment-voc"),
        (CITYSCAPES, "segment-cityscapes"),
    ):
        (one,) = [one for one in tables if one.title == title]
        assert ours(tables, title) == [["Ours | fast", *["–"] * (len(one.headings) - 1)]]
        assert any(f"{bench} was not run: no {bench}; needs it" in note for note in one.notes)


@pytest.mark.parametrize("render", [as_html, markdown, latex])
def test_every_format_shows_them(render):
    rows = [
        *PUBLISHED,
        own(),
        *of_protocol("moco", row("detect-voc", "AP50", 82.51)),
        *of_protocol("smoke", row("segment-voc", "mIoU", 7.25)),
    ]
    text = texts_of(render(tables_of(rows)))
    for said in ("77.64", "35.0", "63.73", "71.50", "41.2 (38.1 to 44.0)", "82.51", "7.25", "mAP(Mask)", "mIOU"):
        assert said in text, said


def test_the_terminal_shows_every_metric_with_its_protocol():
    rows = [*PUBLISHED, own(), *of_protocol("moco", row("detect-voc", "AP50", 82.5, n=4952))]
    lines = format_results(content_of(rows).results).splitlines()
    cells = {
        tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]) for line in lines if line.startswith("|")
    }
    for expected in (
        ("detect-voc", "AP50", "published", "4,952", "77.64"),
        ("detect-voc", "AP75", "published", "4,952", "52.30"),
        ("detect-voc", "AP50", "moco", "4,952", "82.50"),
        ("detect-coco", "mask AP75", "published", "5,000", "35.00"),
        ("segment-cityscapes", "mIoU", "published", "500", "71.50"),
        ("segment-linear", "mIoU", "own", "40", "41.25 (38.10 to 44.02)"),
    ):
        assert expected in cells
    assert "not comparable with published numbers: detect-voc: protocol moco" in lines
