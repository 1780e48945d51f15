"""Process sessions on Linux: who is in one, how much memory they hold, how to end them.

A server starts children of its own (scheduler, detokenizer, resource tracker), and a child whose
parent died is handed to another process; the session, unlike the tree, keeps them all together.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

PROC = Path("/proc")


def session_members(session: int) -> list[int]:
    """Process ids in ``session``, without zombies (dead, waiting only to be collected)."""
    members = []
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended while we looked
        # pid (name) state ppid pgrp session ...: the name may hold spaces and brackets
        fields = stat[stat.rindex(")") + 2 :].split()
        if int(fields[3]) == session and fields[0] not in "ZX":
            members.append(int(entry.name))
    return sorted(members)


def memory_bytes(pids: list[int]) -> int:
    """Proportional set size in bytes: pages that processes share are counted once in all.

    Among all processes of the machine, that is: another one that maps the same libraries takes
    its share of them, and gives it back when it ends. Processes that ended meanwhile count as
    nothing.
    """
    return _rollup(pids, ("Pss:",))


def allocated_bytes(pids: list[int]) -> int:
    """Memory that the processes allocated themselves, in bytes: what a leak grows.

    Pages of files (libraries, weights) are left out, so that other processes on the machine,
    which may map the same ones, do not move the figure.
    """
    return _rollup(pids, ("Pss_Anon:", "Pss_Shmem:"))


def _rollup(pids: list[int], keys: tuple[str, ...]) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith(keys):
                    total += int(line.split()[1]) * 1024
    return total


def signal_all(pids: list[int], number: signal.Signals) -> None:
    """Send one signal to each process that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def end_session(session: int, grace_s: float, spare: frozenset[int] = frozenset()) -> list[int]:
    """SIGTERM to every member, SIGKILL after ``grace_s`` seconds; returns who is left (nobody).

    ``spare`` names members to leave alone (the caller itself).
    """

    def alive() -> list[int]:
        return [pid for pid in session_members(session) if pid not in spare]

    members = alive()
    signal_all(members, signal.SIGTERM)
    # A stopped process handles no signal until it is continued.
    signal_all(members, signal.SIGCONT)
    deadline = time.monotonic() + grace_s
    while (members := alive()) and time.monotonic() < deadline:
        time.sleep(0.05)
    # More than once: a member may have started another between our look and our signal.
    for _ in range(40):
        if not (members := alive()):
            break
        signal_all(members, signal.SIGKILL)
        time.sleep(0.05)
    return members
