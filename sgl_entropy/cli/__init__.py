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

# what it is about -> verb -> what it does, in one line of at most 66 characters
GROUPS = {
    "serve": {
        "patch": "apply, check or revert the patches on an installed SGLang",
        "doctor": "say what is wrong with a machine, an install or a set of flags",
        "demo": "serve a small target with and without drafters, and compare",
        "target": "print the folder of the small target; fetch it at first use",
    },
    "make drafters": {
        "select": "choose the target layers that a drafter reads (EDSelect)",
        "train": "train a drafter: answers, features, fit, export",
        "drafter": "inspect, check, convert, shrink or evaluate a drafter",
    },
    "use entropy": {
        "calibrate": "learn EASD's thresholds for a target and a drafter",
        "policy": "record a server's cycles and replay entropy policies on them",
    },
    "measure": {
        "bench": "load-test servers: Poisson arrivals, paired arms, a verdict",
        "eval": "score answers: GSM8K, MATH, HumanEval or a file of yours",
        "figures": "measure a figure of this repository again",
    },
}
VERBS = {verb: line for verbs in GROUPS.values() for verb, line in verbs.items()}

EPILOG = """examples:
  sgl-entropy patch apply
  sgl-entropy doctor --drafter DRAFTER --target TARGET
  sgl-entropy drafter check bench/drafters/edsd-smollm2-135m --target TARGET
  sgl-entropy bench latency --arms none=http://HOST:30000,edsd=http://HOST:30001 --qps 2,4

`sgl-entropy VERB --help` lists a verb's options and more examples."""


def build_parser(verb: str | None) -> argparse.ArgumentParser:
    """The top-level parser, with the options of ``verb`` alone filled in."""
    listed = [
        "\n".join([f"{group}:", *(f"  {name:<11} {line}" for name, line in verbs.items())])
        for group, verbs in GROUPS.items()
    ]
    parser = argparse.ArgumentParser(
        prog="sgl-entropy",
        usage="sgl-entropy VERB ... | --help | --version",
        description="\n\n".join(["Entropy-driven speculative decoding for SGLang.", *listed]),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sgl-entropy {__version__}")
    actions = parser.add_subparsers(
        dest="verb", metavar="VERB", required=True, prog=parser.prog, help=argparse.SUPPRESS
    )
    for name, line in VERBS.items():
        sub = actions.add_parser(
            name,
            description=line[0].upper() + line[1:] + ".",
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
        print(f"sgl-entropy {verb}: {_words(error)}", file=sys.stderr)
        return 2


def _words(error: Exception) -> str:
    """The message; the system's own names its file first, without a number."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
