"""Where ``calibrate`` has its verify cycles from: the plain models, or a server's traces."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from sgl_entropy.cli.devices import checked_device
from sgl_entropy.cli.served import Served
from sgl_entropy.evaluate.easd_decode import decode
from sgl_entropy.evaluate.report import load_pair
from sgl_entropy.verify.rule import EasdRule
from sgl_entropy.verify.trace import CycleRecord

# a prompt's token ids -> its cycles
Measure = Callable[[list[int]], list[CycleRecord]]


@dataclass(frozen=True)
class Source:
    """Two models and a way to decode by them, greedily and with ordinary verification.

    Attributes:
        target, drafter: their folders.
        top_n: N of the overlaps.
        depth: of a chain.
        arithmetic: what computes, and in which numbers: other arithmetic, other entropies.
    """

    target: Path
    drafter: Path
    top_n: int
    depth: int
    arithmetic: str
    measure: Measure


def offline(args: argparse.Namespace) -> Source:
    """The plain models. Raises DrafterError where they do not fit or are not read here."""
    top_n = EasdRule.top_n if args.top_n is None else args.top_n
    device = checked_device(args.device)
    target, drafter, layers = load_pair(
        args.target, args.drafter, getattr(torch, args.dtype), device
    )
    if top_n > drafter.config.draft_vocab_size:
        raise ValueError(
            f"--top-n {top_n}: the drafter knows {drafter.config.draft_vocab_size} tokens"
        )

    def measure(prompt: list[int]) -> list[CycleRecord]:
        sizes = (args.depth, args.max_new_tokens)
        (answer,) = decode(target, drafter, [prompt], [None], *sizes, layers, top_n)
        return answer.cycles

    arithmetic = f"{args.dtype} on {torch.device(device).type}"
    return Source(args.target, args.drafter, top_n, args.depth, arithmetic, measure)


def on_server(args: argparse.Namespace) -> Source:
    """A server's traces, a prompt at a time; what was not given is what it says of itself.

    Raises:
        ValueError: not there, or it serves nothing that can be calibrated; says what to do.
    """
    served = Served.at(args.server)
    where, info = served.where, served.info
    if served.untraced:
        raise ValueError(served.untraced)
    rule = info.get("easd") or {}
    for flag, there in (
        ("--easd-normalised", rule.get("normalised")),
        ("--easd-relaxed-below", info.get("easd_relaxed_below")),
        ("--speculative-draft-stop", info.get("draft_stop")),
    ):
        if there:
            raise ValueError(f"{where}: start it without {flag} to calibrate")
    top_n = rule.get("top_n", EasdRule.top_n)
    if args.top_n not in (None, top_n):
        raise ValueError(f"--top-n {args.top_n}: the server compares {top_n} (its --easd-top-n)")
    target, drafter = (
        _folder(where, flag, getattr(args, flag), info.get(key))
        for flag, key in (("target", "model_path"), ("drafter", "speculative_draft_model_path"))
    )

    def measure(prompt: list[int]) -> list[CycleRecord]:
        return served.cycles(served.ask(prompt, args.max_new_tokens, traced=True))

    return Source(target, drafter, top_n, served.depth, "a server's", measure)


def _folder(where: str, flag: str, given: Path | None, served: object) -> Path:
    """The model's folder on this machine: for its tokenizer and its identity."""
    folder = Path(str(served)) if given is None else given
    if not folder.is_dir():
        raise ValueError(
            f"{where} serves {served}; {folder} is no folder here: name a copy of it with --{flag}"
        )
    return folder
