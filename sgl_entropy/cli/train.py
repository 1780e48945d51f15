"""``sgl-entropy train STAGE``: answers by the target, fit, export, evaluate."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sgl_entropy.train.settings import TrainSettings, load_settings

STAGES = ("generate", "fit", "export", "evaluate")
EXAMPLES = """examples:
  sgl-entropy train generate --config train.toml
  sgl-entropy train fit --config train.toml --algorithm EDSD --set fit.epochs=2
  sgl-entropy train export --config train.toml --algorithm EDSD --out ./edsd
  sgl-entropy train evaluate --config train.toml --drafter ./edsd --json -

Every stage can be interrupted and run again: it goes on where it was. `fit` uses one thread:
train both drafters at once on two cores rather than one on both."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``train``."""
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings, TOML or JSON")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one setting; may be repeated",
    )
    parser.add_argument("--target", metavar="DIR", help="the target; default: the small real one")
    parser.add_argument("--work", metavar="DIR", help="where prompts, features, checkpoints go")
    parser.add_argument(
        "--algorithm",
        choices=("EDSD", "EAGLE3"),
        default="EDSD",
        help="which drafter (fit, export)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="the drafter's folder (export)")
    parser.add_argument("--drafter", type=Path, metavar="DIR", help="what to measure (evaluate)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (fit, evaluate)")
    parser.add_argument(
        "--json", metavar="FILE", help="write figures there, - for stdout (evaluate)"
    )
    parser.epilog = EXAMPLES


def run(args: argparse.Namespace) -> int:
    """Run one stage."""
    overrides = list(args.set)
    for key in ("target", "work"):
        if getattr(args, key):
            overrides.append(f"{key}={json.dumps(getattr(args, key))}")
    settings = load_settings(args.config, overrides)
    if args.threads < 1:
        raise ValueError(f"--threads must be at least 1, found {args.threads}")
    return _run_stage(args, settings)


def _run_stage(args: argparse.Namespace, settings: TrainSettings) -> int:
    import torch

    from sgl_entropy.train import pipeline

    torch.set_num_threads(args.threads)

    def report(line: str) -> None:
        print(line, flush=True)

    if args.stage == "generate":
        pipeline.generate(settings, report)
    elif args.stage == "fit":
        pipeline.fit(settings, args.algorithm, report)
    elif args.stage == "export":
        if args.out is None:
            raise ValueError("export needs --out DIR")
        pipeline.export(settings, args.algorithm, args.out)
        report(f"wrote {args.out}")
    else:
        if args.drafter is None:
            raise ValueError("evaluate needs --drafter DIR")
        figures = pipeline.evaluate(settings, args.drafter, report)
        text = json.dumps(figures, indent=1)
        if args.json and args.json != "-":
            Path(args.json).write_text(text + "\n", encoding="utf-8")
        else:
            report(text)
    return 0
