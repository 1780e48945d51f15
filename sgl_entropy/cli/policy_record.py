"""``sgl-entropy policy record``: what a server knew at every verify cycle, into a trace file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_entropy.cli.prompt_groups import add_texts, read_groups
from sgl_entropy.verify.rule import EasdRule
from sgl_entropy.verify.trace import RequestTrace, TraceHeader
from sgl_entropy.verify.trace_file import TraceWriter

if TYPE_CHECKING:
    from sgl_entropy.cli.running_server import TracedAnswer

EPILOG = """examples:
  sgl-entropy policy record --server http://HOST:PORT --texts gsm8k.jsonl --out trace.jsonl
  sgl-entropy policy record --server http://HOST:PORT --texts FOLDER --out trace.jsonl \\
      --max-prompts 80 --concurrency 8 --temperature 0.7
  sgl-entropy policy record --server http://HOST:PORT --texts FOLDER --out trace.jsonl --resume

Start the server with --speculative-verify-mode easd and --speculative-eagle-topk 1."""

_NUMBERS = {
    "max_prompts": (20, "prompts of each file"),
    "max_new_tokens": (256, "tokens of an answer"),
    "max_prompt_tokens": (2048, "leave out longer prompts"),
    "concurrency": (1, "requests at a time"),
}


def options(parser: argparse.ArgumentParser) -> None:
    """Options of ``policy record``."""
    parser.add_argument(
        "--server",
        required=True,
        metavar="URL",
        help="a server that drafts chains in an entropy mode",
    )
    add_texts(parser, "prompts, a group a file")
    parser.add_argument("--out", type=Path, required=True, metavar="TRACE", help="a new file")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted TRACE")
    for name, (default, what) in _NUMBERS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            default=default,
            metavar="N",
            help=f"{what} (default: {default})",
        )
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default: 0")
    parser.add_argument(
        "--exact", action="store_true", help="turn the server's EASD off in every request"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="its chat template holds the prompts (default: the server's tokenizer)",
    )
    parser.add_argument(
        "--pruned",
        action=argparse.BooleanOptionalAction,
        help="whether the server verifies fewer tokens than it drafts (default: yes on the CPU "
        "engine; of single requests it verifies all, and --no-pruned lets replays check that)",
    )


def run(args: argparse.Namespace) -> int:
    """Ask, write, tell how many."""
    for name in _NUMBERS:
        if getattr(args, name) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} must be at least 1, found {getattr(args, name)}")
    if not 0 <= args.temperature < float("inf"):
        raise ValueError(f"--temperature must be a number from 0, found {args.temperature}")
    groups = read_groups(args.texts, args.max_prompts)

    from sgl_entropy.base.progress import counter
    from sgl_entropy.cli.running_server import Asking, RunningServer
    from sgl_entropy.evaluate.offline import chat_prompts

    server = RunningServer.at(args.server)
    try:
        header = header_of(server.info, args.temperature, args.exact, args.pruned)
    except ValueError as error:
        raise ValueError(f"{server.where}: {error}") from None
    tokenizer = args.tokenizer or server.info.get("tokenizer_path") or header.target
    if tokenizer is None:
        raise ValueError(f"{server.where} names no tokenizer: give --tokenizer DIR")
    prompts = chat_prompts(Path(tokenizer), groups, args.max_prompt_tokens)
    group_of = {
        f"{group}-{at}": group for group, some in prompts.items() for at in range(len(some))
    }
    ids = dict(zip(group_of, (one for some in prompts.values() for one in some), strict=True))
    asking = Asking(
        args.max_new_tokens,
        easd=not args.exact,
        temperature=args.temperature,
        concurrency=args.concurrency,
    )
    told = counter("requests")
    with TraceWriter(args.out, header, append=args.resume) as trace:
        left = {rid: one for rid, one in ids.items() if rid not in trace.rids}
        try:
            for done, (rid, answer) in enumerate(server.answers(left, asking), 1):
                try:
                    trace.add(request_of(answer, rid, group_of[rid], header))
                except ValueError as error:
                    raise ValueError(f"{server.where}, {rid}: {error}") from None
                told(done, len(left))
        except ValueError:
            print(f"{args.out} keeps what it has: continue with --resume", file=sys.stderr)
            raise
    print(f"{args.out}: {len(trace.rids)} requests, {len(left)} of them new")
    return 0


def header_of(
    info: Mapping[str, Any], temperature: float, exact: bool = False, pruned: bool | None = None
) -> TraceHeader:
    """The header of a server's traces, from ``/get_server_info``.

    Args:
        exact: every request turns EASD off.
        pruned: None = on the CPU engine.

    Raises:
        ValueError: the server drafts no chains, or says what is not understood.
    """
    if not info.get("speculative_draft_model_path"):
        raise ValueError("it serves no drafter")
    topk, tokens = info.get("speculative_eagle_topk"), info.get("speculative_num_draft_tokens")
    if topk not in (None, 1):
        raise ValueError(
            f"it drafts trees of {topk} branches; traces are of chains (--speculative-eagle-topk 1)"
        )
    if type(tokens) is not int or tokens < 2:
        raise ValueError(f"speculative_num_draft_tokens is {tokens!r}, expected at least 2")
    easd = info.get("easd")
    if not isinstance(easd, (Mapping, type(None))):
        raise ValueError(f"`easd` is {easd!r}, expected a rule or null")
    rule = None if easd is None else EasdRule.from_dict(easd)
    # The policy with its settings where the server tells them, else the flag.
    stop = _stop(info.get("draft_stop") or info.get("speculative_draft_stop"))
    return TraceHeader(
        target=info.get("model_path"),
        drafter=info["speculative_draft_model_path"],
        draft_tokens=tokens - 1,
        top_n=(rule or EasdRule()).top_n,
        rule=None if exact else rule,
        draft_stop=stop,
        temperature=temperature,
        pruned=info.get("device") == "cpu" if pruned is None else pruned,
        relaxed_below=0.0 if exact else float(info.get("easd_relaxed_below") or 0.0),
    )


def _stop(given: Any) -> dict[str, Any] | None:
    """From an object with ``name``, or from ``name:key=value,...``; off and null are None."""
    if isinstance(given, str):
        from sgl_entropy.verify.replay.policy import ReplayOptions

        options = ReplayOptions.parse(given)
        given = {"name": options.name, **options.given}
    if given is None or (isinstance(given, Mapping) and given.get("name") == "off"):
        return None
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise ValueError(f"the draft stop is {given!r}, expected a name or an object")
    return dict(given)


def request_of(
    answer: TracedAnswer, rid: str, benchmark: str | None, header: TraceHeader
) -> RequestTrace:
    """A request's trace from its answer.

    Raises:
        ValueError: the server's own counters say otherwise, or the cycles are no request's.
    """
    cycles, counts = answer.cycles, answer.counts
    traced = {
        "own_cycles": len(cycles),
        "drafted": sum(cycle.verified for cycle in cycles),
        "emitted": sum(cycle.emitted for cycle in cycles),
        "accepted": tuple(
            sum(cycle.accepted > at for cycle in cycles) for at in range(header.draft_tokens)
        ),
        "easd_checks": sum(cycle.checked for cycle in cycles),
        "easd_fires": sum(cycle.fired is not None for cycle in cycles),
    }
    for name, value in traced.items():
        counted = getattr(counts, name)
        if cycles and counted not in (None, value):
            raise ValueError(
                f"its counters and its trace disagree: {name} is {counted}, the trace has {value}"
            )
    return RequestTrace(rid, benchmark, cycles)
