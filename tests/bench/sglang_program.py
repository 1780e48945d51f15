"""The fake server in the place of ``python -m sglang.launch_server``, with what figures look at.

Run as a program it lets SGLang's own flags pass and understands those that change an answer: a
drafter, EASD, draft stopping. Two servers agree on their tokens unless ``--flip`` tells one to
change a token.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, cast

from sgl_entropy_bench.fakeserver.job import WORDS, Job
from sgl_entropy_bench.fakeserver.native_api import NativeJob
from sgl_entropy_bench.fakeserver.openai_api import OpenAIJob

from tests.scripted_server import Json, Reply, Request, ScriptedServer

# Seconds a cycle that EASD's own code is said to take.
OWN_S = 5e-5
STUBBORN = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add = parser.add_argument
    add("--port", type=int, default=0)
    add("--ready-after", type=float, default=0.0)
    add("--cycle-s", type=float, default=0.0)
    add("--per-cycle", type=int, default=0, help="tokens a cycle, 2 or more; 0: no drafter")
    add("--flip", default="", help="change a token where the prompt holds this")
    add("--fail-with", default="", help="print this and end with status 1")
    add("--children", type=int, default=0, help="processes that ignore SIGTERM")
    add("--break-off", action="store_true", help="end streams without [DONE]")
    add("--error-in-stream", action="store_true")
    add("--leak", action="store_true", help="never give KV slots back")
    add("--speculative-algorithm", help="3 tokens a cycle unless --per-cycle")
    add("--speculative-verify-mode", default="standard")
    add("--easd-target-entropy", type=float, default=2.0)
    add("--speculative-draft-stop", default="off")
    return parser


class SglangServer(ScriptedServer):
    """The fake server of this process, with the program's flags; others are let pass."""

    def __init__(self, words: Sequence[str]) -> None:
        self.options, _ = parser().parse_known_args(words)
        options = self.options
        if options.speculative_algorithm:
            options.per_cycle = options.per_cycle or 3
        flags = ["--port", options.port, "--ttft", options.cycle_s, "--cycle", options.cycle_s]
        flags += ["--start-delay", options.ready_after, "--output-tokens", 1e9]
        flags += ["--acceptance", 1, "--depth", max(0, options.per_cycle - 1)]
        flags += ["--slots", 999, "--no-cache", *(["--fault", "no-done"] * options.break_off)]
        jobs: dict[str, type[Job]] = {"/generate": _Native, "/v1/chat/completions": _Chat}
        super().__init__(*map(str, flags), script=self._reply, jobs=jobs)
        self.served = self.flushes = 0

    def _reply(self, request: Request) -> Reply | None:
        path, body = request.path, request.body
        if path == "/flush_cache":
            # Every other time, as while the request before still counts as running.
            self.flushes += 1
            return Reply.error(400, "busy") if self.flushes % 2 else None
        if path == "/get_load" and self.options.leak:
            return Reply.json([{"dp_rank": 0, "num_reqs": 0, "num_tokens": self.served}])
        if path == "/get_server_info":
            cycles = self.service.ranks[0].tally.to_dict()["cycles"]
            counters = {"cycles": cycles, "easd_seconds": cycles * OWN_S}
            return Reply.json({"internal_states": [{"sgl_entropy_counters": counters}]})
        if path == "/generate" and refused(body):
            return Reply.error(400, "bad request")
        if request.method == "POST" and path in self.jobs:
            self.served += 1
            if body.get("sampling_params", {}).get("max_new_tokens", 0) > 140:
                print("KV cache pool is full. Retract requests. #retracted_reqs: 1,", flush=True)
            if self.options.error_in_stream:
                error = {"error": {"message": "made-up failure", "code": 400}}
                return Reply(b"data: " + json.dumps(error).encode() + b"\n\n")
        return None


def refused(body: Json) -> bool:
    """What SGLang refuses with 400 besides: broken grammars, ids that no vocabulary has."""
    broken = ("(unclosed", '{"type": "no such type"')
    if any(body.get("sampling_params", {}).get(key) in broken for key in ("regex", "json_schema")):
        return True
    ids = body.get("input_ids", [1])
    return bool(ids) and (max(ids) > 10_000 or len(ids) > 8192)


def _asked(job: Job) -> tuple[argparse.Namespace, Json]:
    connection = cast(Any, job.connection)
    return connection.server.options, connection.request.body


def _fires(job: Job) -> int | None:
    """How often EASD fires in a request: twice below 2 nats; None = it is off."""
    options, body = _asked(job)
    custom = body.get("sampling_params", {}).get("custom_params") or {}
    easd = custom.get("easd", True)
    if options.speculative_verify_mode != "easd" or easd is False:
        return None
    nats = options.easd_target_entropy if easd is True else easd["target_entropy"]
    return 2 if nats < 2.0 else 0


def _change(job: Job) -> None:
    """The tokens that this server's flags make others."""
    options, body = _asked(job)
    if options.flip and options.flip in json.dumps(body):
        job.ids[job.length // 2] ^= 1
    if _fires(job):
        job.ids[-1] ^= 1
    job._text = " ".join(WORDS[token] for token in job.ids).encode()


class _Chat(OpenAIJob):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        _change(self)


class _Native(NativeJob):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        _change(self)

    def _speculation(self) -> Json:
        counted = super()._speculation()
        stops = _asked(self)[0].speculative_draft_stop != "off"
        counted["spec_drafted"] = counted["spec_verify_ct"] * (2 if stops else 4)
        if (fires := _fires(self)) is not None:
            counted |= {"easd_checks": self.made - 1, "easd_fires": fires}
        return counted


def main() -> None:
    server = SglangServer(sys.argv[1:])
    if server.options.fail_with:
        print(server.options.fail_with, flush=True)
        sys.exit(1)
    for _ in range(server.options.children):
        # Reparented at once, as a grandchild whose parent ends: only the session still holds it.
        code = f"import subprocess,sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}])"
        subprocess.run([sys.executable, "-c", code], check=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with server:
        threading.Event().wait()


if __name__ == "__main__":
    main()
