"""Attacks: tables as files: links that lead nowhere or out of the folder, rows of other methods in the way, a table that cannot be
taken alone, bytes that change without a reason.

Run: pytest tests/results/test_table_files.py
"""

import json
import re
import urllib.parse

import pytest

from swav.errors import DataError
from swav.reporting.page import report
from swav.results.render import write_tables
from tests.results.test_tables import NASTY, OWN_NAME, Parsed, result, smoke


def folder_of(tmp_path, results, not_run=()):
    (tmp_path / "results.json").write_text(json.dumps({"results": list(results), "not_run": list(not_run)}))
    return tmp_path


def links(source):
    """Targets of a Markdown file's links to other files."""
    return [found for found in re.findall(r"\]\(([^)]*)\)", source) if not found.startswith("http")]


def test_links_lead_to_files_that_are_there(tmp_path):
    log = tmp_path / "linear" / "a b(1)#" / "log.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text("{}\n")
    rows = [
        result("linear", "top-1", log="linear/a b(1)#/log.jsonl"),
        result(log="gone/log.jsonl"),
        smoke(log=str(log)),
        result("../evil", "top-1"),
    ]
    paths = write_tables(folder_of(tmp_path, rows))
    assert [path.name for path in paths] == ["tables.md", "tables.html", "tables.tex"]
    found = links(paths[0].read_text())
    assert found and all((tmp_path / urllib.parse.unquote(target)).is_file() for target in found)
    assert any(target.startswith("linear/") for target in found)
    page = Parsed(paths[1].read_text())
    hrefs = [str(attributes.get("href")) for tag, attributes in page.tags if tag == "a"]
    assert {href for href in hrefs if not href.startswith(("#", "http"))} == set(found)
    for target in found:
        if target.startswith("configs/"):
            said = json.loads((tmp_path / target).read_text())
            assert {key: rows[0][key] for key in said if key not in ("bench", "protocol")}.items() <= said.items()
            assert {"config", "weights_sha256", "versions", "seed", "protocol"} <= said.keys()


def test_every_row_of_ours_shows_the_hash_in_every_format(tmp_path):
    for path in write_tables(folder_of(tmp_path, [result()])):
        assert "0123456789abcdef" * 4 in path.read_text()


def test_writing_twice_gives_the_same_bytes(tmp_path):
    folder_of(
        tmp_path, [result(seed=i) for i in range(2)] + [smoke()], [{"bench": "svm", "reason": "r", "expected": "e"}]
    )
    first = [path.read_bytes() for path in write_tables(tmp_path)]
    assert [path.read_bytes() for path in write_tables(tmp_path)] == first
    assert not list(tmp_path.glob(".*tmp"))


def test_a_results_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(DataError, match="expected lists"):
        write_tables(tmp_path)
    assert not (tmp_path / "tables.md").exists()


def test_a_report_writes_the_tables_and_links_them(tmp_path):
    page = report(folder_of(tmp_path, [result(weights=NASTY.replace("\ud800", "")), {"bench": "knn"}]))
    for name in ("tables.md", "tables.html", "tables.tex"):
        assert (tmp_path / name).is_file()
        assert f'href="{name}"' in page.read_text()


def test_a_comparison_leaves_the_tables_alone(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        folder_of(tmp_path / name, [result(weights=name)])
    assert "tables.html" not in report(tmp_path / "a", other=tmp_path / "b").read_text()
    assert not (tmp_path / "a" / "tables.html").exists()


def test_other_methods_are_folded_in_html_and_left_out_elsewhere_unless_asked_for(tmp_path):
    folder_of(tmp_path, [result()])
    for siblings in (False, True):
        md, page, tex = (path.read_text() for path in write_tables(tmp_path, siblings=siblings))
        assert ("MoCo v2, ResNet-50" in md) == ("MoCo v2, ResNet-50" in tex) == siblings
        folded = page.index('<details class="siblings">')
        assert folded < page.index("MoCo v2, ResNet-50") and OWN_NAME in page[:folded]
        parsed = Parsed(page)
        ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
        assert len(ids) == len(set(ids)) and parsed.unbalanced == []


def test_each_table_with_a_row_of_ours_stands_in_a_file_of_its_own_without_links(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("{}\n")
    write_tables(
        folder_of(tmp_path, [result(log="log.jsonl"), smoke("svm", "mAP best layer", difference="5,011 images")])
    )
    names = {path.name for path in (tmp_path / "tables").iterdir()}
    nearest = "imagenet-nearest-neighbor-classification"
    assert names == {
        f"{name}.{kind}" for name in (nearest, "voc-svm-low-shot-svm-not-comparable") for kind in ("md", "tex")
    }
    one = (tmp_path / "tables" / f"{nearest}.md").read_text()
    assert "50.0" in one and OWN_NAME in one.replace("\\", "") and "](" not in one and "MoCo" not in one
    assert "5,011 images" in (tmp_path / "tables" / "voc-svm-low-shot-svm-not-comparable.tex").read_text()
