"""One client process: sends its part of the schedule on time and writes what happened.

``pool`` starts it; through a pipe it reports its progress and is told when to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import signal
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp

from sgl_entropy_bench.http.record import CUT, Phase, RecordWriter, RequestRecord
from sgl_entropy_bench.http.replies import (
    DONE,
    EventSplitter,
    Reader,
    StreamError,
    error_text,
    reader_of,
)
from sgl_entropy_bench.http.routes import Api, Output, body_of
from sgl_entropy_bench.load.run.busy import keep_busy
from sgl_entropy_bench.load.schedule.arrivals import ArrivalLaw, arrivals

_SAY_EVERY_S = 0.25


# (prompt, benchmark, what is sent)
Text = tuple[str, str, str]


@dataclass(frozen=True)
class Planned:
    """One request to be sent: ``scheduled`` seconds after the start; closed loop: at once."""

    index: int
    scheduled: float
    phase: Phase
    prompt: str
    benchmark: str
    text: str


@dataclass(frozen=True)
class RequestStream:
    """The requests of a load, without end unless a trace ends: a ramp, those that are measured,
    and more of the same, which keep up the load until the run is stopped.

    Attributes:
        texts: cycled by index.
        ramp, measured: how many of each.
        rate, law, seed, stream: as in ``arrivals``; rate None = closed loop, at once.
        process, processes: this process takes every ``processes``-th request.
    """

    texts: tuple[Text, ...]
    ramp: int
    measured: int
    rate: float | None
    law: ArrivalLaw
    seed: int
    stream: str
    process: int = 0
    processes: int = 1

    def __iter__(self) -> Iterator[Planned]:
        """The requests of this process, in order."""
        times: Iterator[float] = itertools.repeat(0.0)
        if self.rate is not None:
            times = arrivals(self.law, self.rate, self.seed, self.stream)
        mine = itertools.islice(enumerate(times), self.process, None, self.processes)
        for index, time_ in mine:
            text = self.texts[index % len(self.texts)]
            yield Planned(index, time_, self._phase(index), *text)

    def _phase(self, index: int) -> Phase:
        if index < self.ramp:
            return "ramp"
        return "measured" if index < self.ramp + self.measured else "tail"


@dataclass(frozen=True)
class WorkerTask:
    """What one process does.

    Attributes:
        url: the server, ``http://HOST:PORT``.
        requests: in order; iterated once.
        concurrency: None = open loop, by ``scheduled``; else requests at a time, in order.
        records: the file that records are appended to.
        process: its number.
        timeout_s: a request fails when it takes longer.
        stall_s: it also fails when for this long no connection is made or no byte comes.
        busy_share: for measuring this client itself: the share of time that is taken from its
            event loop.
    """

    url: str
    api: Api
    model: str
    output: Output
    requests: Iterable[Planned]
    records: Path
    concurrency: int | None = None
    process: int = 0
    timeout_s: float = 600.0
    stall_s: float = 120.0
    busy_share: float = 0.0


@dataclass
class Tally:
    """Progress that is sent to the parent; sums over all requests so far.

    Attributes:
        measured: measured requests that ended, successfully or not.
        latency_s: sum over requests that succeeded.
        cpu_s, wall_s: processor and real time since the start.
    """

    sent: int = 0
    done: int = 0
    errors: int = 0
    measured: int = 0
    chunks: int = 0
    latency_s: float = 0.0
    cpu_s: float = 0.0
    wall_s: float = 0.0


def main(task: WorkerTask, pipe: Connection) -> None:
    """What a client process does: ``run``, undisturbed by signals and garbage collection."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent ends us
    # A collection in the middle of a run would make requests late.
    gc.collect()
    gc.freeze()
    gc.disable()
    run(task, pipe)


def run(task: WorkerTask, pipe: Connection) -> None:
    """Do ``task``. Says ("ready",), waits for ("start", t0) on time.monotonic's clock, says
    ("tally", Tally) now and then, ends on ("stop",) and says ("done", Tally) or
    ("failed", message)."""
    try:
        asyncio.run(_Worker(task, pipe).run())
    except OSError as error:
        pipe.send(("failed", f"{task.records.name}: {error.strerror or error}"))
    except (EOFError, BrokenPipeError):
        return  # the parent is gone


class _Worker:
    def __init__(self, task: WorkerTask, pipe: Connection) -> None:
        self.task, self.pipe = task, pipe
        self.tally = Tally()
        self.stop = asyncio.Event()
        self.failure: OSError | None = None
        self.began = 0.0

    async def run(self) -> None:
        task = self.task
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0)
        timeout = aiohttp.ClientTimeout(
            total=task.timeout_s, sock_connect=task.stall_s, sock_read=task.stall_s
        )
        loop = asyncio.get_running_loop()
        with RecordWriter(task.records) as self.writer:
            async with aiohttp.ClientSession(
                connector=connector, timeout=timeout, read_bufsize=1 << 20
            ) as self.session:
                self.pipe.send(("ready",))
                _, self.began = await loop.run_in_executor(None, self.pipe.recv)
                loop.add_reader(self.pipe.fileno(), self._told)
                with contextlib.suppress(asyncio.TimeoutError):
                    wait = max(0.0, self.began - time.monotonic())
                    await asyncio.wait_for(self.stop.wait(), wait)
                cpu = time.process_time()
                sides = [asyncio.create_task(self._say(cpu))]
                if task.busy_share:
                    sides.append(asyncio.create_task(keep_busy(task.busy_share)))
                if task.concurrency is None:
                    await self._open_loop()
                else:
                    await self._closed_loop(task.concurrency)
                for side in sides:
                    side.cancel()
                self._measure(cpu)
                loop.remove_reader(self.pipe.fileno())
        if self.failure is not None:
            raise self.failure
        self.pipe.send(("done", self.tally))

    def _now(self) -> float:
        return time.monotonic() - self.began

    def _told(self) -> None:
        try:
            self.pipe.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self.pipe.fileno())
        self.stop.set()

    async def _say(self, cpu: float) -> None:
        while True:
            await asyncio.sleep(_SAY_EVERY_S)
            self._measure(cpu)
            self.pipe.send(("tally", self.tally))

    def _measure(self, cpu: float) -> None:
        self.tally.cpu_s = time.process_time() - cpu
        self.tally.wall_s = self._now()

    async def _open_loop(self) -> None:
        loop = asyncio.get_running_loop()
        running: set[asyncio.Task[None]] = set()
        stopped = asyncio.create_task(self.stop.wait())
        for planned in self.task.requests:
            # Sleep to the absolute time: a late request does not delay those that follow.
            if (wait := planned.scheduled - self._now()) > 0:
                await asyncio.wait((stopped,), timeout=wait)
            if self.stop.is_set():
                break
            one = loop.create_task(self._request(planned, planned.scheduled))
            running.add(one)
            one.add_done_callback(running.discard)
        await self.stop.wait()  # the parent knows when all that is measured has ended
        await self._end(running)
        stopped.cancel()

    async def _closed_loop(self, concurrency: int) -> None:
        plans = iter(self.task.requests)

        async def work() -> None:
            for planned in plans:
                if self.stop.is_set():
                    return
                await self._request(planned, self._now())

        running = {asyncio.create_task(work()) for _ in range(concurrency)}
        await self.stop.wait()
        await self._end(running)

    async def _end(self, running: set[asyncio.Task[None]]) -> None:
        for one in running:
            one.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*running, return_exceptions=True)

    async def _request(self, planned: Planned, scheduled: float) -> None:
        record = RequestRecord(
            planned.index,
            planned.prompt,
            planned.benchmark,
            planned.phase,
            scheduled,
            process=self.task.process,
        )
        self.tally.sent += 1
        reader = reader_of(self.task.api)
        cut = False
        try:
            await self._exchange(planned, record, reader)
        except StreamError as error:
            record.error = str(error) or "an error without a message"
        except aiohttp.ConnectionTimeoutError:
            record.error = f"no connection within {self.task.stall_s:g} s"
        except aiohttp.SocketTimeoutError:
            record.error = f"no byte for {self.task.stall_s:g} s"
        except asyncio.TimeoutError:
            record.error = f"no end within {self.task.timeout_s:g} s"
        except (aiohttp.ClientError, OSError) as error:
            record.error = f"{type(error).__name__}: {error}"[:200]
        except asyncio.CancelledError:
            cut, record.error = True, CUT
        except Exception as error:  # a reply of an unforeseen form fails one request, no more
            record.error = f"{type(error).__name__}: {error}"[:200]
        if record.error:
            reader.salvage(record)
        self._note(record)
        if cut:
            raise asyncio.CancelledError

    async def _exchange(self, planned: Planned, record: RequestRecord, reader: Reader) -> None:
        task = self.task
        path, body = body_of(task.api, task.model, planned.text, task.output)
        record.sent = self._now()
        async with self.session.post(task.url + path, json=body) as response:
            record.status = response.status
            if response.status != 200:
                raise StreamError(f"status {response.status}: {error_text(await response.read())}")
            if not task.output.stream:
                whole = await response.read()
                record.last = self._now()
                reader.whole(whole, record.last)
            else:
                ended = False
                async for event, now in self._events(response):
                    if event == DONE:
                        ended = True
                        break
                    reader.feed(event, now)
                    record.last = now
                record.last = self._now()
                if not ended:
                    record.last = None
                    raise StreamError("the stream broke off before its end")
        reader.finish(record)

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncIterator[tuple[bytes, float]]:
        splitter = EventSplitter()
        async for data in response.content.iter_any():
            now = self._now()
            for event in splitter.feed(data):
                yield event, now

    def _note(self, record: RequestRecord) -> None:
        tally = self.tally
        if record.last is None and record.sent is not None:
            record.last = self._now()
        tally.done += 1
        tally.chunks += len(record.chunks)
        if record.phase in ("measured", "warmup"):
            tally.measured += 1
        if record.ok and record.last is not None:
            tally.latency_s += record.last - record.scheduled
        elif record.error != CUT:
            tally.errors += 1
        if self.failure is None:
            try:
                self.writer.write(record)
            except OSError as error:
                self.failure = error
                self.stop.set()
