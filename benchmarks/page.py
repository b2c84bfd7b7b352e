"""docs/benchmarks.md: what the models trained here reach on every benchmark, beside the published page; and what ran where.

Run: python benchmarks/page.py benchmarks/page.toml --out docs/benchmarks.md

Each part of the page is a folder of `swav bench`: its tables.md is taken over as it is, and results.json says which weights, data,
protocols and seeds are behind it. page.toml names the folders and describes the models; of a model it gives the folder with its
config and log. What no part has is listed with the command that would run it.
"""

import argparse
import json
import tomllib
from pathlib import Path
from typing import Any

from swav.evaluation.catalog import CATALOG
from swav.results.results import Result, read_results
from swav.results.units import decimals_of

HEAD = """# Benchmarks of models trained here

Written by `python benchmarks/page.py benchmarks/page.toml --out docs/benchmarks.md`; the numbers are those of `swav bench`, at the scale
that could be run on two CPU cores. None of them is comparable with the published ones: each table says what differs. What the
benchmarks are is in [protocols](protocols.md).
"""


def models(content: dict[str, Any], results: list[Result]) -> str:
    """A table of the models."""
    hashes = {row.name: row.weights_sha256 for row in results}
    lines = [
        "| model | trained on | settings | images seen | network | SHA-256 of the backbone | config, log | weights |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, model in content["models"].items():
        files = f"[config]({model['files']}/config.yaml), [log]({model['files']}/metrics.jsonl)"
        lines.append(
            f"| {name} | {model['data']} | `{model['command']}` | {model['images']:,} | {model['network']} "
            f"| `{hashes.get(name, '')[:16]}` | {files} | {model['weights']} |"
        )
    return "\n".join(lines)


def reproduction(results: list[Result]) -> str:
    """A table of every benchmark: what was run of it, and the command for what was not."""
    lines = ["| benchmark | run here: data, protocol, scored images, seeds | published protocol |", "|---|---|---|"]
    for bench in CATALOG:
        found: dict[tuple[str, str, int], set[int]] = {}
        for row in results:
            if row.bench == bench:
                data = ", ".join(Path(text.partition(" of ")[2]).name for text in row.config.model_dump()["data"][:1])
                found.setdefault((data, row.protocol, row.n or 0), set()).add(row.seed)
        ran = "; ".join(
            f"{data}, {protocol}, {n:,}, {len(seeds)}" for (data, protocol, n), seeds in sorted(found.items())
        )
        published = any(row.bench == bench and row.protocol == "published" for row in results)
        command = f"not run by us: `swav bench {bench} --weights W --data ROOT --out DIR`"
        lines.append(f"| `{bench}` | {ran or 'nothing'} | {'run' if published else command} |")
    return "\n".join(lines)


def gains(results: list[Result]) -> str:
    """Every number of trained weights beside random ones."""
    lines = ["| benchmark | metric | random weights | trained | difference |", "|---|---|---|---|---|"]
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in results:
        if row.value is not None:
            kind = "random" if row.weights.startswith("random:") else "trained"
            values.setdefault((row.bench, row.metric), {}).setdefault(kind, []).append(row.value)
    for (bench, metric), of in values.items():
        if len(of) == 2:
            random, trained = (sum(of[kind]) / len(of[kind]) for kind in ("random", "trained"))
            digits = decimals_of(metric)
            lines.append(
                f"| `{bench}` | {metric} | {random:.{digits}f} | {trained:.{digits}f} | {trained - random:+.{digits}f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    wanted = parser.parse_args()
    content = tomllib.loads(wanted.page.read_text(encoding="utf-8"))
    parts, everything = [], list[Result]()
    for part in content["parts"]:
        folder = wanted.page.parent / part["folder"]
        results = list(read_results(folder).results)
        everything += results
        tables = (folder / "tables.md").read_text(encoding="utf-8").partition("\n## ")[2].replace("\n## ", "\n### ")
        text = f"## {part['title']}\n\n{part['text'].strip()}\n\nCommand: `{part['command']}`\n\n{gains(results)}\n"
        parts.append(
            f"{text}\n<details><summary>In the tables of the published page</summary>\n\n### {tables}\n</details>\n"
        )
    sections = [HEAD, f"## Models\n\n{models(content, everything)}\n", *parts]
    sections.append(f"## What ran where\n\n{reproduction(everything)}\n")
    wanted.out.write_text("\n".join(sections), encoding="utf-8")
    print(json.dumps({"numbers": len(everything), "page": str(wanted.out)}))


if __name__ == "__main__":
    main()
