"""Lengths that a plan counts on: stored ones as they are, the others drawn for each prompt."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from sgl_entropy.train.plan.lengths import Lengths, drawn, expected_lengths
from sgl_entropy.train.prompts.order import Prompt
from sgl_entropy.train.samples.store import Store
from sgl_entropy.train.settings.file import GenerateSettings
from sgl_entropy.train.settings.fit import FitSettings
from tests.train.conftest import tiny_prompts

GIVEN = GenerateSettings(answer_tokens=10**6, max_new_tokens=100)


def prompts_of(length: int, count: int) -> list[Prompt]:
    return [Prompt(i, (7, 8, *(i * 50 + k for k in range(length - 2)))) for i in range(count)]


def answers_of(lengths: Lengths) -> list[int]:
    return [entry.length - entry.prompt_length for entry in lengths.entries]


def test_every_prompt_gets_an_answer_of_its_own_length() -> None:
    lengths = expected_lengths(prompts_of(20, 4000), GIVEN, None)
    assert lengths.sequences == 4000, "no more than there are prompts"
    assert (lengths.prompt, lengths.shared) == (20, 2)
    assert "assumed" in lengths.origin
    answers = sorted(answers_of(lengths))
    assert (answers[0], answers[-1]) == (2, 100)
    assert [answers[part * 40] for part in (10, 22, 30)] == pytest.approx([63, 96, 100], abs=4)
    assert lengths.answer == pytest.approx(91.5, rel=0.03)
    assert expected_lengths(prompts_of(20, 4000), GIVEN, None) == lengths, "drawn with a fixed seed"


def test_long_prompts_get_longer_answers() -> None:
    allowed = replace(GIVEN, max_new_tokens=256)
    short, long = (expected_lengths(prompts_of(n, 4000), allowed, None) for n in (512, 513))
    assert short.answer == pytest.approx(183.1, rel=0.03), "the mean of the measured ones"
    assert long.answer == pytest.approx(217.9, rel=0.03)


def test_answers_longer_than_the_measured_ones_end_as_steadily() -> None:
    """Beyond 256 tokens a share of (0.453 / 0.553) goes on for another 64."""
    prompts = prompts_of(20, 4000)
    answers = answers_of(expected_lengths(prompts, replace(GIVEN, max_new_tokens=2048), None))
    count = len(answers)
    beyond = [sum(one >= length for one in answers) / count for length in (192, 256, 320, 576)]
    assert beyond == pytest.approx([0.553, 0.453, 0.371, 0.167], abs=0.025)
    assert max(answers) == 2048


def test_workers_stop_at_the_tokens_that_are_wanted() -> None:
    """As they go through blocks sorted by length, the last block is begun at its shortest end."""
    prompts = [Prompt(i, (0,) * (5 + i * 7 % 90)) for i in range(1200)]
    given = replace(GIVEN, answer_tokens=20_000, workers=2)
    lengths = expected_lengths(prompts, given, None)
    assert 20_000 <= lengths.answer_tokens < 20_200
    everything = statistics.fmean(len(prompt.tokens) for prompt in prompts)
    assert lengths.prompt < 0.75 * everything
    ids = [entry.prompt_id for entry in lengths.entries]
    assert ids == sorted(set(ids))


def test_stored_answers_stay_as_they_are(tiny_store: Store) -> None:
    """Of a store that was begun, the rest is drawn from its own answers."""
    stored = [(e.prompt_id, e.prompt_length, e.length) for e in tiny_store.entries]
    prompts = [*tiny_prompts(), *(Prompt(100 + i, (1,) * 6) for i in range(50))]
    done = replace(GIVEN, answer_tokens=tiny_store.answer_tokens())
    whole = expected_lengths(prompts, done, tiny_store)
    assert [(e.prompt_id, e.prompt_length, e.length) for e in whole.entries] == stored
    assert whole.origin == f"{len(stored)} stored answers"
    more = expected_lengths(prompts, GIVEN, tiny_store)
    assert {*tiny_store.entries} < {*more.entries}
    assert {e.prompt_id for e in more.entries} == {prompt.prompt_id for prompt in prompts}
    own = {length - prompt for _, prompt, length in stored}
    assert set(answers_of(more)) <= own


def test_what_is_learned_from() -> None:
    lengths = Lengths(tuple(drawn(i, 10, 20) for i in range(20)), shared=4)
    fit = FitSettings(validation_every=10)
    assert len(lengths.learned(fit)) == 18
    assert len(lengths.learned(replace(fit, answer_tokens=100))) == 5
    assert len(lengths.learned(replace(fit, answer_tokens=10_000))) == 18, "all there are"
    assert lengths.prompt_from(fit) is None
    assert lengths.prompt_from(replace(fit, prompt_rows=True)) == 3
    with pytest.raises(ValueError, match="validation_every is 1: it holds out all 20"):
        lengths.learned(replace(fit, validation_every=1))
