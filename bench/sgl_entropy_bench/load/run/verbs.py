"""The verbs of ``sgl-entropy bench``: each a campaign over arms and loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import Any

from sgl_entropy_bench.http.client import ServerError
from sgl_entropy_bench.http.record import RequestRecord
from sgl_entropy_bench.load.judge import compare, metrics
from sgl_entropy_bench.load.judge.intervals import mean_interval, ratio_interval
from sgl_entropy_bench.load.judge.verdict import NO_CAPACITY
from sgl_entropy_bench.load.run.campaign import Campaign, Load, each
from sgl_entropy_bench.load.run.endpoint import Endpoint


def latency(
    campaign: Campaign, qps: Sequence[float], shares: Sequence[float], dp_size: int | None
) -> None:
    """Open loop at ``qps`` requests a second and rank (of all clients that share the load), or at
    ``shares`` of the baseline's capacity, which is measured first.

    Raises:
        ValueError, ServerError, StartError, ClientError, OSError.
    """
    if shares:
        found = capacity_of(campaign)
        loads = [Load(rate=share * found, label=f"load-{share:g}") for share in shares]
        each(campaign, lambda target: loads)
        if not campaign.settings["capacity_valid"]:
            for result in campaign.results:
                result["valid"] = False
                result["reasons"].append(NO_CAPACITY)
    else:
        clients = campaign.plan.share[1]
        each(campaign, lambda target: _by_rank(target, qps, dp_size, clients))
    _close(campaign)


def _by_rank(
    target: Endpoint, qps: Sequence[float], dp_size: int | None, clients: int
) -> list[Load]:
    ranks = dp_size or target.ranks or 1
    return [Load(rate=rate * ranks / clients, label=f"qps-{rate:g}") for rate in qps]


def trace(campaign: Campaign) -> None:
    """Open loop by a recorded trace. Raises as ``latency``."""
    each(campaign, lambda target: [Load(rate=1.0, label="trace")])
    _close(campaign)


def throughput(campaign: Campaign, concurrencies: Sequence[int]) -> None:
    """Closed loop at each number of requests at a time. Raises as ``latency``."""
    loads = [Load(concurrency=count, label=f"batch-{count}") for count in concurrencies]
    each(campaign, lambda target: loads)
    _close(campaign)


def capacity(campaign: Campaign, concurrency: int) -> dict[str, dict[str, Any]]:
    """Each arm's saturation rate: requests a second that end while it is always full.

    Returns:
        arm -> ``qps`` (all ranks) with its interval, and ``qps_per_rank``.

    Raises:
        as ``latency``.
    """
    each(campaign, lambda target: [Load(concurrency=concurrency, label="capacity")])
    found = {}
    for result in campaign.results:
        rate = _ended_per_second(campaign.every_record(result))
        if rate is not None:
            ranks = campaign.servers[result["arm"]]["dp_size"] or 1
            result["capacity"] = {**rate, "qps_per_rank": rate["value"] / ranks}
            found[result["arm"]] = result["capacity"]
    _close(campaign)
    return found


def capacity_of(campaign: Campaign) -> float:
    """The baseline arm's saturation rate in requests a second, all ranks together."""
    spec = next(arm for arm in campaign.arms if arm.name == campaign.baseline)
    with campaign.serving(spec) as target:
        at_once = int(campaign.settings["capacity_concurrency"]) * (target.ranks or 1)
        plan = replace(campaign.plan, requests=max(4 * at_once, campaign.plan.requests // 2))
        result = campaign.measure(target, Load(concurrency=at_once, label="capacity"), plan)
    rate = _ended_per_second(campaign.every_record(result))
    if rate is None:
        raise ServerError("the baseline's capacity could not be measured: no request ended")
    campaign.results.remove(result)
    campaign.probes.append(result)
    campaign.settings["capacity_qps"] = rate
    campaign.settings["capacity_valid"] = result["valid"]
    return float(rate["value"])


def _ended_per_second(records: Sequence[RequestRecord]) -> dict[str, Any] | None:
    """Requests of any phase that ended well while all places were taken: from when the first
    measured one was sent to when the last measured one ended. As 1 / the mean time between ends.
    """
    measured = [r for r in records if r.phase == "measured" and r.sent is not None]
    if not measured:
        return None
    start = min(r.sent or 0.0 for r in measured)
    end = max((r.last for r in measured if r.last is not None), default=start)
    ends = sorted(r.last for r in records if r.ok and r.last is not None and start < r.last <= end)
    between = [b - a for a, b in pairwise([start, *ends])]
    if not between or fmean(between) <= 0:
        return None
    gap = mean_interval(between)
    low, high = 1 / gap.high, 1 / gap.low if gap.low > 0 else float("inf")
    return metrics.as_json(replace(gap, value=1 / gap.value, low=low, high=high))


def speed(campaign: Campaign) -> None:
    """One request at a time: speed-up and tau on each benchmark. Raises as ``latency``."""
    each(campaign, lambda target: [Load(concurrency=1, label="batch-1")])
    _close(campaign)
    base = next((r for r in campaign.results if r["arm"] == campaign.baseline), None)
    if base is None:
        return
    there = campaign.records(base)
    for result in campaign.results:
        here = campaign.records(result)
        groups = compare.by_benchmark(here)
        result["speed"] = {name: _speed(held, there) for name, held in groups.items()}
        result["speed_all"] = _speed(here, there)
    campaign.write()


def _speed(here: Sequence[RequestRecord], there: Sequence[RequestRecord]) -> dict[str, Any]:
    """Speed-up in tokens a second, paired by request; tau."""
    held = {record.index: record for record in there}
    both = [(r, held[r.index]) for r in here if r.ok and r.index in held and held[r.index].ok]
    speedup = None
    if both:
        ours = [(metrics.e2e_from_send(a) or 0.0, a.completion_tokens or 0) for a, _ in both]
        base = [(metrics.e2e_from_send(b) or 0.0, b.completion_tokens or 0) for _, b in both]
        tokens = sum(t for _, t in ours) / max(1, sum(t for _, t in base))
        ratio = ratio_interval([s for s, _ in base], [s for s, _ in ours])
        speedup = compare.described(
            replace(
                ratio,
                value=ratio.value * tokens,
                low=ratio.low * tokens,
                high=ratio.high * tokens,
            ),
            len(both),
        )
    return {"speedup": speedup, "tau": metrics.tau(here)}


def _close(campaign: Campaign) -> None:
    campaign.compare()
    campaign.write()
