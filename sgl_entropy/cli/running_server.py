"""A running server as measurements ask it: what it says of itself, its counters, its traces."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_entropy_bench.http.client import Client, ServerError
from sgl_entropy_bench.http.replies import MetaInfo

from sgl_entropy.verify.trace import CycleRecord


@dataclass(frozen=True)
class Asking:
    """How prompts are asked.

    Attributes:
        traced: every cycle is recorded.
        easd: the server's EASD stays on; else these requests turn it off, so that verification is
            the ordinary one whatever thresholds the server was started with.
        concurrency: requests at a time.
    """

    max_new_tokens: int
    traced: bool = True
    easd: bool = False
    temperature: float = 0.0
    concurrency: int = 1

    @property
    def sampling(self) -> dict[str, Any] | None:
        """Sampling parameters besides length and temperature."""
        if not self.traced:
            return None
        return {"custom_params": {"spec_trace": True, **({} if self.easd else {"easd": False})}}


@dataclass(frozen=True)
class TracedAnswer:
    """What a server counted of one answer; ``cycles``: its traces, none where none was asked."""

    counts: MetaInfo
    cycles: tuple[CycleRecord, ...] = ()

    @classmethod
    def of(cls, counts: MetaInfo, depth: int) -> TracedAnswer:
        """With the traces of chains of ``depth``.

        Raises:
            ValueError: none came, or they are no such chains'.
        """
        traces = counts.trace
        # The first token comes from the prefill: without a second one there was no cycle.
        if traces is None and (counts.completion_tokens or 0) < 2:
            traces = []
        if not isinstance(traces, list):
            raise ValueError(
                "it returned no spec_trace: start it with --speculative-verify-mode easd and "
                "--speculative-eagle-topk 1, on a patched SGLang (`sgl-entropy patch apply`)"
            )
        cycles = []
        for number, trace in enumerate(traces, 1):
            try:
                cycles.append(CycleRecord.from_dict(trace, depth))
            except ValueError as error:
                raise ValueError(f"spec_trace, cycle {number}: {error}") from None
        return cls(counts, tuple(cycles))


@dataclass(frozen=True)
class RunningServer:
    """A server and what it says of itself.

    Attributes:
        where: the option that named it, for messages.
        info: of ``/get_server_info`` and, where there is one, ``/get_model_info``.
    """

    where: str
    client: Client
    info: Mapping[str, Any]

    @classmethod
    def at(cls, url: str) -> RunningServer:
        """
        Raises:
            ValueError: none there.
        """
        where, client = f"--server {url}", Client.from_url(url)
        try:
            info = _object(client.get("/get_server_info"))
            # The other route tells the architecture; not every server has it.
            with contextlib.suppress(ServerError):
                info = {**_object(client.get("/get_model_info")), **info}
        except (ServerError, OSError) as error:
            raise ValueError(f"{where}: {error}") from None
        return cls(where, client, info)

    @property
    def depth(self) -> int:
        """Of its chains.

        Raises:
            ValueError: it does not say.
        """
        tokens, steps = (
            self.info.get(f"speculative_num_{name}") for name in ("draft_tokens", "steps")
        )
        if type(tokens) is int and tokens > 1:
            return tokens - 1
        if type(steps) is int and steps > 0:
            return steps
        raise ValueError(f"{self.where}: it does not say how many tokens it drafts")

    @property
    def untraced(self) -> str | None:
        """Why it records no traces, and what to do about it; None = it does, of chains."""
        if isinstance(self.info.get("easd"), dict) or self.info.get("draft_stop"):
            return None
        return (
            f"{self.where} records no traces: start it with --speculative-verify-mode easd (and a "
            "patched SGLang: `sgl-entropy patch apply`)"
        )

    def answers(
        self, prompts: Mapping[str, Sequence[int]], asking: Asking
    ) -> Iterator[tuple[str, TracedAnswer]]:
        """Every prompt's answer with the prompt's name, as they come.

        Args:
            prompts: name -> token ids. One at a time they are asked in this order.

        Raises:
            ValueError: the server refuses a prompt, is gone, or tells no trace; names the prompt.
        """
        depth = self.depth if asking.traced else None

        def ask(name: str) -> TracedAnswer:
            try:
                meta = self.client.generate(
                    input_ids=prompts[name],
                    max_new_tokens=asking.max_new_tokens,
                    temperature=asking.temperature,
                    sampling=asking.sampling,
                ).meta
                assert meta is not None  # /generate always has one
                return TracedAnswer(meta) if depth is None else TracedAnswer.of(meta, depth)
            except (ServerError, OSError, ValueError) as error:
                raise ValueError(f"{self.where}, {name}: {error}") from None

        if asking.concurrency == 1:
            for name in prompts:
                yield name, ask(name)
        else:
            yield from _side_by_side(list(prompts), ask, asking.concurrency)


def _side_by_side(
    names: Sequence[str], ask: Any, concurrency: int
) -> Iterator[tuple[str, TracedAnswer]]:
    """The threads are daemons: whatever ends the command ends its requests, too."""
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[str, TracedAnswer | Exception]] = queue.SimpleQueue()
    ended = threading.Event()
    for name in names:
        todo.put(name)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while not ended.is_set():
                name = todo.get_nowait()
                try:
                    done.put((name, ask(name)))
                except Exception as error:
                    # One is enough: the others would likely meet the same.
                    ended.set()
                    done.put((name, error))

    for _ in range(min(concurrency, len(names))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in names:
            name, answer = done.get()
            if isinstance(answer, Exception):
                raise answer
            yield name, answer
    finally:
        ended.set()


def _object(reply: Any) -> dict[str, Any]:
    return reply if isinstance(reply, dict) else {}
