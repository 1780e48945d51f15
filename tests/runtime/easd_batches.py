"""Served batches without a server: drafts with their statistics, and the engine's own walk."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.runtime.v0_5_6 import draft_stats
from sgl_entropy.serving import attached
from sgl_entropy.serving.outcome import CheckCounts, CycleOutcome, outcome
from sgl_entropy.serving.trees import build_tree, verify_tree
from sgl_entropy.verify.rule import EasdRule

VOCABULARY, DRAFT_VOCABULARY, NODES = 40, 24, 5
TO_TARGET = torch.arange(DRAFT_VOCABULARY) + torch.arange(DRAFT_VOCABULARY) // 2
RULE = EasdRule(target_entropy=2.0, draft_entropy=1.8, top_n=6, overlap=0.3)


def worker() -> Any:
    config = SimpleNamespace(vocab_size=VOCABULARY)
    runner = SimpleNamespace(model_config=config)
    return SimpleNamespace(
        hot_token_id=TO_TARGET, target_worker=SimpleNamespace(model_runner=runner)
    )


def drafted_batch(draft_logits: Tensor, tokens: Tensor, live: list[int]) -> Any:
    """Chains as the worker hands them to verification, with the statistics that came along.

    Args:
        draft_logits: [b, k, draft vocabulary]; tokens: [b, k + 1], the root first; live: how many
            nodes of each request are verified.
    """
    batch, depth = draft_logits.shape[:2]
    source = SimpleNamespace()
    draft_stats.first(worker(), source, draft_logits[:, 0])
    for step in range(1, depth):
        draft_stats.step(worker(), source, draft_logits[:, step])
    order = torch.arange(depth).expand(batch, -1)
    selected = order.where(order + 1 < torch.tensor(live)[:, None], -1)
    scores = [torch.full((batch, 1, 1), 0.5 ** (step + 1)) for step in range(depth)]
    draft_stats.finish(source, selected, scores, 1)
    links = [torch.full((batch, depth + 1), -1) for _ in range(3)]
    build_tree(
        torch.empty(batch, 0), selected, torch.ones(batch).long(),
        torch.ones(batch * (depth + 1) * (depth + 2), dtype=torch.bool),
        torch.zeros(batch * (depth + 1)).long(), *links, 1, depth, depth + 1,
    )  # fmt: skip
    draft = SimpleNamespace(
        draft_token=tokens.flatten(),
        draft_token_num=depth + 1,
        retrive_index=links[0],
        retrive_next_token=links[1],
        retrive_next_sibling=links[2],
    )
    draft_stats.hand_over(source, draft)
    return draft


def requests(custom: list[Any]) -> Any:
    """A batch of requests with these ``custom_params``."""
    return SimpleNamespace(
        reqs=[SimpleNamespace(sampling_params=SimpleNamespace(custom_params=c)) for c in custom]
    )


def closed(draft: Any, batch: Any, index: int, path: list[int], emitted: int) -> CycleOutcome:
    """What a verified cycle came to for one request that passed these nodes."""
    nodes = draft.draft_token_num
    asked = attached.request_state(batch.reqs[index]).asked
    assert asked is not None
    row = [*path, *[-1] * (nodes - len(path))]
    return outcome(attached.cycle_for(draft), index, row, emitted, nodes, asked)


def checks(found: CycleOutcome) -> CheckCounts:
    """What a mode counted in a cycle."""
    assert found.checks is not None
    return found.checks


def walk(draft: Any, chosen: Tensor) -> list[tuple[list[int], list[int]]]:
    """The engine's own walk: each request's emitted tokens, and the nodes that it passed."""
    batch, nodes = draft.retrive_index.shape
    predicts = torch.zeros(batch * nodes + 1, dtype=torch.int32)
    index = torch.full((batch, nodes), -1, dtype=torch.int32)
    verify_tree(
        predicts, index, torch.zeros(batch, dtype=torch.int32), draft.draft_token.view(batch, -1),
        draft.retrive_index, draft.retrive_next_token, draft.retrive_next_sibling, chosen,
    )  # fmt: skip
    paths = [[node for node in row if node != -1] for row in index.tolist()]
    return [([int(predicts[node]) for node in path], path) for path in paths]
