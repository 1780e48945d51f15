"""The fake server as a subprocess, for tests."""

from __future__ import annotations

import select
import subprocess
import sys
from types import TracebackType
from typing import IO, cast

START_TIMEOUT_S = 30


class FakeServer:
    """The fake server as a subprocess on a free port.

    ``with FakeServer("--cycle", "0.001") as server`` starts it with these arguments and waits
    until it listens. It ends with the block, and with this process, in whatever way that ends.
    """

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self.url = ""
        self.port = 0
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> FakeServer:
        """Raises RuntimeError where it does not come up; its standard error says why."""
        command = [sys.executable, "-m", "sgl_entropy_bench.fakeserver", "--port", "0", "--owned"]
        self.process = subprocess.Popen(
            [*command, *self.arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            output = cast(IO[bytes], self.process.stdout)
            ready, _, _ = select.select([output], [], [], START_TIMEOUT_S)
            words = output.readline().decode().split() if ready else []
            if not words:
                raise RuntimeError(
                    f"the fake server did not come up within {START_TIMEOUT_S} s"
                    f" (exit status {self.process.poll()})"
                )
            self.url = words[-1]
            self.port = int(self.url.rpartition(":")[2])
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it; returns when it is gone."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        # Closing its input was enough, unless it hangs or is stopped.
        try:
            self.process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
