"""The choice of a drafter after a verification, and the forward that brings it up to date."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_entropy.runtime.v0_5_6 import draft_stats, easd, switching
from sgl_entropy.serving import attached, missed
from sgl_entropy.serving.counters import SwitchCounters
from sgl_entropy.serving.cycle import Cycle
from sgl_entropy.verify.policies import DrafterSwitch

NODES = 3


class Worker:
    """One of the two drafters; counts its draft extends."""

    def __init__(self) -> None:
        self.extended = 0

    def forward_draft_extend_after_decode(self, batch: Any) -> None:
        self.extended += 1


@pytest.fixture
def switching_worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Between 1 and 2 nats, the small one at work; which drafter read how many rows is noted."""
    worker: Any = switching.SwitchingWorker.__new__(switching.SwitchingWorker)
    worker.policy, worker.now, worker.counts = DrafterSwitch(1.0, 2.0), 0, SwitchCounters()
    worker.drafters = (Worker(), Worker())
    worker.read = []

    def catch_up(drafter: Any, batch: Any, staying: list[int], ends: list[int]) -> Any:
        rows = missed.gather([batch.reqs[i] for i in staying])
        worker.read.append((worker.drafters.index(drafter), rows.counts, ends))

    monkeypatch.setattr(worker, "_catch_up", catch_up)
    monkeypatch.setattr(switching, "_take_over", lambda *_: None)
    return worker


def step(worker: Any, reqs: list[Any], counts: list[int], mean: float) -> None:
    ids = torch.zeros(sum(counts), dtype=torch.int32)
    missed.add(reqs, counts, ids, torch.zeros(len(ids), 4))
    batch = SimpleNamespace(reqs=reqs, spec_info=None)
    worker._extend(batch, list(range(len(reqs))), [9] * len(reqs), mean)


def requests(count: int) -> list[Any]:
    reqs = [SimpleNamespace() for _ in range(count)]
    missed.forget(reqs)
    return reqs


def test_one_extend_for_what_the_other_missed_at_each_switch(switching_worker: Any) -> None:
    worker, reqs = switching_worker, requests(2)
    small, large = worker.drafters
    step(worker, reqs, [1, 2], 1.5)
    step(worker, reqs, [3, 1], math.nan)
    assert (small.extended, large.extended, worker.read) == (2, 0, [])
    step(worker, reqs, [1, 1], 2.5)
    assert worker.read.pop() == (1, [5, 4], [9, 9])
    assert (small.extended, worker.now, worker.counts.switches) == (2, 1, 1)
    # The small one has not seen the last cycle before it was relieved.
    late = requests(1)
    step(worker, [*reqs, *late], [2, 1, 4], 1.5)
    step(worker, [reqs[1], *late], [1, 1], 0.5)
    assert worker.read.pop() == (0, [3, 5], [9, 9])
    assert (large.extended, worker.now, worker.counts.switches) == (1, 0, 2)


def test_no_more_rows_are_kept_than_the_bound(
    switching_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missed, "MOST_ROWS", 6)
    reqs = requests(2)
    for _ in range(2):
        step(switching_worker, reqs, [2, 1], 1.5)
    assert switching_worker.read == []
    step(switching_worker, reqs, [1, 1], 1.5)
    assert switching_worker.read == [(1, [5, 3], [9, 9])]
    assert [missed.count(req) for req in reqs] == [0, 0]
    assert (switching_worker.now, switching_worker.drafters[0].extended) == (0, 3)


def test_missed_rows_stand_where_a_prompt_would_end() -> None:
    table = torch.arange(40, dtype=torch.int32).view(4, 10)
    reqs = [SimpleNamespace(number=i) for i in range(3)]
    ids = torch.tensor([11, 12, 13, 14])
    rows = missed.MissedRows([3, 1], ids, torch.arange(8.0).view(4, 2))
    batch = SimpleNamespace(
        reqs=reqs,
        req_to_token_pool=SimpleNamespace(req_to_token=table),
        req_pool_indices=torch.tensor([3, 0, 1]),
        seq_lens=torch.tensor([9, 9, 9]),
        seq_lens_cpu=torch.tensor([9, 9, 9]),
        return_logprob=True,
    )
    work: Any = switching._prompt_of(batch, [0, 2], [8, 5], rows)
    assert work.out_cache_loc.tolist() == [35, 36, 37, 14]
    assert (work.prefix_lens, work.extend_lens) == ([5, 4], [3, 1])
    assert work.seq_lens.tolist() == work.seq_lens_cpu.tolist() == [8, 5]
    assert (work.seq_lens_sum, work.extend_num_tokens) == (13, 4)
    assert work.input_ids.tolist() == [11, 12, 13, 14]
    assert work.spec_info.verified_id.tolist() == [13, 14]
    assert [req.number for req in work.reqs] == [0, 2]
    assert (work.return_logprob, batch.return_logprob) == (False, True)
    assert [req.number for req in batch.reqs] == [0, 1, 2]


def test_the_new_drafters_state_takes_the_place_of_the_old(monkeypatch: Any) -> None:
    seen: list[Any] = []
    worker: Any = SimpleNamespace(capture_for_decode=lambda *given: seen.append(given))
    state: Any = SimpleNamespace(
        accept_length_cpu=[1, 0, 2],
        verified_id=torch.tensor([5, 6, 7, 8, 9, 10], dtype=torch.int32),
        capture_hidden_mode=None,
    )
    output: Any = object()
    switching._take_over(worker, state, output)
    assert state.verified_id.tolist() == [6, 7, 10]
    assert state.verified_id.dtype == torch.int32
    assert seen == [(output, state)]


def test_the_choice_needs_no_metrics_call(switching_worker: Any, served: Any) -> None:
    """What verification accepted says how unsure the target is; nothing was counted before."""
    served(None)
    worker, reqs = switching_worker, requests(2)
    for req in reqs:
        req.finished = lambda: False
    index = torch.arange(2 * NODES).view(2, NODES)
    draft = SimpleNamespace(
        retrive_index=index,
        retrive_next_token=index,
        retrive_next_sibling=index,
        draft_token_num=NODES,
        draft_token=torch.zeros(2 * NODES).long(),
    )
    worker.drafters[0].draft = lambda batch: draft
    # Unsure (ln 30 nats) at the accepted nodes alone.
    logits = torch.zeros(2 * NODES, 30)
    logits[[2, 4, 5], 0] = 99.0

    def verify(batch: Any, draft: Any) -> Any:
        draft_stats.hand_over(batch.spec_info, draft)
        easd.begin(draft, batch, logits)
        verified = SimpleNamespace(
            accept_length_per_req_cpu=[1, 0],
            verified_id=torch.zeros(3, dtype=torch.int32),
            accepted_indices=torch.tensor([0, 1, 3]),
        )
        return SimpleNamespace(hidden_states=torch.zeros(3, 4)), verified, None, False

    worker.verify = verify
    batch = SimpleNamespace(
        forward_mode=SimpleNamespace(is_extend=lambda: False),
        is_extend_in_batch=False,
        reqs=reqs,
        seq_lens_cpu=torch.tensor([4, 4]),
        spec_info=SimpleNamespace(),
    )
    worker.forward_batch_generation(batch)
    assert (worker.now, worker.counts.switches) == (1, 1)
    cycle = attached.of(draft, Cycle)
    assert cycle is not None
    assert cycle.drafter == 0
    assert cycle.mean_target_entropy([0, 1, 3]) == pytest.approx(math.log(30))
