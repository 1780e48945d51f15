"""A small HTTP server with SGLang's routes: real sockets, made-up tokens.

The tokens depend on the prompt alone, so two servers agree unless ``--flip`` tells one to change
a token. Run as a program: ``python fake_server.py --port N``.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Seconds a cycle that EASD's own code is said to take.
OWN_S = 5e-5


def tokens_for(prompt: str, count: int) -> list[int]:
    """The ids that the fake model writes after ``prompt``."""
    rng = random.Random(prompt)
    return [rng.randrange(1000) for _ in range(count)]


class Handler(BaseHTTPRequestHandler):
    """Routes of the fake server; its settings hang on ``server.options``."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    @property
    def options(self) -> argparse.Namespace:
        return self.server.options  # type: ignore[attr-defined]

    def answer(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/health":
            ready = time.monotonic() - self.server.begun > self.options.ready_after  # type: ignore[attr-defined]
            self.answer({}, 200 if ready else 503)
        elif self.path == "/get_load":
            running = self.server.running  # type: ignore[attr-defined]
            held = self.server.served if self.options.leak else 0  # type: ignore[attr-defined]
            self.answer([{"dp_rank": 0, "num_reqs": running, "num_tokens": held}])
        elif self.path == "/get_server_info":
            cycles = self.server.cycles  # type: ignore[attr-defined]
            held = {"cycles": cycles, "easd_seconds": cycles * OWN_S}
            self.answer({"internal_states": [{"sgl_entropy_counters": held}]})
        else:
            self.answer({"error": {"message": f"no route {self.path}"}}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        if self.path == "/generate":
            parameters = body["sampling_params"]
            prompt = body.get("text", str(body.get("input_ids")))
            limit = parameters["max_new_tokens"]
            if self.refuses(body, parameters):
                self.answer({"error": {"message": "bad request"}}, 400)
                return
            if limit > 140:
                print("KV cache pool is full. Retract requests. #retracted_reqs: 1,", flush=True)
        elif self.path == "/flush_cache":
            # Every other time, as while the request before still counts as running.
            self.server.flushes += 1  # type: ignore[attr-defined]
            busy = self.server.flushes % 2 == 1  # type: ignore[attr-defined]
            self.answer({}, 400 if busy else 200)
            return
        elif self.path == "/abort_request":
            self.server.aborted.add(body.get("rid"))  # type: ignore[attr-defined]
            self.answer({})
            return
        elif self.path == "/v1/chat/completions":
            prompt = json.dumps(body["messages"])
            limit = body["max_tokens"]
        else:
            self.answer({"error": {"message": f"no route {self.path}"}}, 404)
            return
        if not prompt:
            self.answer({"error": {"message": "the prompt is empty"}}, 400)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self.server.running += 1  # type: ignore[attr-defined]
        self.server.served += 1  # type: ignore[attr-defined]
        try:
            custom = body.get("sampling_params", {}).get("custom_params") or {}
            fires = self.fires(custom.get("easd", True))
            self.stream(prompt, limit, body.get("rid"), self.path != "/generate", fires)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client went away: the request is aborted
        finally:
            self.server.running -= 1  # type: ignore[attr-defined]

    def refuses(self, body: Any, parameters: Any) -> bool:
        """What SGLang refuses with 400: broken grammars, ids that no vocabulary has."""
        ids = body.get("input_ids", [1])
        broken = ("(unclosed", '{"type": "no such type"')
        if any(parameters.get(key) in broken for key in ("regex", "json_schema")):
            return True
        return not ids or min(ids) < 0 or max(ids) > 1000 or len(ids) > 8192

    def fires(self, easd: Any) -> int | None:
        """How often EASD fires in a request: twice below 2 nats; None = it is off."""
        if self.options.speculative_verify_mode != "easd" or easd is False:
            return None
        nats = self.options.easd_target_entropy
        return 2 if (nats if easd is True else easd["target_entropy"]) < 2.0 else 0

    def stream(
        self, prompt: str, limit: int, rid: str | None, chat: bool, fires: int | None = None
    ) -> None:
        options = self.options
        if options.error_in_stream:
            self.event({"error": {"message": "made-up failure", "code": 400}})
            return
        ids = tokens_for(prompt, limit)
        if options.flip and options.flip in prompt:
            ids[limit // 2] += 1
        if fires:
            ids[-1] += 1
        sent = cycles = 0
        while sent < limit:
            time.sleep(options.cycle_s)
            # The first token comes out of the prefill, not of a cycle.
            step = options.per_cycle if sent else 1
            cycles += options.per_cycle > 0 and sent > 0
            sent = min(limit, sent + max(1, step))
            finish = {"type": "length"} if sent == limit else None
            if rid is not None and rid in self.server.aborted:  # type: ignore[attr-defined]
                self.event({"error": {"message": "Abort before completion", "code": 499}})
                return
            if chat:
                new = ids[len(ids[:sent]) - min(step or 1, sent) : sent]
                delta = {"content": "".join(f"{token} " for token in new)}
                reason = "length" if finish else None
                self.event({"choices": [{"delta": delta, "finish_reason": reason}]})
            else:
                meta = {
                    "prompt_tokens": len(prompt),
                    "completion_tokens": sent,
                    "finish_reason": finish,
                }
                # As SGLang does: the counters come with the last event alone.
                if options.per_cycle and finish:
                    meta["spec_verify_ct"] = cycles
                    self.server.cycles += cycles  # type: ignore[attr-defined]
                    stops = options.speculative_draft_stop != "off"
                    meta["spec_drafted"] = cycles * (2 if stops else 4)
                    if fires is not None:
                        meta |= {"easd_checks": sent - 1, "easd_fires": fires}
                text = "".join(f"{token} " for token in ids[:sent])
                self.event({"text": text, "output_ids": ids[:sent], "meta_info": meta})
        if options.break_off:
            return
        if chat:
            usage = {"prompt_tokens": len(prompt), "completion_tokens": limit}
            self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, body: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        self.wfile.flush()


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ready-after", type=float, default=0.0)
    parser.add_argument("--cycle-s", type=float, default=0.0)
    parser.add_argument("--per-cycle", type=int, default=0, help="tokens a cycle; 0: no drafter")
    parser.add_argument("--flip", default="", help="change a token where the prompt holds this")
    parser.add_argument("--fail-with", default="", help="print this and end with status 1")
    parser.add_argument("--children", type=int, default=0, help="processes that ignore SIGTERM")
    parser.add_argument("--break-off", action="store_true", help="end streams without [DONE]")
    parser.add_argument("--error-in-stream", action="store_true")
    parser.add_argument("--leak", action="store_true", help="never give KV slots back")
    parser.add_argument("--speculative-algorithm", help="3 tokens a cycle unless --per-cycle")
    parser.add_argument("--speculative-verify-mode", default="standard")
    parser.add_argument("--easd-target-entropy", type=float, default=2.0)
    parser.add_argument("--speculative-draft-stop", default="off")
    return parser


class FakeServer(ThreadingHTTPServer):
    """With a backlog as uvicorn's: sixteen clients at once are no attack."""

    daemon_threads = True
    request_queue_size = 128


def make_server(options: argparse.Namespace) -> ThreadingHTTPServer:
    server = FakeServer(("127.0.0.1", options.port), Handler)
    server.options = options  # type: ignore[attr-defined]
    server.begun = time.monotonic()  # type: ignore[attr-defined]
    server.running = server.served = server.cycles = 0  # type: ignore[attr-defined]
    server.aborted = set()  # type: ignore[attr-defined]
    server.flushes = 0  # type: ignore[attr-defined]
    return server


def start_thread(words: list[str]) -> ThreadingHTTPServer:
    """The fake server in a thread of this process, on a port of its choice."""
    server = make_server(parser().parse_args(words))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


STUBBORN = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def main() -> None:
    # SGLang's own flags are let pass, so that this program can stand in its command line.
    options, _ = parser().parse_known_args()
    if options.speculative_algorithm:
        options.per_cycle = options.per_cycle or 3
    if options.fail_with:
        print(options.fail_with, flush=True)
        sys.exit(1)
    for _ in range(options.children):
        # Reparented at once, as a grandchild whose parent ends: only the session still holds it.
        code = f"import subprocess,sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}])"
        subprocess.run([sys.executable, "-c", code], check=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    make_server(options).serve_forever()


if __name__ == "__main__":
    main()
