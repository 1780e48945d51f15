"""``sgl-entropy train STAGE``: answers by the target, fit, export, evaluate, compare, benchmark."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_entropy.cli.output import check_json, write_json
from sgl_entropy.train.settings import TrainSettings, load_settings

if TYPE_CHECKING:
    from sgl_entropy.train.asking import Ask

STAGES = ("prepare", "features", "generate", "fit", "export", "evaluate", "compare", "benchmark")
EXAMPLES = """examples:
  sgl-entropy train --plan --config train.toml --gpu h100
  sgl-entropy train --plan --config train.toml --check WORK/edsd
  sgl-entropy train prepare --config train.toml --server http://127.0.0.1:30000
  sgl-entropy train features --config train.toml
  sgl-entropy train fit --config train.toml --algorithm EDSD --set fit.epochs=2
  torchrun --standalone --nproc-per-node 2 -m sgl_entropy train fit --config train.toml
  sgl-entropy train export --config train.toml --algorithm EDSD --out ./edsd
  sgl-entropy train evaluate --config train.toml --drafter ./edsd --json -
  sgl-entropy train compare --config compare.toml --workers 2 --json compare.json
  sgl-entropy train benchmark --config train.toml --algorithm EDSD --page throughput.md

Every stage can be interrupted and run again: it goes on where it was (`fit` after the step at hand;
a second Ctrl-C, seconds later, does not wait for it). `prepare` writes the prompts
and, with --server, the target's answers; `features` stores the tapped layers of those answers, or
writes the answers itself in the same pass where there was no server (`generate` is that pass).
`fit` uses one thread: train both drafters at once on two cores rather than one on both. Started by
torchrun, the processes share each batch (gloo on CPUs, NCCL on GPUs) and end with the weights of
one process, up to the order of sums; fit.rows is the batch of all together.
`compare` takes a file with a base
settings file, seeds and arms, and fits and judges every arm with every seed:
  base = "train.toml"
  seeds = [0, 1, 2]
  [[arms]]
  name = "edtrain"
  algorithm = "EDSD"
  set = ["fit.mask_gamma=3", "fit.max_steps=7"]
`benchmark` times `fit` on a feature store against a straightforward loop, with what each part of a
step takes, and memory; --arms takes the recipe of one arm of a comparison file."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``train``."""
    parser.add_argument("stage", choices=STAGES, nargs="?")
    parser.add_argument(
        "--plan",
        action="store_true",
        help="instead of running a stage, estimate what all of them cost: tokens, FLOPs, storage, "
        "time and memory",
    )
    parser.add_argument(
        "--gpu", metavar="NAME", help="estimate for this GPU instead of this machine (--plan)"
    )
    parser.add_argument(
        "--check",
        type=Path,
        action="append",
        metavar="DIR",
        help="compare the plan with a finished training, its folder of checkpoint and log; may be "
        "repeated (--plan)",
    )
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
        help="which drafter (fit, export, benchmark)",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on from a checkpoint although fit.learning_rate, warmup, final_rate or clip was "
        "another: it changes from this step on, and the log says so (fit)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="the drafter's folder (export)")
    parser.add_argument(
        "--arms",
        metavar="LIST",
        help="compare: these arms of the file alone; benchmark: the one arm that is measured",
    )
    parser.add_argument("--seeds", metavar="LIST", help="compare: these seeds, as 0,1")
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="the table as Markdown (compare, benchmark, --plan --check)",
    )
    parser.add_argument(
        "--batches",
        type=int,
        default=16,
        help="batches that benchmark times, spread over the epochs (default: 16)",
    )
    parser.add_argument("--drafter", type=Path, metavar="DIR", help="what to measure (evaluate)")
    parser.add_argument(
        "--server",
        metavar="URL",
        help="an SGLang server of the target, with or without a drafter, that answers (prepare)",
    )
    parser.add_argument(
        "--concurrency", type=int, default=64, help="requests at once (prepare; default: 64)"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (fit, evaluate)")
    parser.add_argument(
        "--workers", type=int, default=2, help="drafters fitted at once (compare; default: 2)"
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write figures there, - for stdout (--plan, evaluate, compare, benchmark)",
    )
    parser.epilog = EXAMPLES


def run(args: argparse.Namespace) -> int:
    """Run one stage."""
    overrides = list(args.set)
    for key in ("target", "work"):
        if getattr(args, key):
            overrides.append(f"{key}={json.dumps(getattr(args, key))}")
    for name in ("threads", "workers", "concurrency"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, found {getattr(args, name)}")
    check_json(args.json)
    if args.check and not args.plan:
        raise ValueError("--check compares a plan with a finished training: it needs --plan")
    if args.stage == "compare":
        return _compare(args, overrides)
    if args.stage == "benchmark":
        return _benchmark(args, overrides)
    settings = load_settings(args.config, overrides)
    if args.plan:
        return _plan(args, settings)
    if args.stage is None:
        raise ValueError(f"name a stage ({', '.join(STAGES)}) or --plan")
    return _run_stage(args, settings)


def _plan(args: argparse.Namespace, settings: TrainSettings) -> int:
    from sgl_entropy.train import pipeline, plan

    if args.check:
        return _check(args, settings)
    if args.gpu is not None and args.gpu not in plan.GPUS:
        raise ValueError(f"--gpu must be one of {', '.join(plan.GPUS)}, found {args.gpu!r}")

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    figures = pipeline.plan(settings, args.algorithm, args.gpu, report)
    if not write_json(figures, args.json):
        print(plan.table(figures, args.gpu or "this machine"))
    return 0


def _check(args: argparse.Namespace, settings: TrainSettings) -> int:
    """0 where every quantity is as planned, else 1."""
    from sgl_entropy.train import plan_check

    if args.gpu is not None:
        raise ValueError("--gpu: --check compares with a training of this machine")

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    origin = _origin(args, settings)
    figures = plan_check.check(settings, args.algorithm, args.check, report)
    _write(args, origin, figures, plan_check.page(figures))
    return 0 if figures["as_planned"] else 1


def _benchmark(args: argparse.Namespace, overrides: list[str]) -> int:
    import torch

    from sgl_entropy.train import benchmark, benchmark_report
    from sgl_entropy.train.comparison import load_comparison

    torch.set_num_threads(args.threads)

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    algorithm = args.algorithm
    if args.arms is None:
        settings = load_settings(args.config, overrides)
    else:
        if args.config is None or "," in args.arms:
            raise ValueError("--arms: benchmark takes one arm of the comparison file --config")
        (arm,) = (
            arm
            for arm in load_comparison(args.config, overrides).part([args.arms], []).arms
            if arm.name == args.arms
        )
        settings, algorithm = arm.settings, arm.algorithm
    origin = _origin(args, settings)
    figures = benchmark.measure(settings, algorithm, args.batches, report)
    _write(args, origin, figures, benchmark_report.page(figures))
    return 0


def _origin(args: argparse.Namespace, settings: TrainSettings) -> dict[str, Any]:
    """Where a figure comes from; asked before it is measured, for the machine's load."""
    from sgl_entropy_bench.provenance import provenance

    from sgl_entropy.train import data

    return provenance(args.threads, {"target": data.target_folder(settings)})


def _write(
    args: argparse.Namespace, origin: dict[str, Any], figures: dict[str, Any], text: str
) -> None:
    """A figure to --json and --page, else printed."""
    from sgl_entropy_bench.provenance import footer

    if args.page is not None:
        args.page.write_text(f"{text}\n\n{footer(origin)}\n", encoding="utf-8")
    if not write_json({**figures, "provenance": origin}, args.json):
        print(text)


def _run_stage(args: argparse.Namespace, settings: TrainSettings) -> int:
    import torch

    from sgl_entropy.train import data, pipeline

    torch.set_num_threads(args.threads)

    def report(line: str) -> None:
        print(line, flush=True)

    if args.stage == "prepare":
        ask = _server(args.server, settings, report) if args.server else None
        data.prepare(settings, ask, args.concurrency, report)
    elif args.stage == "features":
        data.features(settings, report)
    elif args.stage == "generate":
        data.generate(settings, report)
    elif args.stage == "fit":
        pipeline.fit(settings, args.algorithm, report, accept_changes=args.accept_changes)
    elif args.stage == "export":
        if args.out is None:
            raise ValueError("export needs --out DIR")
        pipeline.export(settings, args.algorithm, args.out, report)
        report(f"wrote {args.out}")
    else:
        if args.drafter is None:
            raise ValueError("evaluate needs --drafter DIR")
        figures = pipeline.evaluate(settings, args.drafter, report)
        write_json(figures, args.json or "-")
    return 0


def _server(url: str, settings: TrainSettings, report: Callable[[str], None]) -> Ask:
    """Asks the server at ``url`` greedily for an answer's token ids.

    Raises:
        ValueError: there is no server, or one of another model.
    """
    from sgl_entropy_bench.client import Client, ServerError

    from sgl_entropy.train.asking import Refused
    from sgl_entropy.train.data import target_folder
    from sgl_entropy.train.generate import Prompt
    from sgl_entropy.train.served import refuse_other_server

    client = Client.from_url(url)
    try:
        info = client.get("/get_server_info") or {}
        # The other route tells the architecture; not every server has it.
        with contextlib.suppress(ServerError):
            info = {**(client.get("/get_model_info") or {}), **info}
    except (ServerError, OSError) as error:
        raise ValueError(f"--server {url}: {error}") from None
    report(f"{url} serves {info.get('model_path')}; dtype {info.get('dtype')}")
    refuse_other_server(info, target_folder(settings), url, report)
    most = settings.generate.max_new_tokens

    def ask(prompt: Prompt) -> Sequence[int]:
        try:
            return client.generate(input_ids=prompt.tokens, max_new_tokens=most).output_ids
        except ServerError as error:
            if error.status == 400:
                raise Refused(str(error)) from None
            raise

    return ask


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise ValueError(f"--seeds {text}: expected whole numbers, separated by commas") from None


def _compare(args: argparse.Namespace, overrides: list[str]) -> int:
    import torch
    from sgl_entropy_bench.provenance import footer, provenance

    from sgl_entropy.train import compare, data
    from sgl_entropy.train.compare_report import page, summarise, table
    from sgl_entropy.train.comparison import load_comparison

    if args.config is None:
        raise ValueError("compare needs --config FILE, which names the arms (see --help)")
    torch.set_num_threads(args.threads)

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    comparison = load_comparison(args.config, overrides)
    comparison = comparison.part(
        args.arms.split(",") if args.arms else [],
        _seeds(args.seeds) if args.seeds else [],
    )
    rows = compare.run(comparison, args.workers, report)
    figures = summarise(rows, comparison.baseline)
    origin = provenance(1, {"target": data.target_folder(comparison.arms[0].settings)})
    if args.page is not None:
        text = page(figures, rows, f"Training comparison: {args.config.stem}", args.workers)
        args.page.write_text(f"{text}\n\n{footer(origin)}\n", encoding="utf-8")
    if not write_json({**figures, "runs": rows, "provenance": origin}, args.json):
        print(table(figures))
    return 0
