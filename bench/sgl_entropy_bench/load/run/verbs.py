"""What the verbs of ``sgl-entropy bench`` run: a campaign over arms and loads.

All raise ValueError, ServerError, StartError, ClientError, OSError; what was measured before stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sgl_entropy_bench.http.client import ServerError
from sgl_entropy_bench.load.judge import metrics
from sgl_entropy_bench.load.judge.run_result import BaselineCapacity
from sgl_entropy_bench.load.run.campaign import Campaign
from sgl_entropy_bench.load.run.endpoint import Endpoint
from sgl_entropy_bench.load.run.measure import Load


def at_loads(campaign: Campaign, loads: Sequence[Load]) -> None:
    """Every arm at the same loads."""
    campaign.measure_all(lambda endpoint: loads)


def at_rates(campaign: Campaign, qps: Sequence[float], dp_size: int | None) -> None:
    """Open loop at ``qps`` requests a second and rank, of all clients that share the load."""
    clients = campaign.plan.share[1]

    def loads(endpoint: Endpoint) -> list[Load]:
        ranks = dp_size or endpoint.ranks or 1
        return [Load(f"qps-{rate:g}", rate=rate * ranks / clients) for rate in qps]

    campaign.measure_all(loads)


def at_shares(campaign: Campaign, shares: Sequence[float], concurrency: int) -> None:
    """Open loop at ``shares`` of the baseline's capacity, which is measured first, with
    ``concurrency`` requests at a time on each rank."""
    capacity = measure_capacity(campaign, concurrency)
    at_loads(campaign, [Load(f"load-{share:g}", rate=share * capacity) for share in shares])


def measure_capacity(campaign: Campaign, concurrency: int) -> float:
    """The baseline arm's saturation rate in requests a second, all ranks together."""
    with campaign.serving(campaign.arm(campaign.baseline)) as endpoint:
        ranks = endpoint.ranks or 1
        at_once = concurrency * ranks
        plan = replace(campaign.plan, requests=max(4 * at_once, campaign.plan.requests // 2))
        result = campaign.measure(endpoint, Load("capacity", concurrency=at_once), plan)
    rate = metrics.capacity(campaign.records(result), ranks)
    if rate is None:
        raise ServerError("the baseline's capacity could not be measured: no request ended")
    campaign.results.remove(result)
    campaign.probes.append(result)
    campaign.capacity = BaselineCapacity(concurrency, rate.interval(), result.valid)
    return rate.value
