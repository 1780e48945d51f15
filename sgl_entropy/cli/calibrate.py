"""``sgl-entropy calibrate``: EASD's thresholds and the draft stop's table from held-out text."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_entropy import __version__
from sgl_entropy.base.plots import require_plots
from sgl_entropy.base.texts import read_texts, text_files
from sgl_entropy.cli.devices import add_device
from sgl_entropy.cli.drafter_eval import add_sizes, check_sizes
from sgl_entropy.cli.output import check_file, write_json

if TYPE_CHECKING:
    from sgl_entropy.base.identity import Identity
    from sgl_entropy.cli.calibrate_sources import Source
    from sgl_entropy.verify.calibration import Calibration
    from sgl_entropy.verify.observations import Observations
    from sgl_entropy.verify.rule import EasdRule
    from sgl_entropy.verify.trace import CycleRecord

EPILOG = """examples:
  sgl-entropy calibrate --target TARGET --drafter DRAFTER --texts held_out.jsonl --out easd.json
  sgl-entropy calibrate --server http://HOST:PORT --texts held_out.jsonl --out easd.json
  sgl-entropy calibrate ... --percentile 90 --overlap 0.7 --plot easd.png
then serve with
  --speculative-verify-mode easd --easd-calibration easd.json

Take texts that the drafter was not trained on: on its own it is surer than it will be. The
percentile is 80 because about a fifth of the tokens of a text are real decisions, and the others
follow from what is there: only among those may EASD fire, and in fewer where the two models are
not unsure together. The fixed value of EASD's paper, about 2 nats, suits its own models; the
percentile carries over. A server must run with --speculative-verify-mode easd, which records what
is needed; the rule itself is off for the requests of the calibration. An interrupted calibration
goes on where it ended when the command is repeated: finished prompts are kept in OUT.trace."""

# Rows of the table beside the chosen percentiles.
PERCENTILES = (50, 60, 70, 80, 90, 95)
FEW = 500


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``calibrate``."""
    parser.epilog = EPILOG
    add = parser.add_argument
    add("--target", type=Path, help="the target's folder (a llama; with --server: the server's)")
    add("--drafter", type=Path, help="the drafter's folder (with --server: the server's)")
    add("--server", metavar="URL", help="measure on this server instead of in plain torch")
    add(
        "--texts",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="held-out prompts: JSON Lines with turns, conversations, question or text, or plain "
        "lines; a folder stands for its files",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="the calibration to write")
    add(
        "--percentile",
        type=float,
        default=80.0,
        metavar="P",
        help="of both entropies, 0 to 100: the thresholds (default: 80)",
    )
    add("--target-percentile", type=float, metavar="P", help="another for the target")
    add("--draft-percentile", type=float, metavar="P", help="another for the drafter")
    add("--top-n", type=int, metavar="N", help="tokens compared (default: 10, or the server's)")
    add("--overlap", type=float, default=0.5, help="least share in common (default: 0.5)")
    add_sizes(parser, max_prompt_tokens=1024)
    add_device(parser, "the plain models compute", dtype=None)
    add("--plot", type=Path, metavar="FILE", help="draw it, .png or .svg (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    """Measure, fit, write, print."""
    target_at, draft_at = _check(args)
    files = text_files(args.texts)
    groups = {
        str(file): [text.prompt for text in read_texts(file, args.max_prompts)] for file in files
    }

    import torch

    from sgl_entropy.base.identity import Identity
    from sgl_entropy.cli.calibrate_sources import offline, on_server
    from sgl_entropy.evaluate.report import chat_prompts
    from sgl_entropy.verify.calibration import Calibration
    from sgl_entropy.verify.observations import Observations

    torch.set_num_threads(args.threads or 1)
    source = on_server(args) if args.server else offline(args)
    identities = Identity.of(source.target), Identity.of(source.drafter)
    held = chat_prompts(source.target, groups, args.max_prompt_tokens)
    prompts = [prompt for group in held.values() for prompt in group]
    record = _record(args.out)
    try:
        cycles = measured(source, prompts, identities, args.max_new_tokens, record)
        seen = Observations.of(cycles, source.top_n)
    except BaseException:
        _drop_if_empty(record)
        raise
    if len(seen) < FEW:
        _say(
            f"warning: only {len(seen)} positions: percentiles are not sure; use more prompts or "
            "longer answers (--max-prompts, --max-new-tokens)"
        )
    rule, stop = seen.rule(target_at, draft_at, source.top_n, args.overlap), seen.draft_stop()
    texts = [text for group in groups.values() for text in group]
    calibration = Calibration(
        *identities,
        easd=rule,
        edges=tuple(stop["edges"]),
        acceptance=tuple(stop["acceptance"]),
        positions=len(seen),
        texts={
            "files": [file.name for file in files],
            "sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
            "prompts": len(prompts),
        },
        settings={
            "percentiles": {"target": target_at, "draft": draft_at},
            "source": "server" if args.server else "offline",
            "dtype": None if args.server else args.dtype,
            "depth": source.depth,
            "max_new_tokens": args.max_new_tokens,
            "cycles": len(seen.emitted),
            "tokens": int(seen.emitted.sum()),
        },
        rates=seen.rates(rule),
        by_percentile=_by_percentile(seen, rule),
        date=datetime.now(timezone.utc).date().isoformat(),
        version=__version__,
    )
    write_json(calibration.to_dict(), args.out)
    record.unlink()
    if args.plot is not None:
        from sgl_entropy.evaluate.calibration_plot import draw

        draw(calibration, seen, args.plot)
    if not write_json(calibration.to_dict(), args.json):
        print(_table(calibration))
        print(f"written to {args.out}")
    return 0


def _record(out: Path) -> Path:
    """Where finished prompts are kept until the calibration is written."""
    return out.with_name(f"{out.name}.trace")


def measured(
    source: Source,
    prompts: Sequence[list[int]],
    identities: tuple[Identity, Identity],
    max_new_tokens: int,
    record: Path,
) -> list[Sequence[CycleRecord]]:
    """The verify cycles of each prompt; those that ``record`` holds are not measured again.

    Args:
        record: a trace file, a line a finished prompt: an interrupt loses only the current one.

    Raises:
        ValueError: ``record`` is of other models or settings.
    """
    from sgl_entropy.verify.trace import RequestTrace, TraceHeader
    from sgl_entropy.verify.trace_file import TraceReader, TraceWriter

    header = TraceHeader(
        target=identities[0].sha256,
        drafter=identities[1].sha256,
        draft_tokens=source.depth,
        top_n=source.top_n,
        temperature=0.0,
    )
    progress = _progress(len(prompts))
    out: list[Sequence[CycleRecord]] = []
    with TraceWriter(record, header, append=True) as trace:
        held = {request.rid: request.cycles for request in TraceReader(record)}
        if held:
            _say(f"{len(held)} prompts are there from before")
        for number, prompt in enumerate(prompts):
            what = json.dumps([number, max_new_tokens, source.arithmetic, prompt]).encode()
            rid = f"{number}-{hashlib.sha256(what).hexdigest()[:16]}"
            if rid not in held:
                try:
                    held[rid] = tuple(source.measure(prompt))
                except ValueError as error:
                    raise ValueError(f"{error} (prompt {number + 1})") from None
                trace.add(RequestTrace(rid, None, held[rid]))
            out.append(held[rid])
            progress(f"{len(out)} of {len(prompts)} prompts")
    return out


def _drop_if_empty(record: Path) -> None:
    """Of a calibration that failed before it had anything, nothing stays behind."""
    from sgl_entropy.verify.trace_file import TraceReader

    if record.exists() and not any(request.cycles for request in TraceReader(record)):
        record.unlink()


def _check(args: argparse.Namespace) -> tuple[float, float]:
    """All that can be known before minutes of work; returns both percentiles."""
    from sgl_entropy.verify.rule import EasdRule

    check_sizes(args)
    if args.plot is not None:
        require_plots(args.plot, ("png", "svg"))
    check_file("--out", args.out)
    if not args.server and (args.target is None or args.drafter is None):
        raise ValueError("expected --target and --drafter, or --server")
    found = []
    for name in ("target", "draft"):
        value = getattr(args, f"{name}_percentile")
        flag = "--percentile" if value is None else f"--{name}-percentile"
        found.append(args.percentile if value is None else value)
        if not 0 <= found[-1] <= 100:
            raise ValueError(f"{flag} must be a number from 0 to 100, found {found[-1]}")
    EasdRule(top_n=EasdRule.top_n if args.top_n is None else args.top_n, overlap=args.overlap)
    return found[0], found[1]


def _progress(total: int) -> Callable[[str], None]:
    """Says every few prompts how far it is, and for how long yet."""
    began = time.monotonic()
    done = 0

    def report(line: str) -> None:
        nonlocal done
        done += 1
        if done % 5 == 0 or done == total:
            left = (time.monotonic() - began) * (total - done) / done
            _say(f"{line}, {left:.0f} s left")

    return report


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _by_percentile(seen: Observations, rule: EasdRule) -> Sequence[dict[str, Any]]:
    rows = []
    for at in PERCENTILES:
        one = seen.rule(at, at, rule.top_n, rule.overlap)
        limits = {"target_entropy": one.target_entropy, "draft_entropy": one.draft_entropy}
        rows.append({"percentile": at, **limits, **seen.rates(one)})
    return rows


def _table(found: Calibration) -> str:
    rule, at = found.rule(), found.settings["percentiles"]
    head = ("percentile", "target nats", "draft nats", "fires", "per 100 tokens", "changes")
    rows = [(*head, "accepted there", "and elsewhere", "tau", "with EASD")]
    chosen = {
        "percentile": "chosen",
        "target_entropy": rule.target_entropy,
        "draft_entropy": rule.draft_entropy,
        **found.rates,
    }
    for row in (*found.by_percentile, chosen):
        rows.append(
            (
                str(row["percentile"]),
                f"{row['target_entropy']:.3f}",
                f"{row['draft_entropy']:.3f}",
                f"{row['share']:.1%}",
                f"{row['per_100_tokens']:.2f}",
                f"{row['changes_per_100_tokens']:.2f}",
                _cell(row["acceptance_fired"]),
                _cell(row["acceptance_not_fired"]),
                f"{row['acceptance_length']:.3f}",
                f"{row['acceptance_length_easd']:.3f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(
        [
            f"{found.drafter.name} on {found.target.name}: {found.positions:,} positions of "
            f"{found.settings['tokens']:,} tokens, {found.texts['prompts']} prompts",
            *lines,
            f"chosen: percentiles {at['target']:g} (target) and {at['draft']:g} (draft), "
            f"{rule.overlap:g} of the {rule.top_n} likeliest tokens in common",
        ]
    )


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
