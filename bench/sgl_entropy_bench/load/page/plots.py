"""The plots of a result folder, drawn with matplotlib.

All values come from the records and the figures of the folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_entropy.base.intervals import Interval
from sgl_entropy_bench.http.record import CUT, RequestRecord
from sgl_entropy_bench.load.judge import metrics
from sgl_entropy_bench.load.judge.folders import Folder

# Placeholders for the colours of the page, replaced in the SVG's text.
INK, RULE, PAPER = "#010203", "#040506", "#070809"
RED = "#d62728"
MOST_DOTS = 4000
# Name, title, note and figure.
Drawn = tuple[str, str, str, Any]
# Each arm's colour and marker.
Styles = dict[str, tuple[str, str]]


def drawn(folder: Folder, styles: Styles) -> Iterator[Drawn]:
    """All plots that the folder has data for."""
    if folder.run.verb == "latency":
        yield from _latency(folder, styles)
    if folder.run.verb == "throughput":
        yield from _throughput(folder, styles)
    yield from _cdf(folder, styles)
    yield from _acceptance(folder, styles)
    for (arm, load), records in folder.records.items():
        if records:
            yield _timeline(arm, load, records, styles[arm][0])


def _latency(folder: Folder, styles: Styles) -> Iterator[Drawn]:
    if len(folder.run.loads) < 2:
        return
    figure, (axes,), lines = _panels(1, 3.4)
    heights: list[float] = []
    for arm in folder.run.arms:
        known = [
            (result.achieved_qps, figures.e2e_interval, figures.e2e, result.valid)
            for result in folder.run.results
            if result.arm == arm and (figures := result.figures) is not None
        ]
        points = [
            Point(rate, mean, valid)
            for rate, mean, _, valid in sorted(known, key=lambda one: one[0] or 0.0)
            if rate and mean is not None
        ]
        if points:
            lines[arm] = _errorbars(axes, points, styles[arm])
        worst = sorted(
            (rate, e2e.p99) for rate, _, e2e, _ in known if rate and e2e is not None and e2e.p99
        )
        if worst:
            axes.plot(*zip(*worst, strict=True), "--", color=styles[arm][0])
        heights += [y for _, y in worst] + [point.interval.value for point in points]
    if not lines:
        return
    if min(heights) > 0 and max(heights) > 20 * min(heights):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    _name(axes, "Latency against rate", "achieved rate (requests/s)", "E2E latency (s)")
    _key(figure, lines)
    note = (
        "Solid: mean with its 95 % interval; dashed: p99, left out where it falls among failed "
        "requests. Hollow: not valid."
    )
    yield "latency-rate", "Latency against rate", note, figure


def _throughput(folder: Folder, styles: Styles) -> Iterator[Drawn]:
    figure, (left, right), lines = _panels(2, 3.2)
    places = sorted({r.measurement.concurrency or 0 for r in folder.run.results})
    for arm in folder.run.arms:
        known = sorted(
            (r.measurement.concurrency or 0, r.window.tokens_per_s)
            for r in folder.run.results
            if r.arm == arm and r.window is not None
        )
        if known:
            (lines[arm],) = left.plot(
                *zip(*known, strict=True), marker=styles[arm][1], color=styles[arm][0]
            )
        points = [
            Point(float(r.measurement.concurrency or 0), r.against.throughput_ratio, r.valid)
            for r in folder.run.results
            if r.arm == arm and r.against is not None and r.against.throughput_ratio is not None
        ]
        if points:
            _errorbars(right, sorted(points, key=lambda point: point.at), styles[arm])
    if not lines:
        return
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [str(place) for place in places], minor=False)
        axes.minorticks_off()
    left.set_ylim(bottom=0)
    right.axhline(1, color=INK, linewidth=0.8)
    base = folder.run.baseline
    _name(left, "Throughput", "requests at a time", "output (tokens/s)")
    _name(right, f"Speed-up over {short(base)}", "requests at a time", "speed-up (ratio)")
    _key(figure, lines)
    note = "Speed-ups with their 95 % intervals; hollow: not valid."
    yield "throughput-concurrency", "Throughput against concurrency", note, figure


def _cdf(folder: Folder, styles: Styles) -> Iterator[Drawn]:
    arms = folder.run.arms
    measured = {key: metrics.measured_of(records) for key, records in folder.records.items()}
    loads = [load for load in folder.run.loads if any(measured.get((arm, load)) for arm in arms)]
    if not loads:
        return
    figure, panels, lines = _panels(len(loads), 2.8)
    for axes, load in zip(panels, loads, strict=True):
        times = {arm: measured[arm, load] for arm in arms if measured.get((arm, load))}
        ends = {
            arm: sorted(v for v in map(metrics.e2e, rs) if v is not None)
            for arm, rs in times.items()
        }
        right = 1.02 * max((v[-1] for v in ends.values() if v), default=1.0)
        for arm, values in ends.items():
            total = len(times[arm])
            shares = [0.0, *((i + 1) / total for i in range(len(values)))]
            (lines[arm],) = axes.step(
                [0.0, *values, right], [*shares, shares[-1]], where="post", color=styles[arm][0]
            )
        axes.set_xlim(0, right)
        axes.set_ylim(0, 1.02)
        _name(axes, short(load), "E2E latency (s)", "share of requests")
    _key(figure, lines)
    note = "Share of measured requests that ended in this time; failed ones keep it below 1."
    yield "cdf", "Distribution of E2E latency", note, figure


def _acceptance(folder: Folder, styles: Styles) -> Iterator[Drawn]:
    measured: dict[str, list[RequestRecord]] = {arm: [] for arm in folder.run.arms}
    for (arm, _), records in folder.records.items():
        measured[arm] += metrics.measured_of(records)
    shares_of = metrics.acceptance_by_position
    positions = {arm: shares for arm, rs in measured.items() if (shares := shares_of(rs))}
    groups = {
        arm: {
            str(name): tau
            for name, rs in metrics.by_key(records, lambda r: r.benchmark).items()
            if (tau := metrics.tau(rs)) is not None
        }
        for arm, records in measured.items()
    }
    groups = {arm: taus for arm, taus in groups.items() if taus}
    if not positions and not groups:
        return
    figure, panels, lines = _panels(bool(positions) + bool(groups), 3.2)
    for arm, shares in positions.items():
        (lines[arm],) = panels[0].plot(
            range(1, len(shares) + 1), shares, marker=styles[arm][1], color=styles[arm][0]
        )
    if positions:
        panels[0].set_ylim(0, 1.02)
        panels[0].set_xticks(range(1, 1 + max(map(len, positions.values()))))
        _name(panels[0], "Acceptance by position", "draft position", "accepted, given those before")
    names = sorted({name for taus in groups.values() for name in taus})
    for number, (arm, taus) in enumerate(groups.items()):
        width = 0.8 / len(groups)
        at = [i - 0.4 + (number + 0.5) * width for i in range(len(names))]
        bars = panels[-1].bar(at, [taus.get(n, 0.0) for n in names], width, color=styles[arm][0])
        lines.setdefault(arm, bars)
    if groups:
        panels[-1].set_xticks(range(len(names)), [short(name) for name in names], rotation=30)
        _name(panels[-1], "tau by benchmark", "benchmark", "tau (tokens a cycle)")
    _key(figure, lines)
    yield "acceptance", "Acceptance", "Over all loads, pooled.", figure


def _timeline(arm: str, load: str, records: Sequence[RequestRecord], colour: str) -> Drawn:
    from matplotlib.patches import Patch

    cut = [r for r in records if r.error == CUT]
    failed = [r for r in records if not r.ok and r.error != CUT]
    greys, crosses = thin(cut, MOST_DOTS // 4), thin(failed, MOST_DOTS // 4)
    dots = thin([r for r in records if r.ok], MOST_DOTS - len(crosses) - len(greys))
    figure, (axes,), lines = _panels(1, 2.7)
    slowest = max((metrics.e2e(r) or 0.0 for r in dots), default=0.0)
    axes.set_ylim(0, 1.15 * slowest or 1.0)
    lines["E2E"] = _dots(axes, [(r.scheduled, metrics.e2e(r) or 0.0) for r in dots], colour)
    # A failed request is slower than all others: at the top.
    style = {"ms": 5, "mew": 1.2, "transform": axes.get_xaxis_transform()}
    for name, some, shade in (("failed", crosses, RED), ("cut at the end", greys, "#888888")):
        if some:
            x, y = [r.scheduled for r in some], [0.97] * len(some)
            (lines[name],) = axes.plot(x, y, "x", color=shade, **style)
    other = axes.twinx()
    axes.set_zorder(other.get_zorder() + 1)
    measured = [r.scheduled for r in metrics.measured_of(records)]
    if measured:
        other.axvspan(min(measured), max(measured), color=RULE, alpha=0.5, linewidth=0)
        lines["measured part"] = Patch(color=RULE, alpha=0.5)
    other.grid(False)
    (lines["in flight"],) = other.step(
        *_in_flight(records), where="post", color=INK, alpha=0.6, linewidth=0.8
    )
    other.set_ylim(bottom=0)
    other.set_ylabel("requests in flight")
    _name(axes, f"{short(arm)} at {short(load)}", "time since the start (s)", "E2E latency (s)")
    _key(figure, lines)
    note = "Each request at its scheduled time; outside the shaded part: ramp and tail."
    if failed:
        note += " A failed request counts as in flight until it was last heard of."
    shown = len(dots) + len(crosses) + len(greys)
    if shown < len(records):
        note += f" {shown} of {len(records)} requests are drawn, evenly thinned."
    return f"timeline-{arm}-{load}", f"Timeline of {arm} at {load}", note, figure


def thin(values: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, evenly spread."""
    if len(values) <= most:
        return list(values)
    return [values[i * len(values) // most] for i in range(most)]


def _dots(axes: Any, points: Sequence[tuple[float, float]], colour: str) -> Any:
    """One path of lines without length, a fourth of the size of as many markers. Returns a handle
    for the key."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    path = Path([p for p in points for _ in (1, 2)] or [(0, 0)], [1, 2] * len(points) or [1])
    path.should_simplify = False
    axes.add_patch(
        PathPatch(path, fill=False, edgecolor=colour, linewidth=2.6, capstyle="round", zorder=2)
    )
    return Line2D([], [], color=colour, marker="o", markersize=2.6, linestyle="none")


def _in_flight(records: Sequence[RequestRecord]) -> tuple[list[float], list[int]]:
    """Requests in flight after each time at which their number changed."""
    sent = [r for r in records if r.sent is not None]
    # Every client process cuts off its own requests, when it ends.
    close: dict[int, float] = {}
    for r in sent:
        close[r.process] = max(_heard(r), close.get(r.process, 0.0))
    steps = [(r.sent or 0.0, 1) for r in sent]
    steps += [(close[r.process] if r.error == CUT else _heard(r), -1) for r in sent]
    times, counts = [0.0], [0]
    for time, change in sorted(steps, key=lambda step: (step[0], -step[1])):
        times.append(time)
        counts.append(counts[-1] + change)
    return times, counts


def _heard(record: RequestRecord) -> float:
    last = record.chunks[-1][0] if record.chunks else record.sent or 0.0
    return record.last if record.last is not None else last


@dataclass(frozen=True)
class Point:
    """One measurement in a plot: its place on the axis below, and what is drawn above it."""

    at: float
    interval: Interval
    valid: bool


def _errorbars(axes: Any, points: Sequence[Point], style: tuple[str, str]) -> Any:
    """A line with intervals; hollow where a measurement is not valid. Returns the line."""
    colour, marker = style
    at = [point.at for point in points]
    values = [point.interval.value for point in points]
    low = [0 if p.interval.low is None else p.interval.value - p.interval.low for p in points]
    high = [0 if p.interval.high is None else p.interval.high - p.interval.value for p in points]
    axes.errorbar(at, values, [low, high], color=colour, capsize=3, linestyle="none")
    (line,) = axes.plot(at, values, color=colour, marker=marker, markersize=5)
    hollow = [(point.at, point.interval.value) for point in points if not point.valid]
    if hollow:
        axes.plot(*zip(*hollow, strict=True), marker, color=colour, ms=5, mfc=PAPER, zorder=3)
    return line


def _panels(count: int, height: float) -> tuple[Any, list[Any], dict[str, Any]]:
    """A figure with so many axes, two a row, and the empty key of its lines."""
    from matplotlib.figure import Figure

    columns = min(count, 2)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(7.6, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count], {}


def _name(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _key(figure: Any, lines: dict[str, Any]) -> None:
    # Older versions of matplotlib leave out labels that begin with an underscore.
    labels = [" " + name if name.startswith("_") else name for name in map(short, lines)]
    figure.legend(
        list(lines.values()), labels, loc="outside lower center", ncols=min(5, len(lines))
    )


def short(text: str, most: int = 32) -> str:
    """Printable, and cut to ``most`` signs."""
    shown = "".join(sign if sign.isprintable() else " " for sign in text)
    return shown if len(shown) <= most else shown[: most - 3] + "..."
