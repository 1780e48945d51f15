"""Requests that break in a planned way (``--fault``).

The faults ``no-done`` and ``no-usage`` leave something out; that happens where answers are written.
"""

from __future__ import annotations

import math

from sgl_entropy_bench.fakeserver.job import Job
from sgl_entropy_bench.fakeserver.wire import Json, Refused, events, head

BROKEN = b'{"text": "an event that breaks o'
ABORT: Json = {"type": "abort", "message": "made-up abort", "status_code": 500}


def plan(job: Job) -> None:
    """Decide whether a request breaks, and at how many tokens."""
    options = job.options
    if options.fault is None or job.number % options.fault_every:
        return
    job.fault = options.fault
    if job.fault == "stall":
        job.breaks_at = 1
    elif job.fault in ("drop", "broken-sse", "abort"):
        # After the first event, if there are two.
        job.breaks_at = job.length // 2 + 1


def refuses(job: Job) -> bool:
    """Whether its connection was closed unanswered; raises Refused for the fault ``status``."""
    if job.fault == "status":
        raise Refused("made-up failure", 503)
    if job.fault == "refuse":
        job.connection.close()
    return job.fault == "refuse"


def break_down(job: Job, finish: Json | None) -> bool:
    """Do what ``fault`` names, once; returns whether nothing more is sent after it."""
    job.breaks_at = math.inf
    connection = job.connection
    if job.fault == "abort":
        job.end(ABORT)
    elif not job.ask.stream:
        _break_whole(job)
    elif job.fault == "stall":
        connection.send(events(job.payloads(None)))
    elif job.fault == "drop":
        cut = events(job.payloads(finish))
        connection.send(cut[: len(cut) // 2])
        connection.close()
    else:
        connection.send(events([BROKEN]))
        job.told = job.made
        if finish is None:
            return False
        connection.end_stream(events([*job.closing(), b"[DONE]"]))
    return True


def _break_whole(job: Job) -> None:
    """As ``break_down``, for an answer that is not streamed."""
    connection = job.connection
    if job.fault == "broken-sse":
        connection.reply(200, BROKEN)
        return
    connection.send(head(200, 2 * len(BROKEN)))
    if job.fault == "drop":
        connection.send(BROKEN)
        connection.close()
