"""Where ``calibrate`` gets its verify cycles: the plain models, or a server's traces."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from sgl_entropy.cli.devices import checked_device
from sgl_entropy.cli.running_server import Asking, RunningServer
from sgl_entropy.evaluate.calibrating import CycleSource
from sgl_entropy.evaluate.easd_decode import decode
from sgl_entropy.evaluate.offline import load_pair
from sgl_entropy.verify.rule import EasdRule
from sgl_entropy.verify.trace import CycleRecord


def offline(args: argparse.Namespace) -> CycleSource:
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

    def measure(prompt: Sequence[int], number: int) -> Sequence[CycleRecord]:
        sizes = (args.depth, args.max_new_tokens)
        try:
            (answer,) = decode(target, drafter, [prompt], [None], *sizes, layers, top_n)
        except ValueError as error:
            raise ValueError(f"{error} (prompt {number + 1})") from None
        return answer.cycles

    return CycleSource(
        args.target,
        args.drafter,
        top_n,
        args.depth,
        args.max_new_tokens,
        args.dtype,
        f"{args.dtype} on {torch.device(device).type}",
        measure,
    )


def on_server(args: argparse.Namespace) -> CycleSource:
    """A server's traces, a prompt at a time; what was not given is what it says of itself.

    Raises:
        ValueError: not there, or it serves nothing that can be calibrated; says what to do.
    """
    server = RunningServer.at(args.server)
    where, info = server.where, server.info
    if server.untraced:
        raise ValueError(server.untraced)
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
    asking = Asking(args.max_new_tokens)

    def measure(prompt: Sequence[int], number: int) -> Sequence[CycleRecord]:
        ((_, answer),) = server.answers({f"prompt {number + 1}": prompt}, asking)
        return answer.cycles

    return CycleSource(
        target, drafter, top_n, server.depth, args.max_new_tokens, None, "a server's", measure
    )


def _folder(where: str, flag: str, given: Path | None, served: object) -> Path:
    """The model's folder on this machine: for its tokenizer and its identity."""
    folder = Path(str(served)) if given is None else given
    if not folder.is_dir():
        raise ValueError(
            f"{where} serves {served}; {folder} is no folder here: name a copy of it with --{flag}"
        )
    return folder
