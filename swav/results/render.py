"""The page's tables as Markdown, HTML and LaTeX, beside the results.json that they show.

All three say the same. Names come from users and files: every format escapes its own special characters, control
characters and lone surrogates are shown by their codes. No date: the same results give the same bytes.
"""

import dataclasses
import itertools
import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from swav.errors import MachineError, printable, printable_lines
from swav.files import remove_leftovers, write_text_durably
from swav.results.layout import OURS, PAGE_ROW, SIBLING, Link, Source, Table, TableRow
from swav.results.published import read_published
from swav.results.results import Result, Results, read_results, results_lock
from swav.results.tables import page_tables

APART = "Not comparable with published numbers"
TABLES = ("tables.md", "tables.html", "tables.tex")
COMPACT = "tables"  # the folder of single tables
SOURCES = "Sources of the published rows"
STROKE = "A stroke (/) in a published row: no such number was published."


def write_tables(folder: Path, read: Callable[[Path], Results] = read_results, siblings: bool = False) -> list[Path]:
    """Write tables.md, tables.html and tables.tex of a folder's results.json, each table of it as tables/NAME.md and .tex, and
    the settings that their rows link, in durable steps. Others that write results there wait meanwhile: the tables are of the newest.

    Args:
        folder: that of the results.json.
        read: gives its content.
        siblings: show published rows of other methods and trainings too; tables.html has them in any case, folded.

    Returns:
        The three paths.

    Raises:
        DataError: there is a results.json that is none.
        MachineError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        with results_lock(folder, base=folder):
            content = read(folder)
            results = tuple(_with_log(folder, row) for row in content.results)
            tables = page_tables(content.model_copy(update={"results": results}), read_published())
            texts = {
                row.settings_file: row.settings_text for row in results
            }  # first: no row links what is not there yet
            shown = tables if siblings else tuple(table.without_siblings() for table in tables)
            written = dict(zip(TABLES, (markdown(shown), html(tables), latex(shown)), strict=True))
            written |= compact_tables(shown)
            for kept in ("configs", COMPACT):
                (folder / kept).mkdir(exist_ok=True)
            for name, words in (texts | written).items():
                remove_leftovers(folder / name)
                write_text_durably(folder / name, words)
    except OSError as error:
        raise MachineError(f"{folder}: tables cannot be written ({error}); make room, or use another --out") from None
    return [folder / name for name in TABLES]


def html_templates(*folders: Path) -> jinja2.Environment:
    """HTML templates, which escape every value: those of these folders, and the tables and style of this package."""
    loader = jinja2.FileSystemLoader([*folders, Path(__file__).parent / "templates"])
    return jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )


def _printable(value: Any) -> Any:
    """A value of a template: of a text without control characters, which may come with any name or path."""
    return type(value)(printable_lines(value)) if isinstance(value, str) and not value.isprintable() else value


def _with_log(folder: Path, row: Result) -> Result:
    """A log that is gone, or is not named relative to the folder, is not linked."""
    log = row.log
    there = log is not None and "\0" not in log and not Path(log).is_absolute() and (folder / log).is_file()
    return row if there else row.changed(log=None)


# -- what the formats share


def plain(words: str) -> str:
    """Words on one line; what cannot be printed, lone surrogates included, as its code."""
    line = " ".join(words.split())
    return printable(line)


def _parts(tables: Sequence[Table]) -> Iterator[tuple[tuple[str, str], list[Table]]]:
    """The page's sections with their tables."""
    for section, inside in itertools.groupby(tables, key=lambda table: table.section):
        yield section, list(inside)


def _sources(tables: Sequence[Table]) -> dict[Source, int]:
    """The sources of published rows, numbered in the order of their first use; a list of them stands at the end."""
    used = dict.fromkeys(row.source for table in tables for row in table.rows if row.source is not None)
    return {source: i for i, source in enumerate(used, start=1)}


def _kind(row: TableRow) -> str:
    return "published, the page's own" if row.kind == PAGE_ROW else "published"


def _target(link: Link, row: TableRow) -> str:
    """Of a published row an address of the web; of ours a path in the folder: no scheme and no other machine can be in it."""
    return _web(link.target) if row.source is not None else urllib.parse.quote(link.target, errors="surrogateescape")


def _web(url: str) -> str:
    """An address of the web, or nothing."""
    return urllib.parse.quote(plain(url), safe=":/?#@!$&'*+,;=%~") if re.match(r"https?://", url) else ""


# -- single tables, to be pasted into a text


def compact_tables(tables: Sequence[Table]) -> dict[str, str]:
    """Each table with rows of ours as Markdown and LaTeX without links, its notes below; by path."""
    written = {}
    for table in tables:
        if not any(row.kind == OURS for row in table.rows):
            continue
        bare = dataclasses.replace(table, rows=tuple(map(_without_links, table.rows)))
        words = (table.title or table.section[0]) + ("" if table.comparable else " not comparable")
        name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
        sources = _sources([bare])
        named = [f"- \\[{i}\\] {_md(source.text)}" for source, i in sources.items()]
        lines = [*_md_table(bare, sources), *([""] if named else []), *named]
        written[f"{COMPACT}/{name}.md"] = "\n".join(lines) + "\n"
        named = [rf"{{\footnotesize [{i}]~{_tex(source.text)}\par}}" for source, i in sources.items()]
        written[f"{COMPACT}/{name}.tex"] = "\n".join([PACKAGES, *_tex_table(bare, sources), *named]) + "\n"
    return written


def _without_links(row: TableRow) -> TableRow:
    return dataclasses.replace(row, cells=tuple(dataclasses.replace(cell, links=()) for cell in row.cells))


# -- Markdown


def markdown(tables: Sequence[Table]) -> str:
    """As GitHub and others read it."""
    lines, sources = ["# Models and benchmarks"], _sources(tables)
    for (heading, sentence), inside in _parts(tables):
        lines += ["", f"## {heading}", "", _md(sentence)]
        for table in inside:
            lines += ["", f"### {table.title}" if table.comparable else f"#### {APART}", ""]
            if table.comparable and table.sentence:
                lines += [_md(table.sentence), ""]
            lines += _md_table(table, sources)
    if sources:
        lines += ["", f"## {SOURCES}", "", STROKE, ""]
    for source, i in sources.items():
        url = _web(source.url)
        lines.append(f"- \\[{i}\\] {_md(source.text)}" + (f" {_md_link(_md(url), url)}" if url else ""))
    return "\n".join(lines) + "\n"


def _md_table(table: Table, sources: Mapping[Source, int]) -> list[str]:
    rule = ["---:" if numeric else "---" for numeric in table.numeric]
    lines = [_md_row(map(_md, table.headings)), _md_row(rule)]
    lines += [_md_row(_md_cell(row, i, sources) for i in range(len(row.cells))) for row in table.rows]
    lines += [""] * bool(table.notes)
    return lines + [f"- <sup>{i}</sup> {_md(note)}" for i, note in enumerate(table.notes, start=1)]


def _md_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md_cell(row: TableRow, column: int, sources: Mapping[Source, int]) -> str:
    cell = row.cells[column]
    words = _md(cell.text)
    if column == 0:
        words = f"**{words}**" if row.source is None else f"{words} ({_kind(row)}) \\[{sources[row.source]}\\]"
    links = ", ".join(_md_link(_md(link.text), _target(link, row)) for link in cell.links)
    marks = f"<sup>{', '.join(map(str, cell.marks))}</sup>" if cell.marks else ""
    return " ".join(filter(None, (words, f"({links})" if links and words else links))) + marks


def _md_link(words: str, target: str) -> str:
    return f"[{words}]({target})" if target else words


def _md(words: str) -> str:
    words = plain(words).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", words)


# -- HTML


def html(tables: Sequence[Table]) -> str:
    """A page that opens offline: one file, no script."""
    shown = html_templates()
    shown.filters |= {"plain": plain, "web": _web, "target": _target, "kind": _kind}
    numbers = {id(table): i for i, table in enumerate(tables, start=1)}
    parts = [(section, [(numbers[id(table)], table) for table in inside]) for section, inside in _parts(tables)]
    return shown.get_template("tables.html").render(
        parts=parts, apart=APART, sources=_sources(tables), sources_title=SOURCES, stroke=STROKE, sibling=SIBLING
    )


# -- LaTeX

PACKAGES = r"% Needs \usepackage{array,booktabs,longtable}; for letters that TeX lacks also \anychar of tables.tex."
PREAMBLE = r"""% Written by swav.
\documentclass[a4paper]{article}
\usepackage[landscape,margin=1.5cm]{geometry}
\usepackage{array,booktabs,longtable}
\newcommand{\anychar}[1]{\ifdefined\Uchar\char"#1\relax\else\texttt{U+#1}\fi} % pdfTeX has no font for it
\setlength{\parindent}{0pt}
\setlength{\tabcolsep}{4pt}
\setlength{\emergencystretch}{3em}
\setcounter{secnumdepth}{0}
\begin{document}
\small
"""
TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\(<\)",
    ">": r"\(>\)",
    "|": r"\(|\)",
    "±": r"\(\pm\)",
    "×": r"\(\times\)",
    "–": r"\textendash{}",
    "…": r"\ldots{}",
    '"': "''",
    "`": "{`}",  # no ligature, as ?` would be one
    "*": "{*}",  # after \\ an asterisk and a bracket would belong to it
    "[": "{[}",
    "]": "{]}",
} | {c: f"\\{c}" for c in "{}$&#%_"}
LETTERS = {c for c in map(chr, range(0xC0, 0x100)) if c not in "ÐÞðþ×÷"}  # that pdfTeX's oldest fonts can compose
CM_PER_LETTER, CM_BETWEEN, CM_WIDE = 0.17, 0.28, 26.5
BREAKS = ("-", "/", ".", r"\_", "=")
LONG_WORD = 20  # letters; a path may be broken, a number not


def latex(tables: Sequence[Table]) -> str:
    """A document of its own, for any TeX with booktabs; what is linked elsewhere is a note here."""
    lines, sources = [PREAMBLE], _sources(tables)
    for (heading, sentence), inside in _parts(tables):
        lines += [rf"\section{{{_tex(heading)}}}", _tex(sentence), ""]
        for table in inside:
            lines += [rf"\subsection{{{_tex(table.title)}}}" if table.comparable else rf"\subsubsection{{{APART}}}"]
            lines += [_tex(table.sentence), ""] if table.comparable and table.sentence else []
            lines += _tex_table(table, sources)
    lines += [rf"\section{{{SOURCES}}}", rf"{_tex(STROKE)}\par"] if sources else []
    lines += [rf"[{i}]~{_tex(f'{source.text} {source.url}')}\par" for source, i in sources.items()]
    return "\n".join([*lines, r"\end{document}"]) + "\n"


def _tex_table(table: Table, sources: Mapping[Source, int]) -> list[str]:
    notes = list(map(_tex, table.notes))
    body = []
    for row in table.rows:
        cells = [_tex(cell.text) for cell in row.cells]
        if row.source is not None:
            cells[0] += rf" ({_kind(row)})~{{[}}{sources[row.source]}{{]}}"
        for i, cell in enumerate(row.cells):
            marks = list(cell.marks)
            if row.source is not None and cell.links:
                cells[i] = f"{{[}}{sources[row.source]}{{]}}"
            if row.source is None and (files := [link for link in cell.links if link.target]):
                notes.append("; ".join(f"{_tex(link.text)} {_tex(link.target)}" for link in files))
                marks.append(len(notes))
            cells[i] += rf"\textsuperscript{{{', '.join(map(str, marks))}}}" if marks else ""
        body.append(" & ".join(cells) + r" \\")
    return [
        rf"\begin{{longtable}}[l]{{@{{}}{_tex_columns(table)}@{{}}}}",
        r"\toprule",
        " & ".join(map(_tex, table.headings)) + r" \\",
        r"\midrule",
        r"\endhead",
        *body,
        r"\bottomrule",
        r"\end{longtable}",
        *(rf"{{\footnotesize\textsuperscript{{{i}}}~{words}\par}}" for i, words in enumerate(notes, start=1)),
        "",
    ]


def _tex_columns(table: Table) -> str:
    """The first column breaks its lines and takes what the others leave."""
    columns = list(zip(table.headings, *([cell.text for cell in row.cells] for row in table.rows), strict=True))
    widths = [CM_PER_LETTER * max(map(len, column)) + CM_BETWEEN for column in columns]
    first = max(4, min(widths[0] + 4, CM_WIDE - sum(widths[1:])))  # 4: to say that it is published
    return rf">{{\raggedright\arraybackslash}}p{{{first:.1f}cm}}" + "".join(
        "r" if numeric else "l" for numeric in table.numeric[1:]
    )


def _tex(words: str) -> str:
    return " ".join(map(_tex_word, plain(words).split(" ")))


def _tex_word(word: str) -> str:
    written = [TEX.get(c) or (c if c.isascii() or c in LETTERS else rf"\anychar{{{ord(c):04X}}}") for c in word]
    breaks = len(word) > LONG_WORD
    return "".join(c + r"\allowbreak{}" if breaks and c in BREAKS else c for c in written).replace("--", "-{}-{}")
