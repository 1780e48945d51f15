"""A whole evaluation: every arm asked every question, resumable, with all answers in one folder.

``OUT/answers.jsonl`` holds the answers; ``result.json`` and ``report.md`` what they come to.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import queue
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sgl_entropy.base.progress import Progress
from sgl_entropy_bench.http.client import ServerError
from sgl_entropy_bench.http.replies import StreamError
from sgl_entropy_bench.http.routes import Output
from sgl_entropy_bench.load.run.arms import opened
from sgl_entropy_bench.load.run.endpoint import Endpoint
from sgl_entropy_bench.load.run.progress import LoadProgress
from sgl_entropy_bench.load.schedule.workload import WorkloadPrompt
from sgl_entropy_bench.quality.answers import AnswerWriter, Place, ScoredAnswer, read_answers
from sgl_entropy_bench.quality.ask import ask, sampling_of, seed_of
from sgl_entropy_bench.quality.eval_arms import EvalArm
from sgl_entropy_bench.quality.eval_plan import EvalPlan
from sgl_entropy_bench.quality.tasks import Question


@dataclass(frozen=True)
class EvalServer:
    """An arm's server by its own account, and the command that started it (empty = it ran)."""

    model: str
    version: str
    api: str
    caption: str
    arguments: Mapping[str, Any]
    command: str


@dataclass(frozen=True)
class _EvalJob:
    arm: EvalArm
    target: Endpoint
    question: Question
    sample: int
    key: str


@dataclass
class Evaluation:
    """Asks and keeps what was answered.

    Attributes:
        out: the folder of answers; made if missing.
        resume: go on with the answers that ``out`` holds; failed requests are asked again.
        answers: so far, those of the present arms and questions.
        partial: something was not asked.
    """

    plan: EvalPlan
    arms: tuple[EvalArm, ...]
    out: Path
    api: str = "auto"
    tokenizer: Path | None = None
    resume: bool = False
    answers: dict[Place, ScoredAnswer] = field(default_factory=dict)
    servers: dict[str, EvalServer] = field(default_factory=dict)
    partial: bool = True

    def __post_init__(self) -> None:
        for arm in self.arms:
            if self.plan.samples > 1 and self.temperature(arm) == 0:
                raise ValueError(
                    f"--samples {self.plan.samples}: arm {arm.name} has temperature 0, which draws "
                    "nothing: give --temperature"
                )
        self._file = self.out / "answers.jsonl"
        if self._file.exists() and not self.resume:
            raise ValueError(f"--out {self.out} holds answers: name another folder, or --resume")
        self._earlier = read_answers(self._file)
        self.out.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()

    def temperature(self, arm: EvalArm) -> float:
        """Of an arm's requests."""
        return self.plan.temperature if arm.temperature is None else arm.temperature

    def run(self) -> None:
        """Ask what was not asked yet. Arms on running servers take turns, question by question;
        servers that have to be started are finished one after the other.

        Raises:
            ServerError, StartError: a server cannot be reached any more; what was answered stays.
            SandboxError, ValueError, OSError: likewise.
        """
        writer = AnswerWriter(self._file)
        try:
            for arms in self._groups():
                with contextlib.ExitStack() as stack:
                    targets: dict[tuple[Any, ...], Endpoint] = {}
                    for arm in arms:
                        if arm.place not in targets:
                            targets[arm.place] = stack.enter_context(self._serving(arm))
                        self._note_server(arm, targets[arm.place])
                    jobs = self._jobs([(arm, targets[arm.place]) for arm in arms])
                    self._work(jobs, writer)
            self.partial = False
        finally:
            writer.close()

    def _groups(self) -> Iterator[list[EvalArm]]:
        if all(arm.server.url for arm in self.arms):
            yield list(self.arms)
            return
        places = dict.fromkeys(arm.place for arm in self.arms)
        for place in places:
            yield [arm for arm in self.arms if arm.place == place]

    @contextlib.contextmanager
    def _serving(self, arm: EvalArm) -> Iterator[Endpoint]:
        progress = LoadProgress(f"{arm.name}: server starts")
        log = self.out / f"{arm.name}.server.log"
        with opened(arm.server, self.api, self.tokenizer, log, progress.waiting) as target:
            progress.close()
            yield target

    def _note_server(self, arm: EvalArm, target: Endpoint) -> None:
        self.servers[arm.name] = EvalServer(
            Path(target.model).name,
            target.version(),
            target.api,
            target.caption,
            target.arguments(),
            arm.server.shown(),
        )

    def _jobs(self, served: Sequence[tuple[EvalArm, Endpoint]]) -> list[_EvalJob]:
        """What is left to ask: a question to all arms before the next, which arm first in turn."""
        jobs = []
        for number, question in enumerate(self.plan.questions):
            at = number % len(served)
            for sample in range(self.plan.samples):
                for arm, target in itertools.chain(served[at:], served[:at]):
                    key = self._key(arm, target, question)
                    earlier = self._earlier.get((arm.name, question.id, sample))
                    if earlier is None:
                        jobs.append(_EvalJob(arm, target, question, sample, key))
                    elif earlier.key != key:
                        raise ValueError(
                            f"--out {self.out} holds answers of arm {arm.name} under other "
                            "settings, or to other questions: name another folder"
                        )
                    elif earlier.error:
                        jobs.append(_EvalJob(arm, target, question, sample, key))
                    else:
                        self.answers[earlier.place] = earlier
        return jobs

    def _key(self, arm: EvalArm, target: Endpoint, question: Question) -> str:
        what = [
            question.digest,
            self._prompt(target, question),
            self.plan.task.name,
            dict(arm.custom_params),
            self.temperature(arm),
            self.plan.max_tokens,
            self.plan.seed if self.temperature(arm) else None,
            [target.api, target.version(), target.model, target.arguments()],
            *self._judged_by(),
        ]
        text = json.dumps(what, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _judged_by(self) -> list[str]:
        """What a kept answer's score depends on: one report must not mix two of them."""
        tools = self.plan.tools
        return [
            f"{tools.sandbox.limits} {tools.isolation}" if tools.sandbox else "",
            tools.scoring or "",
        ]

    @staticmethod
    def _prompt(target: Endpoint, question: Question) -> str:
        if target.api == "chat":
            return question.text
        if target.template is None:
            return question.plain
        return target.text(WorkloadPrompt(question.id, "", question.text))

    def _work(self, jobs: Sequence[_EvalJob], writer: AnswerWriter) -> None:
        """All jobs, ``concurrency`` at a time, in threads that an interrupt need not wait for."""
        waiting: queue.SimpleQueue[_EvalJob] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)
        ended: queue.SimpleQueue[ScoredAnswer | BaseException | None] = queue.SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            try:
                while not stop.is_set():
                    answer = self._answer(waiting.get_nowait())
                    with self._lock:
                        if not stop.is_set():
                            writer.write(answer)
                            ended.put(answer)
            except queue.Empty:
                ended.put(None)
            except BaseException as error:
                ended.put(error)

        workers = min(self.plan.concurrency, len(jobs))
        for _ in range(workers):
            threading.Thread(target=work, daemon=True).start()
        progress = Progress(0.0)
        try:
            done = 0
            while workers:
                answer = ended.get()
                if answer is None:
                    workers -= 1
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    done += 1
                    self.answers[answer.place] = answer
                    self._show(progress, done, len(jobs))
        finally:
            with self._lock:  # no answer is half written when the file is closed
                stop.set()
            progress.close()

    def _show(self, progress: Progress, done: int, total: int) -> None:
        progress.expected_s = (time.monotonic() - progress.begun) * total / done
        scores = []
        for arm in self.arms:
            answers = [one for one in self.answers.values() if one.arm == arm.name]
            if answers:
                scores.append(
                    f"{arm.name} {sum(one.right for one in answers)} of {len(answers)} right"
                )
        errors = sum(bool(one.error) for one in self.answers.values())
        text = f"{self.plan.task.name}: {', '.join(scores)}, {errors} errors"
        progress.update(text, done / total)

    def _answer(self, job: _EvalJob) -> ScoredAnswer:
        """Ask and judge.

        Raises:
            ServerError: nothing listens there any more; that is no fault of the request.
            SandboxError: the program could not be run.
        """
        arm, question, target = job.arm, job.question, job.target
        temperature = self.temperature(arm)
        seed = seed_of(self.plan.seed, question.id, job.sample)
        sampling = sampling_of(target.api, arm.custom_params, temperature, seed)
        output = Output(self.plan.max_tokens, False, temperature, False, sampling)
        answer = ScoredAnswer(arm.name, question.id, job.sample, job.key)
        begun = time.monotonic()
        try:
            reply = ask(target, self._prompt(target, question), output, self.plan.timeout_s)
        except (ServerError, StreamError, OSError) as error:
            if not _listens(target):
                raise ServerError(f"the server of arm {arm.name} is gone: {error}") from None
            said = f"{error}"[:300] or type(error).__name__
            return replace(answer, error=said, seconds=round(time.monotonic() - begun, 4))
        counts = reply.counts
        answer = replace(
            answer,
            text=reply.text,
            finish=counts.finish,
            seconds=round(reply.seconds, 4),
            completion_tokens=counts.completion_tokens,
            cycles=counts.cycles,
            emitted=counts.emitted,
            easd_checks=counts.easd_checks,
            easd_fires=counts.easd_fires,
        )
        return self.plan.task.scored(answer, question, self.plan.tools)


def _listens(target: Endpoint) -> bool:
    """Whether a connection can be made, within a few tries."""
    for wait_s in (0.0, 0.5, 1.0):
        time.sleep(wait_s)
        with contextlib.suppress(OSError):
            socket.create_connection((target.client.host, target.client.port), 10.0).close()
            return True
    return False
