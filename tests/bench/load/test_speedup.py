"""The speed-up of a closed loop: paired by request, with an interval that holds its level."""

from __future__ import annotations

import random

from sgl_entropy_bench.http.record import RequestRecord
from sgl_entropy_bench.load.judge.compare import speedup

RUNS = 200


def test_the_speed_up_of_a_closed_loop_is_paired_by_request() -> None:
    """Prompts of very different length; the second arm's answers are 10 % longer on average."""

    def run(seed: int) -> tuple[list[RequestRecord], list[RequestRecord]]:
        chance = random.Random(seed)
        arms: tuple[list[RequestRecord], list[RequestRecord]] = ([], [])
        for i in range(60):
            size = chance.lognormvariate(0.0, 1.2)
            for arm, (speed, longer) in zip(arms, ((2.0, 1.1), (1.0, 1.0)), strict=True):
                tokens = max(1, round(100 * size * longer * chance.uniform(0.9, 1.1)))
                took = tokens / speed * chance.uniform(0.8, 1.2)
                arm.append(RequestRecord(i, f"p{i}", "b", "measured", 0.0, 0.0, 0.1, took))
                arm[-1].completion_tokens = tokens
        return arms

    found = [speedup(*run(seed)) for seed in range(RUNS)]
    held = [one for one in found if one is not None]
    assert len(held) == RUNS
    covered = sum(one.contains(2.0) for one in held)
    assert 0.90 <= covered / RUNS <= 0.99
    # Unpaired, the prompts' lengths alone would make it 1.2 to 3.3.
    assert sum((one.high or 9.9) / (one.low or 0.1) for one in held) / RUNS < 1.3


def test_no_request_on_both_arms_gives_no_speed_up() -> None:
    record = RequestRecord(0, "p", "b", "measured", 0.0, 0.0, 0.1, 1.0)
    assert speedup([record], []) is None
    assert speedup([record], [record]) is None  # no tokens counted
