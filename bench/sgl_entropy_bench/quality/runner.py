"""Runs ``program.py`` of the working folder and says on a descriptor how it went.

Its text is handed to a fresh interpreter by ``jail``; it imports nothing of this package. The word
that stands for "passed" is read only after the program has ended by itself: a program that exits
early cannot say it.

Arguments: the descriptor with the word, the one for the verdict, and ``guard`` or ``-``.
"""

from __future__ import annotations

import json
import os
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


def guard() -> None:
    """Refuse what a program that only computes never does; no wall against one that means to."""
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


def main(word: int, verdict: int, guarded: bool) -> None:
    """Run the program; never returns."""
    with open("program.py", encoding="utf-8") as file:
        source = file.read()
    module = types.ModuleType("program")
    sys.modules["program"] = module
    if guarded:
        guard()
    said: dict[str, str]
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
        said = {"passed": os.read(word, 100).decode()}
    if os.getpid() != own:  # a process that the program forked, and did not end
        os._exit(0)
    os.write(verdict, json.dumps(said).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "guard")
