"""``sgl-entropy figures NAME``: measure one committed figure and write it with its origin."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from sgl_entropy_bench.figures.figure_plan import FigurePlan, write_results
from sgl_entropy_bench.server.arms import Engine, ServeArm

from sgl_entropy.base.cache import cache_dir
from sgl_entropy.cli.demo import add_drafter_options, resolve
from sgl_entropy.cli.inputs import input_file
from sgl_entropy.cli.output import check_folder

FIGURES = {
    "lossless": "greedy tokens of all arms against those of transformers, batch sizes 1 and 8",
    "sampled": "50,000 draws of three tokens against the exact law (in a checkout)",
    "speed": "tokens/s, step cost and break-even batch size of the three arms, paired",
    "served": "tau and speed-up by benchmark at temperatures 0 and 1, of any drafters, paired",
    "leaks": "pools and memory after 2,000 aborted, stopped, retracted and failing requests",
    "wrong-requests": "10,000 requests with wrong values: deaths, answers 500, neighbours, slots",
    "easd": "EASD's fires, speed and effect by threshold",
    "easd-overhead": "what EASD costs where it never fires",
    "stop": "drafts that end early against drafts of fixed length, paired",
    "entropy-cost": "entropy and the 10 likeliest tokens against a plain softmax, without a server",
    "matmuls": "the least that verifying costs: the target's matmuls by rows, and the core's peak",
    "clients": "ours and other load testers against the fake server: rate, lag, processor time",
    "startup": "start-up time and memory with and without a drafter",
}
# Figures that --drafter chooses a drafter for, and the drafters that they measure without it.
BOTH = ("eagle3", "edsd")
DRAFTERS = {"easd": BOTH, "easd-overhead": ("edsd",), "stop": BOTH}
# Flags that some figures alone read.
OWNERS = {
    "peer_path": ("clients",),
    "drafter": tuple(DRAFTERS),
    "calibration": ("stop",),
    "arm": ("served",),
    "requests": ("wrong-requests",),
}
ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
EXAMPLES = """examples:
  sgl-entropy figures lossless --prompts BENCHMARKS
  sgl-entropy figures speed --prompts BENCHMARKS --threads 2
  sgl-entropy figures served --prompts BENCHMARKS --arm eagle3=DIR --arm edsd-d=DIR
  sgl-entropy figures leaks --quick --out /tmp
  sgl-entropy figures wrong-requests --requests 1000
  sgl-entropy figures easd --prompts BENCHMARKS --drafter edsd
  sgl-entropy figures stop --prompts BENCHMARKS --drafter edsd --calibration edsd.json
  sgl-entropy figures clients --peer-path DIR     # without it: how to install the others in DIR
Repeat the command to continue an interrupted measurement."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``figures``."""
    parser.add_argument(
        "name",
        choices=FIGURES,
        metavar="NAME",
        help="the figure to measure; see the list below",
    )
    add_drafter_options(parser)
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="DIR",
        help="mt_bench, humaneval, gsm8k, alpaca and sum as JSONL files, rows with `turns`",
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help="default: bench/results"
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="records and logs (default: in the cache folder)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small version, written as NAME-quick"
    )
    parser.add_argument(
        "--peer-path",
        type=Path,
        metavar="DIR",
        help="clients: a folder in which other load testers are installed, for this comparison "
        "only (default: those of this environment; the figure says how to install the others)",
    )
    parser.add_argument(
        "--drafter",
        choices=("edsd", "eagle3", "both"),
        help="easd, easd-overhead and stop: which drafter is measured (default: both; "
        "easd-overhead: edsd)",
    )
    parser.add_argument(
        "--arm",
        action="append",
        metavar="NAME=DIR",
        help="served: a drafter to measure; may be repeated; the others are compared with the "
        "first (default: the two drafters above)",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="stop: a calibration of --drafter, so that the calibrated stop is measured too",
    )
    parser.add_argument(
        "--requests",
        type=int,
        metavar="N",
        help="wrong-requests: how many (default: 10,000)",
    )
    width = max(map(len, FIGURES))
    lines = (f"  {name:{width}}  {what}" for name, what in FIGURES.items())
    parser.epilog = "\n".join(["figures:", *lines, "", EXAMPLES])


def run(args: argparse.Namespace) -> int:
    """Measure, write, print the page; 1 if the figure is a check and fails."""
    _refuse_flags_of_others(args)
    if args.calibration is not None:
        wanted = input_file("--calibration", "a calibration that `sgl-entropy calibrate` wrote")
        wanted(str(args.calibration))
    check_folder("--out", args.out)
    chosen = tuple(map(arm_of, args.arm or ()))
    if args.name == "sampled":
        return run_sampled(args.out.absolute(), args.quick)
    target, eagle3, edsd, threads = resolve(args)
    if args.prompts is not None and not args.prompts.is_dir():
        raise ValueError(f"--prompts {args.prompts}: no such folder")
    plan = FigurePlan(
        engine=Engine(target=target, threads=threads),
        eagle3=eagle3,
        edsd=edsd,
        prompts=args.prompts,
        work=(args.work or cache_dir() / "figures").resolve(),
        results=args.out,
        quick=args.quick,
        chosen=chosen,
    )
    figure, page = _measure(args, plan)
    path = write_results(plan, args.name, figure, page)
    written = [path.with_suffix(".json").name, *_drawn(args.name, path.with_suffix(".json"))]
    print(f"{page}\n\nwritten: {path}, {', '.join(written)}")
    return 0 if _passed(figure) else 1


def _drawn(name: str, result: Path) -> list[str]:
    """Draw what a person would rather look at, where matplotlib is there: the files' names."""
    if name != "speed" or importlib.util.find_spec("matplotlib") is None:
        return []
    from sgl_entropy_bench.figures import speed_plot

    picture = result.with_suffix(".png")
    speed_plot.draw(json.loads(result.read_text()), picture)
    return [picture.name]


def _refuse_flags_of_others(args: argparse.Namespace) -> None:
    for flag, figures in OWNERS.items():
        if getattr(args, flag) and args.name not in figures:
            raise ValueError(
                f"--{flag.replace('_', '-')} belongs to {', '.join(figures)}, not to {args.name}"
            )


def _measure(args: argparse.Namespace, plan: FigurePlan) -> tuple[object, str]:
    """The figure (its class, or an object of JSON), and its page."""
    if args.name == "matmuls":
        return matmuls(plan.engine.target, plan.engine.threads)
    if args.name == "entropy-cost":
        return entropy_cost(plan.engine.threads, args.quick)
    if args.name in DRAFTERS:
        return entropy_modes(args, plan)
    if args.name == "clients":
        from sgl_entropy_bench.figures import clients

        return clients.measure(plan.engine.target, args.quick, args.peer_path)
    if args.name == "wrong-requests":
        from sgl_entropy_bench.figures import wrong_requests

        if args.requests is not None and args.requests < 1:
            raise ValueError(f"--requests must be at least 1, found {args.requests}")
        return wrong_requests.measure(plan, args.requests)
    module = importlib.import_module(f"sgl_entropy_bench.figures.{args.name}")
    figure, page = module.measure(plan)
    return figure, page


def _passed(figure: object) -> bool:
    """Whether a figure that is a check found nothing wrong; others pass."""
    from sgl_entropy_bench.figures.leaks import LeaksFigure
    from sgl_entropy_bench.figures.lossless import LosslessFigure
    from sgl_entropy_bench.figures.wrong_requests import WrongRequestsFigure

    if isinstance(figure, LeaksFigure | WrongRequestsFigure):
        return all(row.passed for row in figure.arms.values())
    return not isinstance(figure, LosslessFigure) or not any(
        run.differences for run in figure.runs.values()
    )


def arm_of(text: str) -> ServeArm:
    """``--arm NAME=DIR``; the drafter's config says the algorithm.

    Raises:
        ValueError: another form, or no such folder.
        DrafterError: no drafter is there.
    """
    from sgl_entropy.drafter.config import DrafterConfig

    name, equals, folder = text.partition("=")
    if not (equals and folder) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"--arm {text}: expected NAME=DIR, as in edsd-d=drafters/edsd-d")
    if name == "none":
        raise ValueError(f"--arm {text}: `none` is the arm without a drafter")
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise ValueError(f"--arm {text}: no such folder")
    return ServeArm(name, DrafterConfig.from_folder(path).algorithm, path)


def matmuls(target: Path, threads: int) -> tuple[dict[str, Any], str]:
    """Measures the CPU engine's own kernels, without a server."""
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")  # read when the engine is imported
    import torch

    from sgl_entropy.figures import matmuls as rates

    torch.set_num_threads(threads)
    data = rates.measure(target)
    return data, rates.page(data)


def entropy_cost(threads: int, quick: bool) -> tuple[dict[str, Any], str]:
    """Measures the functions of EASD's rule, without a server."""
    import torch

    from sgl_entropy.figures import entropy_cost as cost

    torch.set_num_threads(threads)
    data = cost.measure(tries=11) if quick else cost.measure()
    return data, cost.page(data)


def entropy_modes(args: argparse.Namespace, plan: FigurePlan) -> tuple[object, str]:
    """Measures the server's entropy modes, with each drafter that was chosen."""
    from sgl_entropy_bench.figures import easd, stop

    named = {None: DRAFTERS[args.name], "both": BOTH}
    drafters = named.get(args.drafter, (args.drafter,))
    if args.name != "stop":
        return easd.measure(plan, args.name, drafters)
    return stop.measure(plan, drafters, args.calibration)


def run_sampled(out: Path, quick: bool) -> int:
    """Measures ``sampled``, which shares its servers and its exact law with the tests.

    Returns:
        The exit code.

    Raises:
        ValueError: outside a checkout, which has the tests.
    """
    if not (ROOT / "tests" / "engine" / "figure_sampled.py").is_file():
        raise ValueError("the figure `sampled` uses the tests' tiny target: run it in a checkout")
    command = [sys.executable, "-m", "tests.engine.figure_sampled", "--out", str(out)]
    return subprocess.run([*command, *(["--draws", "3000"] if quick else [])], cwd=ROOT).returncode
