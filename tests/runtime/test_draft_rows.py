"""Draft steps that leave out the rows of chains that have ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_entropy.runtime.v0_5_6.cpu import draft_rows


@pytest.mark.parametrize(
    ("live", "of", "saves"),
    [(3, 4, False), (1, 8, False), (8, 9, True), (9, 12, False), (0, 9, False)],
)
def test_rows_are_left_out_where_fewer_are_paid_for(live: int, of: int, saves: bool) -> None:
    assert draft_rows.saves(torch.arange(of) < live) is saves


class Runner:
    """Its outputs show which row they belong to; ``seen`` holds what a step ran on."""

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def forward(self, batch: Any, skip_attn_backend_init: bool) -> tuple[Any, bool]:
        assert skip_attn_backend_init
        self.seen = (batch.input_ids, batch.positions, batch.out_cache_loc)
        if self.broken:
            raise RuntimeError("out of memory")
        rows = batch.spec_info.hidden_states
        return SimpleNamespace(next_token_logits=rows * 10, hidden_states=rows + 1), False


def batch_of(rows: int) -> Any:
    return SimpleNamespace(
        input_ids=torch.arange(rows),
        positions=torch.arange(rows) + 100,
        out_cache_loc=torch.arange(rows) + 200,
        spec_info=SimpleNamespace(hidden_states=torch.arange(rows)[:, None].float()),
        attn_backend=SimpleNamespace(plan=[]),
    )


def test_every_live_row_gets_its_own_output_and_the_batch_stays() -> None:
    live = torch.tensor([False, True, True, False, True])
    batch, runner = batch_of(5), Runner()
    out, graph = draft_rows.forward_live(runner, batch, live)
    assert [tensor.tolist() for tensor in runner.seen] == [
        [1, 2, 4],
        [101, 102, 104],
        [201, 202, 204],
    ]
    assert out.next_token_logits[live].flatten().tolist() == [10.0, 20.0, 40.0]
    assert out.hidden_states[live].flatten().tolist() == [2.0, 3.0, 5.0]
    assert (len(out.next_token_logits), graph) == (5, False)
    assert batch.input_ids.tolist() == [0, 1, 2, 3, 4]
    assert len(batch.spec_info.hidden_states) == 5


def test_a_step_that_fails_leaves_the_batch_whole() -> None:
    batch = batch_of(3)
    with pytest.raises(RuntimeError, match="out of memory"):
        draft_rows.forward_live(Runner(broken=True), batch, torch.tensor([True, False, True]))
    assert (len(batch.positions), len(batch.spec_info.hidden_states)) == (3, 3)
