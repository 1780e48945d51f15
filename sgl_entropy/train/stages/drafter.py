"""The stages that make a drafter of the data: vocabulary, fit, export, evaluate.

Each stage reads what the one before it left in the work folder (``data`` makes it) and skips what
is done already, so any of them can be killed and run again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.base.disk import write_whole
from sgl_entropy.base.texts import read_texts, text_files
from sgl_entropy.base.typed_json import as_json
from sgl_entropy.drafter.config import Algorithm, DrafterConfig
from sgl_entropy.drafter.model import build_drafter, load_drafter
from sgl_entropy.evaluate.offline import chat_prompts, judged
from sgl_entropy.evaluate.report import AcceptanceReport
from sgl_entropy.target.config import end_tokens
from sgl_entropy.target.embedding import read_embedding_and_head
from sgl_entropy.target.rotary import rotary_of
from sgl_entropy.train.fit.checkpoints import Checkpoints
from sgl_entropy.train.fit.export import export_drafter, refuse_others
from sgl_entropy.train.fit.loop import run_fit
from sgl_entropy.train.fit.trainer import Fit
from sgl_entropy.train.machine.processes import ProcessGroup, device_of, join_group, leave_group
from sgl_entropy.train.prompts.draft_vocabulary import count_tokens, draft_vocabulary
from sgl_entropy.train.prompts.file import Report, load_prompts
from sgl_entropy.train.samples.batches import shortened, split_validation
from sgl_entropy.train.samples.open_store import open_store
from sgl_entropy.train.samples.store import Samples
from sgl_entropy.train.settings.file import EvaluateSettings
from sgl_entropy.train.workspace import Workspace, fit_folder


def vocabulary(work: Workspace, store: Samples) -> Tensor:
    """The draft vocabulary of the store, int64 [draft vocab]: read from the work folder if it was
    chosen from the same answers and prompts, or chosen now and kept there. Held-out answers do not
    count."""
    given, path = work.settings, work.vocabulary_file
    prompts, digest = load_prompts(work, lambda line: None)
    answers = shortened(store.entries, given.fit.answer_length)
    learned, _ = split_validation(answers, given.fit.validation_every)
    source = {
        "answers": [len(learned), sum(entry.length - entry.prompt_length for entry in learned)],
        "prompts_sha256": digest,
        "prompt_weight": given.drafter.prompt_weight,
    }
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(kept, dict) and kept["source"] == source:
            return torch.tensor(kept["tokens"])
    answered = count_tokens(
        (store.tokens(entry)[entry.prompt_length :] for entry in learned), work.vocab_size
    )
    asked = count_tokens((torch.tensor(prompt.tokens) for prompt in prompts), work.vocab_size)
    chosen = draft_vocabulary(
        answered,
        asked,
        given.drafter.draft_vocab_size,
        given.drafter.prompt_weight,
        end_tokens(work.target),
    )
    # Both drafters may be started at once.
    write_whole(path, json.dumps({"source": source, "tokens": chosen.tolist()}) + "\n")
    return chosen


def drafter_config(work: Workspace, algorithm: Algorithm) -> DrafterConfig:
    """The drafter's sizes: the target's, with one layer and the draft vocabulary.

    Raises:
        ValueError: it could not be served: see ``Workspace.served_layers``.
    """
    given, model = work.settings.drafter, work.model
    edsd = algorithm == "EDSD"
    return DrafterConfig(
        algorithm=algorithm,
        hidden_size=model["hidden_size"],
        intermediate_size=model["intermediate_size"],
        num_attention_heads=model["num_attention_heads"],
        num_key_value_heads=model.get("num_key_value_heads") or model["num_attention_heads"],
        head_dim=model.get("head_dim") or model["hidden_size"] // model["num_attention_heads"],
        vocab_size=work.vocab_size,
        draft_vocab_size=given.draft_vocab_size,
        target_hidden_size=model["hidden_size"],
        target_layer_ids=work.served_layers(algorithm),
        rms_norm_eps=model["rms_norm_eps"],
        rope_theta=rotary_of(model)[0],  # plain rotary, whatever the target's scaling
        max_position_embeddings=work.max_positions,
        fuse_size=(given.fuse_size or model["intermediate_size"]) if edsd else None,
        fuse_residual=edsd and given.fuse_residual,
        fuse_norm=given.fuse_norm or not edsd,
        fuse_tokens=edsd and given.fuse_tokens,
    )


def make_vocabulary(work: Workspace, store: Samples | None = None) -> Tensor:
    """The draft vocabulary that ``make_fit`` takes: int64 [draft vocab]. A drafter to start from
    (``fit.start``) keeps its own.

    Args:
        store: opened already; None = it is opened, and checked, if the vocabulary needs it.
    """
    if work.settings.fit.start:
        earlier = load_drafter(Path(work.settings.fit.start).expanduser())
        return earlier.target_ids(torch.arange(earlier.config.draft_vocab_size))
    return vocabulary(work, open_store(work) if store is None else store)


def make_fit(
    work: Workspace,
    algorithm: Algorithm,
    folder: Path | None = None,
    group: ProcessGroup | None = None,
    *,
    accept_changes: bool = False,
) -> Fit:
    """The (possibly resumed) training of one drafter on the work folder's store.

    Args:
        folder: for checkpoint and log; None = the work folder's own for this algorithm.
        group: the processes that share the work; None = this one alone, on the CPU.
        accept_changes: see ``Fit``.
    """
    config = drafter_config(work, algorithm)
    store = open_store(work, device=None if group is None else str(group.device))
    embedding, head = read_embedding_and_head(work.target)
    return Fit(
        config,
        work.settings.fit,
        store,
        make_vocabulary(work, store),
        embedding,
        head,
        fit_folder(work.settings, algorithm) if folder is None else folder,
        group,
        accept_changes=accept_changes,
    )


def fit(
    work: Workspace,
    algorithm: Algorithm,
    report: Report = print,
    *,
    accept_changes: bool = False,
) -> None:
    """Train one drafter to the end of its epochs; torchrun may have started several of us."""
    group = join_group()
    try:
        run_fit(make_fit(work, algorithm, group=group, accept_changes=accept_changes), report)
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
    trained = build_drafter(state.identity.config)
    trained.load_state_dict(state.drafter)
    export_drafter(trained, state.tap_scale, out)


def benchmark_texts(given: EvaluateSettings) -> tuple[dict[str, list[str]], str]:
    """The prompts of ``evaluate.benchmarks``, a group for each file; and their sha256."""
    if not given.benchmarks:
        raise ValueError("set evaluate.benchmarks to a folder of prompts")
    files = text_files([Path(given.benchmarks).expanduser()])
    groups = {f.stem: [text.prompt for text in read_texts(f, given.prompts)] for f in files}
    return groups, hashlib.sha256(json.dumps(groups).encode()).hexdigest()


def benchmark_prompts(work: Workspace) -> dict[str, list[list[int]]]:
    """Token ids of ``benchmark_texts``, a group for each file; the work folder keeps them."""
    groups, digest = benchmark_texts(work.settings.evaluate)
    room = work.max_positions - work.settings.evaluate.max_new_tokens
    source, path = [room, digest], work.benchmarks_file
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["source"] == source:
            prompts: dict[str, list[list[int]]] = kept["prompts"]
            return prompts
    made = chat_prompts(work.target, groups, room)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"source": source, "prompts": made}) + "\n")
    return made


def evaluate(work: Workspace, folder: Path, report: Report = print) -> dict[str, Any]:
    """Acceptance of the drafter in ``folder`` on the benchmarks of ``evaluate.benchmarks``, as
    `drafter eval` reports it (``AcceptanceReport``): on this machine's first GPU, or the CPU."""
    given = work.settings.evaluate
    prompts = judged(
        work.target,
        folder,
        benchmark_prompts(work),
        given.depth,
        given.max_new_tokens,
        getattr(torch, given.dtype),
        report,
        device_of(0),
    )
    figures: dict[str, Any] = as_json(AcceptanceReport.of(list(prompts)))
    return figures
