"""``sgl-entropy figures NAME``: measure one committed figure and write it with its origin."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from sgl_entropy_bench.figures.figure_plan import FigurePlan, write_results
from sgl_entropy_bench.server.arms import Engine, ServeArm

from sgl_entropy.cli.demo import add_drafter_options, resolve
from sgl_entropy.cli.output import check_folder

FIGURES = {
    "lossless": "greedy token sequences of all arms and of transformers, batch 1 and 8",
    "sampled": "50,000 draws of three tokens against the exact law (in a checkout)",
    "speed": "tokens/s, step cost and break-even batch size of the three arms, paired",
    "served": "tau and speed-up by benchmark at temperatures 0 and 1, of any drafters, paired",
    "leaks": "pools and memory after 2,000 aborted, stopped, retracted and failing requests",
    "easd": "EASD's fires, speed and effect by threshold",
    "easd-overhead": "what EASD costs where it never fires",
    "stop": "drafts that end early against drafts of fixed length, paired",
    "entropy-cost": "entropy and the 10 likeliest tokens against a plain softmax, without a server",
    "matmuls": "what verifying costs at least: the target's matmuls by rows, and the core's peak",
    "clients": "load testers against the fake server: ours and others' rate, lag, processor time",
    "startup": "start-up time and memory with and without a drafter",
}
# Figures of drafters that one may choose, and what is measured unless one does.
BOTH = ("eagle3", "edsd")
DRAFTERS = {"easd": BOTH, "easd-overhead": ("edsd",), "stop": BOTH}
ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
EXAMPLES = """examples:
  sgl-entropy figures lossless --prompts BENCHMARKS
  sgl-entropy figures speed --prompts BENCHMARKS --threads 2
  sgl-entropy figures served --prompts BENCHMARKS --arm eagle3=DIR --arm edsd-d=DIR
  sgl-entropy figures leaks --quick --out /tmp
  sgl-entropy figures easd --prompts BENCHMARKS --drafter edsd
  sgl-entropy figures stop --prompts BENCHMARKS --drafter edsd --calibration edsd.json
  sgl-entropy figures clients --peer-path DIR     # without it: how to install the others in DIR
An interrupted measurement goes on where it ended when the command is repeated."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``figures``."""
    parser.add_argument(
        "name",
        choices=FIGURES,
        metavar="NAME",
        help="; ".join(f"{name}: {what}" for name, what in FIGURES.items()),
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
        help="clients: a folder with other load testers, installed for this comparison only; "
        "without it the figure takes those of this environment and says how to get the others",
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
        help="served: a drafter to measure, several may be given; the first is what the others "
        "are compared with (default: the two drafters above)",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="stop: a calibration of --drafter, so that the calibrated stop is measured too",
    )
    parser.epilog = EXAMPLES


def run(args: argparse.Namespace) -> int:
    """Measure, write, print the page; 1 where the figure is a check and fails."""
    from sgl_entropy.target.smollm2 import cache_dir

    if args.peer_path is not None and args.name != "clients":
        raise ValueError(f"--peer-path: of the figure clients, not of {args.name}")
    if args.drafter is not None and args.name not in DRAFTERS:
        raise ValueError(f"--drafter: of the figures {', '.join(DRAFTERS)}, not of {args.name}")
    if args.calibration is not None and args.name != "stop":
        raise ValueError(f"--calibration: of the figure stop, not of {args.name}")
    if args.arm and args.name != "served":
        raise ValueError(f"--arm: of the figure served, not of {args.name}")
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
    if args.name == "matmuls":
        data, page = matmuls(target, threads)
    elif args.name == "entropy-cost":
        data, page = entropy_cost(threads, args.quick)
    elif args.name in DRAFTERS:
        data, page = entropy_modes(args, plan)
    elif args.name == "clients":
        from sgl_entropy_bench.figures import clients

        data, page = clients.measure(target, args.quick, args.peer_path)
    else:
        figure = importlib.import_module(f"sgl_entropy_bench.figures.{args.name}")
        data, page = figure.measure(plan)
    path = write_results(plan, args.name, data, page)
    print(f"{page}\n\nwritten: {path} and {path.with_suffix('.json').name}")
    if args.name == "leaks":
        return 0 if all(row["passed"] for row in data["arms"].values()) else 1
    if args.name == "lossless":
        return 1 if any(row["differences"] for row in data["runs"].values()) else 0
    return 0


def arm_of(text: str) -> ServeArm:
    """``NAME=DIR`` of ``--arm``; the algorithm is the drafter's own.

    Raises ValueError for another form, and DrafterError for what is no drafter.
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
    """The figure that runs the CPU engine's own kernels, without a server."""
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")  # read when the engine is imported
    import torch

    from sgl_entropy.figures import matmuls as rates

    torch.set_num_threads(threads)
    data = rates.measure(target)
    return data, rates.page(data)


def entropy_cost(threads: int, quick: bool) -> tuple[dict[str, Any], str]:
    """The figure that runs functions of EASD's rule alone."""
    import torch

    from sgl_entropy.figures import entropy_cost as cost

    torch.set_num_threads(threads)
    data = cost.measure(tries=11) if quick else cost.measure()
    return data, cost.page(data)


def entropy_modes(args: argparse.Namespace, plan: FigurePlan) -> tuple[dict[str, Any], str]:
    """The figures of the server's entropy modes, by drafter."""
    from sgl_entropy_bench.figures import easd, stop

    named = {None: DRAFTERS[args.name], "both": BOTH}
    drafters = named.get(args.drafter, (args.drafter,))
    if args.name != "stop":
        return easd.measure(plan, args.name, drafters)
    return stop.measure(plan, drafters, args.calibration)


def run_sampled(out: Path, quick: bool) -> int:
    """The figure that shares its servers and its exact law with the tests; its exit code.

    Raises ValueError outside a checkout, where there are no tests.
    """
    if not (ROOT / "tests" / "engine" / "figure_sampled.py").is_file():
        raise ValueError("the figure `sampled` uses the tests' tiny target: run it in a checkout")
    command = [sys.executable, "-m", "tests.engine.figure_sampled", "--out", str(out)]
    return subprocess.run([*command, *(["--draws", "3000"] if quick else [])], cwd=ROOT).returncode
