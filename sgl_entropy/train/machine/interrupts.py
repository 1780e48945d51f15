"""Ctrl-C, SIGTERM or a closed terminal ends stepwise work after the current step, not in it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INSISTS_S = 2.0


class Interrupt:
    """Notes the signals inside its block; ``pass_on`` gives them to the handlers of before.

    A second Ctrl-C, seconds after the first, is passed on at once, except in torchrun's processes:
    torchrun repeats what the terminal has sent to all of them already. Ignored signals stay ignored
    (nohup), and outside the main thread, which alone has handlers, nothing is noted. A process of
    multiprocessing is asked to end when its parent was killed.
    """

    def __init__(self) -> None:
        self._asked: int | None = None
        self._at = 0.0
        self._parent = multiprocessing.parent_process()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # None: not set from Python; it could not be given back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._restore()

    @property
    def asked(self) -> bool:
        """Whether it is time to end."""
        return self._asked is not None or (self._parent is not None and not self._parent.is_alive())

    def pass_on(self) -> None:
        """End as the signal would have done; call it once everything is saved.

        Raises:
            KeyboardInterrupt: unless the handler before raises something else, or ends the process.
        """
        self._restore()
        if self._asked is not None:
            signal.raise_signal(self._asked)
        raise KeyboardInterrupt

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked is None:
            self._asked, self._at = number, now
        elif number == signal.SIGINT and now - self._at > _INSISTS_S and not _by_torchrun():
            self._restore()
            signal.raise_signal(number)


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
