"""``sgl-entropy train STAGE``: answers by the target, fit, export, evaluate, compare."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sgl_entropy.train.settings import TrainSettings, load_settings

STAGES = ("generate", "fit", "export", "evaluate", "compare")
EXAMPLES = """examples:
  sgl-entropy train generate --config train.toml
  sgl-entropy train fit --config train.toml --algorithm EDSD --set fit.epochs=2
  torchrun --standalone --nproc-per-node 2 -m sgl_entropy train fit --config train.toml
  sgl-entropy train export --config train.toml --algorithm EDSD --out ./edsd
  sgl-entropy train evaluate --config train.toml --drafter ./edsd --json -
  sgl-entropy train compare --config compare.toml --workers 2 --json compare.json

Every stage can be interrupted and run again: it goes on where it was. `fit` uses one thread:
train both drafters at once on two cores rather than one on both. Started by torchrun, the
processes share each batch (gloo on CPUs, NCCL on GPUs) and end with the weights of one process, up
to the order of sums; fit.rows is the batch of all together. `compare` takes a file with a base
settings file, seeds and arms, and fits and judges every arm with every seed:
  base = "train.toml"
  seeds = [0, 1, 2]
  [[arms]]
  name = "edtrain"
  algorithm = "EDSD"
  set = ["fit.mask_gamma=3", "fit.max_steps=7"]"""


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
        "--workers", type=int, default=2, help="drafters fitted at once (compare; default: 2)"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write figures there, - for stdout (evaluate, compare)"
    )
    parser.epilog = EXAMPLES


def run(args: argparse.Namespace) -> int:
    """Run one stage."""
    overrides = list(args.set)
    for key in ("target", "work"):
        if getattr(args, key):
            overrides.append(f"{key}={json.dumps(getattr(args, key))}")
    for name in ("threads", "workers"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, found {getattr(args, name)}")
    if args.stage == "compare":
        return _compare(args, overrides)
    settings = load_settings(args.config, overrides)
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


def _compare(args: argparse.Namespace, overrides: list[str]) -> int:
    import torch
    from sgl_entropy_bench.provenance import provenance

    from sgl_entropy.train import compare, pipeline
    from sgl_entropy.train.compare_report import summarise, table

    if args.config is None:
        raise ValueError("compare needs --config FILE, which names the arms (see --help)")
    torch.set_num_threads(args.threads)

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    comparison = compare.load_comparison(args.config, overrides)
    rows = compare.run(comparison, args.workers, report)
    figures = summarise(rows, comparison.baseline)
    origin = provenance(1, {"target": pipeline.target_folder(comparison.arms[0].settings)})
    text = json.dumps({**figures, "runs": rows, "provenance": origin}, indent=1)
    if args.json == "-":
        print(text)
        return 0
    if args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    print(table(figures))
    return 0
