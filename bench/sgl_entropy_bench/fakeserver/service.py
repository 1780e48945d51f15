"""The simulated service: ranks with places and queues, and a heap of what is due when.

It must be faster than the load testers that are measured with it. So one process does all the work
of a 1 ms tick at once, without a task or a timer for each request. A late tick delays nothing after
it: each time follows from the previous time, not from the clock.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import deque
from collections.abc import Mapping

from sgl_entropy_bench.fakeserver import faults
from sgl_entropy_bench.fakeserver.connection import Connection
from sgl_entropy_bench.fakeserver.job import Job
from sgl_entropy_bench.fakeserver.native_api import NativeJob
from sgl_entropy_bench.fakeserver.openai_api import OpenAIJob
from sgl_entropy_bench.fakeserver.ranks import CycleTally, Rank
from sgl_entropy_bench.fakeserver.request import Ask
from sgl_entropy_bench.fakeserver.settings import FakeServerOptions
from sgl_entropy_bench.fakeserver.wire import Json, Refused

TICK_S = 0.001

JOBS: dict[str, type[Job]] = {
    "/generate": NativeJob,
    "/v1/completions": OpenAIJob,
    "/v1/chat/completions": OpenAIJob,
}
ABORTED: Json = {"type": "abort", "message": "Aborted", "status_code": None}


class Service:
    """All requests of one server, from their arrival to their end.

    ``jobs``: by path, the class of its requests.
    """

    def __init__(
        self,
        options: FakeServerOptions,
        loop: asyncio.AbstractEventLoop,
        jobs: Mapping[str, type[Job]] = JOBS,
    ) -> None:
        self.options = options
        self._kinds = jobs
        self.loop = loop
        self.begun_s = loop.time()
        self.ranks = [
            Rank(index, CycleTally([0] * (options.depth + 1))) for index in range(options.ranks)
        ]
        # Of each rank; may hold requests that left.
        self._waiting: list[deque[Job]] = [deque() for _ in self.ranks]
        # By id.
        self.jobs: dict[str, Job] = {}
        self.connections: set[Connection] = set()
        # The worst delay of a tick: far above 1 ms, this process was too slow for its load.
        self.late_s = 0.0
        # When each request came since the last flush, on time.monotonic's clock.
        self.arrivals: list[float] = []
        self._requests = 0
        self._cache: set[bytes] = set()
        self._due: list[tuple[float, int, Job]] = []
        self._timer: asyncio.TimerHandle | None = None
        # When the timer goes off; -inf within a tick, which sets the timer itself.
        self._armed_s = math.inf

    def admit(self, ask: Ask, connection: Connection) -> Job | None:
        """Deal a request to the rank with the fewest; None where a fault answered it already.

        Raises Refused for an id that is in use, and for the fault ``status``.
        """
        if ask.rid in self.jobs:
            raise Refused(f"Duplicate request ID detected: {ask.rid}")
        self._requests += 1
        self.arrivals.append(time.monotonic())
        job = self._kinds[ask.path](ask, self._requests, connection, self.options)
        faults.plan(job)
        if faults.refuses(job):
            return None
        self.jobs[ask.rid] = job
        job.rank = min(self.ranks, key=lambda rank: rank.requests)
        if job.rank.running < self.options.slots:
            self._start(job, self.loop.time())
        else:
            self._waiting[job.rank.index].append(job)
            job.rank.queued += 1
        return job

    def leave(self, job: Job, now: float) -> None:
        """Take a request out of its place or its queue; the next one in the queue starts."""
        if job.over:
            return
        job.over = True
        del self.jobs[job.ask.rid]
        rank = job.rank
        if job.started:
            rank.running -= 1
        else:
            rank.queued -= 1
        waiting = self._waiting[rank.index]
        while waiting and rank.running < self.options.slots:
            following = waiting.popleft()
            if not following.over:
                rank.queued -= 1
                # A late tick may free a place before the request in it came.
                self._start(following, max(now, following.arrived_s))

    def abort(self, prefix: str) -> None:
        """End the requests whose id begins so, as SGLang does."""
        for job in [job for rid, job in self.jobs.items() if rid.startswith(prefix)]:
            if not job.started:
                job.prepare()
            job.end(ABORTED)
            self.leave(job, self.loop.time())

    def flush(self) -> None:
        """Forget all prompts, and when they came."""
        self._cache.clear()
        self.arrivals.clear()

    def _start(self, job: Job, now: float) -> None:
        job.started = True
        job.rank.running += 1
        if not self.options.no_cache:
            if job.ask.key in self._cache:
                job.cached_tokens = job.ask.prompt_tokens - 1
            self._cache.add(job.ask.key)
        job.prepare()
        self._schedule(now + self.options.ttft.draw(job.generator), job)

    def _schedule(self, due: float, job: Job) -> None:
        heapq.heappush(self._due, (due, job.number, job))
        if due < self._armed_s:
            self._arm(due)

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_s = at
        self._timer = self.loop.call_at(at, self._tick)

    def _tick(self) -> None:
        """Do all that is due by now."""
        now = self.loop.time()
        due_heap = self._due
        self._timer, self._armed_s = None, -math.inf
        self.late_s = max(self.late_s, now - due_heap[0][0])
        while due_heap and due_heap[0][0] <= now:
            due, _, job = heapq.heappop(due_heap)
            if not job.over:
                self._step(job, due)
        self._armed_s = math.inf
        if due_heap:
            self._arm(max(due_heap[0][0], now + TICK_S))

    def _step(self, job: Job, due: float) -> None:
        """The first token, or one draft-verify cycle; ``due`` is its simulated time."""
        job.advance()
        finish = job.finish if job.made == job.length else None
        if job.made >= job.breaks_at and faults.break_down(job, finish):
            # A stalled request keeps its place until its client goes.
            if job.fault != "stall":
                self.leave(job, due)
            return
        if finish is not None:
            job.end(finish)
            self.leave(job, due)
            return
        job.tell()
        pace = 1 + self.options.slowdown * (job.rank.running - 1)
        self._schedule(due + self.options.cycle.draw(job.generator) * pace, job)
