"""Limits itself, runs the program that standard input holds, and reports how it ended.

``sandbox`` hands this file's text to a fresh interpreter, which therefore imports nothing of this
package. Standard output gets one line of JSON when the limits are set (``started``) and one at the
end (``passed`` or ``error``). "passed" must carry a secret word, which is read only when the
program has come to its end: a program that exits early cannot know it.

Argument: JSON with ``word`` (the descriptor that holds the word), ``guard``, ``user`` (the user id
to become; null keeps the present one), and the fields of ``sandbox.Limits``.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import types
from typing import Any

_REFUSED = (
    *("socket.", "subprocess.", "ctypes.", "shutil.", "os.system", "os.exec", "os.posix_spawn"),
    *("os.spawn", "os.fork", "os.kill", "os.startfile", "pty.", "urllib.", "ftplib.", "smtplib."),
)
_CHANGES = (
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link"),
    *("os.symlink", "os.truncate", "os.utime", "os.setxattr", "os.removexattr"),
)


def limit(request: dict[str, Any]) -> None:
    """Set the limits, and become ``user``: the kernel counts no processes of root."""
    if request["user"] is not None:
        os.setgroups([])
        os.setgid(request["user"])
        os.setuid(request["user"])
    for name, most in (
        (resource.RLIMIT_CPU, request["cpu_s"]),
        (resource.RLIMIT_AS, request["memory_bytes"]),
        (resource.RLIMIT_FSIZE, request["file_bytes"]),
        (resource.RLIMIT_NPROC, request["processes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        # SIGXCPU tells that it was the processor time; SIGKILL follows a second later.
        resource.setrlimit(name, (most, most + (name == resource.RLIMIT_CPU)))
    # In case nobody is left who would end it.
    signal.alarm(math.ceil(request["wall_s"]) + 5)


def guard() -> None:
    """Refuse what a program that only computes never does; it stops accidents, not intent."""
    here = os.path.realpath(os.getcwd())

    def outside(path: Any) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        real = os.path.realpath(os.fsdecode(path))
        return real != here and not real.startswith(here + os.sep)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(_REFUSED):
            raise PermissionError(f"{event} is not allowed here")
        if event == "open":
            writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
            if args[2] is not None and int(args[2]) & writes and outside(args[0]):
                raise PermissionError(f"writing {args[0]!r} is not allowed here")
        elif event.startswith(_CHANGES) and any(outside(path) for path in args[:2]):
            raise PermissionError(f"{event} is not allowed here")

    sys.addaudithook(hook)


def main(request: dict[str, Any]) -> None:
    """Run the program; never returns."""
    source = sys.stdin.buffer.read()
    verdict = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    limit(request)
    _write(verdict, {"started": True})
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
    module = types.ModuleType("program")
    sys.modules["program"] = module
    if request["guard"]:
        guard()
    said: dict[str, Any]
    own = os.getpid()
    try:
        exec(compile(source, "program.py", "exec"), module.__dict__)
    except BaseException as error:  # SystemExit among them
        kind = type(error).__name__
        try:
            said = {"error": f"{kind}: {error}"[:300]}
        except BaseException:
            said = {"error": kind}
    else:
        said = {"passed": os.read(request["word"], 100).decode()}
    if os.getpid() != own:  # a process that the program forked and did not end
        os._exit(0)
    _write(verdict, said)
    os._exit(0)


def _write(verdict: int, said: dict[str, Any]) -> None:
    os.write(verdict, json.dumps(said).encode() + b"\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
