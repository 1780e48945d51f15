"""The flags of ``sgl-entropy train``, and which stage each belongs to."""

from __future__ import annotations

import argparse
from pathlib import Path

from sgl_entropy.cli.inputs import input_file

STAGES = ("prepare", "features", "generate", "fit", "export", "evaluate", "compare", "benchmark")
# Without a stage, in this order: `evaluate` where evaluate.benchmarks is set, no `features` online.
WHOLE = ("prepare", "features", "fit", "export", "evaluate")
PLAN = "--plan"
# Stages that a plan estimates, together.
PLANNED = ("prepare", "features", "generate", "fit")
# Flag -> the stages that read it, and what it is when it is not given.
_BELONGS: dict[str, tuple[tuple[str, ...], object]] = {
    "check": ((PLAN,), None),
    "algorithm": (("fit", "export", "benchmark", PLAN), "EDSD"),
    "accept_changes": (("fit",), False),
    "out": (("export",), None),
    "arms": (("compare", "benchmark"), None),
    "seeds": (("compare",), None),
    "page": (("compare", "benchmark", PLAN), None),
    "batches": (("benchmark",), 16),
    "drafter": (("evaluate",), None),
    "server": (("prepare",), None),
    "concurrency": (("prepare",), 64),
    "threads": (("prepare", "fit", "export", "evaluate", "benchmark"), 1),
    "online": (("prepare", "fit", "compare", PLAN), False),
    "workers": (("compare",), 2),
    "json": (("evaluate", "compare", "benchmark", PLAN), None),
}
EXAMPLES = """examples:
  sgl-entropy train --settings > train.toml
  sgl-entropy train --plan --config train.toml
  sgl-entropy train --plan --config train.toml --check WORK/edsd
  sgl-entropy train --config train.toml --work WORK --out ./edsd     # all stages
  sgl-entropy train prepare --config train.toml --server http://127.0.0.1:30000
  sgl-entropy train features --config train.toml
  sgl-entropy train fit --config train.toml --algorithm EDSD --set fit.epochs=2
  torchrun --standalone --nproc-per-node 2 -m sgl_entropy train fit --config train.toml
  sgl-entropy train export --config train.toml --algorithm EDSD --out ./edsd
  sgl-entropy train evaluate --config train.toml --drafter ./edsd --json -
  sgl-entropy train compare --config compare.toml --workers 2 --json compare.json
  sgl-entropy train benchmark --config train.toml --algorithm EDSD --page throughput.md

Every stage can be interrupted and run again: it goes on where it stopped (`fit` ends after the
current step; a second Ctrl-C, seconds later, does not wait for it). The stages in order:
Without STAGE, `prepare`, `features`, `fit` and `export` run one after the other, and `evaluate` if
evaluate.benchmarks is set (with fit.online there is no `features`). Each stage skips what is done
already: after an interrupt, repeat the command.
`prepare` writes the prompts and, with --server, the target's answers.
`features` stores the tapped layers of those answers. Without answers it runs `generate`, which
writes answers and features in one pass.
`fit` trains a drafter on one thread: on two cores, train both drafters side by side. Started by
torchrun, the processes share each batch (gloo on CPUs, NCCL on GPUs) and end with the weights of
one process, up to the order of sums; fit.rows is the batch of all of them together.
`export` copies the newest checkpoint into a folder that SGLang serves.
`evaluate` measures a drafter's acceptance length on the benchmarks of evaluate.benchmarks.
`compare` fits and judges every arm of a comparison file with every seed:
  base = "train.toml"
  seeds = [0, 1, 2]
  [[arms]]
  name = "edtrain"
  algorithm = "EDSD"
  set = ["fit.mask_gamma=3", "fit.max_steps=7"]
`benchmark` compares the speed and memory of `fit` with a straightforward loop on the same feature
store, part by part; --arms takes the recipe of one arm of a comparison file."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``train``."""
    parser.add_argument(
        "stage",
        choices=STAGES,
        nargs="?",
        metavar="STAGE",
        help=f"one of {', '.join(STAGES)} (default: all that make a drafter, into --out)",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="instead of running stages, estimate what they cost, up to `fit`: tokens, FLOPs and "
        "storage are counted, time and memory measured by a few steps on this machine's devices",
    )
    parser.add_argument(
        "--settings",
        action="store_true",
        help="print every setting with its default and what it does, as a settings file",
    )
    parser.add_argument(
        "--check",
        type=Path,
        action="append",
        metavar="DIR",
        help="compare the plan with a finished training: the folder with its checkpoint and log; "
        "may be repeated (--plan)",
    )
    parser.add_argument(
        "--config",
        type=input_file("--config", "settings, TOML or JSON (`sgl-entropy train --settings`)"),
        metavar="FILE",
        help="settings, TOML or JSON",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one setting; may be repeated",
    )
    parser.add_argument(
        "--online",
        action="store_true",
        default=None,
        help="train without a feature store: prepare writes the answers (here, also on a GPU, or "
        "by --server) and fit computes their features; the same as fit.online=true",
    )
    parser.add_argument(
        "--target", metavar="DIR", help="the model to draft for; default: SmolLM2-135M"
    )
    parser.add_argument(
        "--work", metavar="DIR", help="the folder for prompts, features, checkpoints"
    )
    parser.add_argument(
        "--algorithm",
        choices=("EDSD", "EAGLE3"),
        help="which drafter (fit, export, benchmark, --plan; default: EDSD)",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        default=None,
        help="go on from a checkpoint with another fit.learning_rate, warmup, final_rate or clip "
        "from this step on; the log says so (fit)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="the drafter's folder (export)")
    parser.add_argument(
        "--arms",
        metavar="LIST",
        help="compare: only these arms of the file; benchmark: the one arm to measure",
    )
    parser.add_argument("--seeds", metavar="LIST", help="compare: only these seeds, as 0,1")
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="the table as Markdown (compare, benchmark, --plan --check)",
    )
    parser.add_argument(
        "--batches",
        type=int,
        help="how many batches to time, spread over the epochs (benchmark; default: 16)",
    )
    parser.add_argument(
        "--drafter", type=Path, metavar="DIR", help="the drafter to measure (evaluate)"
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        help="an SGLang server of the target, with or without a drafter, to answer (prepare)",
    )
    parser.add_argument("--concurrency", type=int, help="requests at once (prepare; default: 64)")
    parser.add_argument(
        "--threads",
        type=int,
        help="torch threads (default: 1; features, generate and compare use one per process)",
    )
    parser.add_argument("--workers", type=int, help="drafters fitted at once (compare; default: 2)")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the figures to this file, - for stdout (--plan, evaluate, compare, benchmark)",
    )
    parser.epilog = EXAMPLES


def check_flags(args: argparse.Namespace) -> None:
    """Refuse what the stage would ignore, and fill in what was not given.

    Raises:
        ValueError: a flag of another stage, or a number below 1.
    """
    if args.settings and (args.stage is not None or args.plan):
        raise ValueError("--settings prints the settings and does nothing else")
    if args.plan and args.stage not in (None, *PLANNED):
        raise ValueError(
            f"--plan estimates {', '.join(PLANNED)}, not {args.stage}: leave out one of them"
        )
    stage = PLAN if args.plan else "--settings" if args.settings else args.stage
    whole = stage is None
    if whole and args.out is None:
        raise ValueError(
            f"a training without STAGE runs {', '.join(WHOLE)}, which may take hours, and needs "
            f"--out DIR for the drafter; else name a stage ({', '.join(STAGES)}), --plan or "
            "--settings"
        )
    if whole and args.drafter is not None:
        raise ValueError("--drafter belongs to evaluate; without STAGE, that measures --out")
    for name, (stages, default) in _BELONGS.items():
        if getattr(args, name) is None:
            continue
        if not {*stages} & {*(WHOLE if whole else (stage,))}:
            flag = name.replace("_", "-")
            where = "a training without STAGE" if whole else stage
            raise ValueError(f"--{flag} belongs to {', '.join(stages)}, not to {where}")
        if isinstance(default, int) and getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, found {getattr(args, name)}")
    if args.concurrency is not None and args.server is None:
        raise ValueError("--concurrency is of requests to a --server, and none is named")
    if args.plan and args.page is not None and not args.check:
        raise ValueError("--page with --plan is the table of --check: name a finished training")
    if args.check and args.algorithm is not None:
        raise ValueError("--algorithm: --check reads it in each checkpoint")
    if stage == "benchmark" and args.arms is not None and args.algorithm is not None:
        raise ValueError("--arms names a recipe with its own algorithm: leave out --algorithm")
    for name, (_, default) in _BELONGS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
