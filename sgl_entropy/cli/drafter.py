"""``sgl-entropy drafter``: inspect, check, measure, convert and shrink drafters."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sgl_entropy.checkpoint.errors import DrafterError
from sgl_entropy.checkpoint.findings import errors_of
from sgl_entropy.cli import drafter_eval, drafter_robustness
from sgl_entropy.cli.actions import Action, add_actions, run_action
from sgl_entropy.cli.inputs import input_file
from sgl_entropy.cli.output import write_json
from sgl_entropy.drafter.check import check_drafter
from sgl_entropy.drafter.convert import convert
from sgl_entropy.drafter.info import drafter_info
from sgl_entropy.drafter.layouts import LAYOUTS

EPILOG = """examples:
  sgl-entropy drafter info DRAFTER
  sgl-entropy drafter check DRAFTER --target TARGET
  sgl-entropy drafter eval DRAFTER --target TARGET --texts mt_bench.jsonl gsm8k.jsonl
  sgl-entropy drafter eval DRAFTER --target TARGET --texts prompts.txt --server http://HOST:PORT
  sgl-entropy drafter robustness edsd=DIR eagle3=DIR --target TARGET --texts DIR --systems FILE
  sgl-entropy drafter convert EAGLE3_FROM_VLLM DRAFTER --to published
  sgl-entropy drafter trim DRAFTER SMALLER --size 8192 --answers WORK/answers.jsonl"""


CHECK_EPILOG = """examples:
  sgl-entropy drafter check DRAFTER --target TARGET
  sgl-entropy drafter check DRAFTER --target TARGET --json report.json || echo "does not fit"

It checks tensors and their values, sizes, tapped layers, rope, positions and tokenizer. For a
drafter that fits it prints the command that launches a server with it."""

TRIM_EPILOG = """examples:
  sgl-entropy drafter trim DRAFTER SMALLER --size 8192 --answers WORK/answers.jsonl
  sgl-entropy drafter eval SMALLER --target TARGET --texts FOLDER

With fewer tokens drafting is faster, and acceptance lower where the target writes a token that was
left out: compare both drafters before you serve the smaller one."""


INFO_EPILOG = """examples:
  sgl-entropy drafter info DRAFTER
  sgl-entropy drafter info DRAFTER --json -

Only headers are read, in any known layout. Exit code 1: something is wrong with it."""

CONVERT_EPILOG = """examples:
  sgl-entropy drafter convert EAGLE3_FROM_VLLM DRAFTER
  sgl-entropy drafter convert DRAFTER OTHER --to speculators --force

Weights are copied as they are; every renamed and dropped tensor is printed."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``drafter``."""
    parser.epilog = EPILOG
    add_actions(parser, ACTIONS)


def _info_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("drafter", help="the drafter's folder")
    _add_json(parser)


def _check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("drafter", help="the drafter's folder")
    parser.add_argument("--target", required=True, help="the target's Hugging Face folder")
    _add_json(parser)


def _convert_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="the drafter's folder")
    parser.add_argument("destination", help="a new folder")
    parser.add_argument("--to", choices=LAYOUTS, default="published", help="default: published")
    parser.add_argument(
        "--force", action="store_true", help="replace a checkpoint that is already there"
    )


def _trim_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="the drafter's folder")
    parser.add_argument("destination", help="a new folder")
    parser.add_argument("--size", type=int, required=True, help="tokens to keep")
    parser.add_argument(
        "--answers",
        type=input_file("--answers", "answers.jsonl of `sgl-entropy train prepare`"),
        required=True,
        metavar="FILE",
        help="answers.jsonl of `sgl-entropy train prepare`: the most frequent tokens are kept",
    )


def run(args: argparse.Namespace) -> int:
    """Run the action."""
    return run_action(args)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write JSON to FILE; - for stdout alone")


def _info(args: argparse.Namespace) -> int:
    info = drafter_info(args.drafter)
    if not write_json(info.to_dict(), args.json):
        facts = info.facts()
        width = max(len(key) for key in facts)
        for key, value in facts.items():
            print(f"{key:<{width}}  {_cell(value)}")
        for finding in info.findings:
            print(f"{finding.level:<5} {finding.detail}")
    return 1 if errors_of(info.findings) else 0


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _check(args: argparse.Namespace) -> int:
    report = check_drafter(args.drafter, args.target)
    if not write_json(report.to_dict(), args.json):
        for finding in report.findings:
            line = finding.line()
            if not line.startswith(f"{finding.name}:"):
                line = f"{finding.name}: {line}"
            print(f"{finding.level:<5} {line}")
        if report.launch_command:
            print(f"\n{report.launch_command}")
        else:
            print(f"\n{args.drafter} must not be served with {args.target}", file=sys.stderr)
    return 0 if report.ok else 1


def _trim(args: argparse.Namespace) -> int:
    import torch

    from sgl_entropy.drafter.checkpoint import load_tensors
    from sgl_entropy.drafter.trim import most_frequent, trim
    from sgl_entropy.drafter.values import draft_to_target_ids
    from sgl_entropy.train.answers.file import read_answers
    from sgl_entropy.train.prompts.draft_vocabulary import count_tokens

    config, tensors = load_tensors(args.source)
    answers = read_answers(args.answers)
    if not answers:
        raise DrafterError(f"{args.answers}: no answers there")
    counts = count_tokens(
        (torch.tensor(one.tokens[one.prompt_length :]) for one in answers), config.vocab_size
    )
    own = draft_to_target_ids(tensors["d2t"])
    kept = most_frequent(own, counts, args.size)
    trim(Path(args.source), Path(args.destination), kept)
    print(
        f"{args.destination}: {len(kept):,} of {len(own):,} tokens, which are "
        f"{float(counts[kept].sum() / counts.sum()):.1%} of what the answers write (before: "
        f"{float(counts[own].sum() / counts.sum()):.1%})"
    )
    return 0


def _convert(args: argparse.Namespace) -> int:
    report = convert(args.source, args.destination, to=args.to, overwrite=args.force)
    for old, new in report.tensors:
        print(old if old == new else f"{old} -> {new}")
    for name in report.dropped:
        print(f"{name} dropped: a copy of the target's own tensor")
    for name in report.carried:
        print(f"{name} taken along")
    print(
        f"{len(report.tensors)} tensors from {report.source_layout} to {report.layout} in "
        f"{report.destination}"
    )
    return 0


ACTIONS = {
    "info": Action("show sizes, layers, parameters and bytes", _info_options, _info, INFO_EPILOG),
    "check": Action(
        "say whether it fits the target, and how to launch it; exit code 1 if it does not",
        _check_options,
        _check,
        CHECK_EPILOG,
    ),
    "eval": Action(
        "measure acceptance length and rates, offline or from a server",
        drafter_eval.options,
        drafter_eval.run,
        drafter_eval.EPILOG,
    ),
    "robustness": Action(
        "measure how much acceptance each drafter loses under foreign system prompts",
        drafter_robustness.options,
        drafter_robustness.run,
        drafter_robustness.EPILOG,
    ),
    "convert": Action(
        "rename tensors and config between known layouts",
        _convert_options,
        _convert,
        CONVERT_EPILOG,
    ),
    "trim": Action(
        "leave rare tokens out of the draft vocabulary: a smaller, faster head",
        _trim_options,
        _trim,
        TRIM_EPILOG,
    ),
}
