"""Chains that end early in the real server: the same tokens, and the replay's decisions.

Its pool is small, so that requests are thrown out in the middle of such chains too.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sgl_entropy.verify.policies import Svip
from sgl_entropy.verify.replay.stop import StopReplay
from sgl_entropy.verify.trace import CycleRecord, RequestTrace, TraceHeader
from tests.engine.client import EngineClient
from tests.engine.conftest import Fleet
from tests.engine.prompts import MIXED
from tests.engine.test_memory import fill_the_pool

# Ten of these with thirty tokens and a cycle each fit into the pool.
SHORT = MIXED[2:6]


@pytest.fixture(scope="module")
def client(fleet: Fleet) -> EngineClient:
    return fleet.client("stop")


def test_a_small_pool_throws_requests_out_and_all_end_as_without(
    none: EngineClient, client: EngineClient
) -> None:
    def plain(prompts: list[list[int]], length: int) -> list[list[int]]:
        return [r["output_ids"] for r in none.batch(prompts, length, ignore_eos=True)]

    fill_the_pool(client, plain)


def test_chains_that_end_early_write_the_same_and_agree_with_the_replay(
    client: EngineClient, none: EngineClient
) -> None:
    info = client.http.get("/get_server_info")
    header = TraceHeader(
        target="t", drafter="d", draft_tokens=4, top_n=10, draft_stop=info["draft_stop"],
    )  # fmt: skip
    replay = StopReplay(Svip(), header)
    plain = none.batch(MIXED, 80)
    shorter = 0
    for i, prompt in enumerate(MIXED):
        reply = client.generate(prompt, 80, custom_params={"spec_trace": True})
        assert reply["output_ids"] == plain[i]["output_ids"]
        cycles = reply["meta_info"]["spec_trace"]
        replay.add(RequestTrace(str(i), None, tuple(CycleRecord.from_dict(c, 4) for c in cycles)))
        shorter += sum(cycle["verified"] < 4 for cycle in cycles)
    assert shorter > 20
    report = replay.report(None)
    assert report.agrees, report.disagreement
    together = client.batch(MIXED, 80)
    assert [a["output_ids"] for a in together] == [b["output_ids"] for b in plain]


def assert_same_draft(one: dict[str, Any], other: dict[str, Any]) -> None:
    known = one["verified"]
    assert known == other["verified"]
    for key in ("draft_entropy", "draft_prob", "target_prob"):
        assert one[key][:known] == pytest.approx(other[key][:known], abs=1e-3)


def test_a_chain_that_goes_on_while_others_have_ended_is_drafted_as_alone(
    client: EngineClient,
) -> None:
    """Ten at a time: their steps leave out the rows of ended chains where that saves rows."""
    asked = [
        {"input_ids": prompt, "max_new_tokens": 30, "custom_params": {"spec_trace": True}}
        for prompt in SHORT * 5
    ]
    alone = [client.generate(**one, ignore_eos=True) for one in asked[: len(SHORT)]]
    client.settle()
    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(lambda one: client.generate(**one, ignore_eos=True), asked))
    longer = 0
    for i, reply in enumerate(together):
        assert reply["meta_info"]["total_retractions"] == 0, "the pool is too small for this test"
        beside, single = (r["meta_info"]["spec_trace"] for r in (reply, alone[i % len(alone)]))
        for a, b in zip(beside, single, strict=True):
            assert_same_draft(a, b)
            longer += a["verified"] > 1
    assert longer > 25


def test_a_prompt_cut_into_chunks_is_drafted_as_a_whole_one(client: EngineClient) -> None:
    """The fifth prompt of a batch is cut after two tokens, where the chunk of 32 is full.

    Upstream's drafter then reads a token that the target drew in the middle of the prompt.
    """
    asked = [SHORT[i] for i in (0, 1, 0, 0, 0)]
    assert [len(prompt) for prompt in asked] == [8, 6, 8, 8, 8]
    trace = {"spec_trace": True}
    client.settle()
    replies = client.batch(asked, 8, ignore_eos=True, custom_params=trace)
    cut, whole = (replies[i]["meta_info"]["spec_trace"] for i in (4, 0))
    for a, b in zip(cut, whole, strict=True):
        assert_same_draft(a, b)
