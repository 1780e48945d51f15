"""The actions of a verb, such as ``drafter check``: each with its options and examples."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Action:
    """One action of a verb.

    Attributes:
        help: what it does, without a capital and a full stop.
        options: adds its options.
        run: does it; returns the exit code.
        epilog: examples, printed below its options as they are.
    """

    help: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    epilog: str


def add_actions(parser: argparse.ArgumentParser, actions: Mapping[str, Action]) -> None:
    """Give a verb its actions by name; ``run_action`` runs the one that was chosen."""
    added = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, action in actions.items():
        own = added.add_parser(
            name,
            help=action.help,
            description=action.help[0].upper() + action.help[1:] + ".",
            epilog=action.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        action.options(own)
        own.set_defaults(run_action=action.run)


def run_action(args: argparse.Namespace) -> int:
    """Run the chosen action; returns its exit code."""
    run: Callable[[argparse.Namespace], int] = args.run_action
    return run(args)
