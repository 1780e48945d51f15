"""Rows that nothing can be drawn from, and tokens that a grammar forbids."""

from __future__ import annotations

import math

import torch

from sgl_entropy.serving.draws import draw, make_drawable
from sgl_entropy.serving.grammar_mask import mask_logits

INF, NAN = math.inf, math.nan


def test_only_broken_rows_are_changed() -> None:
    rows = torch.tensor(
        [[1.0, -INF, 2.0], [NAN, 0.0, 1.0], [INF, 0.0, 0.0], [-INF] * 3, [-3e38, 0.0, -INF]]
    )
    before = rows.clone()
    assert make_drawable(rows) == [False, True, True, True, False]
    assert torch.equal(rows[[0, 4]], before[[0, 4]])
    assert rows[1:4].tolist() == [[0.0] * 3] * 3
    assert make_drawable(before[[0, 4]]) is None


def test_coins_at_the_ends_draw_no_token_of_probability_0() -> None:
    probs = torch.tensor([[0.0, 0.4, 0.6, 0.0]])
    for coin, token in ((0.0, 1), (0.39, 1), (0.41, 2), (math.nextafter(1.0, 0.0), 2)):
        assert draw(probs, torch.tensor([coin], dtype=torch.float64)).tolist() == [token]


def test_a_grammar_allows_what_its_bits_say() -> None:
    """40 tokens in two words; a row of ones is a request without a grammar."""
    allowed = [{0, 31, 32, 39}, set(range(40)), {5}]
    words = torch.zeros(3, 2, dtype=torch.int64)
    for row, tokens in enumerate(allowed):
        for token in tokens:
            words[row, token // 32] |= 1 << token % 32
    bitmask = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    bitmask[1] = -1
    logits = torch.randn(3, 40)
    before = logits.clone()
    mask_logits(logits, bitmask)
    for row, tokens in enumerate(allowed):
        assert set((~torch.isneginf(logits[row])).nonzero().flatten().tolist()) == tokens
        kept = sorted(tokens)
        assert torch.equal(logits[row, kept], before[row, kept])


def test_where_a_grammar_leaves_no_token_one_that_it_refuses_is_kept() -> None:
    logits = torch.full((1, 3), 2.0)
    logits[0, 1] = -INF
    mask_logits(logits, torch.tensor([[0b010]], dtype=torch.int32))
    assert logits.tolist() == [[0.0, -INF, -INF]]
