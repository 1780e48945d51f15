"""``sgl-entropy calibrate``: EASD's thresholds and the draft stop's table from held-out text."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from sgl_entropy.base.plots import require_plots
from sgl_entropy.base.tables import text_table
from sgl_entropy.base.texts import read_texts, text_files
from sgl_entropy.cli.devices import add_device
from sgl_entropy.cli.drafter_eval import add_sizes, check_sizes
from sgl_entropy.cli.output import check_file, say, write_json
from sgl_entropy.cli.prompt_groups import add_texts

if TYPE_CHECKING:
    from sgl_entropy.verify.calibration import Calibration, Percentiles

EPILOG = """examples:
  sgl-entropy calibrate --target TARGET --drafter DRAFTER --texts held_out.jsonl --out easd.json
  sgl-entropy calibrate --server http://HOST:PORT --texts held_out.jsonl --out easd.json
  sgl-entropy calibrate ... --percentile 90 --overlap 0.7 --plot easd.png
then serve with
  --speculative-verify-mode easd --easd-calibration easd.json

Take texts that the drafter was not trained on: it is surer of its own. The percentile is 80
because about a fifth of a text's tokens are real decisions and the others follow from what is
there; EASD may fire only among the former, and fires less often where the two models are not
unsure at the same time. EASD's paper uses about 2 nats, which suits its own models; a percentile
carries over to others. A server must run with --speculative-verify-mode easd, which records what
is needed; the requests of the calibration turn the rule itself off. If a calibration is
interrupted, repeat the command: finished prompts are kept in OUT.trace."""

# Positions below which percentiles are not sure.
FEW = 500


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``calibrate``."""
    parser.epilog = EPILOG
    add = parser.add_argument
    add("--target", type=Path, help="the target's folder (a llama; with --server: the server's)")
    add("--drafter", type=Path, help="the drafter's folder (with --server: the server's)")
    add("--server", metavar="URL", help="measure on this server instead of in plain torch")
    add_texts(parser, "held-out prompts")
    add("--out", type=Path, required=True, metavar="FILE", help="the calibration to write")
    add(
        "--percentile",
        type=float,
        default=80.0,
        metavar="P",
        help="percentile of both entropies that becomes the threshold, 0 to 100 (default: 80)",
    )
    add("--target-percentile", type=float, metavar="P", help="another one for the target")
    add("--draft-percentile", type=float, metavar="P", help="another one for the drafter")
    add(
        "--top-n",
        type=int,
        metavar="N",
        help="likeliest tokens that are compared (default: 10, or the server's)",
    )
    add("--overlap", type=float, default=0.5, help="least share of them in common (default: 0.5)")
    add_sizes(parser, max_prompt_tokens=1024)
    add_device(parser, "the plain models compute", dtype=None)
    add("--plot", type=Path, metavar="FILE", help="draw it, .png or .svg (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    """Measure, fit, write, print."""
    percentiles = _check(args)
    files = text_files(args.texts)
    groups = {
        str(file): [text.prompt for text in read_texts(file, args.max_prompts)] for file in files
    }

    import torch

    from sgl_entropy.base.progress import counter
    from sgl_entropy.cli.calibrate_sources import offline, on_server
    from sgl_entropy.evaluate.calibrating import fit, observe
    from sgl_entropy.evaluate.offline import chat_prompts
    from sgl_entropy.verify.calibration import CalibrationTexts

    torch.set_num_threads(args.threads or 1)
    source = on_server(args) if args.server else offline(args)
    asked = chat_prompts(source.target, groups, args.max_prompt_tokens)
    prompts = [prompt for group in asked.values() for prompt in group]
    record = args.out.with_name(f"{args.out.name}.trace")
    seen = observe(source, prompts, record, say, counter("prompts"))
    if len(seen) < FEW:
        say(
            f"warning: only {len(seen)} positions: percentiles are not sure; use more prompts or "
            "longer answers (--max-prompts, --max-new-tokens)"
        )
    digest = hashlib.sha256(json.dumps([one for g in groups.values() for one in g]).encode())
    texts = CalibrationTexts(tuple(f.name for f in files), digest.hexdigest(), len(prompts))
    calibration = fit(seen, source, percentiles, args.overlap, texts)
    write_json(calibration.to_dict(), args.out)
    record.unlink()
    if args.plot is not None:
        from sgl_entropy.evaluate.plot import draw_calibration

        draw_calibration(calibration, seen, args.plot)
    if not write_json(calibration.to_dict(), args.json):
        print(_table(calibration))
        print(f"written to {args.out}")
    return 0


def _check(args: argparse.Namespace) -> Percentiles:
    """All that can be known before minutes of work; returns both percentiles."""
    from sgl_entropy.verify.calibration import Percentiles
    from sgl_entropy.verify.rule import EasdRule

    check_sizes(args)
    if args.plot is not None:
        require_plots(args.plot, ("png", "svg"))
    check_file("--out", args.out)
    if not args.server and (args.target is None or args.drafter is None):
        raise ValueError("expected --target and --drafter, or --server")
    given = []
    for name in ("target", "draft"):
        value = getattr(args, f"{name}_percentile")
        flag = "--percentile" if value is None else f"--{name}-percentile"
        given.append(args.percentile if value is None else value)
        if not 0 <= given[-1] <= 100:
            raise ValueError(f"{flag} must be a number from 0 to 100, found {given[-1]}")
    EasdRule(top_n=EasdRule.top_n if args.top_n is None else args.top_n, overlap=args.overlap)
    return Percentiles(*given)


def _table(made: Calibration) -> str:
    rule, at = made.rule, made.settings.percentiles
    header = ["percentile", "target nats", "draft nats", "fires", "per 100 tokens", "changes"]
    header += ["accepted there", "and elsewhere", "tau", "with EASD"]
    lines = [
        (f"{row.percentile:g}", row.target_entropy, row.draft_entropy, row.rates)
        for row in made.by_percentile
    ]
    rows = [
        (
            name,
            f"{target:.3f}",
            f"{draft:.3f}",
            f"{rates.share:.1%}",
            f"{rates.per_100_tokens:.2f}",
            f"{rates.changes_per_100_tokens:.2f}",
            _cell(rates.acceptance_fired),
            _cell(rates.acceptance_not_fired),
            f"{rates.acceptance_length:.3f}",
            f"{rates.acceptance_length_easd:.3f}",
        )
        for name, target, draft, rates in [
            *lines,
            ("chosen", rule.target_entropy, rule.draft_entropy, made.rates),
        ]
    ]
    return "\n".join(
        [
            f"{made.drafter.name} on {made.target.name}: {made.positions:,} positions of "
            f"{made.settings.tokens:,} tokens, {made.texts.prompts} prompts",
            text_table(header, rows),
            f"chosen: percentiles {at.target:g} (target) and {at.draft:g} (draft), "
            f"{rule.overlap:g} of the {rule.top_n} likeliest tokens in common",
        ]
    )


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
