"""``sgl-entropy drafter eval``: tau and acceptance, offline or from a running server."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_entropy.base.disk import file_sha256
from sgl_entropy.base.plots import require_plots
from sgl_entropy.base.texts import text_files
from sgl_entropy.base.typed_json import as_json
from sgl_entropy.cli.devices import add_device, checked_device
from sgl_entropy.cli.inputs import input_file
from sgl_entropy.cli.output import say, write_json
from sgl_entropy.cli.prompt_groups import add_texts, read_groups

if TYPE_CHECKING:
    from sgl_entropy.cli.drafter_eval_server import ServedDrafter
    from sgl_entropy.evaluate.report import (
        DrafterEvalSettings,
        DrafterReport,
        EvalSubject,
        JudgedPrompt,
    )

EPILOG = """examples:
  sgl-entropy drafter eval DRAFTER --target TARGET --texts mt_bench.jsonl gsm8k.jsonl
  sgl-entropy drafter eval DRAFTER --target TARGET --texts FOLDER --depth 6 --plot acceptance.png
  sgl-entropy drafter eval OTHER --target TARGET --texts FOLDER --against first.json
  sgl-entropy drafter eval DRAFTER --target TARGET --texts FOLDER --server http://HOST:PORT

Decoding is greedy with ordinary verification. The deciles and the plot show the first draft of
each cycle. A server reports entropies if it was started with --speculative-verify-mode easd, which
these requests turn off; any other patched server reports everything else."""

# Options of measurements in plain torch alone, with their defaults: a server has its own.
OFFLINE = {"depth": 4, "dtype": "float32", "threads": 1}


def options(parser: argparse.ArgumentParser) -> None:
    """Options of ``drafter eval``."""
    parser.add_argument("drafter", type=Path, help="the drafter's folder")
    parser.add_argument(
        "--target", type=Path, required=True, help="the target's folder (its tokenizer, too)"
    )
    add_texts(parser, "prompts, a group a file")
    parser.add_argument(
        "--against",
        type=input_file("--against", "a report of `sgl-entropy drafter eval --json`"),
        metavar="FILE.json",
        help="another drafter's report on the same prompts: compare both taus, prompt by prompt",
    )
    parser.add_argument(
        "--server", metavar="URL", help="ask this server, which drafts, instead of plain torch"
    )
    add_sizes(parser, max_prompt_tokens=2048)
    add_device(parser, "target and drafter compute, offline", dtype=None)
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw acceptance against uncertainty",
    )


def add_sizes(parser: argparse.ArgumentParser, max_prompt_tokens: int) -> None:
    """Options of every measurement on texts; ``check_sizes`` checks them."""
    parser.add_argument("--depth", type=int, help="tokens of a chain, offline (default: 4)")
    parser.add_argument(
        "--max-prompts",
        type=int,
        default=20,
        metavar="N",
        help="prompts of each file (default: 20)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=96,
        metavar="N",
        help="tokens of an answer (default: 96)",
    )
    parser.add_argument(
        "--max-prompt-tokens",
        type=int,
        default=max_prompt_tokens,
        metavar="N",
        help=f"leave out longer prompts (default: {max_prompt_tokens})",
    )
    parser.add_argument("--threads", type=int, help="torch threads, offline (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="write JSON to FILE; - for stdout alone")


def check_sizes(args: argparse.Namespace) -> None:
    """Check the sizes, and fill in the defaults of ``OFFLINE`` where no server is asked.

    Raises:
        ValueError: a number is below 1, or an offline option was given with --server.
    """
    server = getattr(args, "server", None)
    for name in ("device", *OFFLINE):
        if server and getattr(args, name) is not None:
            raise ValueError(f"--{name} is for offline measurements: leave out --server, or it")
    for name, usual in OFFLINE.items():
        if not server and getattr(args, name) is None:
            setattr(args, name, usual)
    for name in ("depth", "max_prompts", "max_new_tokens", "max_prompt_tokens", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, found {value}")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print a table, write what was asked for."""
    check_sizes(args)
    if args.plot is not None:
        require_plots(args.plot)
    groups = read_groups(args.texts, args.max_prompts)

    import torch

    from sgl_entropy.evaluate.offline import chat_prompts

    torch.set_num_threads(args.threads or 1)
    served = _served(args) if args.server else None
    prompts = chat_prompts(args.target, groups, args.max_prompt_tokens)
    report, interruption = _measured(args, served, prompts)
    if args.plot is not None:
        from sgl_entropy.evaluate.plot import draw_acceptance

        draw_acceptance(report, args.plot)
    if not write_json(as_json(report), args.json):
        print(report.table())
    if served is not None:
        served.warn()
    if interruption is not None:
        raise interruption
    return 0


def _measured(
    args: argparse.Namespace,
    served: ServedDrafter | None,
    prompts: Mapping[str, list[list[int]]],
) -> tuple[DrafterReport, BaseException | None]:
    """The report, and what interrupted the measurement, if something did."""
    from dataclasses import replace

    from sgl_entropy.evaluate.offline import judged
    from sgl_entropy.evaluate.paired import paired_ratio, read_earlier
    from sgl_entropy.evaluate.report import (
        AcceptanceReport,
        AgainstEarlier,
        DrafterReport,
        JudgedPart,
    )

    subject = _subject(args, served)
    earlier = None if args.against is None else read_earlier(args.against, subject)
    if served is not None:
        asked = served.judged(prompts, args.max_new_tokens)
    else:
        import torch

        dtype, device = getattr(torch, args.dtype), checked_device(args.device)
        sizes = (args.depth, args.max_new_tokens)
        asked = judged(args.target, args.drafter, prompts, *sizes, dtype, say, device)
    judgements, interruption = _until_interrupted(asked)
    entropies = served is None or served.untraced is None
    acceptance = AcceptanceReport.of(judgements, entropies)
    partial = against = None
    if interruption is not None:
        partial = JudgedPart(len(judgements), sum(map(len, prompts.values())))
    elif earlier is not None:
        ratio = paired_ratio(acceptance.per_prompt, earlier.acceptance.per_prompt)
        against = AgainstEarlier(earlier.subject.drafter, ratio)
    # What a server has verified is known only now.
    subject = replace(subject, settings=_settings(args, served))
    return DrafterReport(subject, acceptance, partial, against), interruption


def _until_interrupted(
    asked: Iterable[JudgedPrompt],
) -> tuple[list[JudgedPrompt], BaseException | None]:
    """The judged prompts and what ended them early, if something did; that is raised where no
    cycle was counted before."""
    import torch

    judgements: list[JudgedPrompt] = []
    interruption: BaseException
    try:
        for one in asked:
            judgements.append(one)
        return judgements, None
    except KeyboardInterrupt as error:
        interruption = error
    except torch.OutOfMemoryError as error:
        interruption = ValueError(
            f"{str(error).splitlines()[0]} Leave it more room (--dtype bfloat16, a smaller "
            "--max-prompt-tokens), or use --device cpu"
        )
    if not any(one.figures.cycles for one in judgements):
        raise interruption
    return judgements, interruption


def _served(args: argparse.Namespace) -> ServedDrafter:
    """
    Raises:
        ValueError: a server that cannot be asked, or not for ``--plot``.
    """
    from sgl_entropy.cli.drafter_eval_server import ServedDrafter

    served = ServedDrafter(args.server, args.drafter, args.target, say)
    if served.untraced and args.plot is not None:
        raise ValueError(f"--plot needs the entropies: {served.untraced}")
    if served.untraced:
        say(f"without entropies: {served.untraced}")
    return served


def _subject(args: argparse.Namespace, served: ServedDrafter | None) -> EvalSubject:
    from sgl_entropy.evaluate.report import EvalSubject, TextFile

    texts = {file.stem: TextFile(file.name, file_sha256(file)) for file in text_files(args.texts)}
    return EvalSubject(
        str(args.drafter),
        str(args.target),
        args.server or "offline",
        _settings(args, served),
        texts,
        _provenance(args, served),
    )


def _settings(args: argparse.Namespace, served: ServedDrafter | None) -> DrafterEvalSettings:
    from sgl_entropy.evaluate.report import DrafterEvalSettings

    if served is not None:
        return served.settings(args.max_new_tokens, args.max_prompts, args.max_prompt_tokens)
    return DrafterEvalSettings(
        depth=args.depth,
        dtype=args.dtype,
        device=checked_device(args.device),
        max_new_tokens=args.max_new_tokens,
        max_prompts=args.max_prompts,
        max_prompt_tokens=args.max_prompt_tokens,
    )


def _provenance(args: argparse.Namespace, served: ServedDrafter | None) -> dict[str, Any]:
    from sgl_entropy.base.provenance import provenance

    if served is None:
        return provenance(args.threads, {"target": args.target, "drafter": args.drafter})
    # The server's threads are its own; its drafter was compared with this one.
    here = next(args.drafter.glob("*.safetensors"), None) is not None
    facts = provenance(0, {"drafter": args.drafter} if here else None)
    return {key: value for key, value in facts.items() if key != "threads"}
