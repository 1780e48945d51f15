"""``sgl-entropy policy``: record what a server knew at every cycle, and replay policies over it."""

from __future__ import annotations

import argparse
import functools
import textwrap
from collections.abc import Mapping
from typing import Any

from sgl_entropy.base.tables import text_table
from sgl_entropy.cli import policy_record
from sgl_entropy.cli.actions import Action, add_actions, run_action
from sgl_entropy.cli.inputs import input_file
from sgl_entropy.cli.output import write_json

EPILOG = """examples:
  sgl-entropy policy record --server http://HOST:PORT --texts gsm8k.jsonl --out trace.jsonl
  sgl-entropy policy replay trace.jsonl
  sgl-entropy policy replay trace.jsonl --policy svip --policy svip:factor=0.15,limit=0.5 \\
      --draft-cost 0.08 --row-cost 0.02
  sgl-entropy policy replay trace.jsonl --policy easd:target_entropy=1.5,draft_entropy=1.5"""


REPLAY_EXAMPLES = """examples:
  sgl-entropy policy replay trace.jsonl
  sgl-entropy policy replay trace.jsonl --policy svip --policy svip:factor=0.15,limit=0.5
  sgl-entropy policy replay trace.jsonl --policy switch:down=0.5,up=2 --json switch.json
  sgl-entropy policy replay trace.jsonl --policy off --draft-cost 0.08 --row-cost 0.02"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``policy``."""
    parser.epilog = EPILOG
    add_actions(parser, ACTIONS)


def _replay_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "trace",
        type=input_file("TRACE", "a trace, as `sgl-entropy policy record` writes it"),
        metavar="TRACE",
        help="as `policy record` writes it",
    )
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="NAME:KEY=VALUE,...",
        help="may be repeated (default: the policies that the trace was recorded under)",
    )
    for name, help_line in (
        ("draft", "time of a draft step, in plain decode steps; with it, speeds are compared"),
        ("row", "time of each drafted token in a verification (default: 0)"),
        ("cycle", "time of a cycle without drafted tokens (default: 1)"),
    ):
        parser.add_argument(f"--{name}-cost", type=float, metavar="STEPS", help=help_line)
    parser.add_argument("--json", metavar="FILE", help="write JSON to FILE; - for stdout alone")
    parser.format_help = functools.partial(_replay_help, parser)  # type: ignore[method-assign]


def _replay_help(parser: argparse.ArgumentParser) -> str:
    # The policies bring torch along: not before they are listed.
    from sgl_entropy.verify.replay.run import POLICIES

    width = max(map(len, POLICIES))
    listed = [f"  {name:<{width}}  {policy.help}" for name, policy in POLICIES.items()]
    parser.epilog = "\n".join([REPLAY_EXAMPLES, "", "policies:", *listed])
    return argparse.ArgumentParser.format_help(parser)


def run(args: argparse.Namespace) -> int:
    """Run the action."""
    return run_action(args)


def _replay(args: argparse.Namespace) -> int:
    from sgl_entropy.verify.replay.ledger import ReplayCosts
    from sgl_entropy.verify.replay.run import replay

    costs = None
    if args.draft_cost is not None:
        given = {"row": args.row_cost, "cycle": args.cycle_cost}
        costs = ReplayCosts(args.draft_cost, **{k: v for k, v in given.items() if v is not None})
    elif args.row_cost is not None or args.cycle_cost is not None:
        raise ValueError("--row-cost and --cycle-cost need --draft-cost")
    replayed = replay(args.trace, args.policy, costs).to_dict()
    policies = replayed["policies"]
    if not write_json(replayed, args.json):
        print("\n\n".join(_page(word, figures) for word, figures in policies.items()))
    return 1 if any(figures["agrees"] is False for figures in policies.values()) else 0


def _page(word: str, figures: Mapping[str, Any]) -> str:
    """One policy's figures for people."""
    agrees = {
        None: "it was recorded under another policy",
        True: "it agrees: the recorded counts are this policy's",
        False: f"IT DISAGREES: {figures['disagreement']}",
    }[figures["agrees"]]
    plain, pairs, tables = [], [], []
    for name, value in figures.items():
        label = name.replace("_", " ")
        if name in ("agrees", "disagreement", "notes", "interval"):
            continue
        if isinstance(value, Mapping):
            pairs.append((label, *map(_cell, value.values())))
        elif isinstance(value, list):
            header = [key.replace("_", " ") for key in value[0]]
            cells = [[_cell(cell) for cell in row.values()] for row in value]
            tables.append(f"{label}\n{text_table(header, cells)}")
        else:
            ends = figures["interval"] if name == "speed_ratio" else None
            more = f" ({ends[0]:g} to {ends[1]:g})" if ends else ""
            plain.append(f"{label}: {_cell(value)}{more}")
    if pairs:
        tables.insert(0, text_table(("", "recorded", "under the policy"), pairs))
    notes = [f"note: {note}" for note in figures["notes"]]
    lines = "\n".join([f"the record: {agrees}", *plain, *tables, *notes])
    return word + "\n" + textwrap.indent(lines, "  ")


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


ACTIONS = {
    "record": Action(
        "ask a running server for traces",
        policy_record.options,
        policy_record.run,
        policy_record.EPILOG,
    ),
    "replay": Action(
        "compute what policies would have saved or changed; exit code 1 if a record disagrees "
        "with the policy that it was made under",
        _replay_options,
        _replay,
        REPLAY_EXAMPLES,
    ),
}
