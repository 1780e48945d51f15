"""A stand-in for a server that records traces: HTTP around the plain models; no engine runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sgl_entropy.evaluate.easd_decode import decode
from sgl_entropy.evaluate.offline import load_pair
from tests.scripted_server import Reply, Request, ScriptedServer, generated


class TracedServer:
    """Its traces are those of the plain models; ``info`` and ``meta`` change replies."""

    def __init__(self, folder: Path) -> None:
        self._models = load_pair(folder / "target", folder / "edsd")
        self.meta: dict[str, Any] = {}
        self.info: dict[str, Any] = {
            "model_path": str(folder / "target"),
            "speculative_draft_model_path": str(folder / "edsd"),
            "speculative_num_draft_tokens": 5,
            "easd": {"top_n": 10},
        }
        self.http = ScriptedServer(script=self._reply)

    @property
    def url(self) -> str:
        return self.http.url

    @property
    def asked(self) -> list[dict[str, Any]]:
        return [request.body for request in self.http.asked]

    def _reply(self, request: Request) -> Reply:
        if request.method == "GET":
            return Reply.json(self.info)
        target, drafter, layers = self._models
        ids, new = request.body["input_ids"], request.body["sampling_params"]["max_new_tokens"]
        one = decode(target, drafter, [ids], [None], 4, new, layers)[0]
        meta = {
            "prompt_tokens": len(ids),
            "completion_tokens": len(one.tokens),
            "finish_reason": {"type": "length"},
            "spec_cycles": len(one.cycles),
            "spec_drafted": 4 * len(one.cycles),
            "spec_emitted": sum(cycle.emitted for cycle in one.cycles),
            "spec_accepted_by_position": [
                sum(cycle.accepted > at for cycle in one.cycles) for at in range(4)
            ],
            "spec_trace": [cycle.to_dict(4) for cycle in one.cycles],
        }
        return generated(one.tokens, meta | self.meta)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[TracedServer]:
    """Of the ``target`` and the ``edsd`` in ``folder``."""
    server = TracedServer(folder)
    with server.http:
        yield server
