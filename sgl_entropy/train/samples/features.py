"""Features of answers that exist already: one forward over each sequence, no decoding.

The answers must be the target's own. That is checked: nearly every token of a greedy answer has to
be the one that this target would have written there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sgl_entropy.entropy import shannon_entropy
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.target.reading import judge
from sgl_entropy.train.answers.file import Answered, in_batches
from sgl_entropy.train.machine.interrupts import Interrupt
from sgl_entropy.train.prompts.order import PREFILL_ROWS
from sgl_entropy.train.samples.shards import SHARD_SEQUENCES, Sample, flush_shard
from sgl_entropy.train.samples.store import Store

# Except for ties, a greedy answer agrees everywhere; another model's or a sampled one does not.
AGREEMENT = 0.9


@dataclass(frozen=True)
class FeaturePlan:
    """One worker's part: picklable, for ``multiprocessing`` with the spawn method."""

    number: int
    target: str
    store: str
    answers: tuple[Answered, ...]
    tap_layers: tuple[int, ...]
    dtype: str
    device: str = "cpu"


def features_of(
    target: PlainTarget, answers: Sequence[Answered], tap_layers: Sequence[int]
) -> list[Sample]:
    """The samples of a batch of sequences; answers of one token teach nothing and are left out."""
    answers = [one for one in answers if one.answer_length > 1]
    if not answers:
        return []
    # The last token of a sequence has no row: nothing comes after it.
    lengths = torch.tensor([len(one.tokens) - 1 for one in answers])
    ids = torch.zeros((len(answers), int(lengths.max())), dtype=torch.long)
    for row, one in enumerate(answers):
        ids[row, : lengths[row]] = torch.tensor(one.tokens[:-1])
    starts = torch.zeros(len(answers), dtype=torch.long, device=target.device)
    out = target.forward(ids.to(target.device), starts, None, tap_layers=tap_layers)
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    entropy, best = torch.zeros(real.shape), torch.zeros(real.shape, dtype=torch.long)
    judged = judge(target, out.final[real.to(target.device)])
    entropy[real], best[real] = (column.cpu() for column in judged)
    taps = torch.cat(out.taps, dim=-1) if out.taps else out.final[..., :0]
    features = taps.to("cpu", torch.bfloat16)
    final = out.final.to("cpu", torch.bfloat16)
    return [
        Sample(
            one.prompt_id,
            one.prompt_length,
            torch.tensor(one.tokens),
            features[row, :n],
            final[row, :n],
            entropy[row, :n],
            best[row, :n],
        )
        for row, (one, n) in enumerate(zip(answers, lengths.tolist(), strict=True))
    ]


def agreement(samples: Sequence[Sample]) -> float:
    """Fraction of answer tokens that are the target's most likely token at their position."""
    same = [
        s.best[s.prompt_length - 1 :] == s.tokens[s.prompt_length :].to(s.best.dtype)
        for s in samples
    ]
    return float(torch.cat(same).float().mean())


def refuse_foreign(samples: Sequence[Sample], target: str) -> None:
    """
    Raises:
        ValueError: the answers are not greedy ones of this target.
    """
    agree = agreement(samples) if samples else 1.0
    if agree < AGREEMENT:
        ids = sorted(s.prompt_id for s in samples)
        raise ValueError(
            f"only {agree:.0%} of the answer tokens to prompts {ids[0]} to {ids[-1]} are what "
            f"{target} writes: they come from another model, or were sampled"
        )


def refuse_false(
    target: PlainTarget, answers: Sequence[Answered], name: str, some: int = 8
) -> None:
    """Check that the target can read all answers, and that ``some`` greedy and sampled ones, spread
    over all, are its own.

    In a sampled answer the mean of -log p(token) equals the mean entropy of the distributions,
    within chance (ours).

    Args:
        name: of the target, for the message.

    Raises:
        ValueError: they are not this target's.
    """
    _refuse_unreadable(target, answers, name)
    long = [one for one in answers if one.answer_length > 1]
    greedy = [one for one in long if not one.temperature]
    sampled = [one for one in long if one.temperature]
    refuse_foreign(
        [s for one in _spread(greedy, some) for s in features_of(target, [one], ())], name
    )
    rows = [_surprise(target, one) for one in _spread(sampled, some)]
    if not rows:
        return
    surprise, entropy = torch.cat([s for s, _ in rows]), torch.cat([h for _, h in rows])
    gap = surprise - entropy
    chance = float(gap.std()) / len(gap) ** 0.5 if len(gap) > 1 else math.inf
    if not abs(float(gap.mean())) <= max(0.1, 5 * chance):
        raise ValueError(
            f"tokens of sampled answers are {float(gap.mean()):+.2f} nats less likely to {name} "
            "than its own samples are: they come from another model, or another temperature"
        )


def _refuse_unreadable(target: PlainTarget, answers: Sequence[Answered], name: str) -> None:
    vocabulary, positions = len(target.embedding), target.max_positions
    for one in answers:
        if len(one.tokens) > positions:
            problem = f"{len(one.tokens)} tokens are more than the {positions} positions"
        elif not 0 <= min(one.tokens) <= max(one.tokens) < vocabulary:
            problem = f"tokens are not all among the {vocabulary:,}"
        else:
            continue
        raise ValueError(
            f"the answer to prompt {one.prompt_id}: its {problem} of {name}: it comes from another "
            "model"
        )


def _spread(answers: Sequence[Answered], some: int) -> Sequence[Answered]:
    return answers[:: -(-len(answers) // some)] if answers else []


@torch.inference_mode()
def _surprise(target: PlainTarget, answer: Answered) -> tuple[Tensor, Tensor]:
    """(-log p of each answer token, entropy there), at the answer's own temperature; each [n]."""
    ids = torch.tensor([answer.tokens[:-1]], device=target.device)
    out = target.forward(ids, torch.zeros(1, dtype=torch.long, device=target.device), None)
    logits = target.logits(out.final[0, answer.prompt_length - 1 :]).float() / answer.temperature
    written = torch.tensor(answer.tokens[answer.prompt_length :], device=target.device)
    surprise = -torch.log_softmax(logits, dim=-1).gather(-1, written[:, None]).squeeze(-1)
    return surprise.cpu(), shannon_entropy(logits).cpu()


def check_generated(store: Store, target: PlainTarget, some: int = 8) -> float:
    """Read some stored answers in one forward each: answers written in slots, beside others, have
    to be what the target writes alone.

    Returns:
        The fraction of their tokens that agree.

    Raises:
        RuntimeError: too few do. The store is of no use then.
    """
    spread = store.entries[:: -(-len(store.entries) // some)]
    answers = [
        Answered(e.prompt_id, e.prompt_length, tuple(store.tokens(e).tolist())) for e in spread
    ]
    agree = agreement(
        [one for answer in answers for one in features_of(target, [answer], store.tap_layers)]
    )
    if agree < AGREEMENT:
        raise RuntimeError(
            f"{store.folder}: only {agree:.0%} of the tokens of {len(answers)} answers are what "
            "the target writes when it reads the same text at once: the answers in this store are "
            "not its own"
        )
    return agree


def run_feature_worker(plan: FeaturePlan) -> None:
    """Write the features of ``plan.answers`` into shards.

    Raises:
        ValueError: the answers of a shard are not this target's greedy ones.
    """
    torch.set_num_threads(1)
    with Interrupt() as interrupt:
        _write_features(plan, interrupt)


def _write_features(plan: FeaturePlan, interrupt: Interrupt) -> None:
    target = PlainTarget.from_folder(plan.target, getattr(torch, plan.dtype), plan.device)
    finished: list[Sample] = []
    store, tokens, started = Path(plan.store), 0, time.monotonic()

    sampled = {one.prompt_id for one in plan.answers if one.temperature}

    def flush() -> None:
        refuse_foreign([s for s in finished if s.prompt_id not in sampled], plan.target)
        flush_shard(store, plan.number, finished, tokens, started)

    for batch in in_batches(plan.answers, PREFILL_ROWS):
        if interrupt.asked:
            break
        new = features_of(target, batch, plan.tap_layers)
        finished += new
        tokens += sum(len(s.tokens) - s.prompt_length for s in new)
        if len(finished) >= SHARD_SEQUENCES:
            flush()
            finished = []
    if finished:
        flush()
