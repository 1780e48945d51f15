"""The fake server's simulation: tokens, cycles, queues, ranks, and how fast it is."""

from __future__ import annotations

import asyncio
import itertools
import socket
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from sgl_entropy_bench.fakeserver import FakeServer

from tests.bench.fakeserver.clients import (
    AT_ONCE,
    GENERATE,
    client_of,
    loads,
    opened,
    reaches,
    request_bytes,
)
from tests.scripted_server import ScriptedServer


def test_an_answer_ends_by_itself_before_the_limit() -> None:
    with ScriptedServer(*AT_ONCE, "--output-tokens", "gamma:20:0.5", "--depth", "0") as server:
        client = client_of(server)
        lengths = []
        for index in range(40):
            done = client.generate(text=f"prompt {index}", max_new_tokens=200)
            assert done.raw["finish_reason"] == {"type": "stop", "matched": 2}
            assert not any(key.startswith("spec_") for key in done.raw)
            assert len(done.arrivals) == done.completion_tokens
            lengths.append(done.completion_tokens)
        assert 15 < statistics.mean(lengths) < 25
        assert len(set(lengths)) > 10
        for limit, finish in ((lengths[0], "length"), (lengths[0] + 1, "stop")):
            done = client.generate(text="prompt 0", max_new_tokens=limit)
            assert (done.completion_tokens, done.finish) == (lengths[0], finish)


def test_a_prompt_has_one_text_on_every_arm() -> None:
    arms = {
        "none": ("--depth", "0"),
        "poor": ("--acceptance", "0.1"),
        "good": ("--acceptance", "0.95", "--depth", "6"),
        "again": ("--acceptance", "0.1"),
        "wrong": ("--acceptance", "0.1", "--wrong-every", "2"),
        "other": ("--seed", "1"),
    }
    with ExitStack() as stack:
        found = {}
        for name, flags in arms.items():
            server = ScriptedServer(*AT_ONCE, "--output-tokens", "exponential:60", *flags)
            client = client_of(stack.enter_context(server))
            found[name] = [
                client.generate(text=text, max_new_tokens=500) for text in ("one", "two")
            ] + [client.generate(input_ids=[1, 2, 3], max_new_tokens=500)]
    texts = {name: [done.text for done in row] for name, row in found.items()}
    assert texts["none"] == texts["poor"] == texts["good"]
    assert len(set(texts["none"])) == 3
    assert found["none"][2].prompt_tokens == 3
    assert not set(texts["none"]) & set(texts["other"])
    assert sum(done.cycles for done in found["good"]) < sum(done.cycles for done in found["poor"])
    # Cycles are drawn from the server's seed and the request's number.
    assert [done.cycles for done in found["again"]] == [done.cycles for done in found["poor"]]
    assert [texts["wrong"][n] == texts["none"][n] for n in range(3)] == [True, False, True]
    pairs = zip(found["wrong"][1].output_ids, found["none"][1].output_ids, strict=True)
    assert sum(one != other for one, other in pairs) == 1


def test_tokens_a_cycle_are_as_expected() -> None:
    with ScriptedServer(*AT_ONCE, "--easd", "0.25") as server:
        client = client_of(server)
        body = {"max_new_tokens": 3000, "ignore_eos": True}
        metas = [
            client.post("/generate", {"text": str(index), "sampling_params": body})["meta_info"]
            for index in range(6)
        ]
        counters = client.get("/get_server_info")["internal_states"][0]["sgl_entropy_counters"]
    cycles = sum(meta["spec_cycles"] for meta in metas)
    emitted = sum(meta["spec_emitted"] for meta in metas)
    assert emitted == 6 * 2999
    assert emitted / cycles == pytest.approx(1 + 0.6 + 0.6**2 + 0.6**3 + 0.6**4, abs=0.06)
    accepted = [
        sum(row) for row in zip(*(m["spec_accepted_by_position"] for m in metas), strict=True)
    ]
    assert accepted[0] / cycles == pytest.approx(0.6, abs=0.02)
    assert accepted[3] / accepted[2] == pytest.approx(0.6, abs=0.05)
    assert sum(meta["easd_checks"] for meta in metas) == cycles
    assert sum(meta["easd_fires"] for meta in metas) / cycles == pytest.approx(0.25, abs=0.02)
    assert counters == {
        "cycles": cycles,
        "drafted": 4 * cycles,
        "emitted": emitted,
        "accepted_by_position": accepted,
    }


def test_an_end_inside_the_draft_is_counted_as_sglang_does() -> None:
    with ScriptedServer(*AT_ONCE, "--acceptance", "1", "--easd", "1") as server:
        # 1 + 5 + 2: the second cycle accepts four and emits two
        meta = client_of(server).generate(text="a", max_new_tokens=8).raw
        short = client_of(server).generate(text="a", max_new_tokens=1).raw
    assert {key: meta[key] for key in meta if key.startswith(("spec", "easd"))} == {
        "spec_verify_ct": 2,
        "spec_accept_length": 4.0,
        "spec_cycles": 2,
        "spec_drafted": 8,
        "spec_emitted": 7,
        "spec_accepted_by_position": [2, 2, 1, 1],
        "easd_checks": 2,
        "easd_fires": 2,
    }
    assert [key for key in short if key.startswith(("spec", "easd"))] == [
        "spec_verify_ct",
        "spec_accept_length",
    ]


def test_a_queue_is_served_in_order() -> None:
    endless = {"max_new_tokens": 30000, "ignore_eos": True}
    with ScriptedServer("--slots", "1", "--ttft", "0.15", "--cycle", "0.001") as server:
        client = client_of(server)
        with opened(server, sampling_params=endless) as first, ThreadPoolExecutor(4) as pool:
            assert reaches(client, [1])
            futures = []
            for count in (2, 3, 4):
                # One in the queue that goes away takes no time of the others.
                with opened(server):
                    assert reaches(client, [count])
                assert reaches(client, [count - 1])
                futures.append(pool.submit(client.generate, text="x", max_new_tokens=3))
                assert reaches(client, [count])
            assert loads(client, "num_waiting_reqs") == [3]
            first.close()
            done = [future.result() for future in futures]
        firsts = [one.first_s for one in done]
        assert firsts == sorted(firsts)
        gaps = [after - before for before, after in itertools.pairwise(firsts)]
        assert statistics.mean(gaps) == pytest.approx(0.15, abs=0.1)
        assert done[-1].raw["e2e_latency"] > 0.45
        assert loads(client) == [0]


def test_requests_are_dealt_to_the_rank_with_the_fewest() -> None:
    with (
        ExitStack() as stack,
        ScriptedServer("--ranks", "3", "--slots", "2", "--ttft", "60") as server,
    ):
        client = client_of(server)

        def add(expected: list[int]) -> socket.socket:
            connection = stack.enter_context(opened(server))
            assert reaches(client, expected), loads(client)
            return connection

        expected = ([1, 0, 0], [1, 1, 0], [1, 1, 1], [2, 1, 1])
        _, second, *_ = [add(row) for row in expected]
        second.close()
        assert reaches(client, [2, 0, 1])
        for row in ([2, 1, 1], [2, 2, 1], [2, 2, 2], [3, 2, 2], [3, 3, 2]):
            add(row)
        assert loads(client, "num_waiting_reqs") == [1, 1, 0]
        assert loads(client, "num_tokens") == [6, 6, 4]
        info = client.get("/get_server_info")
        assert (info["fake"], info["version"], info["dp_size"]) == (True, "fake-1", 3)
        assert len(info["internal_states"]) == 3
        assert info["fake_settings"]["slots"] == 2
        assert info["fake_settings"]["ttft"] == "60"


def test_full_ranks_are_slower() -> None:
    """At 20 tokens, 19 cycles of 10 ms alone; four times that with four."""
    flags = ("--depth", "0", "--ttft", "0.05", "--cycle", "0.01", "--slowdown", "1")
    with ScriptedServer(*flags) as server:
        client = client_of(server)

        def latency(index: int) -> float:
            done = client.generate(text=str(index), max_new_tokens=20)
            return float(done.raw["e2e_latency"])

        assert latency(0) >= 0.24
        with ThreadPoolExecutor(4) as pool:
            assert statistics.mean(pool.map(latency, range(4))) > 0.48
        assert client.get("/get_server_info")["fake_late_max_s"] > 0


class Counter(asyncio.Protocol):
    """A raw client that counts events and asks again when an answer has ended."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.events = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.events += data.count(b"\ndata: ")
        if data.endswith(b"\r\n0\r\n\r\n"):
            self.transport.write(self.request)


async def events_per_s(port: int) -> float:
    """The best of three times 0.4 s, with 200 clients that always have a request running."""
    body = {**GENERATE, "stream": True}
    body["sampling_params"] = {"max_new_tokens": 200, "ignore_eos": True}
    loop = asyncio.get_running_loop()
    request = request_bytes("/generate", body)
    counters = []
    for _ in range(200):
        _, counter = await loop.create_connection(lambda: Counter(request), "127.0.0.1", port)
        counters.append(counter)
    best = 0.0
    for _ in range(3):
        begun, before = time.monotonic(), sum(counter.events for counter in counters)
        await asyncio.sleep(0.4)
        events = sum(counter.events for counter in counters) - before
        best = max(best, events / (time.monotonic() - begun))
    for counter in counters:
        counter.transport.abort()
    return best


def test_a_process_sends_thousands_of_events_a_second() -> None:
    """A bound that a busy machine keeps too: 50,000 are asked for."""
    with FakeServer("--slots", "200", "--ttft", "0.01", "--cycle", "0.004") as server:
        assert asyncio.run(events_per_s(server.port)) >= 5000
        assert reaches(client_of(server), [0])
