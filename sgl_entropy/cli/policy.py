"""``sgl-entropy policy``: record what a server knew at every cycle, and replay policies over it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
        help="may be given often (default: the policies that the trace was recorded under)",
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
    from sgl_entropy.verify.replay.ledger import Costs
    from sgl_entropy.verify.replay.run import replay

    costs = None
    if args.draft_cost is not None:
        given = {"row": args.row_cost, "cycle": args.cycle_cost}
        costs = Costs(args.draft_cost, **{k: v for k, v in given.items() if v is not None})
    elif args.row_cost is not None or args.cycle_cost is not None:
        raise ValueError("--row-cost and --cycle-cost need --draft-cost")
    found = replay(args.trace, args.policy, costs)
    if costs is not None:
        found["costs"] = {"draft": costs.draft, "row": costs.row, "cycle": costs.cycle}
    if not write_json(found, args.json):
        print("\n\n".join(_page(word, held) for word, held in found["policies"].items()))
    return 1 if any(held["agrees"] is False for held in found["policies"].values()) else 0


def _page(word: str, held: Mapping[str, Any]) -> str:
    """One policy's figures for people."""
    agrees = {
        None: "it was recorded under another policy",
        True: "it agrees: the recorded counts are this policy's",
        False: f"IT DISAGREES: {held['disagreement']}",
    }[held["agrees"]]
    lines = [word, f"  the record: {agrees}"]
    plain: list[Sequence[str]] = []
    pairs: list[Sequence[str]] = [("", "recorded", "under the policy")]
    tables: list[str] = []
    for name, value in held.items():
        label = name.replace("_", " ")
        if name in ("agrees", "disagreement", "notes", "interval"):
            continue
        if isinstance(value, Mapping):
            pairs.append((label, *map(_cell, value.values())))
        elif isinstance(value, list):
            rows = [[key.replace("_", " ") for key in value[0]]] if value else []
            rows += [[_cell(cell) for cell in row.values()] for row in value]
            tables += [f"  {label}", *_aligned(rows, "    ")]
        else:
            more = ""
            if name == "speed_ratio" and held["interval"]:
                more = f" ({held['interval'][0]:g} to {held['interval'][1]:g})"
            plain.append((label, _cell(value) + more))
    lines += _aligned(plain, "  ")
    if len(pairs) > 1:
        lines += _aligned(pairs, "  ")
    lines += tables + [f"  note: {note}" for note in held["notes"]]
    return "\n".join(lines)


def _aligned(rows: Sequence[Sequence[str]], indent: str) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        indent + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
