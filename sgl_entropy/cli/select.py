"""``sgl-entropy select TARGET --texts FILE``: which two layers a drafter taps."""

from __future__ import annotations

import argparse
from pathlib import Path

from sgl_entropy.base.plots import require_plots
from sgl_entropy.cli.devices import add_device, checked_device
from sgl_entropy.cli.inputs import input_file
from sgl_entropy.cli.output import say, write_json
from sgl_entropy.cli.prompt_groups import add_texts

EPILOG = """examples:
  sgl-entropy select TARGET --texts prompts.jsonl
  sgl-entropy select TARGET --texts prompts.jsonl --json layers.json --plot layers.png
  sgl-entropy select TARGET --texts prompts.jsonl more.txt FOLDER --fix-b 27
  sgl-entropy select TARGET --texts prompts.jsonl --by probe --json layers.json
  sgl-entropy select TARGET --texts prompts.jsonl --by probe --against layers-compared.json

Layers have two numbers. The paper counts hidden states: 0 is the embedding output, i the output of
decoder layer i - 1. A drafter's target_layer_ids count decoder layers from 0. a is the hidden state
of the highest curvature, b that of the highest LiDAR; if both are the same, b is LiDAR's second.
Fewer --views and --view-tokens make it faster, and LiDAR less certain."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``select``."""
    parser.epilog = EPILOG
    parser.add_argument("target", type=Path, help="the target's Hugging Face folder")
    add_texts(parser, "calibration texts")
    add = parser.add_argument
    add("--count", type=int, help="texts, a seeded sample (default: 128, or what the file has)")
    add("--views", type=int, default=16, help="noisy views of each text for LiDAR (default: 16)")
    add("--max-tokens", type=int, default=64, help="texts are cut to this (default: 64)")
    add("--view-tokens", type=int, default=24, help="noisy views are cut to this (default: 24)")
    add("--noise", type=float, default=0.3, help="share of a view's words changed (default: 0.3)")
    add("--seed", type=int, default=0, help="seed of sample, noise and resamples (default: 0)")
    add(
        "--resamples",
        type=int,
        default=200,
        help="resamples of the texts, for curvature (default: 200)",
    )
    add(
        "--lidar-resamples",
        type=int,
        default=20,
        help="how many of them are used for LiDAR too, which costs more (default: 20)",
    )
    add(
        "--fix-a",
        type=int,
        metavar="ID",
        help="take this decoder layer id (as in target_layer_ids) for curvature's pick",
    )
    add("--fix-b", type=int, metavar="ID", help="the same for LiDAR's pick")
    add(
        "--by",
        choices=("metrics", "probe"),
        default="metrics",
        help="choose by the paper's two metrics, or by a closed-form drafter on pairs of layers "
        "(default: metrics)",
    )
    add(
        "--against",
        type=input_file("--against", "a report of `sgl-entropy train compare --json`"),
        metavar="FILE",
        help="a report of `train compare --json` whose arms tap different layers: compare the "
        "scores with the acceptance lengths there",
    )
    add_device(parser, "target and metrics are computed")
    add("--threads", type=int, help="torch threads (default: torch's own choice)")
    add("--json", metavar="FILE", help="write the report to FILE; - for stdout alone")
    add("--plot", type=Path, metavar="FILE.png", help="draw both profiles (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    """Choose, print, write."""
    from sgl_entropy.select.plot import draw

    # After minutes of work would be too late to find out.
    if args.plot is not None:
        require_plots(args.plot)
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads must be at least 1, found {args.threads}")

    import torch

    from sgl_entropy.base.provenance import provenance
    from sgl_entropy.select.selection import select_layers
    from sgl_entropy.select.settings import SelectSettings
    from sgl_entropy.target.fingerprint import made_for

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    names = SelectSettings.__dataclass_fields__
    settings = SelectSettings(**{name: getattr(args, name) for name in names})
    origin = provenance(torch.get_num_threads(), {"target": args.target})
    device = checked_device(args.device)
    report = select_layers(args.target, args.texts, settings, say, device, args.against)
    # Files first: printing fails where the reader of the table has gone.
    if args.plot is not None:
        draw(report, args.plot)
    # Trainings that read the choice check that it was made for their target.
    if not write_json(
        {**report.to_dict(), **made_for(args.target), "provenance": origin}, args.json
    ):
        print(report.table())
    return 0
