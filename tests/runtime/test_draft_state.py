"""Where a draft starts, and how much room a cycle needs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

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
