"""A running server that drafts, as measurements ask it: what it says of itself, and its traces.

A trace is asked for with EASD turned off, so that verification is the ordinary one whatever
thresholds the server was started with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_entropy_bench.http.client import Client, ServerError
from sgl_entropy_bench.http.replies import MetaInfo

from sgl_entropy.verify.trace import CycleRecord

_TRACED = {"custom_params": {"spec_trace": True, "easd": False}}


@dataclass(frozen=True)
class Served:
    """A server and what it says of itself.

    Attributes:
        where: the option that named it, for messages.
        info: of ``/get_server_info`` and, where there is one, ``/get_model_info``.
    """

    where: str
    client: Client
    info: Mapping[str, Any]

    @classmethod
    def at(cls, url: str) -> Served:
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

    def ask(self, prompt: Sequence[int], max_new_tokens: int, *, traced: bool) -> MetaInfo:
        """The greedy answer's ``meta_info``.

        Raises:
            ValueError: it refuses, or is gone.
        """
        try:
            meta = self.client.generate(
                input_ids=prompt,
                max_new_tokens=max_new_tokens,
                sampling=_TRACED if traced else None,
            ).meta
        except (ServerError, OSError) as error:
            raise ValueError(f"{self.where}: {error}") from None
        assert meta is not None  # /generate always has one
        return meta

    def cycles(self, meta: MetaInfo) -> list[CycleRecord]:
        """The verify cycles of a traced answer.

        Raises:
            ValueError: there are none in it, or they are no chains' of this server.
        """
        traces = meta.trace
        # The first token comes from the prefill: without a second one there was no cycle.
        if traces is None and (meta.completion_tokens or 0) < 2:
            traces = []
        if not isinstance(traces, list):
            raise ValueError(
                f"{self.where} returned no spec_trace: it records chains alone, so start it with "
                "--speculative-eagle-topk 1"
            )
        try:
            return [CycleRecord.from_dict(trace, self.depth) for trace in traces]
        except ValueError as error:
            raise ValueError(f"{self.where}: spec_trace: {error}") from None


def _object(reply: Any) -> dict[str, Any]:
    return reply if isinstance(reply, dict) else {}
