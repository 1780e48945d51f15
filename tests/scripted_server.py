"""The one test server: the shipped fake SGLang in a thread of this process, with a script.

``with ScriptedServer("--cycle", "0.001") as server`` is the fake server with these flags. A
``script`` sees every request first and may answer it in the server's place.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sgl_entropy_bench.fakeserver.job import Job
from sgl_entropy_bench.fakeserver.routes import ApiConnection
from sgl_entropy_bench.fakeserver.service import JOBS, Service
from sgl_entropy_bench.fakeserver.settings import parse_options

Json = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What a client sent; ``body`` is empty where it is no JSON object."""

    method: str
    path: str
    body: Json


@dataclass(frozen=True)
class Reply:
    """What it gets, whole."""

    data: bytes
    status: int = 200

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Reply:
        return cls(json.dumps(value).encode(), status)

    @classmethod
    def events(cls, *values: Any) -> Reply:
        """A stream of these events, ended as it should be."""
        lines = [json.dumps(value) for value in values] + ["[DONE]"]
        return cls("".join(f"data: {line}\n\n" for line in lines).encode())

    @classmethod
    def error(cls, status: int, message: str) -> Reply:
        return cls.json({"error": {"message": message}}, status)


Script = Callable[[Request], "Reply | None"]


class ScriptedServer:
    """The fake server with ``flags``.

    Args:
        script: gives a reply in the server's place, or None; called in threads of its own.
        jobs: by path, the class of the requests that the fake server serves; they find what was
            sent as ``job.connection.request``.

    Attributes:
        asked: every POST so far, in the order in which they came.
    """

    def __init__(
        self, *flags: str, script: Script | None = None, jobs: Mapping[str, type[Job]] = JOBS
    ) -> None:
        self._flags, self.script, self.jobs = flags, script, jobs
        self.asked: list[Request] = []
        self.threads = ThreadPoolExecutor(64)
        self.url, self.port = "", 0
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        assert self._up.wait(30)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it; nothing listens any more."""
        with contextlib.suppress(RuntimeError):  # it was ended before
            self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        options = parse_options(self._flags)
        self.service = service = Service(options, self._loop, self.jobs)
        server = await self._loop.create_server(
            lambda: _Connection(service, self), "127.0.0.1", options.port, backlog=4096
        )
        self.port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._up.set()
        await self._stopped.wait()
        server.close()
        for connection in list(service.connections):
            connection.abort()
        await asyncio.sleep(0)


class _Connection(ApiConnection):
    def __init__(self, service: Service, server: ScriptedServer) -> None:
        super().__init__(service)
        self.server = server

    def serve(self, method: str, path: str, body: bytes) -> None:
        server = self.server
        try:
            held = json.loads(body or b"{}")
        except (ValueError, RecursionError):
            held = {}
        request = Request(method, path, held if isinstance(held, dict) else {})
        self.request = request
        if method == "POST":
            server.asked.append(request)
        if server.script is None:
            super().serve(method, path, body)
            return
        answer = self.service.loop.run_in_executor(server.threads, server.script, request)
        answer.add_done_callback(lambda done: self._answer(done.result(), method, path, body))

    def _answer(self, reply: Reply | None, method: str, path: str, body: bytes) -> None:
        if reply is not None:
            self.reply(reply.status, reply.data)
            return
        self.attempt(super().serve, method, path, body)


@contextlib.contextmanager
def scripted(script: Script) -> Iterator[ScriptedServer]:
    with ScriptedServer(script=script) as server:
        yield server


def every(count: int, odd: bytes, fine: bytes) -> Script:
    """Every ``count``-th ``/generate`` is answered with ``odd``, the others with ``fine``."""
    lock, asked = threading.Lock(), 0

    def script(request: Request) -> Reply | None:
        nonlocal asked
        if request.method == "GET":
            return Reply.json({"version": "odd", "fake": True})
        with lock:
            asked += request.path == "/generate"
            return Reply(odd if asked % count == 0 else fine)

    return script


def answering(
    answer: Callable[[str, Json], str | int],
    counted: Callable[[Json], Json] = lambda sampling: {},
    tokens: int = 10,
) -> Script:
    """``answer(prompt, sampling)`` gives the text of a whole reply, or a number that is the status
    of an error; ``counted(sampling)`` what meta_info holds besides."""

    def script(request: Request) -> Reply:
        if request.method == "GET":
            known = {"/get_server_info": {"version": "scripted", "fake": True}}
            known["/v1/models"] = {"data": [{"id": "scripted"}]}  # type: ignore[dict-item]
            return Reply.json(known.get(request.path, {}))
        body = request.body
        native = request.path == "/generate"
        if not native and "messages" not in body:
            return Reply.json({})
        sampling = body["sampling_params"] if native else body
        text = answer(body["text"] if native else body["messages"][0]["content"], sampling)
        if isinstance(text, int):
            return Reply.error(text, "scripted")
        if native:
            meta = {
                "finish_reason": {"type": "length" if text.endswith("...") else "stop"},
                "prompt_tokens": 5,
                "completion_tokens": tokens,
                "spec_verify_ct": 4,
                "spec_emitted": 9,
            }
            return Reply.json({"text": text, "meta_info": meta | counted(sampling)})
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": tokens}
        return Reply.json({"choices": [choice], "usage": usage})

    return script


def generated(tokens: Sequence[int], meta: Json) -> Reply:
    """A stream of ``/generate`` with one event, without the keys that ``meta`` holds None for."""
    told = {key: value for key, value in meta.items() if value is not None}
    return Reply.events({"text": "", "output_ids": list(tokens), "meta_info": told})
