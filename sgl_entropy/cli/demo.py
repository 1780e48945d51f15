"""``sgl-entropy demo``: the small target with and without drafters, compared in one table."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from sgl_entropy_bench.demo import conclusion, details, run_demo, summary, table
from sgl_entropy_bench.server.arms import Engine, ServeArm, default_threads

from sgl_entropy.base.provenance import provenance
from sgl_entropy.cli.output import write_json

DRAFTERS = Path(__file__).resolve().parents[2] / "bench" / "drafters"
EXAMPLES = """examples:
  sgl-entropy demo                                the shipped drafters on the small target
  sgl-entropy demo --json demo.json
  sgl-entropy demo --target DIR --eagle3 DIR --edsd DIR
exit codes: 0 done; 1 an output differs from that of the arm without speculation; 2 an error"""


def add_drafter_options(parser: argparse.ArgumentParser) -> None:
    """Options that name the target, the two drafters and the threads of the server."""
    parser.add_argument(
        "--target", type=Path, metavar="DIR", help="default: the small target, fetched if needed"
    )
    for name in ("eagle3", "edsd"):
        parser.add_argument(
            f"--{name}",
            type=Path,
            metavar="DIR",
            default=DRAFTERS / f"{name}-smollm2-135m",
            help=f"{name.upper()} drafter (default: bench/drafters/{name}-smollm2-135m)",
        )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="compute threads of the server (default: OMP_NUM_THREADS, else 1)",
    )


def resolve(args: argparse.Namespace) -> tuple[Path, Path, Path, int]:
    """Target, EAGLE-3 drafter, EDSD drafter and threads, each checked to be there.

    Raises ValueError naming the flag and what to do.
    """
    drafters = []
    for name in ("eagle3", "edsd"):
        folder: Path = getattr(args, name)
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"no {name.upper()} drafter in {folder} (it has no config.json); name one with "
                f"--{name} DIR, or train one: sgl-entropy train --help"
            )
        drafters.append(folder.resolve())
    threads = default_threads() if args.threads is None else args.threads
    if threads < 1:
        raise ValueError(f"--threads {threads}: expected a whole number from 1")
    target: Path | None = args.target
    if target is None:
        # Late: the conversion needs packages that a client machine may lack.
        from sgl_entropy.target.smollm2 import ensure_small_target

        target = ensure_small_target()
    if not (target / "config.json").is_file():
        raise ValueError(f"--target {target}: no target there (it has no config.json)")
    return target.resolve(), drafters[0], drafters[1], threads


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``demo``."""
    add_drafter_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=64,
        metavar="N",
        help="tokens per answer (default: 64, about four minutes in all)",
    )
    parser.add_argument("--keep-logs", type=Path, metavar="DIR", help="keep the servers' logs here")
    parser.epilog = EXAMPLES


def run(args: argparse.Namespace) -> int:
    """Run the three arms, print the table and its sentence, write the JSON."""
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {args.max_new_tokens}: expected a number from 1")
    target, eagle3, edsd, threads = resolve(args)
    engine = Engine(target=target, threads=threads)
    arms = [ServeArm("none"), ServeArm("eagle3", "EAGLE3", eagle3), ServeArm("edsd", "EDSD", edsd)]
    facts = provenance(threads, {"target": target, "eagle3": eagle3, "edsd": edsd})
    with tempfile.TemporaryDirectory(prefix="sgl-entropy-demo-") as scratch:
        logs = args.keep_logs or Path(scratch)
        results = run_demo(engine, arms, args.max_new_tokens, logs)
    print(
        f"\n{len(results['none'].answers)} requests an arm, greedy, one at a time, at most "
        f"{args.max_new_tokens} tokens, {engine.dtype}, {threads} thread(s)"
    )
    print(f"{table(results)}\n{conclusion(results)}")
    figures, behind = summary(results), details(results)
    report = {
        "arms": {name: asdict(row) for name, row in figures.items()},
        "details": {name: asdict(row) for name, row in behind.items()},
        "conclusion": conclusion(results),
        "provenance": facts,
    }
    write_json(report, args.json)
    if all(row.outputs_equal for row in figures.values()):
        return 0
    for name, row in behind.items():
        for one in row.differences:
            where = "" if one.position is None else f", from token {one.position}"
            print(
                f"sgl-entropy demo: {name}'s output differs from none's: prompt {one.prompt}, "
                f"route {one.route}{where}",
                file=sys.stderr,
            )
    return 1
