"""A stand-in for a server that records traces: HTTP around the plain models; no engine runs."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sgl_entropy.evaluate.easd_decode import decode
from sgl_entropy.evaluate.offline import load_pair


class TracedServer:
    """A server whose traces are those of the plain models; ``info`` and ``meta`` change replies."""

    def __init__(self, folder: Path) -> None:
        target, drafter, layers = load_pair(folder / "target", folder / "edsd")
        self.asked: list[dict[str, Any]] = []
        self.meta: dict[str, Any] = {}
        self.info: dict[str, Any] = {
            "model_path": str(folder / "target"),
            "speculative_draft_model_path": str(folder / "edsd"),
            "speculative_num_draft_tokens": 5,
            "easd": {"top_n": 10},
        }
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(json.dumps(server.info).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append(body)
                new = body["sampling_params"]["max_new_tokens"]
                one = decode(target, drafter, [body["input_ids"]], [None], 4, new, layers)[0]
                accepted = [sum(c.accepted > at for c in one.cycles) for at in range(4)]
                meta = {
                    "prompt_tokens": len(body["input_ids"]),
                    "completion_tokens": len(one.tokens),
                    "finish_reason": {"type": "length"},
                    "spec_cycles": len(one.cycles),
                    "spec_drafted": 4 * len(one.cycles),
                    "spec_emitted": sum(cycle.emitted for cycle in one.cycles),
                    "spec_accepted_by_position": accepted,
                    "spec_trace": [cycle.to_dict(4) for cycle in one.cycles],
                    **server.meta,
                }
                meta = {key: value for key, value in meta.items() if value is not None}
                event = {"text": "", "output_ids": one.tokens, "meta_info": meta}
                self.answer(f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode())

            def answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@contextlib.contextmanager
def running(folder: Path) -> Iterator[TracedServer]:
    """Of the ``target`` and the ``edsd`` in ``folder``."""
    server = TracedServer(folder)
    threading.Thread(target=server.http.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
