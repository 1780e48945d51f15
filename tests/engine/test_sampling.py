"""Sampled output follows the target's exact joint distribution, with and without a drafter.

The law of the first three tokens is computed with transformers from the same weights.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine import pair
from tests.engine.client import EngineClient
from tests.engine.conftest import Fleet
from tests.runtime.chi_square import p_value

PROMPT = pair.token_ids("Hello wor")
DRAWS = 1800
Law = dict[tuple[int, ...], float]


@dataclass(frozen=True)
class Setting:
    temperature: float = 1.0
    top_k: int = 1 << 30
    top_p: float = 1.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0

    def request(self) -> dict[str, Any]:
        out = {"temperature": self.temperature, "top_p": self.top_p, "min_p": self.min_p}
        if self.top_k < 1 << 30:
            out["top_k"] = self.top_k
        if self.frequency_penalty:
            out["frequency_penalty"] = self.frequency_penalty
        return out

    def law(self, logits: torch.Tensor, before: tuple[int, ...]) -> dict[int, float]:
        """Token -> probability at one position, written out plainly."""
        logits = logits.double()
        for token in before:
            logits[token] -= self.frequency_penalty
        probs = torch.softmax(logits / self.temperature, 0).tolist()
        kept, mass = [], 0.0
        ranked = sorted(range(len(probs)), key=lambda token: -probs[token])
        for rank, token in enumerate(ranked):
            if rank >= self.top_k or mass > self.top_p:
                break
            mass += probs[token]
            if probs[token] >= self.min_p * probs[ranked[0]]:
                kept.append(token)
        total = sum(probs[token] for token in kept)
        return {token: probs[token] / total for token in kept}


SETTINGS = {
    "cold": Setting(temperature=0.8, top_p=0.9),
    "hot": Setting(temperature=1.3, top_p=0.9),
    "top_k": Setting(temperature=1.6, top_k=4),
    "min_p": Setting(temperature=1.5, min_p=0.1),
    "penalised": Setting(temperature=1.4, top_k=6, frequency_penalty=1.5),
    "unfiltered": Setting(temperature=1.1),
}


@lru_cache(maxsize=1)
def target(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@cache
@torch.no_grad()
def joint(folder: Path, setting: Setting, length: int = 3) -> Law:
    """Sequence -> probability; branches below 1e-6 end in the pooled remainder ``()``."""
    done: Law = {}
    rows: Law = {(): 1.0}
    lost = 0.0
    for _ in range(length):
        grown: Law = {}
        prefixes = list(rows)
        for start in range(0, len(prefixes), 256):
            part = prefixes[start : start + 256]
            ids = torch.tensor([[*PROMPT, *prefix] for prefix in part])
            logits = target(folder)(ids).logits[:, -1]
            for prefix, row in zip(part, logits, strict=True):
                for token, p in setting.law(row, prefix).items():
                    q = rows[prefix] * p
                    if q < 1e-6:
                        lost += q
                    elif token == pair.EOS:
                        done[(*prefix, token)] = q
                    else:
                        grown[(*prefix, token)] = q
        rows = grown
    return {**done, **rows, (): lost}


def draw(client: EngineClient, setting: Setting, count: int) -> list[tuple[int, ...]]:
    """First three tokens of ``count`` answers, among other requests of another temperature.

    The answers are longer, so that drafts reach across the three tokens.
    """
    out: list[tuple[int, ...]] = []
    for _ in range(count // 300):
        replies = client.batch([PROMPT] * 300, 4, **setting.request())
        out += [tuple(reply["output_ids"][:3]) for reply in replies]
    return out


@lru_cache(maxsize=len(SETTINGS))
def drawn_once(client: EngineClient, setting: Setting) -> list[tuple[int, ...]]:
    """Draws that two tests look at."""
    return draw(client, setting, DRAWS)


def known(drawn: list[tuple[int, ...]], law: Law) -> list[tuple[int, ...]]:
    return [sequence if sequence in law else () for sequence in drawn]


@pytest.mark.parametrize("name", SETTINGS)
def test_draws_follow_the_exact_joint_distribution(
    fleet: Fleet, sampling_server: EngineClient, name: str
) -> None:
    law = joint(fleet.target, SETTINGS[name])
    drawn = drawn_once(sampling_server, SETTINGS[name])
    assert len(set(drawn)) > 10, "too few outcomes to test anything"
    assert p_value(known(drawn, law), law) > 1e-5


def test_the_statistic_sees_a_server_that_samples_wrongly(
    fleet: Fleet, sampling_server: EngineClient
) -> None:
    """The same draws against a temperature 25 % off: the test above would have failed."""
    law = joint(fleet.target, Setting(temperature=1.3 / 1.25, top_p=0.9))
    drawn = drawn_once(sampling_server, SETTINGS["hot"])
    assert p_value(known(drawn, law), law) < 1e-5


def test_the_statistic_sees_drafts_accepted_too_often(fleet: Fleet) -> None:
    """Draws made here from the exact law, but one in twelve follows the likeliest path."""
    law = joint(fleet.target, SETTINGS["hot"])
    rng = random.Random(0)
    sequences, weights = list(law), list(law.values())
    drawn = rng.choices(sequences, weights, k=20_000)
    assert p_value(drawn, law) > 1e-5
    likeliest = max(law, key=lambda sequence: law[sequence])
    drawn = [likeliest if rng.random() < 1 / 12 else sequence for sequence in drawn]
    assert p_value(drawn, law) < 1e-5


def test_greedy_requests_stay_greedy_beside_sampled_ones(
    none: EngineClient, drafting: EngineClient
) -> None:
    expected = none.generate(PROMPT, 40, ignore_eos=True)["output_ids"]
    hot = {"input_ids": PROMPT, "temperature": 2.0, "max_new_tokens": 40, "ignore_eos": True}
    greedy = {"input_ids": PROMPT, "max_new_tokens": 40, "ignore_eos": True}
    replies = drafting.together([hot, greedy, hot, greedy])
    assert replies[1]["output_ids"] == replies[3]["output_ids"] == expected
    assert replies[0]["output_ids"] != expected
