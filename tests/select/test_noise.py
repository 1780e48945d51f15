"""Noise is a pure function, changes something, and little."""

from __future__ import annotations

import difflib

import pytest

from sgl_entropy.select.noise import NEIGHBOURS, noisy_view

TEXT = "The quick brown fox jumps over the lazy dog,\nand then it sleeps for 12 hours straight."


def test_a_view_is_a_function_of_text_view_and_seed() -> None:
    views = [noisy_view(TEXT, view, 0) for view in range(8)]
    assert views == [noisy_view(TEXT, view, 0) for view in range(8)]
    assert len({*views, noisy_view(TEXT, 0, 1)}) == 9
    # The same on every machine and Python.
    assert noisy_view("hello world", 0, 0) == "hello worl5"


def test_a_view_is_near_its_text() -> None:
    for view in range(50):
        noisy = noisy_view(TEXT, view, 0)
        splits = len(noisy.split()) - len(TEXT.split())
        assert len(noisy) == len(TEXT) + splits
        assert 0 <= splits <= len(TEXT.split())
        assert noisy != TEXT
        assert difflib.SequenceMatcher(None, TEXT, noisy).ratio() > 0.7


@pytest.mark.parametrize("text", ["a", "7", "私は学生です", "!?"])
def test_short_and_foreign_words_are_changed_too(text: str) -> None:
    for view in range(20):
        noisy = noisy_view(text, view, 0)
        assert noisy != text
        assert len(noisy) in (len(text), len(text) + 1)


def test_the_rate_runs_from_one_word_to_all() -> None:
    words = TEXT.split(" ")
    everything = noisy_view(TEXT, 0, 0, rate=1.0)
    assert not {word for word in words if len(word) > 3} & set(everything.split(" "))
    least = difflib.SequenceMatcher(None, TEXT, noisy_view(TEXT, 0, 0, rate=0.0))
    assert sum(tag != "equal" for tag, *_ in least.get_opcodes()) == 1
    assert noisy_view(" \n", 0, 0) == " \n"


def test_neighbours_touch_both_ways() -> None:
    assert set(NEIGHBOURS["s"]) == set("adwezx")
    assert all(key in NEIGHBOURS[other] for key in NEIGHBOURS for other in NEIGHBOURS[key])
