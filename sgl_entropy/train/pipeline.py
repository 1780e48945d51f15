"""The stages of a training: prompts, answers, features, fit, export, evaluate.

Each stage reads what the one before it left in the work folder and skips what is finished, so
any of them can be killed and run again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.drafter.config import Algorithm, DrafterConfig, default_eagle3_layer_ids
from sgl_entropy.drafter.evaluate import evaluate_chain, summary
from sgl_entropy.drafter.model import load_drafter
from sgl_entropy.drafter.plain_target import PlainTarget
from sgl_entropy.target import cache_dir, ensure_small_target
from sgl_entropy.train.answers import Ask, collect_answers, read_answers
from sgl_entropy.train.arithmetic import resolve_dtype
from sgl_entropy.train.export import export_drafter
from sgl_entropy.train.features import (
    FeaturePlan,
    OnlineStore,
    features_of,
    refuse_foreign,
    run_feature_worker,
)
from sgl_entropy.train.fit import Fit
from sgl_entropy.train.generate import Prompt, WorkerPlan, in_length_blocks, run_worker
from sgl_entropy.train.group import Group, device_of, join_group, leave_group
from sgl_entropy.train.plan import (
    GPUS,
    Trial,
    as_report,
    count,
    expected_lengths,
    fit_memory,
    gpu_seconds,
    measure_here,
)
from sgl_entropy.train.prompts import collect_texts, read_jsonl, tokenize
from sgl_entropy.train.settings import TrainSettings
from sgl_entropy.train.store import FORMAT, Samples, Store, made_with, write_meta
from sgl_entropy.train.vocabulary import count_tokens, draft_vocabulary

Report = Callable[[str], None]
# Prompts sorted by length together while generating.
_LENGTH_BLOCK = 640


def target_folder(settings: TrainSettings) -> Path:
    """The target to draft for; the small real one is converted on first use."""
    return Path(settings.target).expanduser() if settings.target else ensure_small_target()


def work_folder(settings: TrainSettings) -> Path:
    """Where this training keeps its files."""
    if settings.work:
        return Path(settings.work).expanduser()
    name = Path(settings.target).name if settings.target else "smollm2-135m"
    return cache_dir() / f"train-{name}"


def load_prompts(settings: TrainSettings, report: Report) -> tuple[list[Prompt], str]:
    """The prompt file's prompts (written on first use), less the skipped ones, and its sha256."""
    path = work_folder(settings) / "prompts.jsonl"
    if not path.exists():
        from transformers import AutoTokenizer

        given = settings.prompts
        if not given.questions and not given.conversations:
            raise ValueError("set prompts.questions or prompts.conversations to a JSON Lines file")
        texts = collect_texts(
            Path(given.questions).expanduser() if given.questions else None,
            Path(given.conversations).expanduser() if given.conversations else None,
            given.seed,
        )
        tokenizer = AutoTokenizer.from_pretrained(target_folder(settings))
        prompts = tokenize(tokenizer, texts, given.max_tokens)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [json.dumps({"prompt_id": p.prompt_id, "tokens": list(p.tokens)}) for p in prompts]
        partial = path.with_suffix(".partial")
        partial.write_text("\n".join(rows) + "\n", encoding="utf-8")
        partial.rename(path)
        report(f"{len(prompts)} prompts in {path}")
    prompts = [Prompt(row["prompt_id"], tuple(row["tokens"])) for row in read_jsonl(path)]
    skip = settings.prompts.skip
    if skip >= len(prompts):
        raise ValueError(f"prompts.skip is {skip}, and {path} holds {len(prompts)} prompts")
    prompts = prompts[skip:]
    return prompts, hashlib.sha256(path.read_bytes()).hexdigest()


def generate(settings: TrainSettings, report: Report = print) -> None:
    """Answers with features, until ``generate.answer_tokens`` are stored or prompts run out.

    An interrupt keeps every finished sequence; what is stored already is not done again.
    """
    given = settings.generate
    target = target_folder(settings)
    prompts, digest = load_prompts(settings, report)
    folder, layers, dtype = _open_for_writing(settings, {"prompts_sha256": digest})
    done, stored = _stored(folder)
    todo = [prompt for prompt in prompts if prompt.prompt_id not in done]
    wanted = given.answer_tokens - stored
    if wanted <= 0 or not todo:
        report(f"{stored} answer tokens stored, nothing to do")
        return
    plans = [
        WorkerPlan(
            number,
            str(target),
            str(folder),
            tuple(in_length_blocks(todo[number :: given.workers], _LENGTH_BLOCK)),
            layers,
            given.max_new_tokens,
            given.slots,
            -(-wanted // given.workers),
            dtype,
        )
        for number in range(min(given.workers, len(todo)))
    ]
    _work(run_worker, plans, folder, stored, given.answer_tokens, report)


def prepare(settings: TrainSettings, ask: Ask | None, concurrency: int, report: Report) -> None:
    """The prompt file, and with a server its answers: ``answers.jsonl`` in the work folder.

    Without a server, answers come out of the same pass as their features (``features``).

    Args:
        ask: sends a prompt to the server; None = no server.
        concurrency: requests at once.
    """
    prompts, _ = load_prompts(settings, report)
    if ask is None:
        report(f"{len(prompts)} prompts; `train features` answers them")
        return
    wanted = settings.generate.answer_tokens
    tokens = collect_answers(answers_file(settings), prompts, ask, wanted, concurrency, report)
    report(f"{tokens} answer tokens in {answers_file(settings)}")


def answers_file(settings: TrainSettings) -> Path:
    """Where ``prepare`` leaves a server's answers."""
    return work_folder(settings) / "answers.jsonl"


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
    target = target_folder(settings)
    _, digest = load_prompts(settings, report)
    folder, layers, dtype = _open_for_writing(
        settings, {"prompts_sha256": digest, "answers": "given"}
    )
    done, stored = _stored(folder)
    todo = sorted(
        (one for one in answers if one.prompt_id not in done),
        key=lambda one: (len(one.tokens), one.prompt_id),
    )
    if not todo:
        report(f"features of all {len(answers)} answers are stored, nothing to do")
        return
    some = todo[:: -(-len(todo) // 8)]
    refuse_foreign(
        features_of(
            PlainTarget.from_folder(target, getattr(torch, dtype), device_of(0)), some, layers
        ),
        str(target),
    )
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
    _work(run_feature_worker, plans, folder, stored, wanted, report)


def _open_for_writing(
    settings: TrainSettings, origin: dict[str, str]
) -> tuple[Path, tuple[int, ...], str]:
    """(folder, layers, dtype) of the store, made for these settings and ``origin`` or refused."""
    given = settings.generate
    target = target_folder(settings)
    model = json.loads((target / "config.json").read_text(encoding="utf-8"))
    layers = _stored_layers(settings, int(model["num_hidden_layers"]))
    folder = work_folder(settings) / "store"
    dtype = resolve_dtype(given.dtype, made_with(folder))
    meta = {
        "format": FORMAT,
        "target": target.name,
        "tap_layers": list(layers),
        "hidden_size": int(model["hidden_size"]),
        "max_new_tokens": given.max_new_tokens,
        "dtype": dtype,
        **origin,
    }
    write_meta(folder, meta)
    return folder, layers, dtype


def _stored_layers(settings: TrainSettings, count: int) -> tuple[int, ...]:
    """The layers that the store keeps of a target of ``count``."""
    layers = tuple(sorted({*settings.drafter.tap_layers(count), *settings.generate.extra_layers}))
    if not 0 <= layers[0] <= layers[-1] < count:
        raise ValueError(f"layers {list(layers)} are to be stored; the target has 0 to {count - 1}")
    return layers


def _work(
    run: Callable[[Any], None],
    plans: Sequence[Any],
    folder: Path,
    stored: int,
    wanted: int,
    report: Report,
) -> None:
    """Run every plan in a process of its own, with progress, and say what the store holds."""
    # One thread a process, also in what the workers import.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=run, args=(plan,)) for plan in plans]
    for worker in workers:
        worker.start()
    _watch(workers, folder, stored, wanted, report)
    report(_size_line(Store(folder)))


def _size_line(store: Store) -> str:
    tokens = sum(entry.length - 1 for entry in store.entries)
    size = store.bytes()
    return (
        f"{len(store.entries)} sequences, {store.answer_tokens()} answer tokens; {size / 1e9:.2f} "
        f"GB, {size / tokens:.0f} bytes a token of prompt and answer, of them "
        f"{2 * len(store.tap_layers) * store.width} for {len(store.tap_layers)} layers"
    )


def open_store(settings: TrainSettings, report: Report = print) -> Samples:
    """The work folder's store, every byte of it checked; skipped shards are reported. With
    ``fit.online``, the target itself instead.

    Raises:
        ValueError: nothing prepared yet, answers of another model, or damaged shards that nobody
            asked to skip.
    """
    if settings.fit.online:
        return _online_store(settings)
    folder = work_folder(settings) / "store"
    store = Store(folder, whole=True, skip_damaged=settings.fit.skip_damaged)
    for name, problem in store.skipped.items():
        report(f"left out: {folder / name}: {problem}")
    return store


def _online_store(settings: TrainSettings) -> OnlineStore:
    path = answers_file(settings)
    answers = read_answers(path)
    folder = target_folder(settings)
    dtype = getattr(torch, resolve_dtype(settings.generate.dtype))
    target = PlainTarget.from_folder(folder, dtype, device_of(0))
    store = OnlineStore(target, answers, settings.drafter.tap_layers(target.num_layers), path)
    if not store.entries:
        raise ValueError(f"fit.online needs answers in {path}: `train prepare --server URL`")
    some = store.entries[:: -(-len(store.entries) // 8)]
    refuse_foreign([store.sample(entry) for entry in some], str(folder))
    return store


def _watch(workers: list[Any], folder: Path, before: int, wanted: int, report: Report) -> None:
    began = time.monotonic()
    try:
        while any(worker.is_alive() for worker in workers):
            for worker in workers:
                worker.join(timeout=15 / len(workers))
            stored = _stored(folder)[1]
            rate = (stored - before) / (time.monotonic() - began)
            left = f"{(wanted - stored) / rate / 60:.1f} min" if rate else "unknown"
            report(f"{stored} of {wanted} answer tokens, {rate:.0f} tokens/s, left {left}")
    except KeyboardInterrupt:
        for worker in workers:
            worker.terminate()  # a worker writes what is finished, then leaves
        for worker in workers:
            worker.join()
        raise
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    if failed:
        raise RuntimeError(f"generation workers failed with exit codes {failed}; run it again")


def _stored(folder: Path) -> tuple[set[int], int]:
    """(prompt ids, answer tokens) of the finished shards; damaged ones are refused."""
    if not any(folder.glob("*.safetensors")):
        return set(), 0
    store = Store(folder)
    return {entry.prompt_id for entry in store.entries}, store.answer_tokens()


def plan(
    settings: TrainSettings, algorithm: Algorithm, gpu: str | None, report: Report = print
) -> dict[str, Any]:
    """What ``features`` and ``fit`` will cost, before they run; see the module ``plan``.

    Args:
        gpu: a name of ``plan.GPUS``; None = this machine, where a minute is spent on measuring.
    """
    target = target_folder(settings)
    model = json.loads((target / "config.json").read_text(encoding="utf-8"))
    prompts, _ = load_prompts(settings, report)
    given, folder = settings.generate, work_folder(settings) / "store"
    store = Store(folder) if any(folder.glob("*.safetensors")) else None
    lengths = expected_lengths(prompts, given.answer_tokens, given.max_new_tokens, store)
    config = drafter_config(settings, algorithm)
    layers = _stored_layers(settings, int(model["num_hidden_layers"]))
    counts = count(lengths, model, len(layers), config, settings.fit)
    if gpu is not None:
        seconds = gpu_seconds(GPUS[gpu], counts, lengths, model, given.slots)
    else:
        report("measuring a few steps of each stage, about a minute")
        seconds = measure_here(
            Trial(
                str(target),
                layers,
                config,
                settings.fit,
                lengths,
                tuple(prompts[:2000]),
                given.slots,
                given.workers,
                resolve_dtype(given.dtype, made_with(folder)),
            )
        )
    memory = fit_memory(counts, config, settings.fit)
    return as_report(algorithm, lengths, counts, seconds, memory)


def _vocabulary_file(settings: TrainSettings) -> Path:
    return work_folder(settings) / f"vocabulary-{settings.drafter.draft_vocab_size}.json"


def _held_vocabulary(settings: TrainSettings) -> Tensor | None:
    """The draft vocabulary that an earlier fit chose; None = none yet."""
    path = _vocabulary_file(settings)
    if not path.is_file():
        return None
    return torch.tensor(json.loads(path.read_text(encoding="utf-8")))


def vocabulary(settings: TrainSettings, store: Samples, vocab_size: int) -> Tensor:
    """Choose the draft vocabulary of the store, int64 [draft vocab]; the work folder keeps it."""
    path = _vocabulary_file(settings)
    prompts, _ = load_prompts(settings, print)
    answers = count_tokens(
        (store.tokens(entry)[entry.prompt_length :] for entry in store.entries), vocab_size
    )
    asked = count_tokens((torch.tensor(prompt.tokens) for prompt in prompts), vocab_size)
    model = json.loads((target_folder(settings) / "config.json").read_text(encoding="utf-8"))
    eos = model.get("eos_token_id")
    chosen = draft_vocabulary(
        answers,
        asked,
        settings.drafter.draft_vocab_size,
        settings.drafter.prompt_weight,
        [eos] if isinstance(eos, int) else eos or [],
    )
    # Both drafters may be started at once: a file appears whole or not at all.
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(chosen.tolist()) + "\n", encoding="utf-8")
    partial.rename(path)
    return chosen


def drafter_config(settings: TrainSettings, algorithm: Algorithm) -> DrafterConfig:
    """The drafter's sizes: the target's, but for one layer and the draft vocabulary."""
    model = json.loads((target_folder(settings) / "config.json").read_text(encoding="utf-8"))
    layers = int(model["num_hidden_layers"])
    edsd = algorithm == "EDSD"
    return DrafterConfig(
        algorithm=algorithm,
        hidden_size=model["hidden_size"],
        intermediate_size=model["intermediate_size"],
        num_attention_heads=model["num_attention_heads"],
        num_key_value_heads=model.get("num_key_value_heads") or model["num_attention_heads"],
        head_dim=model.get("head_dim") or model["hidden_size"] // model["num_attention_heads"],
        vocab_size=model["vocab_size"],
        draft_vocab_size=settings.drafter.draft_vocab_size,
        target_hidden_size=model["hidden_size"],
        target_layer_ids=settings.drafter.layers if edsd else settings.drafter.eagle3_taps(layers),
        rms_norm_eps=model["rms_norm_eps"],
        rope_theta=model.get("rope_theta") or 10000.0,
        max_position_embeddings=model["max_position_embeddings"],
        fuse_size=(settings.drafter.fuse_size or model["intermediate_size"]) if edsd else None,
        fuse_residual=edsd and settings.drafter.fuse_residual,
        fuse_norm=settings.drafter.fuse_norm or not edsd,
    )


def make_vocabulary(
    settings: TrainSettings, algorithm: Algorithm, store: Samples | None = None
) -> Tensor:
    """The draft vocabulary that ``make_fit`` takes: int64 [draft vocab].

    Args:
        store: opened already; None = it is opened, and checked, if the vocabulary needs it.
    """
    if settings.fit.start:
        earlier = load_drafter(Path(settings.fit.start).expanduser())
        return earlier.target_ids(torch.arange(earlier.config.draft_vocab_size))
    held = _held_vocabulary(settings)
    if held is not None:
        return held
    store = open_store(settings) if store is None else store
    return vocabulary(settings, store, drafter_config(settings, algorithm).vocab_size)


def make_fit(
    settings: TrainSettings,
    algorithm: Algorithm,
    folder: Path | None = None,
    group: Group | None = None,
) -> Fit:
    """The (possibly resumed) training of one drafter on the work folder's store.

    Args:
        folder: for checkpoint and log; None = the work folder's own for this algorithm.
        group: the processes that share the work; None = this one alone, on the CPU.
    """
    work = work_folder(settings)
    store = open_store(settings)
    config = drafter_config(settings, algorithm)
    target = PlainTarget.from_folder(target_folder(settings))
    return Fit(
        config,
        settings.fit,
        store,
        make_vocabulary(settings, algorithm, store),
        target.embedding,
        target.head,
        work / algorithm.lower() if folder is None else folder,
        group,
    )


def fit(settings: TrainSettings, algorithm: Algorithm, report: Report = print) -> None:
    """Train one drafter to the end of its epochs; torchrun may have started several of us."""
    group = join_group()
    try:
        make_fit(settings, algorithm, group=group).run(report)
    finally:
        leave_group(group)


def export(settings: TrainSettings, algorithm: Algorithm, out: Path) -> None:
    """Write the trained (or half-trained) drafter in the published layout."""
    trained = make_fit(settings, algorithm)
    if not trained.step:
        raise ValueError(f"no checkpoint in {trained.folder}: run `sgl-entropy train fit` first")
    export_drafter(trained.drafter, trained.side.tap_scale, out)


def evaluate(settings: TrainSettings, folder: Path, report: Report = print) -> dict[str, Any]:
    """tau of the drafter in ``folder`` on the benchmarks of ``evaluate.benchmarks``."""
    from transformers import AutoTokenizer

    given = settings.evaluate
    files = sorted(Path(given.benchmarks).expanduser().glob("*.jsonl")) if given.benchmarks else []
    if not files:
        raise ValueError(
            f"evaluate.benchmarks: expected a folder of JSON Lines files with `turns`, "
            f"found {given.benchmarks!r}"
        )
    tokenizer = AutoTokenizer.from_pretrained(target_folder(settings))
    prompts = {
        file.stem: [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": row["turns"][0]}], add_generation_prompt=True
            )
            for row in read_jsonl(file)[: given.prompts]
        ]
        for file in files
    }
    drafter = load_drafter(folder)
    layers = drafter.config.target_layer_ids
    target = PlainTarget.from_folder(target_folder(settings), getattr(torch, given.dtype))
    if layers is None:
        layers = default_eagle3_layer_ids(target.num_layers)
    figures = evaluate_chain(
        target, drafter, prompts, given.depth, given.max_new_tokens, layers, report
    )
    return summary(figures)
