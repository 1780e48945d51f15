"""One program, run apart and within limits: ``python -I -S -B jail.py``, started by ``sandbox``.

Standard input gives one line of JSON (see ``main``) and then stays open: when it ends, so did the
one who asked, and everything here is killed. Standard output gets one line of JSON. Nothing of
this package is imported, as a fresh interpreter starts sooner without it.

Three processes: this one waits and kills; below it the first process of a PID namespace, with
whose end the kernel ends all others in it; below that the program, which has no way back up.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import secrets
import select
import signal
import struct
import sys
import time
from typing import Any, NoReturn

Request = dict[str, Any]

NEWNS, NEWUTS, NEWIPC = 0x20000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
# Emptied for the program: people's files, sockets of services, other processes.
COVERED = ("/tmp", "/run", "/home", "/root", "/dev/shm")
WORK, PYTHON = "/tmp/work", "/tmp/python"
MOST_SAID = 4096

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Run the request's program.

    Request: ``program`` and ``runner`` (texts), ``namespaces``, ``prefix`` and ``python`` (the
    interpreter, below it), ``work`` (a folder, for want of namespaces), ``user`` (instead of root),
    ``home`` (out of sight), ``cpu_s``, ``wall_s``, ``memory_bytes``, ``file_bytes``,
    ``disk_bytes``, ``processes``.

    Reply: ``status`` (passed, failed, timeout, or setup: the program was not run) and ``error``.
    """
    request = _request()
    word = secrets.token_hex(16)
    deadline = time.monotonic() + request["wall_s"]
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    hearing, saying = os.pipe()
    try:
        if request["namespaces"]:
            _unshare()
        child = os.fork()
    except OSError as error:
        _reply("setup", str(error))
        return
    if child == 0:
        os.close(hearing)
        _init(request, word, saying)
    os.close(saying)
    said, timed_out = _listen(hearing, deadline)
    # A verdict is there, the program has ended, or its time has: in each case nothing goes on.
    status = _reap(child, kill=timed_out or b"\n" in said)
    _reply(*_verdict(said, word, status, timed_out))


def _request() -> Request:
    held = b""
    while not held.endswith(b"\n"):
        piece = os.read(0, 1 << 16)
        if not piece:
            sys.exit(1)
        held += piece
    request: Request = json.loads(held)
    return request


def _listen(hearing: int, deadline: float) -> tuple[bytes, bool]:
    """What was said up to a line's end, or the end; and whether the time was over first."""
    said = b""
    while b"\n" not in said and len(said) < MOST_SAID:
        left = deadline - time.monotonic()
        ready = select.select([hearing, 0], [], [], max(0.0, left))[0]
        if not ready:
            return said, True
        if 0 in ready and not os.read(0, 1):
            return said, True
        if hearing in ready:
            piece = os.read(hearing, MOST_SAID)
            if not piece:
                break
            said += piece
    return said, False


def _verdict(said: bytes, word: str, status: int, timed_out: bool) -> tuple[str, str]:
    try:
        held = json.loads(said.partition(b"\n")[0])
    except ValueError:
        held = None
    if isinstance(held, dict) and held.get("passed") == word:
        return "passed", ""
    if isinstance(held, dict) and "setup" in held:
        return "setup", str(held["setup"])
    if timed_out or status == signal.SIGXCPU:
        return "timeout", "its time was over" if timed_out else "its processor time was over"
    if isinstance(held, dict) and "error" in held:
        return "failed", str(held["error"])[:300]
    if 0 < status < 64:
        return "failed", f"ended by signal {status}"
    return "failed", "ended before its tests had"


def _reply(status: str, error: str) -> None:
    os.write(1, json.dumps({"status": status, "error": error}).encode() + b"\n")


def _reap(child: int, kill: bool) -> int:
    """Kill what is left and wait for it; the signal that ended the program, 0 for none."""
    found = 0
    alive: tuple[int, ...] = (child,)
    if not kill:
        # All descriptors of the program are closed: it has ended, or will not say any more.
        kill = not _ended(child, 1.0)
    while True:
        if kill:
            # In a PID namespace the kernel ends all with the first; /proc is covered there.
            for pid in (*alive, *_descendants(os.getpid())):
                _kill(pid)
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return found
        if pid == child:
            alive = ()
        if pid == child and os.WIFEXITED(status) and not kill:
            found = max(0, os.WEXITSTATUS(status) - 128)
        kill = True


def _ended(child: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return True
        time.sleep(0.005)
    return False


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _descendants(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry)] = int(fields[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def _unshare() -> None:
    """New namespaces from here on: no network, no sight of other processes, mounts of its own."""
    flags = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET
    user, group = os.getuid(), os.getgid()
    _check(_libc.unshare(flags if user == 0 else flags | NEWUSER), "no namespaces")
    if user:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="utf-8") as file:
                file.write(text)


def _init(request: Request, word: str, saying: int) -> NoReturn:
    """The parent of the program: prepares its surroundings, waits for its end, and ends with it;
    the exit status is 128 + the signal that ended the program."""
    code = 0
    try:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        work = request["work"]
        if request["namespaces"]:
            _seal(request["prefix"], request["home"], request["disk_bytes"])
            work = WORK
        with open(os.path.join(work, "program.py"), "w", encoding="utf-8") as file:
            file.write(request["program"])
        os.chmod(os.path.join(work, "program.py"), 0o644)
        reading, writing = os.pipe()
        os.write(writing, word.encode())
        os.close(writing)
        program = os.fork()
        if program == 0:
            _become(request, work, reading, saying)
        os.close(reading)
        os.close(saying)
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == program:
                break
        if os.WIFSIGNALED(status):
            code = 128 + os.WTERMSIG(status)
    except BaseException as error:
        _say_setup(saying, error)
    os._exit(code)


def _say_setup(saying: int, error: BaseException) -> None:
    with contextlib.suppress(OSError):
        os.write(saying, json.dumps({"setup": f"{error}"[:300]}).encode() + b"\n")


def _seal(prefix: str, home: str, disk_bytes: int) -> None:
    """Mounts for the program: all read-only but a small work folder in memory, others' files and
    processes out of sight, the interpreter at PYTHON."""
    _mount(None, "/", None, MS_REC | MS_PRIVATE, None)
    held = os.open(prefix, os.O_PATH | os.O_DIRECTORY)
    for path in (*COVERED, *([home] if home.rstrip("/") else [])):
        if os.path.isdir(path):
            _cover(path)
    # By its descriptor, as the interpreter may lie in a folder that is covered by now.
    os.mkdir(PYTHON)
    _mount(f"/proc/self/fd/{held}", PYTHON, None, MS_BIND | MS_REC, None)
    os.close(held)
    _cover("/proc")
    os.mkdir(WORK)
    options = f"size={disk_bytes},nr_inodes=1000,mode=777"
    _mount("tmpfs", WORK, "tmpfs", MS_NOSUID | MS_NODEV, options)
    _set_mount("/", AT_RECURSIVE, MOUNT_ATTR_RDONLY, 0)
    _set_mount(WORK, 0, 0, MOUNT_ATTR_RDONLY)


def _cover(path: str) -> None:
    _mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")


def _become(request: Request, work: str, word: int, saying: int) -> NoReturn:
    """Turn into the program; never returns."""
    try:
        os.chdir(work)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        for number in range(3, 256):
            if number in (word, saying):
                os.set_inheritable(number, True)
            else:
                with contextlib.suppress(OSError):
                    os.close(number)
        if os.getuid() == 0:
            # A user that nobody is: the limit of processes counts by user, and never for root.
            os.setgroups([])
            os.setgid(request["user"])
            os.setuid(request["user"])
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _prctl(PR_SET_NO_NEW_PRIVS, 1)
        for name, most in (
            (resource.RLIMIT_CPU, request["cpu_s"]),
            (resource.RLIMIT_AS, request["memory_bytes"]),
            (resource.RLIMIT_FSIZE, request["file_bytes"]),
            (resource.RLIMIT_NPROC, request["processes"]),
            (resource.RLIMIT_NOFILE, 64),
            (resource.RLIMIT_CORE, 0),
        ):
            # Processor time: SIGXCPU tells the reason, a second later comes SIGKILL.
            resource.setrlimit(name, (most, most + (name == resource.RLIMIT_CPU)))
        prefix = PYTHON if request["namespaces"] else request["prefix"]
        python = os.path.join(prefix, request["python"])
        guarded = "-" if request["namespaces"] else "guard"
        words = [python, "-I", "-S", "-B", "-c", request["runner"], str(word), str(saying), guarded]
        os.execve(python, words, {"LD_LIBRARY_PATH": os.path.join(prefix, "lib")})
    except BaseException as error:
        _say_setup(saying, error)
    os._exit(1)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(f"{what}: {os.strerror(ctypes.get_errno())}")


def _prctl(option: int, value: int) -> int:
    return int(_libc.prctl(option, value, 0, 0, 0))


def _mount(source: str | None, at: str, kind: str | None, flags: int, options: str | None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, at, kind, options)]
    result = _libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])
    _check(result, f"mounting {at}")


def _set_mount(path: str, flags: int, add: int, clear: int) -> None:
    attributes = struct.pack("QQQQ", add, clear, 0, 0)
    arguments = (AT_FDCWD, os.fsencode(path), flags, attributes, len(attributes))
    _check(_libc.syscall(SYS_MOUNT_SETATTR, *arguments), f"making {path} read-only")


if __name__ == "__main__":
    main()
