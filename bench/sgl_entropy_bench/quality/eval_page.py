"""An evaluation's result as tables and words: for a terminal, and as files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from sgl_entropy.base.disk import write_whole
from sgl_entropy.base.provenance import footer
from sgl_entropy.base.tables import markdown_table, text_table
from sgl_entropy.base.typed_json import as_json
from sgl_entropy_bench.quality.eval_report import ArmScore, EvalReport, PairScore

Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]


def text(report: EvalReport) -> str:
    """For a terminal."""
    return _page(report, text_table, "{}")


def markdown(report: EvalReport) -> str:
    """For a file, with the origin."""
    parts = [f"# {report.task}: quality", _page(report, markdown_table, "**{}**")]
    parts.append(footer(dict(report.provenance)))
    if (facts := report.rescored) is not None:
        parts.append(
            f"Scored anew {facts['date']} at commit {facts['commit']} with `{facts['command']}`, "
            "from the stored answers."
        )
    return "\n\n".join(parts) + "\n"


def write_result(report: EvalReport, out: Path) -> None:
    """``result.json`` and ``report.md``, each whole or not at all."""
    write_whole(out / "result.json", json.dumps(as_json(report), indent=1) + "\n")
    write_whole(out / "report.md", markdown(report))


def _page(report: EvalReport, table: Table, strong: str) -> str:
    parts = [table(*arms_table(report))]
    if report.pairs:
        parts.append(table(*pairs_table(report)))
        parts.append("\n".join(f"- {conclusion(pair)}" for pair in report.pairs))
    failed = [
        f"- {arm.arm}: {count} x {error}"
        for arm in report.arms
        for error, count in arm.error_texts.items()
    ]
    if failed:
        parts.append("Failed requests, counted as wrong:\n" + "\n".join(failed))
    if report.notes:
        parts.append("\n".join(f"- {strong.format('Note')}: {note}" for note in report.notes))
    if report.partial:
        asked = report.settings.questions
        parts.append(
            f"{strong.format('Partial')}: not all of the {asked} questions were asked of every arm."
        )
    if any(server.arguments.get("fake") for server in report.servers.values()):
        parts.append(strong.format("A fake server") + ": no result of SGLang.")
    parts.append(caption(report))
    return "\n\n".join(parts)


def arms_table(report: EvalReport) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row an arm."""
    has_outcomes = any(arm.outcomes for arm in report.arms)
    header = ["arm", "right", "accuracy, % (95 %)", "no answer", "cut", "errors", "tokens"]
    header += ["tokens/s and request", "tau", "EASD fires/checks", *(["outcomes"] * has_outcomes)]
    rows = []
    for arm in report.arms:
        row = [
            arm.arm,
            f"{arm.right}/{arm.answers}",
            _percent(arm.accuracy, arm.interval),
            *(str(count) for count in (arm.nothing_found, arm.cut, arm.errors, arm.tokens)),
            "-" if arm.tokens_per_s is None else f"{arm.tokens_per_s:.1f}",
            "-" if arm.tau is None else f"{arm.tau:.2f}",
            "-" if arm.easd_checks is None else f"{arm.easd_fires}/{arm.easd_checks}",
        ]
        if has_outcomes:
            row.append(", ".join(f"{n} {name}" for name, n in sorted(arm.outcomes.items())))
        rows.append(row)
    return header, rows


def pairs_table(report: EvalReport) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row for each arm but the baseline."""
    base = report.baseline
    header = [f"against {base}", "difference, points (95 %)", "both right", "only it"]
    header += [f"only {base}", "neither", "p", "p, Holm", "identical outputs, %"]
    rows = [
        [
            pair.arm,
            _percent(pair.difference, pair.interval, "+"),
            *map(str, (pair.both_right, pair.only_arm, pair.only_baseline, pair.neither)),
            _p(pair.p),
            _p(pair.p_holm),
            "-" if pair.identical is None else f"{100 * pair.identical:.1f}",
        ]
        for pair in report.pairs
    ]
    return header, rows


def conclusion(pair: PairScore) -> str:
    """One comparison in a sentence; most often it shows nothing."""
    arm, base = pair.arm, pair.baseline
    low, high = (100 * end for end in pair.interval)
    if pair.p_holm < 0.05:
        better = "better" if pair.difference > 0 else "worse"
        return (
            f"{arm} is {better} than {base} by {abs(100 * pair.difference):.1f} points "
            f"({low:+.1f} to {high:+.1f}), p = {_p(pair.p_holm)}."
        )
    sentence = (
        f"{arm} against {base}: no difference shown; one from {low:+.1f} to {high:+.1f} points "
    )
    sentence += "would fit these answers."
    if not pair.could_show:
        sentence += (
            f" Only {pair.uneven} of {pair.questions} questions tell the arms apart, too few "
            "for any difference to show: ask more, or harder or easier ones."
        )
    return sentence


def caption(report: EvalReport) -> str:
    """How the questions were asked and the numbers computed."""
    s = report.settings
    routes = "; ".join(f"{name}: {server.caption}" for name, server in report.servers.items())
    asked = "; ".join(f"{arm.arm}: {_own(arm, s.temperature)}" for arm in report.arms)
    unit = "answers" if s.samples == 1 else "questions, each one unit with all its samples"
    parts = [
        f"{s.questions} questions ({s.source}), {s.samples} answer(s) each, seed {s.seed}",
        f"temperature {s.temperature:g}, at most {s.max_tokens} tokens",
        f"custom_params of the requests: {asked}",
        f"routes: {routes}",
        "accuracy: Wilson's interval; difference: Agresti and Min's for matched pairs; p: "
        f"{report.pairs[0].test if report.pairs else '-'}, two-sided, over {unit}",
        f"speed is of each request at {s.concurrency} at a time, no load test",
    ]
    if s.scoring:
        parts.append(f"mathematics compared by {s.scoring}")
    if s.sandbox:
        parts.append(f"generated code: {s.sandbox}")
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def _own(arm: ArmScore, temperature: float) -> str:
    params = json.dumps(arm.custom_params) if arm.custom_params else "-"
    own = arm.temperature
    return params if own == temperature else f"{params}, temperature {own:g}"


def _percent(value: float | None, interval: Sequence[float] | None, sign: str = "") -> str:
    if value is None or interval is None:
        return "-"
    low, high = interval
    return f"{100 * value:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"
