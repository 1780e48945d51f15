"""``bench report``, ``merge`` and ``judge``: tables, and one self-contained page."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_entropy.base.tables import markdown_table, text_table
from sgl_entropy.base.typed_json import as_json
from sgl_entropy_bench.load.judge.folders import Folder, read_folder
from sgl_entropy_bench.load.judge.judgement import Result
from sgl_entropy_bench.load.judge.run_result import RunResult
from sgl_entropy_bench.load.page import tables

if TYPE_CHECKING:
    from sgl_entropy_bench.load.page.html import Plot

Json = dict[str, Any]
Form = Callable[[Sequence[str], Sequence[Sequence[str]]], str]
Table = tuple[list[str], list[list[str]]]
# The exit code of runs that were measured but are not valid.
_INVALID = 3
_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1d21; --rule: #d5d9df; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15171b; --ink: #e4e6ea; --rule: #3c414a; --bad: #ff8a80; }
}
body { margin: 2rem auto; max-width: 80rem; padding: 0 1rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
.alarm { border-left: 4px solid var(--bad); padding-left: .8rem; color: var(--bad);
  font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .45rem; border-bottom: 1px solid var(--rule); text-align: right;
  vertical-align: top; white-space: nowrap; }
td:last-child { white-space: normal; min-width: 6rem; }
th:first-child, td:first-child, .facts * { text-align: left; }
summary { font-weight: 600; margin: 1rem 0 .5rem; cursor: pointer; }
.facts td { overflow-wrap: anywhere; }
p, li, figcaption { max-width: 48rem; }
figure { margin: 1.5rem 0; } figcaption { font-size: .85rem; }
figure svg { max-width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
"""


@dataclass(frozen=True)
class Block:
    """A part of a folder's section: a title, then whichever of table, text and items it has.

    ``text`` may hold ``**strong**`` words; ``facts``: the table is of names and long values.
    """

    title: str = ""
    table: Table | None = None
    text: str = ""
    items: tuple[str, ...] = ()
    facts: bool = False


def main(what: str, folders: Sequence[Path], out: Path) -> int:
    """``bench report``, ``merge``, ``judge``: read ``folders``, write into ``out``, print tables.

    Returns:
        the exit code; merge, judge: 3 where a run is not valid.

    Raises:
        ValueError: a folder or a file of it is missing or broken (named), or cannot be merged;
            report: matplotlib is missing.
        OSError: ``out`` cannot be written.
    """
    from sgl_entropy_bench.load.judge import merge, rejudge
    from sgl_entropy_bench.load.page import html

    if what == "judge":
        reports = [rejudge.judge_folder(folder) for folder in folders]
        print("\n\n".join(map(text_tables, reports)))
        return 0 if all(report.valid for report in reports) else _INVALID
    if what == "merge":
        merged = merge.merge(folders, out)
        print(text_tables(merged))
        print(f"\nresults: {out}", file=sys.stderr)
        return 0 if merged.valid else _INVALID
    html.require_matplotlib()
    read = [read_folder(folder) for folder in folders]
    arms = list(dict.fromkeys(arm for folder in read for arm in folder.run.arms))
    out.mkdir(parents=True, exist_ok=True)
    plots = [html.plots(f, arms, f"-{i}" if i > 1 else "") for i, f in enumerate(read, 1)]
    (out / "report.html").write_text(html_page(read, plots), encoding="utf-8")
    (out / "report.md").write_text(markdown_page(read), encoding="utf-8")
    for folder in read:
        print("\n".join([f"{folder.name}:", *alarms(folder), "", text_tables(folder.run), ""]))
    print(f"page: {out / 'report.html'}", file=sys.stderr)
    return 0


def main_table(run: RunResult) -> Table:
    """The verb's own table: (header, rows)."""
    table: dict[str, Callable[[Sequence[Result]], Table]] = {
        "latency": tables.latency_table,
        "speed": tables.speed_table,
        "capacity": tables.capacity_table,
    }
    return table.get(run.verb, tables.throughput_table)(run.results)


def text_tables(run: RunResult) -> str:
    """For a terminal."""
    parts = [
        _formed(main_table(run), text_table, shown),
        _strong(tables.caption(run), shown),
    ]
    paper = _paper(run)
    return "\n\n".join([*parts, *([_formed(paper, text_table, shown)] if paper else [])])


def _formed(table: Table, form: Form, clean: Callable[[str], str]) -> str:
    header, rows = table
    return form([clean(c) for c in header], [[clean(c) for c in row] for row in rows])


def _paper(run: RunResult) -> Table | None:
    if run.verb not in ("latency", "throughput"):
        return None
    header, rows = tables.against_paper(run)
    return (header, rows) if rows else None


def shown(text: str) -> str:
    """``text`` without characters that control a terminal or break a line."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def in_markdown(text: str) -> str:
    """``text`` escaped, so that Markdown shows it unchanged."""
    text = re.sub(r"([\\`*\[\]|~#])", r"\\\1", shown(text))
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    return escape(text, quote=False)


def _in_html(text: str) -> str:
    return escape(shown(text))


def _strong(text: str, clean: Callable[[str], str], mark: str = "**", end: str = "**") -> str:
    parts = re.split(r"\*\*(.+?)\*\*", text)
    return "".join(mark + clean(p) + end if i % 2 else clean(p) for i, p in enumerate(parts))


def alarms(folder: Folder) -> list[str]:
    """Warnings that come before any number."""
    run, results = folder.run, folder.run.results
    told = []
    short = sum(result.partial for result in results)
    if run.partial or short:
        told.append(
            f"PARTIAL: the run was interrupted or broke off; {len(results)} measurements are "
            f"there, {short} of them incomplete."
        )
    wrong = sum(not result.valid for result in results)
    if wrong or not run.valid:
        told.append(f"INVALID: {wrong} of {len(results)} measurements are not valid.")
    if any(server.fake for server in run.servers.values()):
        told.append("A fake server answered: this is no result of SGLang.")
    return told


def blocks(folder: Folder) -> Iterator[Block]:
    """The section of a folder, from its table to its provenance."""
    run = folder.run
    yield Block("", main_table(run), tables.caption(run))
    named = [(f"{result.arm} at {result.load}", result) for result in run.results]
    reasons = tuple(f"{name}: {reason}" for name, r in named for reason in r.verdict.reasons)
    notes = tuple(f"{name}: {note}" for name, r in named for note in r.verdict.notes)
    figures = [(name, r.figures) for name, r in named if r.figures is not None]
    kinds = [[name, kind, str(n)] for name, f in figures for kind, n in f.error_kinds.items()]
    if reasons:
        yield Block("Why measurements are not valid", items=reasons)
    if notes:
        yield Block("Notes", items=notes)
    if kinds:
        yield Block("Failed requests", (["measurement", "error", "requests"], kinds))
    goodput = [
        [name, str(r.measurement.slo), tables.number(g.share), tables.number(g.requests_per_s, 2)]
        for name, r in named
        if r.figures is not None and (g := r.figures.goodput) is not None
    ]
    if goodput:
        header = ["measurement", "limits", "share of requests", "requests/s"]
        yield Block("Goodput", (header, goodput))
    if paper := _paper(run):
        text = (
            "Ratios over no speculation. The paper used other machines and models: only the "
            "shape can be compared."
        )
        yield Block("Beside the paper", paper, text)
    for client in run.merged or ():
        yield _facts(f"Merged: {client.folder}", as_json(client))
    yield _facts("Servers", as_json(run.servers))
    if run.results:
        yield _facts("Settings", _settings(run))
    yield _facts("Provenance", run.provenance)


def _settings(run: RunResult) -> Json:
    """What all measurements of a run share."""
    one = run.results[0].measurement
    parts = {"workload": one.workload, "schedule": one.schedule, "output": one.output}
    parts |= {"limits": one.slo, "capacity": run.capacity}
    return {"requests": one.expected, **{k: as_json(v) for k, v in parts.items() if v is not None}}


def _facts(title: str, facts: Json) -> Block:
    return Block(title, (["fact", "value"], _flat(facts)), facts=True)


def _flat(facts: Json, under: str = "") -> list[list[str]]:
    rows = []
    for name, value in facts.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{under}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append([under + name, text])
    return rows


def markdown_page(folders: Sequence[Folder]) -> str:
    """One section a folder."""
    parts = ["# sgl-entropy bench"]
    for folder in folders:
        parts.append(f"## {in_markdown(folder.name)}: {folder.run.verb}")
        parts += [f"**{in_markdown(alarm)}**" for alarm in alarms(folder)]
        for block in blocks(folder):
            parts += [f"### {in_markdown(block.title)}"] if block.title else []
            parts += [_formed(block.table, markdown_table, in_markdown)] if block.table else []
            parts += [_strong(block.text, in_markdown)] if block.text else []
            parts += ["\n".join(f"- {in_markdown(i)}" for i in block.items)] if block.items else []
    return "\n\n".join(parts) + "\n"


def html_page(folders: Sequence[Folder], plots: Sequence[Sequence[Plot]]) -> str:
    """The page: nothing in it comes from elsewhere, and nothing in it runs."""
    title = _in_html("sgl-entropy bench: " + ", ".join(folder.name for folder in folders))
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>",
    ]
    for folder in folders:
        several = f"{folder.name}: " if len(folders) > 1 else ""
        parts += [f'<p class="alarm">{_in_html(several + a)}</p>' for a in alarms(folder)]
    for folder, figures in zip(folders, plots, strict=True):
        parts.append(f"<section>\n<h2>{_in_html(folder.name)}: {folder.run.verb}</h2>")
        sections = list(blocks(folder))
        parts += [_block(block) for block in sections if not block.facts]
        parts += [
            f'<figure id="{plot.name}">\n{plot.svg}\n'
            f"<figcaption>{_in_html(f'{plot.title}. {plot.note}')}</figcaption>\n</figure>"
            for plot in figures
        ]
        parts += [_block(block) for block in sections if block.facts]
        parts.append("</section>")
    return "\n".join([*parts, "</body>\n</html>\n"])


def _block(block: Block) -> str:
    title = _in_html(block.title)
    parts = [f"<h3>{title}</h3>"] if title and not block.facts else []
    if block.table:
        header, rows = block.table
        lines = "\n".join([_row("th", header), *(_row("td", row) for row in rows)])
        if block.facts:
            return (
                f"<details><summary>{title}</summary>\n"
                f'<table class="facts">\n{lines}\n</table></details>'
            )
        parts.append(f'<div class="wide"><table>\n{lines}\n</table></div>')
    if block.text:
        parts.append(f"<p>{_strong(block.text, _in_html, '<strong>', '</strong>')}</p>")
    if block.items:
        items = "\n".join(f"<li>{_in_html(item)}</li>" for item in block.items)
        parts.append(f"<ul>\n{items}\n</ul>")
    return "\n".join(parts)


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_in_html(cell)}</{tag}>" for cell in cells) + "</tr>"
