"""A verification's forward without the pruned nodes loses nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sgl_entropy.runtime.v0_5_6.cpu import pruning
from sgl_entropy.serving import attached


def batch_of(live: torch.Tensor) -> SimpleNamespace:
    nodes = live.numel()
    index = torch.arange(nodes).view(live.shape).masked_fill(~live, -1)
    return SimpleNamespace(
        spec_info=SimpleNamespace(retrive_index=index),
        input_ids=torch.arange(nodes) * 10,
        positions=torch.arange(nodes) + 100,
        out_cache_loc=torch.arange(nodes) + 1000,
    )


def test_a_forward_runs_on_the_live_rows_and_is_spread_out_again() -> None:
    live = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    batch = batch_of(live)
    before = (batch.input_ids, batch.positions, batch.out_cache_loc)

    def run(ids: torch.Tensor, positions: torch.Tensor, seen: object, **kwargs: int) -> object:
        assert kwargs == {"flag": 7}
        assert seen is batch
        assert ids is batch.input_ids
        assert ids.tolist() == [0, 10, 30, 60, 70, 80]
        assert positions.tolist() == [100, 101, 103, 106, 107, 108]
        assert batch.out_cache_loc.tolist() == [1000, 1001, 1003, 1006, 1007, 1008]
        return SimpleNamespace(next_token_logits=ids[:, None] + 0.5, hidden_states=ids[:, None])

    out = pruning.forward_live(run, batch, {"flag": 7})
    assert out.hidden_states.shape == (9, 1)
    assert (out.hidden_states.flatten()[live.flatten()] == before[0][live.flatten()]).all()
    assert (out.next_token_logits == out.hidden_states + 0.5).all()
    assert (batch.input_ids, batch.positions, batch.out_cache_loc) == before
    assert attached.cycle_for(batch.spec_info).verified == [2, 1, 3]


def test_a_failed_forward_leaves_the_batch_as_it_was() -> None:
    batch = batch_of(torch.tensor([[True, False]]))
    before = batch.input_ids

    def run(*_: object, **__: object) -> object:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        pruning.forward_live(run, batch, {})
    assert batch.input_ids is before


def test_without_pruned_nodes_the_forward_is_the_plain_one() -> None:
    batch = batch_of(torch.ones(2, 3, dtype=torch.bool))
    answer = SimpleNamespace()
    seen = []

    def run(ids: torch.Tensor, *_: object) -> object:
        seen.append(ids)
        return answer

    assert pruning.forward_live(run, batch, {}) is answer
    assert seen[0] is batch.input_ids
