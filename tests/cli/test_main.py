"""The command line as a whole: how it ends when it is told to."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sgl_entropy import cli

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


def test_help_lists_every_verb_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    modules = {module.stem for module in Path(cli.__file__).parent.glob("*.py")}
    for verb, does in cli.VERBS.items():
        assert verb in modules
        assert any(line.split(None, 1) == [verb, does] for line in lines), verb
    assert all(len(line) <= 90 for line in lines)


@pytest.mark.parametrize(
    "words",
    ["drafter info", "drafter convert", "policy record", "policy replay", "patch record", "train"],
)
def test_help_ends_with_examples(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([*words.split(), "--help"])
    printed = capsys.readouterr().out
    assert f"examples:\n  sgl-entropy {words} " in printed
    assert printed.count("policies:\n  off ") == (words == "policy replay")


@pytest.mark.parametrize("words", ["policy record", "drafter eval", "train"])
def test_help_does_not_wait_for_torch(words: str) -> None:
    code = f"""
import sys
from sgl_entropy import cli
try:
    cli.main({[*words.split(), "--help"]})
finally:
    assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train fit --config gone", "train: --config gone: no such file; expected settings"),
        ("train fit --config .", "train: --config .: that is a folder; expected settings"),
        ("bench latency --launch gone", "bench: --launch gone: no such file; expected an arms"),
        ("eval --task gsm8k --launch gone", "eval: --launch gone: no such file; expected an arms"),
        ("policy replay gone", "policy: TRACE gone: no such file; expected a trace, as"),
        ("bench speed --arms a=http://h:1 --prompts gone", "bench: --prompts gone: no such file"),
        (
            "bench latency --arms a=http://h:1 --qps 1 --arrivals trace:gone",
            "bench: --arrivals gone: no such file; expected arrival times",
        ),
        ("drafter trim a b --size 1 --answers gone", "--answers gone: no such file; expected"),
    ],
)
def test_a_file_that_is_missing_is_named_by_its_flag(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words.split()) == 2
    assert message in capsys.readouterr().err


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
