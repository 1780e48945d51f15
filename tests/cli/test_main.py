"""The command line as a whole: how it ends when it is told to."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SLOW_VERB = """
import sys, time
from sgl_entropy import cli
from sgl_entropy.cli import doctor

def run(args):
    try:
        print("up", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)

doctor.HOOK = run
sys.exit(cli.main(["doctor"]))
"""


@pytest.mark.parametrize("hook", ["run", "configure"])
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_command_that_is_told_to_end_cleans_up_first(
    number: signal.Signals, code: int, word: str, hook: str
) -> None:
    """While it works, and while its verb is still being imported."""
    command = subprocess.Popen(
        [sys.executable, "-c", SLOW_VERB.replace("HOOK", hook)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert command.stdout is not None
    assert command.stdout.readline() == "up\n"
    command.send_signal(number)
    out, err = command.communicate(timeout=20)
    assert (command.returncode, out, err) == (code, "cleaned up\n", f"{word}\n")
