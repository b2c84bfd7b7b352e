"""docs/benchmarks.md: what the models trained here reach on every benchmark, in the tables of the published page; and what ran where.

Run: python benchmarks/page.py benchmarks/page.toml --out docs/benchmarks.md

page.toml describes models and parts. A part is a folder with the results.json of `swav bench`; its tables are those that `swav bench`
writes. A model is a folder with the config and the log of its run. What no part has is listed with the command that would run it.
"""

import argparse
import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

from swav.evaluation.catalog import CATALOG
from swav.files import write_text_durably
from swav.results.layout import OURS
from swav.results.published import read_published
from swav.results.render import SOURCES, markdown
from swav.results.results import Result, Results, read_results, summary
from swav.results.tables import page_tables
from swav.results.units import decimals_of

HEAD = """# Benchmarks of models trained here

Written by `python benchmarks/page.py benchmarks/page.toml --out docs/benchmarks.md` from what `swav bench` measured, at the scale that two
CPU cores could run: small networks, small images, protocol `smoke` (a published protocol in minutes, [protocols](protocols.md)). So
these numbers compare weights with each other, never with published ones, and each table says what differs.
"""


def model_table(models: dict[str, Any], results: list[Result], beside: Path) -> str:
    """A line per model: what it was trained on, how, and how to load it."""
    hashes = {row.name: row.weights_sha256 for row in results}
    lines = [
        "| model | trained on | images seen | network | tensors (SHA-256) | run | weights |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, model in models.items():
        files = beside / model["files"]
        lines.append(
            f"| {name} | {model['data']} | {model['images']:,} | {model['network']} | `{hashes[name][:16]}` "
            f"| `{model['command']}` ([config]({files}/config.yaml), [log]({files}/metrics.jsonl)) | {model['weights']} |"
        )
    return "\n".join(lines)


def gains(results: list[Result]) -> str:
    """Trained weights beside random ones of the same network, a line per number; of protocol own with its interval."""
    lines = ["| benchmark | metric | protocol | random weights | trained | difference |", "|---|---|---|---|---|---|"]
    found: dict[tuple[str, str, str], dict[bool, list[Result]]] = {}
    for row in results:
        if not row.metric.startswith(("top-5", "spread")):
            found.setdefault((row.bench, row.metric, row.protocol), {}).setdefault(row.name == "random", []).append(row)
    for (bench, metric, protocol), rows in found.items():
        random, trained = (summary(rows.get(kind, [])) for kind in (True, False))
        if random is None or trained is None:
            continue
        digits = decimals_of(metric)
        texts = []
        for of in (random, trained):
            spread = f" ± {of.std:.{digits}f}" if of.count > 1 else ""
            texts.append(f"{of.mean:.{digits}f}{spread}")
        lines.append(
            f"| `{bench}` | {metric} | {protocol} | {texts[0]} | {texts[1]} | {trained.mean - random.mean:+.{digits}f} |"
        )
    return "\n".join(lines)


def reproduction(parts: dict[str, Results]) -> str:
    """What was run of every benchmark, and the command for what nobody could run yet."""
    lines = ["| benchmark | run here: part, protocol, scored images, seeds | as published |", "|---|---|---|"]
    for bench in CATALOG:
        ran = []
        for part, content in parts.items():
            rows = [row for row in content.results if row.bench == bench]
            protocols = sorted({row.protocol for row in rows})
            for protocol in protocols:
                its = [row for row in rows if row.protocol == protocol]
                ran.append(f"{part}, {protocol}, {max(row.n or 0 for row in its):,}, {len({row.seed for row in its})}")
        published = any(row.bench == bench and row.comparable is True for one in parts.values() for row in one.results)
        protocol = "own" if bench == "segment-linear" else "published"
        command = f"`swav bench {bench} --weights W --data ROOT --out DIR protocol={protocol}`"
        known = "published protocol" if bench != "segment-linear" else "ours alone; none is published"
        lines.append(
            f"| `{bench}` | {'; '.join(ran) or 'nothing'} | {'run' if published else f'not run yet ({known}): {command}'} |"
        )
    return "\n".join(lines)


def tables_of(content: Results, folder: Path, beside: Path) -> str:
    """The tables of the published page with the rows of a part; the settings that they link are written into its folder."""
    rows = tuple(row.changed(log=None) for row in content.results)
    (folder / "configs").mkdir(exist_ok=True)
    for row in rows:
        write_text_durably(folder / row.settings_file, row.settings_text)
    tables = page_tables(content.model_copy(update={"results": rows}), read_published())
    # Each table keeps its own title: the page begins by saying that nothing here is comparable, and the notes say why.
    shown = [
        dataclasses.replace(table.without_siblings(), comparable=True)
        for table in tables
        if any(row.kind == OURS for row in table.rows)
    ]
    text = markdown(shown).partition("\n## ")[2].partition(f"## {SOURCES}")[0]
    text = re.sub(r" \\\[\d+\\\]", "", text)  # the sources stand in tables.md of every `swav bench`
    return "#### " + text.replace("\n### ", "\n##### ").replace("\n#### ", "\n##### ").replace(
        "\n## ", "\n#### "
    ).replace("](configs/", f"]({beside}/configs/")


def page(content: dict[str, Any], folder: Path, beside: Path) -> str:
    """The page as Markdown.

    Args:
        content: of page.toml.
        folder: what its paths are relative to.
        beside: the path from the page to that folder.
    """
    parts = {part["title"]: read_results(folder / part["folder"]) for part in content["parts"]}
    everything = [row for one in parts.values() for row in one.results]
    texts = [HEAD, f"## Models\n\n{model_table(content['models'], everything, beside)}\n"]
    for part in content["parts"]:
        results = parts[part["title"]]
        tables = tables_of(results, folder / part["folder"], beside / part["folder"])
        texts.append(
            f"## {part['title']}\n\n{part['text'].strip()}\n\nCommand: `{part['command']}`\n\n{gains(list(results.results))}\n\n"
            f"<details><summary>In the tables of the published page</summary>\n\n{tables}\n</details>\n"
        )
    texts.append(f"## What ran where\n\n{reproduction(parts)}\n")
    return "\n".join(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    wanted = parser.parse_args()
    content = tomllib.loads(wanted.page.read_text(encoding="utf-8"))
    folder = wanted.page.parent
    beside = Path(*[".."] * (len(wanted.out.absolute().parent.parts) - len(Path.cwd().parts))) / folder
    wanted.out.write_text(page(content, folder, beside), encoding="utf-8")


if __name__ == "__main__":
    main()
