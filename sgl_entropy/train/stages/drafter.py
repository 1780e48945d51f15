"""The stages that make a drafter of the data: vocabulary, fit, export, evaluate.

Each stage reads what the one before it left in the work folder (``data`` makes it) and skips what
is finished, so any of them can be killed and run again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.base.disk import write_whole
from sgl_entropy.base.texts import read_texts, text_files
from sgl_entropy.drafter.config import Algorithm, DrafterConfig
from sgl_entropy.drafter.model import build_drafter, load_drafter
from sgl_entropy.evaluate.report import chat_prompts, judged
from sgl_entropy.evaluate.report import report as figures_of
from sgl_entropy.evaluate.uncertainty import FirstDrafts
from sgl_entropy.target.config import end_tokens
from sgl_entropy.target.embedding import read_embedding_and_head
from sgl_entropy.target.rotary import rotary_of
from sgl_entropy.train.fit.checkpoints import Checkpoints
from sgl_entropy.train.fit.export import export_drafter, refuse_others
from sgl_entropy.train.fit.trainer import Fit
from sgl_entropy.train.machine.processes import Group, device_of, join_group, leave_group
from sgl_entropy.train.prompts.draft_vocabulary import count_tokens, draft_vocabulary
from sgl_entropy.train.samples.batches import shortened, split_validation
from sgl_entropy.train.samples.open_store import open_store
from sgl_entropy.train.samples.store import Samples
from sgl_entropy.train.settings.file import TrainSettings
from sgl_entropy.train.stages.data import Report, load_prompts
from sgl_entropy.train.workspace import fit_folder, served_layers, target_folder, work_folder


def _vocabulary_file(settings: TrainSettings) -> Path:
    return work_folder(settings) / f"vocabulary-{settings.drafter.draft_vocab_size}.json"


def vocabulary(settings: TrainSettings, store: Samples, vocab_size: int) -> Tensor:
    """The draft vocabulary of the store, int64 [draft vocab]: the work folder's, where that was
    chosen from the same answers and prompts, else chosen now and kept there. Held-out answers
    have no say."""
    path = _vocabulary_file(settings)
    prompts, digest = load_prompts(settings, lambda line: None)
    answers = shortened(store.entries, settings.fit.answer_length)
    learned, _ = split_validation(answers, settings.fit.validation_every)
    source = {
        "answers": [len(learned), sum(entry.length - entry.prompt_length for entry in learned)],
        "prompts_sha256": digest,
        "prompt_weight": settings.drafter.prompt_weight,
    }
    if path.is_file():
        held = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(held, dict) and held["source"] == source:
            return torch.tensor(held["tokens"])
    said = count_tokens(
        (store.tokens(entry)[entry.prompt_length :] for entry in learned), vocab_size
    )
    asked = count_tokens((torch.tensor(prompt.tokens) for prompt in prompts), vocab_size)
    chosen = draft_vocabulary(
        said,
        asked,
        settings.drafter.draft_vocab_size,
        settings.drafter.prompt_weight,
        end_tokens(target_folder(settings)),
    )
    # Both drafters may be started at once.
    write_whole(path, json.dumps({"source": source, "tokens": chosen.tolist()}) + "\n")
    return chosen


def drafter_config(settings: TrainSettings, algorithm: Algorithm) -> DrafterConfig:
    """The drafter's sizes: the target's, but for one layer and the draft vocabulary.

    Raises:
        ValueError: it could not be served: see ``served_layers``.
    """
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
        target_layer_ids=served_layers(settings, algorithm, layers),
        rms_norm_eps=model["rms_norm_eps"],
        rope_theta=rotary_of(model)[0],  # plain rotary, whatever the target's scaling
        max_position_embeddings=model["max_position_embeddings"],
        fuse_size=(settings.drafter.fuse_size or model["intermediate_size"]) if edsd else None,
        fuse_residual=edsd and settings.drafter.fuse_residual,
        fuse_norm=settings.drafter.fuse_norm or not edsd,
        fuse_tokens=edsd and settings.drafter.fuse_tokens,
    )


def make_vocabulary(
    settings: TrainSettings, algorithm: Algorithm, store: Samples | None = None
) -> Tensor:
    """The draft vocabulary that ``make_fit`` takes: int64 [draft vocab].

    Args:
        store: opened already; None = it is opened, and checked, if the vocabulary needs it.

    A drafter to start from keeps its own.
    """
    if settings.fit.start:
        earlier = load_drafter(Path(settings.fit.start).expanduser())
        return earlier.target_ids(torch.arange(earlier.config.draft_vocab_size))
    store = open_store(settings) if store is None else store
    return vocabulary(settings, store, drafter_config(settings, algorithm).vocab_size)


def make_fit(
    settings: TrainSettings,
    algorithm: Algorithm,
    folder: Path | None = None,
    group: Group | None = None,
    *,
    accept_changes: bool = False,
) -> Fit:
    """The (possibly resumed) training of one drafter on the work folder's store.

    Args:
        folder: for checkpoint and log; None = the work folder's own for this algorithm.
        group: the processes that share the work; None = this one alone, on the CPU.
        accept_changes: see ``Fit``.
    """
    config = drafter_config(settings, algorithm)
    store = open_store(settings, device=None if group is None else str(group.device))
    embedding, head = read_embedding_and_head(target_folder(settings))
    return Fit(
        config,
        settings.fit,
        store,
        make_vocabulary(settings, algorithm, store),
        embedding,
        head,
        fit_folder(settings, algorithm) if folder is None else folder,
        group,
        accept_changes=accept_changes,
    )


def fit(
    settings: TrainSettings,
    algorithm: Algorithm,
    report: Report = print,
    *,
    accept_changes: bool = False,
) -> None:
    """Train one drafter to the end of its epochs; torchrun may have started several of us."""
    group = join_group()
    try:
        make_fit(settings, algorithm, group=group, accept_changes=accept_changes).run(report)
    finally:
        leave_group(group)


def export(folder: Path, out: Path, report: Report = print) -> None:
    """Write the drafter of the newest checkpoint, trained or half-trained, in the published layout.
    Neither the samples nor the target are read.

    Args:
        folder: a fit's folder of checkpoints; see ``fit_folder``.

    Raises:
        ValueError: no checkpoint there, or ``out`` holds something other than a drafter.
    """
    refuse_others(out)
    checkpoints = Checkpoints(folder)
    state = checkpoints.load()
    if state is None:
        raise ValueError(f"no checkpoint in {folder}: run `sgl-entropy train fit` first")
    if checkpoints.note:
        report(checkpoints.note)
    made = state["identity"]["drafter"]
    config = DrafterConfig.from_dict(made, source=str(checkpoints.path))
    trained = build_drafter(replace(config, fuse_size=made["fuse_size"]))
    trained.load_state_dict(state["drafter"])
    export_drafter(trained, state["tap_scale"], out)


def benchmark_texts(settings: TrainSettings) -> tuple[dict[str, list[str]], str]:
    """The prompts of ``evaluate.benchmarks``, a group for each file; and their sha256."""
    given = settings.evaluate
    if not given.benchmarks:
        raise ValueError("set evaluate.benchmarks to a folder of prompts")
    files = text_files([Path(given.benchmarks).expanduser()])
    groups = {f.stem: [text.prompt for text in read_texts(f, given.prompts)] for f in files}
    return groups, hashlib.sha256(json.dumps(groups).encode()).hexdigest()


def benchmark_prompts(settings: TrainSettings) -> dict[str, list[list[int]]]:
    """Token ids of ``benchmark_texts``, a group for each file; the work folder keeps them."""
    given, target = settings.evaluate, target_folder(settings)
    groups, digest = benchmark_texts(settings)
    model = json.loads((target / "config.json").read_text(encoding="utf-8"))
    room = int(model["max_position_embeddings"]) - given.max_new_tokens
    source = [room, digest]
    path = work_folder(settings) / "benchmarks.json"
    if path.is_file():
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["source"] == source:
            prompts: dict[str, list[list[int]]] = held["prompts"]
            return prompts
    made = chat_prompts(target, groups, room)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"source": source, "prompts": made}) + "\n")
    return made


def evaluate(settings: TrainSettings, folder: Path, report: Report = print) -> dict[str, Any]:
    """Acceptance of the drafter in ``folder`` on the benchmarks of ``evaluate.benchmarks``, as
    `drafter eval` reports it (``evaluation.report``): on this machine's first GPU, or the CPU."""
    given = settings.evaluate
    found = judged(
        target_folder(settings),
        folder,
        benchmark_prompts(settings),
        given.depth,
        given.max_new_tokens,
        getattr(torch, given.dtype),
        report,
        device_of(0),
    )
    parts = sorted(found, key=lambda one: one[0])
    return figures_of([one[1] for one in parts], FirstDrafts.joined([one[2] for one in parts]))
