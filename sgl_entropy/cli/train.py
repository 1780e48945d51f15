"""``sgl-entropy train STAGE``: answers by the target, fit, export, evaluate, compare, benchmark."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sgl_entropy.cli.output import check_folder, write_json, write_text
from sgl_entropy.cli.train_flags import WHOLE, check_flags, configure

if TYPE_CHECKING:
    from sgl_entropy.train.answers.from_server import Ask
    from sgl_entropy.train.settings.file import TrainSettings
    from sgl_entropy.train.workspace import Workspace

__all__ = ["configure", "run"]


def _say(line: str) -> None:
    """Progress: stdout is for results."""
    print(line, file=sys.stderr, flush=True)


def run(args: argparse.Namespace) -> int:
    """Run one stage, or all of them."""
    check_flags(args)
    if args.settings:
        from sgl_entropy.train.settings.template import settings_file

        print(settings_file(), end="")
        return 0
    overrides = list(args.set)
    for key in ("target", "work"):
        if getattr(args, key):
            overrides.append(f"{key}={json.dumps(getattr(args, key))}")
    if args.online:
        overrides.append("fit.online=true")
    if args.stage == "compare":
        return _compare(args, overrides)
    if args.stage == "benchmark":
        return _benchmark(args, overrides)
    from sgl_entropy.train.settings.file import load_settings

    settings = load_settings(args.config, overrides)
    if args.plan:
        return _plan(args, settings)
    if args.stage is None:
        return _run_all(args, settings)
    _run_stage(args.stage, args, settings)
    return 0


def _plan(args: argparse.Namespace, settings: TrainSettings) -> int:
    from sgl_entropy.train.plan import estimate
    from sgl_entropy.train.workspace import Workspace

    work = Workspace.of(settings)
    if args.check:
        return _check(args, work)
    found = estimate.plan(work, args.algorithm, _say)
    if not write_json(found.to_json(), args.json):
        print(estimate.table(found))
    return 0


def _check(args: argparse.Namespace, work: Workspace) -> int:
    """0 where every quantity is as planned, else 1."""
    from sgl_entropy.figures import plan_check

    origin = _origin(args, work)
    found = plan_check.check(work, args.check, _say)
    _write(args, origin, found.to_json(), plan_check.page(found))
    return 0 if found.as_planned else 1


def _benchmark(args: argparse.Namespace, overrides: list[str]) -> int:
    import torch

    from sgl_entropy.figures import train_throughput, train_throughput_page
    from sgl_entropy.train.compare.file import load_comparison
    from sgl_entropy.train.settings.file import load_settings
    from sgl_entropy.train.workspace import Workspace

    torch.set_num_threads(args.threads)

    algorithm = args.algorithm
    if args.arms is None:
        settings = load_settings(args.config, overrides)
    else:
        if args.config is None or "," in args.arms:
            raise ValueError("--arms: benchmark takes one arm of the comparison file --config")
        (recipe,) = (
            recipe
            for recipe in load_comparison(args.config, overrides).part([args.arms], []).recipes
            if recipe.name == args.arms
        )
        settings, algorithm = recipe.settings, recipe.algorithm
    work = Workspace.of(settings)
    origin = _origin(args, work)
    figures = train_throughput.measure(work, algorithm, args.batches, _say)
    _write(args, origin, asdict(figures), train_throughput_page.page(figures))
    return 0


def _origin(args: argparse.Namespace, work: Workspace) -> dict[str, Any]:
    """Where a figure comes from; asked before it is measured, for the machine's load."""
    from sgl_entropy.base.provenance import provenance

    return provenance(args.threads, {"target": work.target})


def _write(
    args: argparse.Namespace, origin: dict[str, Any], figures: dict[str, Any], text: str
) -> None:
    """A figure to --json and --page, else printed."""
    from sgl_entropy.base.provenance import footer

    taken = write_json({**figures, "provenance": origin}, args.json)
    taken = write_text(f"{text}\n\n{footer(origin)}\n", args.page) or taken
    if not taken:
        print(text)


def _run_all(args: argparse.Namespace, settings: TrainSettings) -> int:
    """Every stage that makes a drafter; each skips what is done already.

    Raises:
        ValueError: started by torchrun, ``--out`` holds something other than a drafter, or
            ``--json`` without benchmarks.
    """
    from sgl_entropy.train.fit.export import refuse_others

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("torchrun starts `train fit` alone: run the other stages by themselves")
    check_folder("--out", args.out)  # known before hours of work
    refuse_others(args.out)
    left_out = {"features"} if settings.fit.online else set()
    if not settings.evaluate.benchmarks:
        left_out.add("evaluate")
        if args.json is not None:
            raise ValueError("--json takes the figures of evaluate: set evaluate.benchmarks, too")
    args.drafter = args.out
    for stage in WHOLE:
        if stage not in left_out:
            _say(f"train {stage}")
            _run_stage(stage, args, settings)
    return 0


def _run_stage(stage: str, args: argparse.Namespace, settings: TrainSettings) -> None:
    import torch

    from sgl_entropy.train.stages import data, drafter
    from sgl_entropy.train.workspace import Workspace, fit_folder

    torch.set_num_threads(args.threads)

    if stage == "export":  # reads a checkpoint: the target need not be here
        if args.out is None:
            raise ValueError("export needs --out DIR")
        check_folder("--out", args.out)
        drafter.export(fit_folder(settings, args.algorithm), args.out, _say)
        # stdout may be the figures' alone
        print(f"wrote {args.out}", file=sys.stdout if args.stage == stage else sys.stderr)
        return
    if stage == "evaluate" and args.drafter is None:
        raise ValueError("evaluate needs --drafter DIR")
    work = Workspace.of(settings)
    if stage == "prepare":
        ask = _server(args.server, work) if args.server else None
        data.prepare(work, ask, args.concurrency, _say)
    elif stage == "generate" or (stage == "features" and not work.answers_file.is_file()):
        # Without answers, features come out of the pass that writes them.
        data.generate(work, _say)
    elif stage == "features":
        data.features(work, _say)
    elif stage == "fit":
        drafter.fit(work, args.algorithm, _say, accept_changes=args.accept_changes)
    else:
        write_json(drafter.evaluate(work, args.drafter, _say), args.json or "-")


def _server(url: str, work: Workspace) -> Ask:
    """Asks the server at ``url`` greedily for an answer's token ids.

    Raises:
        ValueError: there is no server, or one of another model.
    """
    from sgl_entropy_bench.http.client import ServerError

    from sgl_entropy.cli.running_server import RunningServer
    from sgl_entropy.train.answers.from_server import ServerRefused
    from sgl_entropy.train.answers.same_target import refuse_other_server
    from sgl_entropy.train.prompts.order import Prompt

    server = RunningServer.at(url)
    client, info = server.client, server.info
    _say(f"{url} serves {info.get('model_path')}; dtype {info.get('dtype')}")
    refuse_other_server(info, work.target, url, _say)
    most = work.settings.generate.max_new_tokens

    def ask(prompt: Prompt) -> Sequence[int]:
        try:
            return client.generate(input_ids=prompt.tokens, max_new_tokens=most).output_ids
        except ServerError as error:
            if error.status == 400:
                raise ServerRefused(str(error)) from None
            raise

    return ask


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise ValueError(f"--seeds {text}: expected whole numbers, separated by commas") from None


def _compare(args: argparse.Namespace, overrides: list[str]) -> int:
    import torch

    from sgl_entropy.base.provenance import footer, provenance
    from sgl_entropy.train.compare import run as compare
    from sgl_entropy.train.compare.comparison_report import page, table
    from sgl_entropy.train.compare.file import load_comparison
    from sgl_entropy.train.compare.summary import summarise
    from sgl_entropy.train.workspace import Workspace

    if args.config is None:
        raise ValueError("compare needs --config FILE, which names the arms (see --help)")
    torch.set_num_threads(args.threads)

    comparison = load_comparison(args.config, overrides)
    comparison = comparison.part(
        args.arms.split(",") if args.arms else [],
        _seeds(args.seeds) if args.seeds else [],
    )
    work = Workspace.of(comparison.recipes[0].settings)
    fits = compare.run(work, comparison, args.workers, _say)
    figures = summarise(fits, comparison.baseline)
    origin = provenance(1, {"target": work.target})
    runs = [one.to_json() for one in fits]
    taken = write_json({**figures.to_json(), "runs": runs, "provenance": origin}, args.json)
    text = page(figures, fits, f"Training comparison: {args.config.stem}", args.workers)
    taken = write_text(f"{text}\n\n{footer(origin)}\n", args.page) or taken
    if not taken:
        print(table(figures))
    return 0
