"""Whether an answer is right as mathematics, by math-verify.

math-verify (https://github.com/huggingface/Math-Verify) extracts the final answer from a text and
compares it as an expression: ``x+1`` is ``1+x``, ``\\sqrt{8}`` is ``2\\sqrt{2}``, 18 % is 18 or
0.18. It runs in processes of its own, because a model may write ``10^{10^{10}}``.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.metadata
import json
import os
import queue
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgl_entropy_bench.quality.answers import Judgement

WORKER = Path(__file__).with_name("math_worker.py")
UNDECIDED = "undecided"
_START_S = 120.0
# Spellings that math-verify does not read, as what it reads.
_SPELLINGS = (
    (re.compile("−"), "-"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\fbox\b"), r"\\boxed"),
    (re.compile(r"\\\$(?=[\d.])"), ""),
    (re.compile(r"(?<![^\s{(*])-\$(?=[\d.])"), "-"),
)


class MathVerifyError(RuntimeError):
    """math-verify cannot be used here; the message says what to do."""


class MathVerifier:
    """Judges answers, from any thread, as many at a time as there are cores.

    Args:
        limit_s: for one answer, after which it counts as wrong and ``undecided``.

    Raises:
        MathVerifyError: math-verify is not installed, or does not start.
    """

    def __init__(self, limit_s: float = 10.0) -> None:
        self._limit_s = limit_s
        self._turns = threading.Semaphore(os.cpu_count() or 1)
        _IDLE.put(_worker())

    @property
    def version(self) -> str:
        return f"math-verify {importlib.metadata.version('math-verify')}"

    def judge(self, references: Sequence[str], text: str, anchored: bool) -> Judgement:
        """Whether the final answer in ``text`` equals any of the references.

        Args:
            references: each an expression, or a text with a box.
            anchored: the last expression of the text does not count unless it is announced.

        Raises:
            MathVerifyError: a process of math-verify does not start.
        """
        request = {
            "references": [plain(reference) for reference in references],
            "text": plain(text),
            "anchored": anchored,
        }
        with self._turns:
            worker = _worker()
            verdict = worker.ask(request, self._limit_s)
            if verdict is None and worker.ended():  # not by the expression's doing, most likely
                worker.end()
                worker = _VerifyProcess()
                verdict = worker.ask(request, self._limit_s)
            if verdict is None:
                worker.end()
                return Judgement("", False, f"{UNDECIDED}: not compared within {self._limit_s:g} s")
            _IDLE.put(worker)
            return Judgement(verdict["extracted"], verdict["right"])


class _VerifyProcess:
    """One process of ``math_worker``; it ends with this process, or at its own limit of time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER.read_text(encoding="utf-8")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is for the one who asks
        )
        _ALIVE.add(self)
        said = self._listen(_START_S) or {"missing": "its process does not start"}
        if "ready" not in said:
            self.end()
            raise MathVerifyError(
                "mathematics is scored by math-verify, which cannot be used here "
                f"({said.get('missing')}): pip install 'sgl-entropy[quality]'"
            )

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any] | None:
        """The verdict; None = it took too long, or ended the process."""
        assert self._process.stdin is not None
        # Longer than ours: for a worker whose parent was killed.
        request = {**request, "limit_s": limit_s + 5}
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        return self._listen(limit_s)

    def _listen(self, limit_s: float) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        deadline = time.monotonic() + limit_s
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        line = b""
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
                return None
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                return None
            line += piece
        said: dict[str, Any] = json.loads(line)
        return said

    def ended(self) -> bool:
        """Whether the process has ended by itself (asked after its output has)."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
        return self._process.poll() is not None

    def end(self) -> None:
        _ALIVE.discard(self)
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


def _worker() -> _VerifyProcess:
    with contextlib.suppress(queue.Empty):
        return _IDLE.get_nowait()
    return _VerifyProcess()


# Processes that wait for work. They hold no state, so that every verifier may use them.
_IDLE: queue.SimpleQueue[_VerifyProcess] = queue.SimpleQueue()
# And those that compute: an interrupt leaves them with nobody to kill them.
_ALIVE: set[_VerifyProcess] = set()


@atexit.register
def _end_all() -> None:
    while not _IDLE.empty():
        _IDLE.get()
    for worker in tuple(_ALIVE):
        worker.end()


def plain(text: str) -> str:
    """The text with spellings that math-verify reads."""
    for written, read in _SPELLINGS:
        text = written.sub(read, text)
    return text
