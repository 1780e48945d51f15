"""``sgl-entropy policy``: record what a server knew at every cycle, and replay policies over it."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sgl_entropy.base.tables import text_table
from sgl_entropy.cli import policy_record
from sgl_entropy.cli.output import write_json

EPILOG = """examples:
  sgl-entropy policy record --server http://HOST:PORT --texts gsm8k.jsonl --out trace.jsonl
  sgl-entropy policy replay trace.jsonl
  sgl-entropy policy replay trace.jsonl --policy svip --policy svip:factor=0.15,limit=0.5 \\
      --draft-cost 0.08 --row-cost 0.02
  sgl-entropy policy replay trace.jsonl --policy easd:target_entropy=1.5,draft_entropy=1.5"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    record = actions.add_parser("record", help="ask a running server for traces")
    policy_record.configure(record)
    record.set_defaults(action_function=policy_record.run)

    again = actions.add_parser(
        "replay",
        help="what policies would have saved or changed; exit code 1 if a record disagrees with "
        "the policy that it was made under",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_policies(),
    )
    again.add_argument("trace", type=Path, metavar="TRACE", help="as `policy record` writes it")
    again.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="NAME:KEY=VALUE,...",
        help="may be repeated (default: the policies that the trace was recorded under)",
    )
    for name, help_line in (
        ("draft", "time of a draft step, in plain decode steps; with it, speeds are compared"),
        ("row", "of each drafted token in a verification (default: 0)"),
        ("cycle", "of a cycle without drafted tokens (default: 1)"),
    ):
        again.add_argument(f"--{name}-cost", type=float, metavar="STEPS", help=help_line)
    again.add_argument("--json", metavar="FILE", help="write JSON to FILE; - for stdout alone")
    again.set_defaults(action_function=_replay)


def _policies() -> str:
    # Brings torch along, so only once this verb is asked for.
    from sgl_entropy.verify.replay.run import POLICIES

    width = max(map(len, POLICIES))
    return "policies:\n" + "\n".join(
        f"  {name:<{width}}  {policy.help}" for name, policy in POLICIES.items()
    )


def run(args: argparse.Namespace) -> int:
    action: Callable[[argparse.Namespace], int] = args.action_function
    return action(args)


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
