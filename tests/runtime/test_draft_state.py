"""Where a draft starts, what it reads there, and how much room a cycle needs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sgl_entropy.runtime.v0_5_6 import draft_state, ours


@pytest.mark.parametrize(
    ("algorithm", "active", "shape", "rows"),
    [
        ("EDSD", True, (4, 1, 5), 9),
        ("EDSD", True, (4, 3, 12), 24),
        ("EAGLE3", False, (4, 1, 5), 1),
        (None, True, (None, None, None), 1),
    ],
)
def test_room_for_a_whole_cycle(
    monkeypatch: pytest.MonkeyPatch,
    algorithm: str | None,
    active: bool,
    shape: tuple[int | None, int | None, int | None],
    rows: int,
) -> None:
    """As upstream's own check before a step, which its retraction forgets."""
    monkeypatch.setattr(ours, "active", lambda: active)
    steps, topk, tokens = shape
    args = SimpleNamespace(
        speculative_algorithm=algorithm,
        speculative_num_steps=steps,
        speculative_eagle_topk=topk,
        speculative_num_draft_tokens=tokens,
    )
    assert draft_state.rows_of_a_cycle(args) == rows


def test_a_draft_starts_at_the_next_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream moves on before its first forward too; where we are not asked it still does."""
    for active, moves in ((True, [0, 1, 1]), (False, [1, 1, 1])):
        monkeypatch.setattr(ours, "active", lambda active=active: active)
        assert [draft_state.steps_ahead(step) for step in range(3)] == moves


def test_a_chunk_of_a_prompt_is_followed_by_the_prompts_next_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole prompts by the token drawn; a resumed request's answer is part of its prompt."""
    prompt, answer = [10, 11, 12], [20, 21]
    reqs = [
        SimpleNamespace(origin_input_ids=prompt, output_ids=output, fill_ids=[0] * taken)
        for output, taken in (([], 3), ([], 2), (answer, 1), (answer, 3), (answer, 4), (answer, 5))
    ]
    drawn = torch.arange(90, 96, dtype=torch.int32)
    for active, expected in ((True, [90, 12, 11, 20, 21, 95]), (False, drawn.tolist())):
        monkeypatch.setattr(ours, "active", lambda active=active: active)
        assert draft_state.tokens_after(reqs, drawn).tolist() == expected
        assert drawn.tolist() == [90, 91, 92, 93, 94, 95]
