"""``sgl-entropy doctor``: is everything in place for a server, and if not, what to do?"""

from __future__ import annotations

import argparse

from sgl_entropy.cli.output import write_json
from sgl_entropy.doctor import ExaminationRequest, examine
from sgl_entropy.doctor.flags import split_text

_EPILOG = """examples:
  sgl-entropy doctor
  sgl-entropy doctor --json - --sglang ./unpacked
  sgl-entropy doctor --drafter DRAFTER --target TARGET
  sgl-entropy doctor -- --model-path TARGET --speculative-algorithm EDSD ...
  sgl-entropy doctor --flags 'OMP_NUM_THREADS=1 python -m sglang.launch_server --model-path ...'

exit codes: 0 no check failed (there may be warnings); 1 a check failed; 2 an error.
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
    parser.add_argument("--drafter", metavar="DIR", help="check this drafter as well")
    parser.add_argument("--target", metavar="DIR", help="check that the drafter fits this target")
    parser.add_argument("--flags", metavar="TEXT", help="a launch command to check, as one string")
    parser.add_argument(
        "--json", metavar="FILE", help="write the result there as JSON; - for stdout"
    )
    parser.add_argument(
        "launch", nargs="*", metavar="-- FLAG", help="flags of sglang.launch_server to check"
    )


def run(args: argparse.Namespace) -> int:
    """Examine and print; 1 if a check failed."""
    if args.flags is not None and args.launch:
        raise ValueError("give the launch flags once: in --flags, or after --")
    launch = split_text(args.flags) if args.flags is not None else args.launch
    request = ExaminationRequest(args.sglang, args.drafter, args.target, tuple(launch))
    diagnosis = examine(request)
    if not write_json(diagnosis.as_json(), args.json):
        print("\n".join(diagnosis.lines()))
    return 0 if diagnosis.ok else 1
