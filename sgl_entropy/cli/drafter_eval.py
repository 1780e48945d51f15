"""``sgl-entropy drafter eval``: tau and acceptance, offline or from a running server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sgl_entropy.cli.devices import add_device, checked_device
from sgl_entropy.cli.output import write_json
from sgl_entropy.plots import require_plots
from sgl_entropy.texts import read_texts, text_files

# A prompt's number, its group and counts, and offline its first drafts.
_Judged = tuple[int, tuple[str, Any], Any]


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``drafter eval``."""
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
    parser.add_argument("--server", metavar="URL", help="ask this server instead, which drafts")
    add_sizes(parser, max_prompt_tokens=2048)
    add_device(parser, "target and drafter compute, offline")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw acceptance against uncertainty (offline)",
    )


def add_sizes(parser: argparse.ArgumentParser, max_prompt_tokens: int) -> None:
    """Options of every measurement on texts; ``check_sizes`` checks them."""
    parser.add_argument("--depth", type=int, default=4, help="of the chain, offline (default: 4)")
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
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="write JSON to FILE; - for stdout alone")


def check_sizes(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: a number below 1.
    """
    for name in ("depth", "max_prompts", "max_new_tokens", "max_prompt_tokens", "threads"):
        if getattr(args, name) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} must be at least 1, found {getattr(args, name)}")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print a table, write what was asked for."""
    check_sizes(args)
    if args.plot is not None:
        require_plots(args.plot)
        if args.server:
            raise ValueError(
                "--plot needs the entropies, which a server does not report: leave out --server"
            )
    if args.device is not None and args.server:
        raise ValueError("--device is of offline measurements: leave out --server")
    files = text_files(args.texts)
    groups = {f.stem: [text.prompt for text in read_texts(f, args.max_prompts)] for f in files}
    if len(groups) < len(files):
        raise ValueError("two of the files have the same name: rename one, names are the groups")

    import torch

    from sgl_entropy.drafter.evaluation import chat_prompts, report
    from sgl_entropy.drafter.uncertainty import FirstDrafts

    torch.set_num_threads(args.threads)
    prompts = chat_prompts(args.target, groups, args.max_prompt_tokens)
    found: list[_Judged] = []
    interrupted: KeyboardInterrupt | ValueError | None = None
    try:
        for one in _ask_server(args, prompts) if args.server else _offline(args, prompts):
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
    drafts = None if args.server else FirstDrafts.joined([one[2] for one in found])
    of = sum(map(len, prompts.values()))
    figures = {
        "drafter": str(args.drafter),
        "target": str(args.target),
        "source": args.server or "offline",
        "max_new_tokens": args.max_new_tokens,
        **({"partial": {"judged": len(found), "of": of}} if interrupted is not None else {}),
        **report(counted, drafts),
    }
    if args.plot is not None:
        from sgl_entropy.drafter.plot import draw

        draw(figures, args.plot)
    if not write_json(figures, args.json):
        print(_table(figures))
    if interrupted is not None:
        raise interrupted
    return 0


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _offline(args: argparse.Namespace, prompts: dict[str, list[list[int]]]) -> Iterator[_Judged]:
    import torch

    from sgl_entropy.drafter.evaluation import judged

    dtype = getattr(torch, args.dtype)
    sizes = (args.depth, args.max_new_tokens)
    device = checked_device(args.device)
    return judged(args.target, args.drafter, prompts, *sizes, dtype, _progress, device)


def _ask_server(args: argparse.Namespace, prompts: dict[str, list[list[int]]]) -> Iterator[_Judged]:
    """The server's own counters of each prompt, greedy, one prompt at a time.

    Raises ValueError where the server counts no cycles.
    """
    from sgl_entropy_bench.client import Client, ServerError

    from sgl_entropy.drafter.evaluate import ChainFigures

    client = Client.from_url(args.server)
    try:
        info = client.get("/get_server_info")
    except (ServerError, OSError) as error:
        raise ValueError(f"--server {args.server}: {error}") from None
    served = info.get("speculative_draft_model_path")
    if not served:
        raise ValueError(f"--server {args.server}: it serves no drafter")
    if Path(served).name != args.drafter.name:
        raise ValueError(f"--server {args.server} drafts with {served}, not with {args.drafter}")
    done = 0
    depth = int(info["speculative_num_steps"])
    total = sum(map(len, prompts.values()))
    for group, held in prompts.items():
        for ids in held:
            meta = client.generate(input_ids=ids, max_new_tokens=args.max_new_tokens).meta
            if meta["completion_tokens"] > 1 and "spec_cycles" not in meta:
                raise ValueError(
                    f"--server {args.server} does not count cycles: patch its SGLang "
                    f"(`sgl-entropy patch apply`); for EAGLE-3 on a GPU also set "
                    f"SGL_ENTROPY_COUNTERS=1"
                )
            accepted = meta.get("spec_accepted_by_position") or [0] * depth
            figures = ChainFigures(
                meta.get("spec_emitted", 0), meta.get("spec_cycles", 0), tuple(accepted)
            )
            yield done, (group, figures), None
            done += 1
            if done % 10 == 0 or done == total:
                _progress(f"server: {done} of {total} prompts")


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
    if deciles := figures.get("by_target_entropy_decile"):
        lines.append("first draft accepted, by target entropy (nats):")
        for row in deciles:
            low, high = row["entropy"]
            bar = "#" * round(40 * row["acceptance"])
            lines.append(f"  {low:6.3f} to {high:6.3f}  {row['acceptance']:.2f}  {bar}")
    return "\n".join(line.rstrip() for line in lines)
