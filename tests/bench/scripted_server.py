"""A server whose answers are told by a function: for scores that are known in advance."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Json = dict[str, Any]


class ScriptedServer:
    """``with ScriptedServer(answer) as server``: ``answer(prompt, sampling)`` gives the text, or a
    number that is the status of an error; ``counted(sampling)`` what meta_info holds besides.
    ``asked`` holds (path, body) of every request."""

    def __init__(
        self,
        answer: Callable[[str, Json], str | int],
        counted: Callable[[Json], Json] = lambda sampling: {},
        tokens: int = 10,
    ) -> None:
        self.asked: list[tuple[str, Json]] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = {"/get_server_info": {"version": "scripted", "fake": True}}
                known["/v1/models"] = {"data": [{"id": "scripted"}]}
                self.reply(known.get(self.path, {}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                script.asked.append((self.path, body))
                native = self.path == "/generate"
                sampling = body["sampling_params"] if native else body
                prompt = body["text"] if native else body["messages"][0]["content"]
                text = answer(prompt, sampling)
                if isinstance(text, int):
                    self.reply({"error": {"message": "scripted"}}, text)
                elif native:
                    self.reply({"text": text, "meta_info": meta(text, sampling)})
                else:
                    choice = {"message": {"content": text}, "finish_reason": "stop"}
                    usage = {"prompt_tokens": 5, "completion_tokens": tokens}
                    self.reply({"choices": [choice], "usage": usage})

            def reply(self, held: Json, status: int = 200) -> None:
                data = json.dumps(held).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        def meta(text: str, sampling: Json) -> Json:
            found: Json = {
                "finish_reason": {"type": "length" if text.endswith("...") else "stop"},
                "prompt_tokens": 5,
                "completion_tokens": tokens,
                "spec_verify_ct": 4,
                "spec_emitted": 9,
            }
            return found | counted(sampling)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> ScriptedServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Nothing listens any more."""
        self._server.shutdown()
        self._server.server_close()
