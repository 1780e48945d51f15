"""SGLang's routes: what each path and method does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from sgl_entropy_bench.fakeserver.connection import Connection
from sgl_entropy_bench.fakeserver.job import Job
from sgl_entropy_bench.fakeserver.laws import RandomLaw
from sgl_entropy_bench.fakeserver.request import MAX_TOKENS, Ask, json_object, member
from sgl_entropy_bench.fakeserver.service import JOBS, Service
from sgl_entropy_bench.fakeserver.wire import STREAM_HEAD, Json, Refused, dumps


class ApiConnection(Connection):
    """A connection whose requests go to a service; its client's end ends them there."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self.service = service
        self._job: Job | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.service.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.service.connections.discard(self)
        if self._job is not None:
            self.service.leave(self._job, self.service.loop.time())

    def answered(self) -> None:
        self._job = None
        super().answered()

    def serve(self, method: str, path: str, body: bytes) -> None:
        service = self.service
        if method == "POST" and path in JOBS:
            ask = Ask.parse(path, body)
            self._job = service.admit(ask, self)
            if self._job is not None and ask.stream:
                self.send(STREAM_HEAD)
        elif method == "POST" and path == "/flush_cache":
            service.flush()
            self.reply(200, b"Cache flushed.\n", "text/plain; charset=utf-8")
        elif method == "POST" and path == "/abort_request":
            service.abort(_abort_prefix(body))
            self.reply(200, b"")
        elif method == "GET" and path in ("/health", "/health_generate"):
            up_s = service.loop.time() - service.begun_s
            self.reply(200 if up_s >= service.options.start_delay else 503, b"")
        elif method == "GET" and path in READINGS:
            self.reply(200, dumps(READINGS[path](service)))
        else:
            raise Refused(f"Not Found: {method} {path}", 404)


def _abort_prefix(body: bytes) -> str:
    """How the ids of the requests to abort begin; every id begins with ''."""
    asked = json_object(body)
    everything = member(asked, "abort_all", bool, False)
    rid: str = member(asked, "rid", str, "")
    if not rid and not everything:
        raise Refused("rid: expected the id of a request")
    return "" if everything else rid


def _load(service: Service) -> list[Json]:
    tokens = [0] * len(service.ranks)
    for job in service.jobs.values():
        tokens[job.rank.index] += job.ask.prompt_tokens + job.made
    return [
        {
            "dp_rank": rank.index,
            "num_reqs": rank.requests,
            "num_waiting_reqs": rank.queued,
            "num_tokens": tokens[rank.index],
        }
        for rank in service.ranks
    ]


def _server_info(service: Service) -> Json:
    settings = {
        name: value.written if isinstance(value, RandomLaw) else value
        for name, value in vars(service.options).items()
    }
    return {
        "version": "fake-1",
        "fake": True,
        "fake_settings": settings,
        "fake_late_max_s": service.late_s,
        "model_path": "fake",
        "dp_size": len(service.ranks),
        "internal_states": [
            {"sgl_entropy_counters": rank.tally.to_dict()} for rank in service.ranks
        ],
    }


def _models(service: Service) -> Json:
    model = {
        "id": "fake",
        "object": "model",
        "created": int(time.time()),
        "owned_by": "sglang",
        "root": "fake",
        "parent": None,
        "max_model_len": MAX_TOKENS,
    }
    return {"object": "list", "data": [model]}


READINGS: dict[str, Callable[[Service], Any]] = {
    # Ours: when each request came since the start or the last flush, on time.monotonic's clock.
    "/fake_arrivals": lambda service: service.arrivals,
    "/get_load": _load,
    "/get_model_info": lambda service: {"model_path": "fake"},
    "/get_server_info": _server_info,
    "/v1/models": _models,
}
