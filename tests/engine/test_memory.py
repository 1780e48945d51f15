"""Caches, chunks, retraction, aborts: the same output, and the memory as it was."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest
from sgl_entropy_bench.http.client import ServerError

from tests.engine import pair
from tests.engine.client import EngineClient
from tests.engine.conftest import POOL, SMALL_POOL, Fleet
from tests.engine.prompts import MIXED

# More than twice of the pool. One could do: each frees what all others need for some cycles.
LONG = [pair.token_ids((f"{i:02d} long prompt; " * 12)[:150]) for i in range(POOL // 128)]
# Three that leave 80 slots to thirteen. A short one, thrown out, frees a slot for each of the
# others, but not a draft for each.
CROWD = [
    *(pair.token_ids(letter * 450) for letter in "xyz"),
    *(pair.token_ids(f"{i:02d} short") for i in range(13)),
]


def test_the_radix_cache_is_hit_and_changes_nothing(
    none: EngineClient, drafting: EngineClient
) -> None:
    prompt = pair.token_ids("a prefix that comes again and again and again, ")
    endings = [pair.token_ids(text) for text in ("one", "two", "three and more")]
    none.settle()
    drafting.settle()
    expected = [none.generate(prompt + end, 30, ignore_eos=True)["output_ids"] for end in endings]
    none.settle()
    for round_ in range(2):
        for ending, ids in zip(endings, expected, strict=True):
            reply = drafting.generate(prompt + ending, 30, ignore_eos=True)
            assert reply["output_ids"] == ids
            if round_ or ending is not endings[0]:
                assert reply["meta_info"]["cached_tokens"] >= len(prompt) - 1


def test_a_conversation_goes_on_from_its_own_answer(
    none: EngineClient, drafting: EngineClient
) -> None:
    """Upstream keeps the slots of the first prompt; the drafter's key is one token shorter."""
    replies = []
    for client in (none, drafting):
        client.settle()
        first = client.generate(MIXED[1], 40, ignore_eos=True)
        whole = MIXED[1] + first["output_ids"] + pair.token_ids(" and then?")
        replies.append(client.generate(whole, 30, ignore_eos=True))
    plain, drafted = replies
    assert drafted["output_ids"] == plain["output_ids"]
    kept = plain["meta_info"]["cached_tokens"]
    assert drafted["meta_info"]["cached_tokens"] >= kept - 1 >= len(MIXED[1]) - 1


def test_streaming_gives_the_same_ids_in_order(drafting: EngineClient) -> None:
    expected = drafting.generate(MIXED[0], 40, ignore_eos=True)
    body = {
        "input_ids": MIXED[0],
        "sampling_params": {"temperature": 0, "max_new_tokens": 40, "ignore_eos": True},
    }
    events = list(drafting.events(body))
    assert events[-1]["output_ids"] == expected["output_ids"]
    assert events[-1]["text"] == expected["text"]
    counts = [event["meta_info"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[0] < 40, "nothing was streamed"
    for event in events:
        assert expected["output_ids"][: len(event["output_ids"])] == event["output_ids"]


def test_an_abort_in_mid_stream_frees_everything(drafting: EngineClient) -> None:
    drafting.settle()
    expected = drafting.generate(MIXED[2], 40, ignore_eos=True)["output_ids"]
    body = {
        "input_ids": LONG[0],
        "sampling_params": {"temperature": 0, "max_new_tokens": 300, "ignore_eos": True},
    }
    for read in (1, 2, 7):
        with contextlib.closing(drafting.events(body)) as events:
            for _ in range(read):
                next(events)
    drafting.settle()  # raises while anything still runs
    rid = "to-be-aborted"
    started = drafting.events({**body, "rid": rid})
    with contextlib.closing(started) as events:
        next(events)
        drafting.http.post("/abort_request", {"rid": rid})
        begun = time.monotonic()
        rest = []
        with contextlib.suppress(ServerError):  # an abort may come as an error
            rest = list(events)
        assert time.monotonic() - begun < 20
        assert all(event["meta_info"]["completion_tokens"] < 300 for event in rest)
    drafting.settle()
    assert drafting.generate(MIXED[2], 40, ignore_eos=True)["output_ids"] == expected


@pytest.mark.parametrize("name", ["edsd_chain", "edsd_tree"])
def test_what_the_pool_cannot_hold_is_thrown_out_and_ends_as_without(
    name: str, fleet: Fleet, none: EngineClient
) -> None:
    """A crowd ended the server: upstream throws out until one slot a request is free."""
    client = fleet.client(name)
    client.settle()
    for prompts, length, settings in (
        (LONG, 50, {}),
        (LONG, 30, {"frequency_penalty": 0.7, "min_new_tokens": 25}),
        (CROWD, 4, {}),
    ):
        # In one request: on a busy machine separate ones arrive too late to compete.
        plain = none.batch(prompts, length, ignore_eos=True, **settings)
        replies = client.batch(prompts, length, ignore_eos=True, **settings)
        assert [a["output_ids"] for a in replies] == [b["output_ids"] for b in plain]
        thrown_out = sum(reply["meta_info"]["total_retractions"] for reply in replies)
        assert thrown_out > 0, "the pool was large enough: nothing was tested"
        client.settle()


def fill_the_pool(
    small: EngineClient, plain: Callable[[list[list[int]], int], list[list[int]]]
) -> None:
    """Prompts in chunks, more than fit, and one request that grows to the whole pool.

    Args:
        plain: answers of the same target without speculation, for prompts and a length.
    """
    small.settle()
    # Two of a rank's fit, and not what they grow to.
    some = [(prompt * 2)[:200] for prompt in LONG[:6]]
    # Not in one request: of several ranks, upstream lets each answer the whole of it.
    asked = [{"input_ids": p, "max_new_tokens": 60, "ignore_eos": True} for p in some]
    replies = small.together(asked)
    assert [reply["output_ids"] for reply in replies] == plain(some, 60)
    assert sum(reply["meta_info"]["total_retractions"] for reply in replies) > 0
    small.settle()
    # Its end leaves room for the last cycle.
    whole = pair.token_ids("y" * (SMALL_POOL - 40))
    ids = small.generate(whole, 40, ignore_eos=True)["output_ids"]
    assert 0 < len(ids) < 40, "the pool did not end it"
    assert ids == plain([whole], 40)[0][: len(ids)]
    body = {"input_ids": whole + whole[:36], "sampling_params": {"max_new_tokens": 4}}
    status, message = small.refusal(body)
    assert status == 400
    assert "maximum allowed length" in message
    small.settle()


def test_nothing_is_left_behind(drafting: EngineClient) -> None:
    """After all that this file did: every slot is free and the next request runs."""
    drafting.settle()
    assert drafting.occupied() == (0, 0)
    assert drafting.generate(MIXED[0], 5, ignore_eos=True)["meta_info"]["cached_tokens"] == 0
