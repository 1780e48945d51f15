"""Run a command for as long as standard input stays open; then end its whole session.

``python -m sgl_entropy_bench.server.supervise COMMAND...`` stands between a benchmark and the
servers it starts. The benchmark holds the other end of the pipe. However it ends (an exception,
Ctrl-C, SIGKILL), the kernel closes the pipe, and the server ends with all its children. No cleanup
code has to run in the benchmark.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

from sgl_entropy_bench.server.processes import end_session

# SGLang drains its requests on SIGTERM; nobody is left here to read the answers.
GRACE_S = 3.0


def supervise(command: list[str]) -> int:
    """Returns the command's exit status if it ended by itself, else 0 once all is gone."""
    # A signal and a closed pipe both end the loop below.
    reading, writing = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: os.write(writing, b"x"))
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    stdin = sys.stdin.fileno()
    status: int | None = None
    while status is None:
        ready, _, _ = select.select([stdin, reading], [], [], 0.2)
        if reading in ready or (stdin in ready and not os.read(stdin, 1)):
            break
        status = child.poll()
    end_session(os.getsid(0), GRACE_S, frozenset({os.getpid()}))
    return 0 if status is None else status


def main() -> int:
    """Supervise the command line's words; refuses to run where it would end its own caller."""
    if os.getsid(0) != os.getpid():
        print("supervise: start it in a session of its own (setsid)", file=sys.stderr)
        return 2
    status = supervise(sys.argv[1:])
    # A child ended by signal n has status -n; a shell would say 128 + n.
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
