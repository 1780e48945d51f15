"""Prompts of mixed lengths for the tiny target, as ids."""

from tests.engine.pair import token_ids

TEXTS = (
    "Hello world",
    "The quick brown",
    '{"a": 1}',
    "xyz!? ",
    "0",
    "ZZZ",
    "some longer prompt, " * 6,
    "q" * 150,
)
MIXED = [token_ids(text) for text in TEXTS]
