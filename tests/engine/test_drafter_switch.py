"""Two drafters in the real server: plain decoding's tokens, and each drafts as if it always had."""

from __future__ import annotations

import contextlib
import re
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sgl_entropy.drafter.model import DraftCache, Drafter, draft_chain, load_drafter
from sgl_entropy.entropy import shannon_entropy
from sgl_entropy.verify.policies import DrafterSwitch
from tests.engine.client import EngineClient
from tests.engine.conftest import Fleet
from tests.engine.prompts import MIXED
from tests.engine.test_memory import LONG
from tests.engine.test_sampling import target

STEPS = 4
# The large one has every option of its layout: what it drafts is compared with its reference.
FOLDERS = {"small": "edsd_half", "large": "variant"}
POLICY = DrafterSwitch(1.2, 1.4)
TELL = {"spec_drafters": True}


@pytest.fixture
def clean(fleet: Fleet) -> Iterator[EngineClient]:
    two = fleet.client("two_drafters")
    yield two
    two.settle()


@torch.no_grad()
def expected(fleet: Fleet, ids: list[int], prompt: int, told: list[Any]) -> list[list[int]]:
    """Drafts by cycle, given who drafted each, for an answer that starts at ``ids[prompt]``."""
    model = target(fleet.target)
    embedding, tokens = model.model.embed_tokens.weight, torch.tensor(ids)
    states = model(tokens[None], output_hidden_states=True).hidden_states
    drafters: dict[str, tuple[Drafter, Tensor, DraftCache]] = {}
    for name, folder in FOLDERS.items():
        drafter = load_drafter(fleet.folder / folder)
        taps = [states[i + 1][0] for i in drafter.config.target_layer_ids or ()]
        features, cache = drafter.fuse_taps(torch.cat(taps, -1)), DraftCache()
        places = torch.arange(len(ids) - 1)[None]
        drafter(embedding[tokens[1:]][None], features[:-1][None], places, cache)
        drafters[name] = (drafter, features, cache)
    out, known = [], prompt + 1  # the prompt's forward gave the first token
    for cycle in told:
        drafter, features, cache = drafters[cycle["drafter"]]
        row = known - 2
        before = DraftCache(
            [key[:, :, :row] for key in cache.keys], [value[:, :, :row] for value in cache.values]
        )
        chain = draft_chain(
            drafter, embedding, before, tokens[known - 1], features[row], row, STEPS
        )
        out.append(chain.tolist())
        known += cycle["emitted"]
    assert known == len(ids)
    return out


def test_each_drafts_what_it_would_had_it_drafted_all_along(
    fleet: Fleet, none: EngineClient, clean: EngineClient
) -> None:
    """Requests that come and go, so that they have missed different lengths at a switch."""
    asked: list[Any] = [
        {"input_ids": prompt, "max_new_tokens": 25 + 9 * i, "custom_params": TELL}
        for i, prompt in enumerate([*MIXED, *MIXED])
    ]
    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda one: clean.generate(**one, ignore_eos=True), asked))
    turns, accepted = 0, {"small": [0, 0], "large": [0, 0]}
    for one, reply in zip(asked, replies, strict=True):
        prompt, length = one["input_ids"], one["max_new_tokens"]
        plain = none.generate(prompt, length, ignore_eos=True)
        assert reply["output_ids"] == plain["output_ids"]
        meta = reply["meta_info"]
        told = meta["spec_drafters"]
        names = [cycle["drafter"] for cycle in told]
        assert meta["spec_cycles_by_drafter"] == {n: names.count(n) for n in FOLDERS}
        drafts = [cycle["drafted"] for cycle in told]
        assert drafts == expected(fleet, prompt + reply["output_ids"], len(prompt), told)
        at = len(prompt) + 1
        # The last cycle may run past the answer's end.
        for cycle in told[:-1]:
            same = [
                a == b
                for a, b in zip(
                    cycle["drafted"], [*prompt, *reply["output_ids"]][at:], strict=False
                )
            ]
            assert cycle["accepted"] == (same.index(False) if False in same else len(same))
            at += cycle["emitted"]
        turns += sum(a != b for a, b in pairwise(names))
        for cycle in told:
            accepted[cycle["drafter"]][0] += cycle["accepted"]
            accepted[cycle["drafter"]][1] += 1
    assert turns >= 100
    # They draft differently, or this test could not tell one from the other.
    shares = {name: drafts / cycles for name, (drafts, cycles) in accepted.items()}
    assert shares["large"] > shares["small"] > 0


@torch.no_grad()
def test_a_lone_request_is_switched_by_the_targets_entropy(
    fleet: Fleet, clean: EngineClient
) -> None:
    prompt = MIXED[1]
    reply = clean.generate(prompt, 150, custom_params=TELL, ignore_eos=True)
    ids, told = prompt + reply["output_ids"], reply["meta_info"]["spec_drafters"]
    nats = shannon_entropy(target(fleet.target)(torch.tensor(ids)[None]).logits[0])
    number = {"small": POLICY.SMALL, "large": POLICY.LARGE}
    # Row t tells of token t + 1; the prompt's forward gave the first of the answer.
    at, changes = len(prompt), 0
    for cycle, after in pairwise(told):
        seen = nats[at : at + cycle["emitted"]]
        assert cycle["target_entropy"] == pytest.approx(seen.tolist(), abs=2e-3)
        mean = sum(cycle["target_entropy"]) / len(seen)
        assert number[after["drafter"]] == POLICY.choose(number[cycle["drafter"]], mean)
        changes += after["drafter"] != cycle["drafter"]
        at += cycle["emitted"]
    assert changes >= 20


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.9},
        {"frequency_penalty": 0.6, "logit_bias": {"9": 4.0}},
        {"regex": "(abc|xyz|[0-9]{2,9})+x"},
        {"stop": ["e", "th"]},
        {"return_logprob": True, "top_logprobs_num": 2},
    ],
    ids=lambda settings: "_".join(settings),
)
def test_it_works_beside_what_requests_may_ask(
    none: EngineClient, clean: EngineClient, settings: Any
) -> None:
    """Greedy ones as without speculation, and plain ones in the same batch too."""
    asked = [{"input_ids": prompt, **settings} for prompt in MIXED[:4]]
    *replies, plain = clean.together([*asked, {"input_ids": MIXED[5]}])
    assert plain["output_ids"] == none.generate(MIXED[5])["output_ids"]
    if "temperature" not in settings:
        alone = [none.generate(**one)["output_ids"] for one in asked]
        assert [reply["output_ids"] for reply in replies] == alone


def test_aborted_requests_disturb_no_other(none: EngineClient, clean: EngineClient) -> None:
    kept: list[Any] = [
        {"input_ids": prompt, "max_new_tokens": 90, "ignore_eos": True} for prompt in MIXED
    ]
    sampling = {"temperature": 0, "max_new_tokens": 300, "ignore_eos": True}
    with ThreadPoolExecutor(len(kept)) as pool:
        running = [pool.submit(clean.generate, **one) for one in kept]
        for read in (1, 3, 8):
            body = {"input_ids": LONG[0], "sampling_params": sampling}
            with contextlib.closing(clean.events(body)) as events:
                for _ in range(read):
                    next(events)
        found = [one.result()["output_ids"] for one in running]
    assert found == [none.generate(**one)["output_ids"] for one in kept]


def test_counters_add_up_and_the_server_says_what_it_does(clean: EngineClient) -> None:
    def counted() -> Any:
        state = clean.http.get("/get_server_info")["internal_states"][0]
        return state["sgl_entropy_counters"]

    clean.generate(MIXED[0], 8)
    before = counted()
    metas = [reply["meta_info"] for reply in clean.batch(MIXED, 60)]
    after = counted()
    for name in FOLDERS:
        cycles = after["cycles_by_drafter"][name] - before["cycles_by_drafter"][name]
        assert cycles == sum(meta["spec_cycles_by_drafter"][name] for meta in metas)
    assert sum(after["cycles_by_drafter"].values()) == after["cycles"]
    assert after["drafter_switches"] > before["drafter_switches"]
    assert after["drafter_catch_ups"] >= after["drafter_switches"]
    # At least the last cycle's row.
    assert after["drafter_caught_up_tokens"] > after["drafter_catch_ups"]
    assert 0 < after["drafter_catch_up_seconds"] < 60
    assert all("spec_drafters" not in meta for meta in metas)
    info = clean.http.get("/get_server_info")
    assert (info["drafter_switch"]["down"], info["drafter_switch"]["up"]) == (1.2, 1.4)
    assert info["drafter_switch"]["small"].endswith("edsd_half")
    clean.generate(MIXED[0], 8)
    with urllib.request.urlopen(f"http://{clean.http.host}:{clean.http.port}/metrics") as reply:
        exported = reply.read().decode()
    for name in ("switches", "catch_ups", "caught_up_tokens", "catch_up_seconds"):
        found = re.search(rf"^sgl_entropy:drafter_{name}_total{{.*}} ([0-9.e+-]+)$", exported, re.M)
        assert found, name
        assert float(found.group(1)) > 0
    for name in FOLDERS:
        assert re.search(rf'^sgl_entropy:drafter_cycles_total{{.*drafter="{name}"', exported, re.M)


def test_a_question_that_is_none_is_answered_with_a_400(fleet: Fleet, clean: EngineClient) -> None:
    body: Any = {"input_ids": MIXED[0], "sampling_params": {"custom_params": {"spec_drafters": 3}}}
    status, message = clean.refusal(body)
    assert (status, "spec_drafters must be true or false" in message) == (400, True), message
    body["sampling_params"]["custom_params"] = TELL
    status, message = fleet.client("edsd_chain").refusal(body)
    assert (status, "--speculative-second-draft-model-path" in message) == (400, True), message
