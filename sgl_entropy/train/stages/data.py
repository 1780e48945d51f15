"""The stages that make training data: prompts, answers by the target, its hidden states.

Each stage reads what the one before it left in the work folder and skips what is done already, so
any of them can be killed and run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.answers.decode import Decoding
from sgl_entropy.train.answers.file import read_answers, refuse_other_answers
from sgl_entropy.train.answers.from_server import Ask, collect_answers
from sgl_entropy.train.answers.local import write_answers
from sgl_entropy.train.answers.same_target import within_vocabulary
from sgl_entropy.train.machine.dtype import resolve_dtype
from sgl_entropy.train.machine.processes import device_of
from sgl_entropy.train.prompts.file import (
    load_prompts,
    record_of,
    refuse_other_prompts,
    refuse_too_few,
    refuse_unfit,
)
from sgl_entropy.train.prompts.order import Prompt, worker_queue
from sgl_entropy.train.samples.features import (
    FeaturePlan,
    check_generated,
    refuse_false,
    run_feature_worker,
)
from sgl_entropy.train.samples.generate import WorkerPlan, run_worker
from sgl_entropy.train.samples.open_store import store_meta
from sgl_entropy.train.samples.store import Store, write_meta
from sgl_entropy.train.samples.workers import run_processes, stored_answers
from sgl_entropy.train.settings.file import GenerateSettings
from sgl_entropy.train.workspace import Workspace

Report = Callable[[str], None]


def _prompts_to_answer(work: Workspace, report: Report) -> tuple[list[Prompt], str]:
    """``load_prompts``, after checking that all can be answered, that some are left to learn from,
    and that the target has the wanted layers.

    Stages after the answers need no texts: they know them by the prompts' sha256.
    """
    work.check_layers()
    path = work.prompts_file
    if path.exists() and record_of(path).is_file():
        refuse_other_prompts(work)
    prompts, digest = load_prompts(work, report)
    refuse_unfit(prompts, work)
    numbers = [prompt.prompt_id for prompt in prompts]
    refuse_too_few(numbers, work.settings.fit.validation_every, f"prompts in {path}")
    return prompts, digest


def generate(work: Workspace, report: Report = print) -> None:
    """Write answers with their features until ``generate.answer_tokens`` are stored or prompts run
    out.

    An interrupt keeps every finished sequence, and stored answers are not written again.

    Raises:
        RuntimeError: the answers are not what the target writes when it reads them at once.
    """
    given = work.settings.generate
    _refuse_sampling(given, "answers that are written with their features")
    prompts, digest = _prompts_to_answer(work, report)
    folder, meta = work.store_folder, store_meta(work, prompts_sha256=digest)
    write_meta(folder, meta)
    layers, dtype = meta.tap_layers, str(meta.dtype)
    done, stored = stored_answers(folder)
    todo = [prompt for prompt in prompts if prompt.prompt_id not in done]
    wanted = given.answer_tokens - stored
    if wanted <= 0 or not todo:
        report(f"{stored} answer tokens stored, nothing to do")
        return
    if torch.cuda.is_available():
        report(
            f"answers are decoded here on the CPU, not on the {torch.cuda.get_device_name()}: with "
            "fit.online=true `train prepare` and `train fit` use it, and `train prepare --server "
            "URL` takes the answers of a server that does"
        )
    plans = [
        WorkerPlan(
            number,
            str(work.target),
            str(folder),
            tuple(worker_queue(todo, number, given.workers)),
            layers,
            given.max_new_tokens,
            given.slots,
            -(-wanted // given.workers),
            dtype,
        )
        for number in range(min(given.workers, len(todo)))
    ]
    run_processes(run_worker, plans, folder, stored, given.answer_tokens, report)
    own = PlainTarget.from_folder(work.target, getattr(torch, dtype), device_of(0))
    agree = check_generated(Store(folder), own)
    report(f"{agree:.1%} of some answers' tokens are the target's when it reads them at once")


def prepare(work: Workspace, ask: Ask | None, concurrency: int, report: Report) -> None:
    """Write the prompt file, and the answers of a server if there is one.

    Without a server, answers come out of the same pass as their features (``generate``), or, for
    a training without a store (``fit.online``), are written here.

    Args:
        ask: sends a prompt to the server; None = no server.
        concurrency: requests at once.
    """
    given, path = work.settings.generate, work.answers_file
    prompts, _ = _prompts_to_answer(work, report)
    refuse_other_answers(path, read_answers(path), prompts)
    if ask is None and work.settings.fit.online:
        _answer_here(work, prompts, report)
        return
    if ask is None:
        report(f"{len(prompts)} prompts; `train features` answers them")
        return
    _refuse_sampling(given, "a server's answers")
    ask = within_vocabulary(ask, work)
    tokens = collect_answers(path, prompts, ask, given.answer_tokens, concurrency, report)
    report(f"{tokens} answer tokens in {path}")


def _refuse_sampling(given: GenerateSettings, what: str) -> None:
    if any(given.temperatures):
        found = list(given.temperatures)
        raise ValueError(
            f"generate.temperatures must be [0] here: {what} are greedy; found {found}"
        )


def _answer_here(work: Workspace, prompts: Sequence[Prompt], report: Report) -> None:
    """Let the target answer on this machine's GPU, or CPU, until there are enough tokens."""
    given, path, device = work.settings.generate, work.answers_file, device_of(0)
    dtype = getattr(torch, resolve_dtype(given.dtype, device=device))
    target = PlainTarget.from_folder(work.target, dtype, device)
    refuse_false(target, read_answers(path), str(work.target))
    decoding = Decoding(given.max_new_tokens, given.slots)
    tokens = write_answers(path, target, prompts, given.temperatures, given.answer_tokens, decoding)
    report(f"{tokens} answer tokens in {path}")
    refuse_false(target, read_answers(path), str(work.target))


def features(work: Workspace, report: Report = print) -> None:
    """Fill the feature store with the answers that ``prepare`` left.

    Raises:
        ValueError: there are no answers, or they are not what this target writes.
    """
    path = work.answers_file
    answers = [one for one in read_answers(path) if one.answer_length > 1]
    if not answers:
        raise ValueError(f"{path} holds no answers of more than one token")
    work.check_layers()
    prompts, digest = load_prompts(work, report)
    refuse_other_answers(path, answers, prompts)
    folder, meta = work.store_folder, store_meta(work, prompts_sha256=digest, answers="given")
    layers, dtype = meta.tap_layers, str(meta.dtype)
    done, stored = stored_answers(folder)
    todo = sorted(
        (one for one in answers if one.prompt_id not in done),
        key=lambda one: (len(one.tokens), one.prompt_id),
    )
    if not todo:
        report(f"features of all {len(answers)} answers are stored, nothing to do")
        return
    reader = PlainTarget.from_folder(work.target, getattr(torch, dtype), device_of(0))
    refuse_false(reader, todo, str(work.target))
    del reader  # the workers load their own
    write_meta(folder, meta)  # answers of another model begin no store
    workers = min(work.settings.generate.workers, len(todo))
    plans = [
        FeaturePlan(
            number,
            str(work.target),
            str(folder),
            tuple(todo[number::workers]),
            layers,
            dtype,
            device_of(number),
        )
        for number in range(workers)
    ]
    wanted = stored + sum(one.answer_length for one in todo)
    run_processes(run_feature_worker, plans, folder, stored, wanted, report)
