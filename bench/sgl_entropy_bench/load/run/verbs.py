"""The verbs of ``sgl-entropy bench``: each a campaign over arms and loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sgl_entropy_bench.http.client import ServerError
from sgl_entropy_bench.load.judge import metrics
from sgl_entropy_bench.load.run.campaign import Campaign, each
from sgl_entropy_bench.load.run.endpoint import Endpoint
from sgl_entropy_bench.load.run.measure import Load


def latency(
    campaign: Campaign, qps: Sequence[float], shares: Sequence[float], dp_size: int | None
) -> None:
    """Open loop at ``qps`` requests a second and rank (of all clients that share the load), or at
    ``shares`` of the baseline's capacity, which is measured first.

    Raises:
        ValueError, ServerError, StartError, ClientError, OSError.
    """
    if shares:
        capacity = measure_capacity(campaign)
        loads = [Load(f"load-{share:g}", rate=share * capacity) for share in shares]
        each(campaign, lambda endpoint: loads)
    else:
        clients = campaign.plan.share[1]
        each(campaign, lambda endpoint: _by_rank(endpoint, qps, dp_size, clients))
    _close(campaign)


def _by_rank(
    endpoint: Endpoint, qps: Sequence[float], dp_size: int | None, clients: int
) -> list[Load]:
    ranks = dp_size or endpoint.ranks or 1
    return [Load(f"qps-{rate:g}", rate=rate * ranks / clients) for rate in qps]


def trace(campaign: Campaign) -> None:
    """Open loop by a recorded trace. Raises as ``latency``."""
    each(campaign, lambda endpoint: [Load("trace", rate=1.0)])
    _close(campaign)


def throughput(campaign: Campaign, concurrencies: Sequence[int]) -> None:
    """Closed loop at each number of requests at a time. Raises as ``latency``."""
    loads = [Load(f"batch-{count}", concurrency=count) for count in concurrencies]
    each(campaign, lambda endpoint: loads)
    _close(campaign)


def capacity(campaign: Campaign, concurrency: int) -> None:
    """Each arm's saturation rate: requests a second that end while it is always full. Raises as
    ``latency``."""
    each(campaign, lambda endpoint: [Load("capacity", concurrency=concurrency)])
    _close(campaign)


def speed(campaign: Campaign) -> None:
    """One request at a time: speed-up and tau on each benchmark. Raises as ``latency``."""
    each(campaign, lambda endpoint: [Load("batch-1", concurrency=1)])
    _close(campaign)


def measure_capacity(campaign: Campaign) -> float:
    """The baseline arm's saturation rate in requests a second, all ranks together."""
    before = campaign.capacity
    assert before is not None
    with campaign.serving(campaign.arm(campaign.baseline)) as endpoint:
        ranks = endpoint.ranks or 1
        at_once = before.concurrency * ranks
        plan = replace(campaign.plan, requests=max(4 * at_once, campaign.plan.requests // 2))
        result = campaign.measure(endpoint, Load("capacity", concurrency=at_once), plan)
    rate = metrics.capacity(campaign.records(result), ranks)
    if rate is None:
        raise ServerError("the baseline's capacity could not be measured: no request ended")
    campaign.results.remove(result)
    campaign.probes.append(result)
    campaign.capacity = replace(before, qps=rate.interval(), valid=result.valid)
    return rate.value


def _close(campaign: Campaign) -> None:
    campaign.compare()
    campaign.write()
