"""The engine drafts what the plain drafter drafts: the same cycles, the same acceptances.

From the output alone, transformers' hidden states and ``sgl_entropy.drafter.model`` say which
drafts a server must have made after every token, and so how many each cycle accepted.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sgl_entropy.drafter.model import DraftCache, draft_chain, load_drafter
from tests.engine import pair
from tests.engine.conftest import Fleet
from tests.engine.test_sampling import target

STEPS = 4


@torch.no_grad()
def expected_acceptances(
    folder: Path, drafter_folder: Path, ids: list[int], prompt: int
) -> list[int]:
    """Accepted drafts by cycle for a greedy answer of the target, from ``ids[prompt]`` on."""
    drafter = load_drafter(drafter_folder)
    model = target(folder)
    embedding = model.model.embed_tokens.weight
    tokens = torch.tensor(ids)
    states = model(tokens[None], output_hidden_states=True).hidden_states
    taps = torch.cat([states[i + 1][0] for i in drafter.config.target_layer_ids], -1)
    features = drafter.fuse_taps(taps)
    # Row t holds token t + 1 beside the feature of token t; drafted rows never stay.
    cache = DraftCache()
    drafter(
        embedding[tokens[1:]][None], features[:-1][None], torch.arange(len(ids) - 1)[None], cache
    )
    out, known = [], prompt + 1  # the prompt's forward gave the first token
    while known < len(ids):
        row = known - 2
        before = DraftCache(
            [key[:, :, :row] for key in cache.keys], [value[:, :, :row] for value in cache.values]
        )
        drafted = draft_chain(
            drafter, embedding, before, tokens[known - 1], features[row], row, STEPS
        ).tolist()
        accepted = 0
        while accepted < STEPS and ids[known + accepted : known + accepted + 1] == [
            drafted[accepted]
        ]:
            accepted += 1
        out.append(accepted)
        known += accepted + 1
    return out


TEXTS = ["Hello world", '{"a": 1}', "q" * 40, "0"]


@pytest.mark.parametrize(("server", "drafter"), [("edsd_chain", "edsd"), ("eagle3", "eagle3")])
@pytest.mark.parametrize("text", TEXTS)
def test_cycles_and_acceptances_are_the_references(
    fleet: Fleet, server: str, drafter: str, text: str
) -> None:
    """Accepted drafts of one answer. Options of the layout: see ``test_drafter_switch``."""
    prompt = pair.token_ids(text)
    reply = fleet.client(server).generate(prompt, 80, ignore_eos=True)
    meta = reply["meta_info"]
    ids = prompt + reply["output_ids"]
    cycles = expected_acceptances(fleet.target, fleet.folder / drafter, ids, len(prompt))
    by_position = [sum(accepted > i for accepted in cycles) for i in range(STEPS)]
    assert meta["spec_cycles"] == len(cycles)
    # The last cycle may run past the answer's end, where the counters stop.
    told = meta["spec_accepted_by_position"]
    assert sum(abs(a - b) for a, b in zip(told, by_position, strict=True)) <= 1
