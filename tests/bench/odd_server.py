"""A server that gives one fixed reply to every request, however odd."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


class OddServer:
    """``with OddServer(events, every) as server``: every ``every``-th ``/generate`` is answered
    with ``odd``, the others with ``fine``; both are whole bodies of an event stream."""

    def __init__(self, odd: bytes, fine: bytes, every: int = 4) -> None:
        count = 0
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(b'{"version": "odd", "fake": true}')

            def do_POST(self) -> None:
                nonlocal count
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                with lock:
                    count += self.path == "/generate"
                    strange = count % every == 0
                self.answer(odd if strange else fine)

            def answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # of five, a busy machine drops some that knock

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> OddServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
