"""What 2,000 hostile requests leave behind: nothing, in the pools and in memory.

The KV pool is small enough that running requests are retracted. Afterwards the server must hold
no request and no KV slot that is not free or evictable cache, must flush its cache, must answer a
probe as it did at the start, and its memory must not grow from the first quarter on. SGLang's own
check of both pools runs whenever it is idle and ends the server on a leak.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sgl_entropy.base.progress import Progress
from sgl_entropy.base.tables import markdown_table
from sgl_entropy_bench.demo import load_prompts
from sgl_entropy_bench.figures.figure_plan import FigurePlan, in_parallel
from sgl_entropy_bench.figures.hostile import REFUSED, Case, cases
from sgl_entropy_bench.figures.stats import slope
from sgl_entropy_bench.http.chat import ChatTemplate
from sgl_entropy_bench.http.client import Client, ServerError
from sgl_entropy_bench.http.replies import MetaInfo
from sgl_entropy_bench.server.arms import ServeArm
from sgl_entropy_bench.server.launch import Server

CONCURRENCY = 12
# Twelve requests at once need two or three times as much.
POOL_TOKENS = 512
# Growth after the first quarter that still counts as flat: allocators settle for a while.
FLAT_SHARE = 0.03
SAMPLE_EVERY = 50
IDLE_TIMEOUT_S = 60.0


def measure(plan: FigurePlan, arm_names: tuple[str, ...] = ("edsd",)) -> tuple[dict[str, Any], str]:
    """Returns the data (by arm) and the page."""
    count = 120 if plan.quick else 2000
    arms = [arm for arm in plan.arms() if arm.name in arm_names]
    data: dict[str, Any] = {
        "requests": count,
        "pool_tokens": POOL_TOKENS,
        "arms": {arm.name: run_arm(plan, arm, count) for arm in arms},
    }
    return data, page(data)


def run_arm(plan: FigurePlan, arm: ServeArm, count: int) -> dict[str, Any]:
    """All cases against one arm's server; its outcomes, pools and memory."""
    engine = dataclasses.replace(
        plan.engine,
        max_total_tokens=POOL_TOKENS,
        max_running_requests=CONCURRENCY,
        # Optimistic admission: requests are let in that later do not fit, and are retracted.
        extra_flags=(*plan.engine.extra_flags, "--schedule-conservativeness", "0.01"),
    )
    vocabulary = int(json.loads((engine.target / "config.json").read_text())["vocab_size"])
    template = ChatTemplate(engine.target)
    texts = [template.render(p.messages) for p in load_prompts() if p.kind not in ("long context",)]
    progress = Progress(60 + count * 0.4)
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    memory: list[tuple[float, float]] = []
    with plan.server(arm, engine).start() as server:
        probe = server.client.generate(text=texts[0], max_new_tokens=16).output_ids
        start = idle_load(server.client)
        begun = time.monotonic()
        finished = 0

        def done(outcome: tuple[Case, str]) -> None:
            nonlocal finished
            case, result = outcome
            outcomes[f"{case.kind}: {result}"] += 1
            if not expected(case, result):
                wrong.append(f"request {case.index} ({case.kind}): {result}")
            finished += 1
            if finished % SAMPLE_EVERY == 0 or finished == count:
                memory.append((finished, server.allocated_bytes()))
            progress.update(f"leaks: {arm.name}: {finished}/{count} requests", finished / count)

        in_parallel(
            cases(texts, count, vocabulary),
            CONCURRENCY,
            lambda case: (case, run_case(server, case)),
            done,
        )
        seconds = time.monotonic() - begun
        end = idle_load(server.client)
        server.client.forget_prefixes()
        again = server.client.generate(text=texts[0], max_new_tokens=16).output_ids
        # Longer than the interval of the idle check.
        time.sleep(2.0)
        log = server.log_text()
        result = {
            "seconds": round(seconds, 1),
            "outcomes": dict(sorted(outcomes.items())),
            "unexpected": wrong,
            "retractions": sum(map(int, re.findall(r"#retracted_reqs: (\d+)", log))),
            "load_at_start": start,
            "load_at_end": end,
            "server_alive": server.alive() and server.client.healthy(),
            "leak_reports": len(re.findall(r"memory leak detected", log)),
            "probe_unchanged": probe == again,
            **flatness(memory),
            "memory_mib": [[int(n), round(size / 2**20, 1)] for n, size in memory],
        }
    progress.close()
    result["passed"] = bool(
        result["server_alive"]
        and result["probe_unchanged"]
        and result["memory_flat"]
        and end == {"requests": 0, "tokens": 0}
        and not wrong
        and not result["leak_reports"]
        and result["retractions"]
    )
    return result


def run_case(server: Server, case: Case) -> str:
    """One request as its client behaves; ``finished: REASON``, ``left``, ``STATUS`` or an error.

    An aborted request ends its stream with an event of its own, or with an error.
    """
    client = server.client
    seen = 0
    reason = ""
    try:
        if case.kind in REFUSED:
            # Not streamed: a stream has sent its status before the request is looked at.
            client.post("/generate", case.body)
            return "accepted"
        with contextlib.closing(client.events("/generate", case.body)) as events:
            for event in events:
                seen += 1
                reason = MetaInfo.of(event).finish
                if case.leave_after is not None and seen == case.leave_after:
                    if not case.by_abort:
                        return "left"
                    # From another thread, as another client would.
                    threading.Thread(
                        target=client.post, args=("/abort_request", {"rid": case.rid})
                    ).start()
    except ServerError as error:
        if case.by_abort and seen:
            return "finished: abort"
        return str(error.status) if error.status else str(error)
    return f"finished: {reason}"


def expected(case: Case, result: str) -> bool:
    """Whether this is what had to come of the case."""
    if case.kind in REFUSED:
        return result == str(REFUSED[case.kind])
    if case.leave_after is not None:
        # An answer may be finished before its client leaves.
        return result in ("left", "finished: abort", "finished: stop", "finished: length")
    return result in ("finished: stop", "finished: length")


def idle_load(client: Client) -> dict[str, int]:
    """Requests and KV slots in use once the server is idle, or after ``IDLE_TIMEOUT_S``."""
    deadline = time.monotonic() + IDLE_TIMEOUT_S
    while True:
        ranks = client.get("/get_load")
        load = {
            "requests": sum(rank["num_reqs"] for rank in ranks),
            "tokens": sum(rank["num_tokens"] for rank in ranks),
        }
        if not any(load.values()) or time.monotonic() > deadline:
            return load
        time.sleep(0.2)


def flatness(memory: list[tuple[float, float]]) -> dict[str, Any]:
    """Growth from the first quarter of the requests on: in all, and bytes a request."""
    settled = memory[len(memory) // 4 :]
    if len(settled) < 2:
        raise ValueError("too few memory samples to judge growth")
    first, last = settled[0][1], settled[-1][1]
    return {
        "growth_share": round((last - first) / first, 5),
        "bytes_per_request": round(slope(settled)),
        "memory_flat": (last - first) / first <= FLAT_SHARE,
    }


def page(data: Mapping[str, Any]) -> str:
    """The figure as Markdown."""
    parts = [
        "# Leaks: hostile requests, and what they leave",
        f"{data['requests']} requests, {CONCURRENCY} at a time, a KV pool of "
        f"{data['pool_tokens']} tokens. In use at start and end: requests and KV slots that are "
        "neither free nor evictable cache.",
    ]
    for name, row in data["arms"].items():
        facts = [
            ["verdict", "nothing left behind" if row["passed"] else "NOT CLEAN"],
            ["in use at the start", str(row["load_at_start"])],
            ["in use at the end", str(row["load_at_end"])],
            ["requests retracted", str(row["retractions"])],
            ["leaks reported by SGLang's idle check", str(row["leak_reports"])],
            ["server alive, probe answered as at the start", str(row["probe_unchanged"])],
            ["allocated memory, first quarter to end", f"{row['growth_share']:+.2%}"],
            ["allocated memory, bytes a request (slope)", str(row["bytes_per_request"])],
            ["seconds", str(row["seconds"])],
            *([outcome, str(number)] for outcome, number in row["outcomes"].items()),
        ]
        parts += [f"## {name}", markdown_table(("what", "found"), facts)]
        parts += ["Unexpected:\n\n" + "\n".join(f"- {w}" for w in row["unexpected"][:20])] * bool(
            row["unexpected"]
        )
    return "\n\n".join(parts)
