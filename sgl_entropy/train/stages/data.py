"""The stages that make training data: prompts, answers by the target, its hidden states.

Each stage reads what the one before it left in the work folder and skips what is finished, so
any of them can be killed and run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from sgl_entropy.base.disk import file_sha256
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.answers.decode import Decoding
from sgl_entropy.train.answers.file import read_answers, refuse_other_answers
from sgl_entropy.train.answers.from_server import Ask, collect_answers
from sgl_entropy.train.answers.local import write_answers
from sgl_entropy.train.answers.same_target import within_vocabulary
from sgl_entropy.train.machine.dtype import resolve_dtype
from sgl_entropy.train.machine.processes import device_of
from sgl_entropy.train.prompts.file import (
    make_prompts,
    read_prompts,
    record_of,
    refuse_other_prompts,
    refuse_too_few,
    refuse_unfit,
    write_prompts,
)
from sgl_entropy.train.prompts.order import Prompt, worker_queue
from sgl_entropy.train.samples.features import (
    FeaturePlan,
    check_generated,
    refuse_false,
    run_feature_worker,
)
from sgl_entropy.train.samples.generate import WorkerPlan, run_worker
from sgl_entropy.train.samples.open_store import store_for
from sgl_entropy.train.samples.store import Store, write_meta
from sgl_entropy.train.samples.workers import stored_answers, work
from sgl_entropy.train.settings.file import TrainSettings
from sgl_entropy.train.workspace import answers_file, target_folder, wanted_layers, work_folder

Report = Callable[[str], None]


def load_prompts(settings: TrainSettings, report: Report) -> tuple[list[Prompt], str]:
    """The prompt file's prompts (written on first use), less the skipped ones, and its sha256.

    Raises:
        ValueError: nothing to make prompts of.
    """
    path, given = work_folder(settings) / "prompts.jsonl", settings.prompts
    if not path.exists():
        most = settings.generate.max_new_tokens
        write_prompts(path, given, target_folder(settings), most, report)
    prompts = _less_skipped(read_prompts(path), given.skip, path)
    return prompts, file_sha256(path)


def planned_prompts(settings: TrainSettings, report: Report) -> list[Prompt]:
    """The prompts of ``load_prompts``: those of the file, else made now and not kept, so that a
    plan binds nobody to its settings.

    Raises:
        ValueError: nothing to make prompts of.
    """
    path, given = work_folder(settings) / "prompts.jsonl", settings.prompts
    if path.exists():
        prompts = read_prompts(path)
    else:
        most = settings.generate.max_new_tokens
        prompts = make_prompts(path, given, target_folder(settings), most)
        report(f"{len(prompts)} prompts, made for this plan alone: `train prepare` keeps them")
    return _less_skipped(prompts, given.skip, path)


def _less_skipped(prompts: list[Prompt], skip: int, path: Path) -> list[Prompt]:
    if skip >= len(prompts):
        raise ValueError(f"prompts.skip is {skip}, and {path} holds {len(prompts)} prompts")
    return prompts[skip:]


def _prompts_to_answer(settings: TrainSettings, report: Report) -> tuple[list[Prompt], str]:
    """``load_prompts``, where all of them can be answered and some be learned from, and the target
    has the layers that are wanted.

    What is answered already needs no texts any more: later stages know it by the prompts' sha256.
    """
    wanted_layers(settings)
    path = work_folder(settings) / "prompts.jsonl"
    if path.exists() and record_of(path).is_file():
        refuse_other_prompts(path, settings.prompts, target_folder(settings))
    prompts, digest = load_prompts(settings, report)
    most = settings.generate.max_new_tokens
    refuse_unfit(prompts, target_folder(settings), most, path)
    numbers = [prompt.prompt_id for prompt in prompts]
    refuse_too_few(numbers, settings.fit.validation_every, f"prompts in {path}")
    return prompts, digest


def generate(settings: TrainSettings, report: Report = print) -> None:
    """Answers with features, until ``generate.answer_tokens`` are stored or prompts run out.

    An interrupt keeps every finished sequence; what is stored already is not done again.

    Raises:
        RuntimeError: the answers are not what the target writes when it reads them at once.
    """
    given = settings.generate
    _refuse_sampling(settings, "answers that are written with their features")
    target = target_folder(settings)
    prompts, digest = _prompts_to_answer(settings, report)
    folder, meta = store_for(settings, {"prompts_sha256": digest})
    write_meta(folder, meta)
    layers, dtype = tuple(meta["tap_layers"]), meta["dtype"]
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
            str(target),
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
    work(run_worker, plans, folder, stored, given.answer_tokens, report)
    own = PlainTarget.from_folder(target, getattr(torch, dtype), device_of(0))
    agree = check_generated(Store(folder), own)
    report(f"{agree:.1%} of some answers' tokens are the target's when it reads them at once")


def prepare(settings: TrainSettings, ask: Ask | None, concurrency: int, report: Report) -> None:
    """The prompt file, and with a server its answers: ``answers.jsonl`` in the work folder.

    Without a server, answers come out of the same pass as their features (``features``), or, for
    a training without a store (``fit.online``), are written here.

    Args:
        ask: sends a prompt to the server; None = no server.
        concurrency: requests at once.
    """
    prompts, _ = _prompts_to_answer(settings, report)
    refuse_other_answers(answers_file(settings), read_answers(answers_file(settings)), prompts)
    if ask is None and settings.fit.online:
        _answer_here(settings, prompts, report)
        return
    if ask is None:
        report(f"{len(prompts)} prompts; `train features` answers them")
        return
    _refuse_sampling(settings, "a server's answers")
    wanted, ask = settings.generate.answer_tokens, within_vocabulary(ask, target_folder(settings))
    tokens = collect_answers(answers_file(settings), prompts, ask, wanted, concurrency, report)
    report(f"{tokens} answer tokens in {answers_file(settings)}")


def _refuse_sampling(settings: TrainSettings, what: str) -> None:
    if any(settings.generate.temperatures):
        raise ValueError(f"generate.temperatures: {what} are greedy, found others than [0]")


def _answer_here(settings: TrainSettings, prompts: Sequence[Prompt], report: Report) -> None:
    """Answers of the target on this machine's GPU, or CPU, until there are enough."""
    given, folder, device = settings.generate, target_folder(settings), device_of(0)
    path = answers_file(settings)
    dtype = getattr(torch, resolve_dtype(given.dtype, device=device))
    target = PlainTarget.from_folder(folder, dtype, device)
    refuse_false(target, read_answers(path), str(folder))
    decoding = Decoding(given.max_new_tokens, given.slots)
    tokens = write_answers(
        path, target, prompts, given.temperatures, given.answer_tokens, decoding, report
    )
    report(f"{tokens} answer tokens in {path}")
    refuse_false(target, read_answers(path), str(folder))


def features(settings: TrainSettings, report: Report = print) -> None:
    """The feature store: of the answers that ``prepare`` got, else answering locally.

    Raises:
        ValueError: the answers are not what this target writes.
    """
    path = answers_file(settings)
    if not path.is_file():
        generate(settings, report)
        return
    answers = [one for one in read_answers(path) if one.answer_length > 1]
    if not answers:
        raise ValueError(f"{path} holds no answers of more than one token")
    wanted_layers(settings)
    target = target_folder(settings)
    prompts, digest = load_prompts(settings, report)
    refuse_other_answers(path, answers, prompts)
    folder, meta = store_for(settings, {"prompts_sha256": digest, "answers": "given"})
    layers, dtype = tuple(meta["tap_layers"]), meta["dtype"]
    done, stored = stored_answers(folder)
    todo = sorted(
        (one for one in answers if one.prompt_id not in done),
        key=lambda one: (len(one.tokens), one.prompt_id),
    )
    if not todo:
        report(f"features of all {len(answers)} answers are stored, nothing to do")
        return
    refuse_false(
        PlainTarget.from_folder(target, getattr(torch, dtype), device_of(0)), todo, str(target)
    )
    write_meta(folder, meta)  # foreign answers begin no store
    workers = min(settings.generate.workers, len(todo))
    plans = [
        FeaturePlan(
            number,
            str(target),
            str(folder),
            tuple(todo[number::workers]),
            layers,
            dtype,
            device_of(number),
        )
        for number in range(workers)
    ]
    wanted = stored + sum(one.answer_length for one in todo)
    work(run_feature_worker, plans, folder, stored, wanted, report)
