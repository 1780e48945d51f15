"""Results as tables with a caption that says how they were measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sgl_entropy.base.intervals import Interval
from sgl_entropy_bench.load.judge.compare import BenchmarkSpeed
from sgl_entropy_bench.load.judge.judgement import Result
from sgl_entropy_bench.load.judge.metrics import Distribution
from sgl_entropy_bench.load.judge.run_result import RunResult

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
    """``value`` rounded; ``-`` for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def interval(held: Interval | None, digits: int = 2) -> str:
    """``1.23 (1.20 to 1.26)``; an interval that cannot be trusted ends in ``?``."""
    if held is None:
        return "-"
    value = f"{held.value:.{digits}f}"
    if held.low is None:
        return f"{value} (too few)"
    if held.high is None:
        # A rate whose interval reaches to zero from above has no upper end.
        return f"{value} (from {held.low:.{digits}f}?)"
    text = f"{value} ({held.low:.{digits}f} to {held.high:.{digits}f})"
    return text if held.reliable else text + "?"


def ratio(held: Interval | None) -> str:
    """A ratio's interval; one that contains 1 says that no difference was shown."""
    if held is None:
        return "-"
    text = interval(held)
    shows_none = held.low is not None and held.contains(1.0)
    return f"{text}, no difference shown" if shows_none else text


def latency_table(results: Sequence[Result]) -> tuple[Row, list[Row]]:
    """Table 5's form: (header, rows)."""
    columns: list[tuple[str, Callable[[Result], str]]] = [
        ("arm", lambda r: r.arm),
        ("load", lambda r: r.load),
        ("asked/s", lambda r: number(r.measurement.asked_qps)),
        ("sent/s", lambda r: number(r.achieved_qps)),
        ("E2E mean, s", lambda r: interval(r.figures.e2e_interval if r.figures else None)),
        ("p50", lambda r: _percentile(r, "p50")),
        ("p90", lambda r: _percentile(r, "p90")),
        ("p99", lambda r: _percentile(r, "p99")),
        ("TTFT", lambda r: _mean(r.figures.ttft if r.figures else None)),
        ("TPOT, ms", lambda r: _mean(r.figures.tpot if r.figures else None, 1e3, 1)),
        ("over baseline", lambda r: ratio(r.against.e2e_ratio if r.against else None)),
        ("tau", lambda r: number(r.tau, 2)),
        ("equal outputs", lambda r: number(r.against.equal_outputs if r.against else None)),
        ("errors", _errors),
        ("valid", _valid),
    ]
    return [name for name, _ in columns], [[cell(r) for _, cell in columns] for r in results]


def throughput_table(results: Sequence[Result]) -> tuple[Row, list[Row]]:
    """Table 4's form: (header, rows)."""
    columns: list[tuple[str, Callable[[Result], str]]] = [
        ("arm", lambda r: r.arm),
        ("at a time", lambda r: str(r.measurement.concurrency)),
        ("tokens/s", lambda r: number(r.window.tokens_per_s if r.window else None, 1)),
        ("speed-up", lambda r: ratio(r.against.throughput_ratio if r.against else None)),
        ("E2E mean, s", lambda r: _mean(r.figures.e2e if r.figures else None)),
        ("tau", lambda r: number(r.tau, 2)),
        ("equal outputs", lambda r: number(r.against.equal_outputs if r.against else None)),
        ("errors", _errors),
        ("valid", _valid),
    ]
    return [name for name, _ in columns], [[cell(r) for _, cell in columns] for r in results]


def capacity_table(results: Sequence[Result]) -> tuple[Row, list[Row]]:
    """``throughput_table`` with the rate at which each arm saturates."""
    header, rows = throughput_table(results)
    header[2:2] = ["capacity, requests/s", "a rank"]
    for row, result in zip(rows, results, strict=True):
        rate = result.capacity
        row[2:2] = [interval(rate), number(rate.qps_per_rank if rate else None, 2)]
    return header, rows


def speed_table(results: Sequence[Result]) -> tuple[Row, list[Row]]:
    """Table 1's form: speed-up and tau of each arm on each benchmark."""
    names = list(dict.fromkeys(name for r in results for name in r.speed or ()))
    header = ["arm", *(f"{name}: speed-up, tau" for name in names), "all: speed-up, tau", "valid"]
    rows = []
    for r in results:
        cells = [_speed((r.speed or {}).get(name)) for name in names]
        rows.append([r.arm, *cells, _speed(r.speed_all), _valid(r)])
    return header, rows


def _speed(held: BenchmarkSpeed | None) -> str:
    return "-" if held is None else f"{ratio(held.speedup)}, {number(held.tau, 2)}"


def caption(run: RunResult) -> str:
    """How the numbers came about, in one paragraph."""
    if not run.results:
        return "Nothing was measured."
    one = run.results[0].measurement
    work, slo = one.workload, str(one.slo or "")
    routes = "; ".join(f"{name}: {server.caption}" for name, server in run.servers.items())
    open_loop = run.verb == "latency"
    parts = [
        f"{one.expected} measured requests an arm and load after {one.schedule.ramp} not measured",
        f"{work.prompts} prompts ({work.source}; {', '.join(work.benchmarks)})",
        f"output: {one.output}",
        *([f"arrivals: {one.schedule}, seed {one.schedule.seed}"] if open_loop else []),
        *(["latency counts from the scheduled arrival"] if open_loop else []),
        f"intervals: 95 %, batch means; ratios are paired by request, over {run.baseline}",
        *(
            ["speed-ups are of tokens over latency (Little's law)"]
            if run.verb == "throughput"
            else []
        ),
        *([f"routes: {routes}"] if routes else []),
    ]
    if slo:
        parts.append(f"goodput: {slo}")
    if any(server.fake for server in run.servers.values()):
        parts.append("**a fake server: no result of SGLang**")
    if run.partial:
        parts.append("**partial: the run was interrupted**")
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def _percentile(result: Result, name: str) -> str:
    if result.figures is None or result.figures.e2e is None:
        return "-"
    value: float | None = getattr(result.figures.e2e, name)
    return "failed" if value is None else number(value, 2)


def _mean(held: Distribution | None, scale: float = 1.0, digits: int = 2) -> str:
    return "-" if held is None else number(held.mean * scale, digits)


def _errors(result: Result) -> str:
    return f"{result.figures.errors if result.figures else 0}/{result.requests}"


def _valid(result: Result) -> str:
    return "yes" if result.valid else "NO: " + "; ".join(result.verdict.reasons)


def against_paper(run: RunResult) -> tuple[Row, list[Row]]:
    """Ratios over no speculation: those of the paper, and ours.

    The paper used another cluster and other models: only the shape can be compared.
    """
    latency = run.verb == "latency"
    paper = PAPER_LATENCY if latency else PAPER_THROUGHPUT
    points = sorted(paper["edsd"])
    name = "QPS a rank" if latency else "batch"
    header = ["arm", *(f"paper, {name} {p:g}" for p in points)]
    header += [f"ours, {load}" for load in run.loads]
    rows = []
    for arm in ("eagle3", "edsd"):
        cells = [
            number(paper[arm][p] / (PAPER_LATENCY["none"][p] if latency else 1.0), 2)
            for p in points
        ]
        ours = {r.load: r.against for r in run.results if r.arm == arm}
        if not ours:
            continue
        for load in run.loads:
            against = ours.get(load)
            if against is None:
                cells.append("-")
            else:
                cells.append(interval(against.e2e_ratio if latency else against.throughput_ratio))
        rows.append([arm, *cells])
    return header, rows
