"""``sgl-entropy doctor``: is all in place for a server, and if not, what is to be done?"""

from __future__ import annotations

import argparse

from sgl_entropy.cli.output import write_json
from sgl_entropy.doctor import Question, examine
from sgl_entropy.doctor.flags import split_text

_EPILOG = """examples:
  sgl-entropy doctor
  sgl-entropy doctor --json - --sglang ./unpacked
  sgl-entropy doctor --drafter DRAFTER --target TARGET
  sgl-entropy doctor -- --model-path TARGET --speculative-algorithm EDSD ...
  sgl-entropy doctor --flags 'OMP_NUM_THREADS=1 python -m sglang.launch_server --model-path ...'

exit codes: 0 nothing failed (there may be warnings); 1 something must be mended; 2 an error.
SGLang is not imported and no server is started."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``sgl-entropy doctor``."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--sglang",
        metavar="DIR",
        help="the package folder of SGLang, or a folder that contains it "
        "(default: the one that this Python would import)",
    )
    parser.add_argument("--drafter", metavar="DIR", help="also check this drafter")
    parser.add_argument("--target", metavar="DIR", help="and whether it fits this target")
    parser.add_argument("--flags", metavar="TEXT", help="a launch command, as one string")
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout")
    parser.add_argument(
        "launch", nargs="*", metavar="-- FLAG", help="flags of sglang.launch_server to check"
    )


def run(args: argparse.Namespace) -> int:
    """Examine and print; 1 where a check failed."""
    if args.flags is not None and args.launch:
        raise ValueError("give the launch flags once: in --flags, or after --")
    launch = split_text(args.flags) if args.flags is not None else args.launch
    report = examine(Question(args.sglang, args.drafter, args.target, tuple(launch)))
    if not write_json(report.as_json(), args.json):
        print("\n".join(report.lines()))
    return 0 if report.ok else 1
