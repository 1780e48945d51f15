"""``sgl-entropy VERB``: one module a verb, imported only when its verb is used.

A verb's module has ``configure(parser)`` and ``run(args) -> exit code``; it parses, calls one
function of a lower room and prints. ``main`` checks first where reports and plots go. It turns
expected errors into one message on stderr and exit code 2, Ctrl-C into 130 and SIGTERM into 143,
after everything started has been stopped.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from sgl_entropy import __version__
from sgl_entropy.cli.output import check_reports

# verb -> what it does, one line each
VERBS = {
    "patch": "apply, check or revert the patch series on an installed SGLang",
    "drafter": "inspect, check, convert and evaluate drafter checkpoints",
    "select": "choose the two layers of a target that a drafter taps (EDSelect)",
    "calibrate": "learn EASD's thresholds for a target and drafter from held-out text",
    "train": "train a drafter: answers by the target, features, fit, export",
    "target": "fetch and convert the small real target used by the demo and the tests",
    "demo": "serve the small target with and without drafters and print the comparison",
    "bench": "load-test servers: Poisson arrivals, paired arms, the papers' tables",
    "policy": "record what a server knew at every cycle, and replay entropy policies over it",
    "eval": "score answers exactly: GSM8K, MATH, HumanEval, a file; paired arms, McNemar's test",
    "doctor": "check versions, patches, SGLang's functions, device, flags, drafter",
    "figures": "measure the committed figures: lossless, speed, easd, stop, leaks and others",
}

EPILOG = """examples:
  sgl-entropy patch apply
  sgl-entropy drafter check bench/drafters/edsd-smollm2-135m --target TARGET
  sgl-entropy doctor --json -
Run `sgl-entropy VERB --help` for a verb's options and examples."""


def build_parser(verb: str | None) -> argparse.ArgumentParser:
    """The top-level parser, with the options of ``verb`` alone filled in."""
    parser = argparse.ArgumentParser(
        prog="sgl-entropy",
        description="Entropy-driven speculative decoding for SGLang.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sgl-entropy {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, help_line in VERBS.items():
        sub = verbs.add_parser(
            name,
            help=help_line,
            description=help_line[0].upper() + help_line[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == verb:
            importlib.import_module(f"sgl_entropy.cli.{name}").configure(sub)
    return parser


class Terminated(KeyboardInterrupt):
    """SIGTERM: it ends a command as Ctrl-C does, so that servers stop and records are kept."""


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the ``sgl-entropy`` command; returns the exit code."""
    here = threading.current_thread() is threading.main_thread()
    if here and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    words = list(sys.argv[1:] if argv is None else argv)
    verb = next((word for word in words if word in VERBS), None)
    try:
        args = build_parser(verb).parse_args(words)
        check_reports(args)
        return int(importlib.import_module(f"sgl_entropy.cli.{args.verb}").run(args))
    except Terminated:
        print("terminated", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader has seen enough (`| head`); nothing more can be written, also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        # Expected errors carry their own explanation; anything else keeps its traceback.
        print(f"sgl-entropy {verb}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
