"""EASD in the real server: the reference's tokens, checks and fires, and a server that lives."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_entropy.evaluate.easd_decode import EasdAnswer, decode
from sgl_entropy.evaluate.offline import load_pair
from sgl_entropy.evaluate.walk import greedy_answers
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.verify.rule import EasdRule
from tests.engine import pair
from tests.engine.client import EngineClient
from tests.engine.conftest import Fleet
from tests.engine.prompts import MIXED, TEXTS

RULE = EasdRule(1.0, 1.0, top_n=5, overlap=0.2)
NEVER = {"easd": {"target_entropy": 1e9}}
CUSTOM: list[Any] = [
    None,
    {"easd": True},
    {"easd": {"target_entropy": 0.3, "overlap": 0.0}},
    {"easd": {"draft_entropy": 0.1}},
    {"easd": False},
    NEVER,
]
# The first serves a Qwen3: another family of targets.
SERVERS = [("easd_chain", "edsd"), ("eagle3", "eagle3")]


def rule_of(custom: Any) -> EasdRule | None:
    return RULE.of_request((custom or {}).get("easd"))


def reference(
    folder: Path, drafter: Path, prompts: Sequence[Sequence[int]], rules: Any, length: int
) -> list[EasdAnswer]:
    target, loaded, layers = load_pair(folder, drafter, torch.float32)
    return decode(target, loaded, prompts, rules, 4, length, layers)


@pytest.mark.parametrize(("server", "drafter"), SERVERS)
def test_every_token_check_and_fire_is_the_references(
    fleet: Fleet, server: str, drafter: str
) -> None:
    """Mixed lengths and settings, many at a time; over 1,000 checked positions a drafter."""
    client = fleet.client(server)
    length = 120
    work = [
        {"input_ids": prompt, "custom_params": custom, "max_new_tokens": length - 7 * (i % 3)}
        for i, (prompt, custom) in enumerate((p, c) for p in MIXED for c in CUSTOM)
    ]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda one: client.generate(**one), work))
    expected = reference(
        fleet.served_target(server),
        fleet.folder / drafter,
        [one["input_ids"] for one in work],
        [rule_of(one["custom_params"]) for one in work],
        length,
    )
    checked = fired = 0
    for one, reply, answer in zip(work, replies, expected, strict=True):
        meta = reply["meta_info"]
        ids, count = reply["output_ids"], len(reply["output_ids"])
        assert ids == answer.tokens[:count], one
        if count == len(answer.tokens):
            assert meta["easd_checks"] == sum(cycle.checked for cycle in answer.cycles), one
            assert meta["easd_fires"] == sum(cycle.fired is not None for cycle in answer.cycles)
        checked += meta["easd_checks"]
        fired += meta["easd_fires"]
    assert checked >= 1000
    assert fired >= 100


@pytest.mark.parametrize(("server", "drafter"), SERVERS)
@pytest.mark.parametrize("custom", [NEVER, {"easd": False}], ids=["never", "off"])
def test_what_cannot_fire_writes_what_plain_decoding_writes(
    fleet: Fleet, none: EngineClient, server: str, drafter: str, custom: Any
) -> None:
    mine = fleet.client(server).batch(MIXED, custom_params=custom)
    own = PlainTarget.from_folder(fleet.served_target(server))
    plain = greedy_answers(own, MIXED, 48, (pair.EOS,))
    for prompt, reply, answer in zip(MIXED, mine, plain, strict=True):
        assert reply["output_ids"] == answer.tokens[len(prompt) :].tolist()
    assert all(reply["meta_info"]["easd_fires"] == 0 for reply in mine)
    other = [
        a["output_ids"] != b["output_ids"] for a, b in zip(mine, none.batch(MIXED), strict=True)
    ]
    assert any(other) == (server in fleet.targets), "a Qwen3's norms are idle, or a Llama has some"


@pytest.fixture(scope="module")
def easd(fleet: Fleet) -> EngineClient:
    return fleet.client("easd_chain")


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.9},
        {"temperature": 1.0, "top_k": 5, "top_p": 0.8},
        {"temperature": 1.1, "min_p": 0.1},
        {"frequency_penalty": 0.6, "presence_penalty": 0.3},
        {"logit_bias": {"9": 4.0}, "min_new_tokens": 9},
        {"stop": ["e", "th"]},
        {"regex": "(abc|xyz|[0-9]{2,9})+x"},
        {"temperature": 0.8, "regex": "[a-z]{10}[0-9]{10}"},
        {"return_logprob": True, "top_logprobs_num": 2},
    ],
    ids=lambda settings: "_".join(settings),
)
def test_it_works_beside_what_requests_may_ask(easd: EngineClient, settings: Any) -> None:
    """In one batch with plain greedy requests, which stay the reference's."""
    hot = {"easd": {"target_entropy": 0.2, "draft_entropy": 0.1, "overlap": 0.0}}
    asked = [{"input_ids": prompt, "custom_params": hot, **settings} for prompt in MIXED]
    beside = {"input_ids": MIXED[1], "custom_params": {"easd": False}}
    *replies, plain = easd.together([*asked, beside])
    assert plain["output_ids"] == easd.generate(**beside)["output_ids"]
    for reply in replies:
        meta = reply["meta_info"]
        if "regex" in settings and meta["finish_reason"]["type"] == "stop":
            assert re.fullmatch(settings["regex"], reply["text"]), reply["text"]
        if "return_logprob" in settings:
            assert len(meta["output_token_logprobs"]) == meta["completion_tokens"]
        assert meta["easd_fires"] <= meta["easd_checks"]
    assert sum(reply["meta_info"]["easd_fires"] for reply in replies) > 0
    easd.settle()


BAD: dict[str, tuple[Any, str]] = {
    "no_object": (7, "custom_params"),
    "words": ({"easd": "on"}, "easd must be true, false or an object"),
    "unknown": ({"easd": {"tau": 2}}, "easd: unknown key tau"),
    "servers_own": ({"easd": {"top_n": 3}}, "unknown key top_n"),
    "negative": ({"easd": {"target_entropy": -1}}, "target_entropy must be a number from 0"),
    "share": ({"easd": {"overlap": 1.5}}, "overlap must be a share"),
    "nan": ({"easd": {"draft_entropy": float("nan")}}, "draft_entropy must be a number"),
    "boolean": ({"easd": {"draft_entropy": True}}, "draft_entropy must be a number"),
    "trace": ({"spec_trace": "yes"}, "spec_trace must be true or false"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_setting_is_refused_with_a_400(easd: EngineClient, name: str) -> None:
    custom, word = BAD[name]
    body = {"input_ids": MIXED[0], "sampling_params": {"custom_params": custom}}
    status, message = easd.refusal(body)
    assert (status, word in message) == (400, True), message
    if name != "no_object":
        chat = {"model": "m", "prompt": "abc", "max_tokens": 4, "custom_params": custom}
        status, message = easd.refusal(chat, "/v1/completions")
        assert (status, word in message) == (400, True), message
    assert easd.generate(MIXED[0], 3, ignore_eos=True)["meta_info"]["completion_tokens"] == 3


def test_a_server_without_the_mode_says_how_to_get_it(fleet: Fleet) -> None:
    plain = fleet.client("edsd_chain")
    body = {"input_ids": MIXED[0], "sampling_params": {"custom_params": {"easd": True}}}
    status, message = plain.refusal(body)
    assert status == 400
    assert "--speculative-verify-mode easd" in message
    plain.generate(MIXED[0], custom_params={"easd": False})
    body["sampling_params"] = {"custom_params": {"spec_trace": True}}
    assert plain.refusal(body)[0] == 400


def test_figures_reach_every_route(easd: EngineClient) -> None:
    meta = easd.generate(MIXED[1], 60)["meta_info"]
    assert meta["easd_checks"] > 0
    assert 0 < meta["easd_target_entropy"] < 5
    ask = {"model": "m", "prompt": TEXTS[1], "max_tokens": 60, "temperature": 0}
    whole = easd.http.post("/v1/completions", ask)
    details = whole["usage"]["completion_tokens_details"]
    assert (details["easd_checks"], details["easd_fires"]) == (
        meta["easd_checks"],
        meta["easd_fires"],
    )
    off = easd.http.post("/v1/completions", {**ask, "custom_params": {"easd": False}})
    assert off["usage"]["completion_tokens_details"]["easd_checks"] == 0
    streamed = {**ask, "stream": True, "stream_options": {"include_usage": True}}
    assert _last_usage(easd, streamed)["completion_tokens_details"] == details


def _last_usage(client: EngineClient, body: Any) -> Any:
    request = urllib.request.Request(
        f"http://{client.http.host}:{client.http.port}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    usage = None
    with urllib.request.urlopen(request, timeout=60) as reply:
        for line in reply:
            text = line.decode().removeprefix("data: ").strip()
            if text and text != "[DONE]":
                usage = json.loads(text).get("usage") or usage
    return usage


def test_counters_add_up_and_the_server_says_what_it_does(easd: EngineClient) -> None:
    def counted() -> tuple[int, int, float]:
        state = easd.http.get("/get_server_info")["internal_states"][0]["sgl_entropy_counters"]
        return state["easd_checks"], state["easd_fires"], state["easd_seconds"]

    easd.generate(MIXED[0], 8)
    before = counted()
    metas = [reply["meta_info"] for reply in easd.batch(MIXED)]
    after = counted()
    assert after[0] - before[0] == sum(meta["easd_checks"] for meta in metas)
    assert after[1] - before[1] == sum(meta["easd_fires"] for meta in metas)
    # A cycle of the tiny models takes a few milliseconds, and the mode a part of it.
    spent = (after[2] - before[2]) / sum(meta["spec_cycles"] for meta in metas)
    assert 1e-5 < spent < 0.02
    info = easd.http.get("/get_server_info")
    assert info["easd"] == RULE.to_dict()
    assert info["speculative_verify_mode"] == "easd"
    easd.generate(MIXED[0], 8)
    with urllib.request.urlopen(f"http://{easd.http.host}:{easd.http.port}/metrics") as reply:
        exported = reply.read().decode()
    for name in ("easd_checks", "easd_fires", "easd_target_entropy_nats"):
        found = re.search(rf"^sgl_entropy:{name}_total{{.*}} ([0-9.e+]+)$", exported, re.M)
        assert found, name
        assert float(found.group(1)) > 0


def test_a_traced_request_tells_its_cycles(easd: EngineClient) -> None:
    custom = {"easd": False, "spec_trace": True}
    meta = easd.generate(MIXED[1], 60, custom_params=custom)["meta_info"]
    cycles = meta["spec_trace"]
    assert len(cycles) == meta["spec_cycles"]
    assert sum(cycle["emitted"] for cycle in cycles) == meta["spec_emitted"]
    assert all(cycle["checked"] == 0 and cycle["fired"] is None for cycle in cycles)
    assert "spec_trace" not in easd.generate(MIXED[1], 8)["meta_info"]
