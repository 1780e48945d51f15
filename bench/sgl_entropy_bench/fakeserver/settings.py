"""The command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

from sgl_entropy_bench.fakeserver.laws import RandomLaw

FAULTS = ("status", "refuse", "stall", "drop", "broken-sse", "no-done", "no-usage", "abort")

EXAMPLE = """\
example: two ranks of 32 places, 20 ms a cycle, 60% of each position accepted, every tenth
request broken off in the middle:

  python -m sgl_entropy_bench.fakeserver --port 30000 --ranks 2 --slots 32 \\
      --ttft gamma:0.05:0.5 --cycle 0.02 --acceptance 0.6 --fault drop --fault-every 10

LAW is a number or constant:MEAN, exponential:MEAN or gamma:MEAN:COEFFICIENT_OF_VARIATION.
Standard output gets one line, `listening on http://127.0.0.1:PORT`, when it can be asked.
"""


class FakeServerOptions(argparse.Namespace):
    """The flags as read. Laws of time and ``start_delay`` are in seconds."""

    port: int
    slots: int
    ranks: int
    ttft: RandomLaw
    cycle: RandomLaw
    slowdown: float
    acceptance: float
    depth: int
    output_tokens: RandomLaw
    seed: int
    no_cache: bool
    easd: float | None
    wrong_every: int
    fault: str | None
    fault_every: int
    start_delay: float
    owned: bool


def parse_options(words: Sequence[str] | None = None) -> FakeServerOptions:
    """Read the command line; argparse ends the process with status 2 on a bad one."""
    parser = argparse.ArgumentParser(
        prog="python -m sgl_entropy_bench.fakeserver",
        description="A fake SGLang that load testers are tested against; no model runs in it.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    count, share, seconds = _number(int, 1), _number(float, 0, 1), _number(float, 0)
    add("--port", type=_number(int, 0, 65535), default=0, help="0 (default): a free one")
    add("--slots", metavar="S", type=count, default=64, help="places of a rank (64)")
    add("--ranks", metavar="R", type=count, default=1, help="data-parallel ranks (1)")
    law = RandomLaw.parse
    add(
        "--ttft",
        metavar="LAW",
        type=law,
        default=law("0.05"),
        help="s to a first token (0.05)",
    )
    add("--cycle", metavar="LAW", type=law, default=law("0.02"), help="s of a cycle (0.02)")
    add(
        "--slowdown",
        metavar="A",
        type=seconds,
        default=0.0,
        help="a cycle takes 1 + A * (running - 1) times as long (0)",
    )
    add("--acceptance", metavar="P", type=share, default=0.6, help="of each position (0.6)")
    add("--depth", metavar="D", type=_number(int, 0), default=4, help="0: no speculation (4)")
    add(
        "--output-tokens",
        metavar="LAW",
        type=law,
        default=law("64"),
        help="tokens of an answer without ignore_eos (64)",
    )
    add("--seed", metavar="N", type=int, default=0, help="of all that is drawn (0)")
    add("--no-cache", action="store_true", help="cached_tokens is always 0")
    add("--easd", metavar="RATE", type=share, help="EASD fires in this share of the cycles")
    add(
        "--wrong-every",
        metavar="N",
        type=_number(int, 0),
        default=0,
        help="change a token in every Nth request (0: in none)",
    )
    add("--fault", choices=FAULTS, help="break in this way")
    add("--fault-every", metavar="N", type=count, default=1, help="in every Nth request (1)")
    add("--start-delay", metavar="S", type=seconds, default=0.0, help="s until healthy (0)")
    add("--owned", action="store_true", help="end when standard input, a pipe, is closed")
    options = parser.parse_args(words, namespace=FakeServerOptions())
    if options.easd is not None and not options.depth:
        parser.error("argument --easd: needs a --depth of at least 1")
    return options


def _number(
    kind: type[int] | type[float], low: float, high: float = math.inf
) -> Callable[[str], float]:
    """A reader of finite numbers from ``low`` to ``high``."""
    noun = "a whole number" if kind is int else "a number"
    bounds = f"of at least {low}" if high == math.inf else f"from {low} to {high}"

    def read(word: str) -> float:
        try:
            value = kind(word)
        except ValueError:
            value = math.nan
        if not low <= value <= high or math.isinf(value):
            raise argparse.ArgumentTypeError(f"expected {noun} {bounds}, found {word!r}")
        return value

    return read
