"""Results as tables: for a terminal and in Markdown, always with a caption that says how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Row = list[str]
# Table 5 of the EDSD paper: mean end-to-end seconds at QPS 2, 3, 4, 5 a data-parallel rank.
PAPER_LATENCY = {
    "none": {2.0: 11.92, 3.0: 14.92, 4.0: 18.45, 5.0: 28.49},
    "eagle3": {2.0: 5.90, 3.0: 7.21, 4.0: 9.22, 5.0: 11.58},
    "edsd": {2.0: 5.04, 3.0: 6.37, 4.0: 8.56, 5.0: 10.40},
}
# Table 4: throughput over no speculation by batch size, one GPU.
PAPER_THROUGHPUT: dict[str, dict[float, float]] = {
    "eagle3": {8: 1.75, 16: 1.61, 32: 1.56, 64: 1.39, 128: 1.33, 256: 1.15},
    "edsd": {8: 1.99, 16: 1.76, 32: 1.62, 64: 1.46, 128: 1.36, 256: 1.30},
}


def number(value: float | None, digits: int = 3) -> str:
    """``-`` for what is not known."""
    return "-" if value is None else f"{value:.{digits}f}"


def interval(held: dict[str, Any] | None, digits: int = 2) -> str:
    """``1.23 (1.20 to 1.26)``; an interval that cannot be trusted ends in ``?``."""
    if held is None:
        return "-"
    if held["low"] is None:
        return f"{held['value']:.{digits}f} (too few)"
    text = f"{held['value']:.{digits}f} ({held['low']:.{digits}f} to {held['high']:.{digits}f})"
    return text if held["reliable"] else text + "?"


def ratio(held: dict[str, Any] | None) -> str:
    """A ratio's interval; one that holds 1 says that no difference was shown."""
    if held is None:
        return "-"
    text = interval(held)
    holds_one = held["low"] is not None and held["low"] <= 1.0 <= (held["high"] or 1.0)
    return f"{text}, no difference shown" if holds_one else text


def latency_table(results: Sequence[dict[str, Any]]) -> tuple[Row, list[Row]]:
    """Table 5's form: (header, rows)."""
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("arm", lambda r: str(r["arm"])),
        ("load", lambda r: str(r["load"])),
        ("asked/s", lambda r: number(r.get("asked_qps"))),
        ("sent/s", lambda r: number(r.get("achieved_qps"))),
        ("E2E mean, s", lambda r: interval(r.get("e2e_interval"))),
        ("p50", lambda r: _part(r, "e2e", "p50")),
        ("p90", lambda r: _part(r, "e2e", "p90")),
        ("p99", lambda r: _part(r, "e2e", "p99")),
        ("TTFT", lambda r: _part(r, "ttft", "mean")),
        ("TPOT, ms", lambda r: _part(r, "tpot", "mean", 1e3, 1)),
        ("over baseline", lambda r: ratio((r.get("against") or {}).get("e2e_ratio"))),
        ("tau", lambda r: number(tau_of(r), 2)),
        ("equal outputs", lambda r: number((r.get("against") or {}).get("equal_outputs"))),
        ("errors", lambda r: f"{r.get('errors', 0)}/{r['requests']}"),
        ("valid", _valid),
    ]
    return [name for name, _ in columns], [[cell(r) for _, cell in columns] for r in results]


def throughput_table(results: Sequence[dict[str, Any]]) -> tuple[Row, list[Row]]:
    """Table 4's form: (header, rows)."""
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("arm", lambda r: str(r["arm"])),
        ("at a time", lambda r: str(r["concurrency"])),
        ("tokens/s", lambda r: number((r.get("window") or {}).get("tokens_per_s"), 1)),
        ("speed-up", lambda r: ratio((r.get("against") or {}).get("throughput_ratio"))),
        ("E2E mean, s", lambda r: _part(r, "e2e", "mean")),
        ("tau", lambda r: number(tau_of(r), 2)),
        ("equal outputs", lambda r: number((r.get("against") or {}).get("equal_outputs"))),
        ("errors", lambda r: f"{r.get('errors', 0)}/{r['requests']}"),
        ("valid", _valid),
    ]
    return [name for name, _ in columns], [[cell(r) for _, cell in columns] for r in results]


def speed_table(results: Sequence[dict[str, Any]]) -> tuple[Row, list[Row]]:
    """Table 1's form: speed-up and tau of each arm on each benchmark."""
    names = list(dict.fromkeys(name for r in results for name in r.get("speed", {})))
    header = ["arm", *(f"{name}: speed-up, tau" for name in names), "all: speed-up, tau", "valid"]
    rows = []
    for r in results:
        cells = [_speed(r["speed"].get(name)) for name in names]
        rows.append([str(r["arm"]), *cells, _speed(r.get("speed_all")), _valid(r)])
    return header, rows


def _speed(held: dict[str, Any] | None) -> str:
    if held is None:
        return "-"
    return f"{ratio(held['speedup'])}, {number(held['tau'], 2)}"


def caption(report: dict[str, Any]) -> str:
    """How the numbers came about, in one paragraph."""
    s = report["settings"]
    routes = "; ".join(f"{name}: {server['caption']}" for name, server in report["servers"].items())
    open_loop = report["verb"] == "latency"
    parts = [
        f"{s['requests']} measured requests an arm and load after {s['ramp']} not measured",
        f"{s['prompts']} prompts ({s['workload']}; {', '.join(s['benchmarks'])})",
        f"output: {s['output']}",
        *([f"arrivals: {s['arrivals']}, seed {s['seed']}"] if open_loop else []),
        *(["latency counts from the scheduled arrival"] if open_loop else []),
        f"intervals: 95 %, batch means; ratios are paired by request, over {report['baseline']}",
        *(
            ["speed-ups are of tokens over latency (Little's law)"]
            if report["verb"] == "throughput"
            else []
        ),
        *([f"routes: {routes}"] if routes else []),
    ]
    if s.get("slo"):
        parts.append(f"goodput: {s['slo']}")
    if any(server["arguments"].get("fake") for server in report["servers"].values()):
        parts.append("**a fake server: no result of SGLang**")
    if report["partial"]:
        parts.append("**partial: the run was interrupted**")
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def tau_of(result: dict[str, Any]) -> float | None:
    """Of the requests themselves, else of the server's counters."""
    found = result.get("tau")
    return found if found is not None else result.get("tau_counted_by_server")


def _part(result: dict[str, Any], name: str, part: str, scale: float = 1.0, digits: int = 2) -> str:
    held = result.get(name)
    if held is None:
        return "-"
    value = held[part]
    return "failed" if value is None else number(value * scale, digits)


def _valid(result: dict[str, Any]) -> str:
    return "yes" if result["valid"] else "NO: " + "; ".join(result["reasons"])


def against_paper(report: dict[str, Any]) -> tuple[Row, list[Row]]:
    """Ratios over no speculation, the paper's beside ours; see ``caption`` for what ours are of.

    The paper's are of its own cluster and models; only the shape can be set beside ours.
    """
    latency = report["verb"] == "latency"
    paper = PAPER_LATENCY if latency else PAPER_THROUGHPUT
    points = sorted(paper["edsd"])
    name = "QPS a rank" if latency else "batch"
    header = ["arm", *(f"paper, {name} {p:g}" for p in points)]
    loads = list(dict.fromkeys(r["load"] for r in report["results"]))
    header += [f"ours, {load}" for load in loads]
    rows = []
    for arm in ("eagle3", "edsd"):
        cells = [
            number(paper[arm][p] / (PAPER_LATENCY["none"][p] if latency else 1.0), 2)
            for p in points
        ]
        held = {r["load"]: r for r in report["results"] if r["arm"] == arm}
        if not held:
            continue
        key = "e2e_ratio" if latency else "throughput_ratio"
        for load in loads:
            found = (held.get(load, {}).get("against") or {}).get(key)
            cells.append("-" if found is None else interval(found))
        rows.append([arm, *cells])
    return header, rows
