"""``sgl-entropy policy record``: what a server knew at every verify cycle, into a trace file."""

from __future__ import annotations

import argparse
import queue
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_entropy.base.texts import read_texts, text_files
from sgl_entropy.verify.rule import EasdRule
from sgl_entropy.verify.trace import RequestTrace, TraceHeader
from sgl_entropy.verify.trace_file import TraceWriter

if TYPE_CHECKING:
    from sgl_entropy_bench.http.replies import MetaInfo

_NUMBERS = {
    "max_prompts": (20, "of each file"),
    "max_new_tokens": (256, "of an answer"),
    "max_prompt_tokens": (2048, "leave out longer prompts"),
    "concurrency": (1, "requests at a time"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``policy record``."""
    parser.add_argument(
        "--server", required=True, metavar="URL", help="it drafts chains in an entropy mode"
    )
    parser.add_argument(
        "--texts",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="prompts, a group a file, as in `drafter eval`",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="TRACE", help="a new file")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted TRACE")
    for name, (default, what) in _NUMBERS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            default=default,
            metavar="N",
            help=f"{what} (default: {default})",
        )
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default: 0")
    parser.add_argument(
        "--exact", action="store_true", help="without the server's EASD: every request turns it off"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="whose chat template the prompts are put into (default: the server's own)",
    )
    parser.add_argument(
        "--pruned",
        action=argparse.BooleanOptionalAction,
        help="whether the server verifies fewer tokens than it drafts (default: the CPU engine; "
        "of single requests it verifies all, and --no-pruned lets replays check that)",
    )


@dataclass(frozen=True)
class _Question:
    rid: str
    group: str
    ids: Sequence[int]


def run(args: argparse.Namespace) -> int:
    """Ask, write, say how many."""
    for name in _NUMBERS:
        if getattr(args, name) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} must be at least 1, found {getattr(args, name)}")
    if not 0 <= args.temperature < float("inf"):
        raise ValueError(f"--temperature must be a number from 0, found {args.temperature}")
    files = text_files(args.texts)
    groups = {f.stem: [text.prompt for text in read_texts(f, args.max_prompts)] for f in files}
    if len(groups) < len(files):
        raise ValueError("two of the files have the same name: rename one, names are the groups")
    from sgl_entropy_bench.http.client import Client, ServerError

    client = Client.from_url(args.server)
    try:
        info = client.get("/get_server_info")
    except (ServerError, OSError) as error:
        raise ValueError(f"--server {args.server}: {error}") from None
    try:
        header = header_of(info, args.temperature, args.exact, args.pruned)
    except ValueError as error:
        raise ValueError(f"--server {args.server}: {error}") from None

    from sgl_entropy.evaluate.report import chat_prompts

    tokenizer = args.tokenizer or info.get("tokenizer_path") or header.target
    if tokenizer is None:
        raise ValueError(f"--server {args.server} names no tokenizer: give --tokenizer DIR")
    prompts = chat_prompts(Path(tokenizer), groups, args.max_prompt_tokens)
    questions = [
        _Question(f"{group}-{number}", group, ids)
        for group, held in prompts.items()
        for number, ids in enumerate(held)
    ]
    with TraceWriter(args.out, header, append=args.resume) as trace:
        left = [question for question in questions if question.rid not in trace.rids]
        _record(args, client, header, left, trace)
    print(f"{args.out}: {len(trace.rids)} requests, {len(left)} of them new")
    return 0


def header_of(
    info: Any, temperature: float, exact: bool = False, pruned: bool | None = None
) -> TraceHeader:
    """The header of a server's traces, from ``/get_server_info``.

    Args:
        exact: every request turns EASD off.
        pruned: None = on the CPU engine.

    Raises:
        ValueError: the server drafts no chains, or says what is not understood.
    """
    if not isinstance(info, Mapping) or not info.get("speculative_draft_model_path"):
        raise ValueError("it serves no drafter")
    topk, tokens = info.get("speculative_eagle_topk"), info.get("speculative_num_draft_tokens")
    if topk not in (None, 1):
        raise ValueError(
            f"it drafts trees of {topk} branches; traces are of chains (--speculative-eagle-topk 1)"
        )
    if type(tokens) is not int or tokens < 2:
        raise ValueError(f"speculative_num_draft_tokens is {tokens!r}, expected at least 2")
    easd = info.get("easd")
    if not isinstance(easd, (Mapping, type(None))):
        raise ValueError(f"`easd` is {easd!r}, expected a rule or null")
    served = None if easd is None else EasdRule.from_dict(easd)
    # The policy with its settings where the server tells them, else the flag.
    stop = _stop(info.get("draft_stop") or info.get("speculative_draft_stop"))
    return TraceHeader(
        target=info.get("model_path"),
        drafter=info["speculative_draft_model_path"],
        draft_tokens=tokens - 1,
        top_n=(served or EasdRule()).top_n,
        rule=None if exact else served,
        draft_stop=stop,
        temperature=temperature,
        pruned=info.get("device") == "cpu" if pruned is None else pruned,
        relaxed_below=0.0 if exact else float(info.get("easd_relaxed_below") or 0.0),
    )


def _stop(given: Any) -> dict[str, Any] | None:
    """From an object with ``name``, or from ``name:key=value,...``; off and null are None."""
    if isinstance(given, str):
        from sgl_entropy.verify.replay.policy import ReplayOptions

        options = ReplayOptions.parse(given)
        given = {"name": options.name, **options.given}
    if given is None or (isinstance(given, Mapping) and given.get("name") == "off"):
        return None
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise ValueError(f"the draft stop is {given!r}, expected a name or an object")
    return dict(given)


def _record(
    args: argparse.Namespace,
    client: Any,
    header: TraceHeader,
    questions: Sequence[_Question],
    trace: TraceWriter,
) -> None:
    from sgl_entropy.base.progress import Progress

    progress = Progress(expected_s=len(questions) * args.max_new_tokens * 0.02)
    for done, (question, meta) in enumerate(_answers(args, client, questions), 1):
        try:
            trace.add(request_of(meta, question.rid, question.group, header))
        except ValueError as error:
            raise ValueError(f"--server {args.server}, {question.rid}: {error}") from None
        text = f"{done} of {len(questions)} requests"
        (progress.step if done == len(questions) else progress.update)(text, done / len(questions))


def _answers(
    args: argparse.Namespace, client: Any, questions: Sequence[_Question]
) -> Iterator[tuple[_Question, MetaInfo]]:
    """Each question with its answer's ``meta_info``, as they come.

    The threads are daemons: whatever ends the command ends its requests, too.
    """
    custom = {"spec_trace": True, **({"easd": False} if args.exact else {})}
    todo: queue.SimpleQueue[_Question] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[_Question, Any]] = queue.SimpleQueue()
    for question in questions:
        todo.put(question)

    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            try:
                question = todo.get_nowait()
            except queue.Empty:
                return
            try:
                answer = client.generate(
                    input_ids=question.ids,
                    max_new_tokens=args.max_new_tokens,
                    temperature=args.temperature,
                    sampling={"custom_params": custom},
                ).meta
            except Exception as error:
                # One is enough: the others would likely meet the same.
                ended.set()
                answer = error
            done.put((question, answer))

    for _ in range(min(args.concurrency, len(questions))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in questions:
            question, answer = done.get()
            if isinstance(answer, Exception):
                print(f"{args.out} keeps what it has: go on with --resume", file=sys.stderr)
                raise ValueError(f"--server {args.server}, {question.rid}: {answer}") from answer
            yield question, answer
    finally:
        ended.set()


def request_of(
    meta: MetaInfo, rid: str, benchmark: str | None, header: TraceHeader
) -> RequestTrace:
    """A request's trace from its response's ``meta_info``.

    Raises:
        ValueError: there is none, it is no trace, or the server's own counters say otherwise.
    """
    given = meta.trace
    if given is None and (meta.completion_tokens or 0) > 1:
        raise ValueError(
            "the server returned no spec_trace: it takes a patched SGLang (`sgl-entropy patch "
            "apply`) that drafts chains in an entropy mode (--speculative-verify-mode easd)"
        )
    request = RequestTrace.from_dict(
        {"rid": rid, "benchmark": benchmark, "cycles": [] if given is None else given},
        header.draft_tokens,
    )
    cycles = request.cycles
    # At each position, the cycles that accepted it.
    accepted = tuple(sum(c.accepted > at for c in cycles) for at in range(header.draft_tokens))
    counted = {
        "spec_cycles": (meta.own_cycles, len(cycles)),
        "spec_drafted": (meta.drafted, sum(cycle.verified for cycle in cycles)),
        "spec_emitted": (meta.emitted, sum(cycle.emitted for cycle in cycles)),
        "spec_accepted_by_position": (meta.accepted, accepted),
        "easd_checks": (meta.easd_checks, sum(cycle.checked for cycle in cycles)),
        "easd_fires": (meta.easd_fires, sum(cycle.fired is not None for cycle in cycles)),
    }
    for name, (told, value) in counted.items():
        if cycles and told is not None and told != value:
            raise ValueError(
                f"its counters and its trace disagree: {name} is {told}, the trace has {value}"
            )
    return request
