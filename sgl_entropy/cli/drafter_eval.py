"""``sgl-entropy drafter eval``: tau and acceptance, offline or from a running server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_entropy.base.disk import file_sha256
from sgl_entropy.base.plots import require_plots
from sgl_entropy.base.texts import read_texts, text_files
from sgl_entropy.cli.devices import add_device, checked_device
from sgl_entropy.cli.output import write_json

if TYPE_CHECKING:
    from sgl_entropy.cli.drafter_eval_server import ServedDrafter
    from sgl_entropy.evaluate.report import Counted
    from sgl_entropy.evaluate.uncertainty import FirstDrafts

EPILOG = """examples:
  sgl-entropy drafter eval DRAFTER --target TARGET --texts mt_bench.jsonl gsm8k.jsonl
  sgl-entropy drafter eval DRAFTER --target TARGET --texts FOLDER --depth 6 --plot acceptance.png
  sgl-entropy drafter eval OTHER --target TARGET --texts FOLDER --against first.json
  sgl-entropy drafter eval DRAFTER --target TARGET --texts FOLDER --server http://HOST:PORT

Greedy, by ordinary verification. The deciles and the plot are of the first draft of each cycle. A
server tells its entropies if it was started with --speculative-verify-mode easd, which is off for
these requests; any other that was patched tells the rest."""

# What only a measurement in plain torch takes: a server has its own.
OFFLINE = {"depth": 4, "dtype": "float32", "threads": 1}


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``drafter eval``."""
    parser.epilog = EPILOG
    parser.add_argument("drafter", type=Path, help="the drafter's folder")
    parser.add_argument(
        "--target", type=Path, required=True, help="the target's folder (its tokenizer, too)"
    )
    parser.add_argument(
        "--texts",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="prompts, a group a file: JSON Lines with turns, conversations, question or text, "
        "or plain lines; a folder stands for its files",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE.json",
        help="another drafter's report of the same prompts: the ratio of both taus, paired",
    )
    parser.add_argument("--server", metavar="URL", help="ask this server instead, which drafts")
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
    parser.add_argument("--depth", type=int, help="of the chain, offline (default: 4)")
    parser.add_argument(
        "--max-prompts", type=int, default=20, metavar="N", help="of each file (default: 20)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=96, metavar="N", help="of an answer (default: 96)"
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
    """Also fills in what was not given of ``OFFLINE``, where no server is asked.

    Raises:
        ValueError: a number below 1, or beside a server what is of offline measurements.
    """
    server = getattr(args, "server", None)
    for name in ("device", *OFFLINE):
        if server and getattr(args, name) is not None:
            raise ValueError(f"--{name} is of offline measurements: leave out --server, or it")
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
    files = text_files(args.texts)
    groups = {f.stem: [text.prompt for text in read_texts(f, args.max_prompts)] for f in files}
    if len(groups) < len(files):
        raise ValueError("two of the files have the same name: rename one, names are the groups")

    import torch

    from sgl_entropy.evaluate.paired import paired_ratio, read_earlier
    from sgl_entropy.evaluate.report import chat_prompts, report
    from sgl_entropy.evaluate.uncertainty import FirstDrafts

    torch.set_num_threads(args.threads or 1)
    served = _served(args) if args.server else None
    prompts = chat_prompts(args.target, groups, args.max_prompt_tokens)
    head = {
        "drafter": str(args.drafter),
        "target": str(args.target),
        "source": args.server or "offline",
        **_settings(args, served),
        "texts": {f.stem: {"file": f.name, "sha256": file_sha256(f)} for f in files},
        "provenance": _provenance(args, served),
    }
    earlier = read_earlier(args.against, head) if args.against is not None else None
    found: list[tuple[int, Counted, FirstDrafts]] = []
    interrupted: KeyboardInterrupt | ValueError | None = None
    try:
        asked = served.judged(prompts, args.max_new_tokens) if served else _offline(args, prompts)
        for one in asked:
            found.append(one)
    except KeyboardInterrupt as error:
        if not any(figures.cycles for _, (_, figures), _ in found):
            raise
        interrupted = error
    except torch.OutOfMemoryError as error:
        interrupted = ValueError(
            f"{str(error).splitlines()[0]} Leave it more room (--dtype bfloat16, a smaller "
            f"--max-prompt-tokens), or use --device cpu"
        )
        if not any(figures.cycles for _, (_, figures), _ in found):
            raise interrupted from None
    found.sort(key=lambda one: one[0])
    counted = [one[1] for one in found]
    told = served is None or served.untraced is None
    drafts = FirstDrafts.joined([one[2] for one in found]) if told else None
    of = sum(map(len, prompts.values()))
    figures = {
        **head,
        **_settings(args, served),  # a server's facts grow with what it was asked
        **({"partial": {"judged": len(found), "of": of}} if interrupted is not None else {}),
        **report(counted, drafts),
    }
    if earlier is not None and interrupted is None:
        figures["against"] = {
            "drafter": earlier["drafter"],
            **paired_ratio(figures["per_prompt"], earlier["per_prompt"]),
        }
    if args.plot is not None:
        from sgl_entropy.evaluate.plot import draw

        draw(figures, args.plot)
    if not write_json(figures, args.json):
        print(_table(figures))
    if served is not None:
        served.warn()
    if interrupted is not None:
        raise interrupted
    return 0


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _offline(
    args: argparse.Namespace, prompts: Mapping[str, list[list[int]]]
) -> Iterator[tuple[int, Counted, FirstDrafts]]:
    import torch

    from sgl_entropy.evaluate.report import judged

    dtype = getattr(torch, args.dtype)
    sizes = (args.depth, args.max_new_tokens)
    device = checked_device(args.device)
    return judged(args.target, args.drafter, prompts, *sizes, dtype, _progress, device)


def _served(args: argparse.Namespace) -> ServedDrafter:
    """
    Raises:
        ValueError: a server that cannot be asked, or not for ``--plot``.
    """
    from sgl_entropy.cli.drafter_eval_server import ServedDrafter

    served = ServedDrafter(args.server, args.drafter, args.target, _progress)
    if served.untraced and args.plot is not None:
        raise ValueError(f"--plot needs the entropies: {served.untraced}")
    if served.untraced:
        _progress(f"without entropies: {served.untraced}")
    return served


def _settings(args: argparse.Namespace, served: ServedDrafter | None) -> dict[str, Any]:
    """What the figures depend on beside models and texts."""
    sizes = {
        "max_new_tokens": args.max_new_tokens,
        "max_prompts": args.max_prompts,
        "max_prompt_tokens": args.max_prompt_tokens,
    }
    if served is not None:
        return {"depth": served.depth, **sizes, **served.facts()}
    device = checked_device(args.device)
    return {"depth": args.depth, "dtype": args.dtype, "device": device, **sizes}


def _provenance(args: argparse.Namespace, served: ServedDrafter | None) -> dict[str, Any]:
    from sgl_entropy.base.provenance import provenance

    if served is None:
        return provenance(args.threads, {"target": args.target, "drafter": args.drafter})
    # The server's threads are its own; its drafter was compared with this one.
    held = next(args.drafter.glob("*.safetensors"), None) is not None
    found = provenance(0, {"drafter": args.drafter} if held else None)
    return {key: value for key, value in found.items() if key != "threads"}


def _table(figures: dict[str, Any]) -> str:
    rows = [("group", "prompts", "tau", "95 % interval", "acceptance by position")]
    every = [*figures["groups"].items(), ("all, pooled", figures)]
    for name, row in every:
        rows.append(
            (
                name,
                str(row["prompts"]),
                f"{row['acceptance_length']:.3f}",
                f"{row['interval'][0]:.3f} to {row['interval'][1]:.3f}",
                " ".join(f"{a:.2f}" for a in row["by_position"]),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    if partial := figures.get("partial"):
        lines.append(f"partial: {partial['judged']} of {partial['of']} prompts")
    lines.append(f"mean of the groups: {figures['mean_of_groups']:.3f}")
    if against := figures.get("against"):
        low, high = (100 * (one - 1) for one in against["interval"])
        lines.append(
            f"against {against['drafter']}: {100 * (against['ratio'] - 1):+.1f} % "
            f"({low:+.1f} to {high:+.1f}){'' if against['differs'] else ', no difference'}"
        )
    if deciles := figures.get("by_target_entropy_decile"):
        lines.append("first draft accepted, by target entropy (nats):")
        for row in deciles:
            low, high = row["entropy"]
            bar = "#" * round(40 * row["acceptance"])
            lines.append(f"  {low:6.3f} to {high:6.3f}  {row['acceptance']:.2f}  {bar}")
    return "\n".join(line.rstrip() for line in lines)
