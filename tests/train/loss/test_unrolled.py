"""The fused loss against autograd, and the batched unroll against one row at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sgl_entropy.drafter.model import build_drafter
from sgl_entropy.drafter.unroll import Unroll
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.loss.soft_cross_entropy import soft_cross_entropy
from sgl_entropy.train.loss.unrolled import TargetSide, unrolled_loss
from sgl_entropy.train.samples.batches import collate, plan_epoch
from sgl_entropy.train.samples.store import Store
from tests.train.conftest import TAPS, VOCAB, tiny_config


@pytest.mark.parametrize("spread", [1.0, 60.0], ids=["ordinary", "saturated"])
def test_soft_cross_entropy_equals_autograd(spread: float) -> None:
    torch.manual_seed(0)
    hidden = (spread * torch.randn(6, 8)).requires_grad_()
    weight = torch.randn(33, 8).requires_grad_()
    target = torch.softmax(spread * torch.randn(6, 33), -1)
    loss, best = soft_cross_entropy(hidden, weight, weight.detach(), target, 0.5)
    found = torch.autograd.grad(3.0 * loss, (hidden, weight))
    logits = hidden @ weight.T
    plain = -0.5 * (target * torch.log_softmax(logits, -1)).sum()
    wanted = torch.autograd.grad(3.0 * plain, (hidden, weight))
    torch.testing.assert_close(loss, plain)
    assert torch.equal(best, logits.argmax(-1))
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("masked", "prompt_from", "reached_only"),
    [
        (0.0, None, False),
        (40.0, None, False),
        (40.0, 0, False),
        (0.0, 4, False),
        (10.0, None, True),
        (0.0, 0, True),
    ],
    ids=["all", "masked", "prompts-masked", "prompts-from-4", "reached", "prompts-reached"],
)
@pytest.mark.parametrize(
    ("algorithm", "layers"), [("EDSD", (1, 2)), ("EAGLE3", TAPS)], ids=["edsd", "eagle3"]
)
def test_unrolled_loss_equals_a_loop_over_rows(
    tiny_store: Store,
    tiny_target: PlainTarget,
    algorithm: str,
    layers: tuple[int, ...],
    masked: float,
    prompt_from: int | None,
    reached_only: bool,
) -> None:
    """Every chain alone, row by row through the reference forward and its cache."""
    torch.manual_seed(1)
    drafter = build_drafter(tiny_config(algorithm, layers))
    chosen = torch.randperm(VOCAB)[:96].sort().values
    drafter.t2d[chosen] = True
    drafter.d2t.copy_(chosen - torch.arange(96))
    scale = torch.rand(32 * len(layers)) + 0.5
    side = TargetSide(tiny_target.embedding, tiny_target.head[chosen], scale)
    samples = [tiny_store.sample(entry, layers) for entry in tiny_store.entries[:3]]
    steps = 3
    batch = collate(samples, steps, masked, prompt_from)
    if reached_only:  # what guesses by chance reaches nothing
        adam = torch.optim.Adam(drafter.parameters(), lr=1e-2)
        for _ in range(25):
            adam.zero_grad()
            unrolled_loss(drafter, side, batch, steps)[0].backward()
            adam.step()
    with torch.no_grad():
        loss, figures = unrolled_loss(drafter, side, batch, steps, reached_only=reached_only)

    sums, counts, right = [0.0] * steps, [0] * steps, [0] * steps
    rows, reached = [0] * steps, [0] * steps
    with torch.no_grad():
        for s in samples:
            f0 = drafter.fuse_taps(s.features.float() / scale)
            first = s.prompt_length - 1 if prompt_from is None else prompt_from
            first = min(first, s.prompt_length - 1)
            last = len(s.tokens) - 2  # the last row that a draft is judged by
            uncertain = sorted(range(first + 1, last + 1), key=lambda i: float(s.entropy[i]))
            left_out = set(uncertain[len(uncertain) - int(len(uncertain) * masked / 100) :])
            for row in range(first, last):
                embeds = tiny_target.embedding[s.tokens[1 : row + 2]]
                features = f0[: row + 1]
                alive = True
                for step in range(min(steps, last - row)):
                    n = row + 1 + step
                    outs = drafter(embeds[None], features[None], torch.arange(n)[None])
                    label = int(s.best[row + 1 + step])
                    counts_here = bool(drafter.t2d[label]) and row + 1 + step not in left_out
                    counts[step] += counts_here
                    rows[step] += alive
                    if alive and counts_here:
                        logits = drafter.logits(outs[0, -1])
                        p = torch.softmax(side.head @ s.final[row + 1 + step].float(), -1)
                        sums[step] -= float((p * torch.log_softmax(logits, -1)).sum())
                        reached[step] += 1
                        right[step] += int(chosen[logits.argmax()]) == label
                        if reached_only:
                            alive = int(chosen[logits.argmax()]) == label
                    elif reached_only:
                        alive = False
                    token = int(s.tokens[row + 2 + step])
                    embeds = torch.cat([embeds, tiny_target.embedding[token][None]])
                    features = torch.cat([features, outs[0, -1:]])
    assert figures[:, 0].tolist() == reached
    assert figures[:, 3].tolist() == rows
    if reached_only:
        assert rows[0] > rows[1] > rows[2] > 5, "some chains are left behind, some are not"
    else:
        assert reached == counts
    assert figures[:, 2].tolist() == right
    assert figures[:, 1].tolist() == pytest.approx(sums, rel=1e-4)
    wanted = sum(0.8**i * sums[i] / counts[i] for i in range(steps))
    assert float(loss) == pytest.approx(wanted, rel=1e-4)


def test_gradients_reach_every_weight(tiny_store: Store, tiny_target: PlainTarget) -> None:
    drafter = build_drafter(tiny_config("EDSD", (1, 2)))
    drafter.t2d[:96] = True
    side = TargetSide(tiny_target.embedding, tiny_target.head[:96], torch.ones(64))
    batch = collate([tiny_store.sample(e, (1, 2)) for e in tiny_store.entries[:2]], 2)
    unrolled_loss(drafter, side, batch, 2)[0].backward()
    for name, weight in drafter.named_parameters():
        assert weight.grad is not None, name
        assert float(weight.grad.abs().sum()) > 0, name


def test_padding_does_not_change_a_chain(tiny_store: Store, tiny_target: PlainTarget) -> None:
    drafter = build_drafter(tiny_config("EAGLE3", TAPS))
    samples = sorted(
        (tiny_store.sample(e) for e in tiny_store.entries[:6]), key=lambda s: len(s.tokens)
    )
    both, alone = collate([samples[0], samples[-1]], 2), collate([samples[0]], 2)
    outs = []
    for batch in (both, alone):
        rows = batch.features.shape[1]
        embeds = F.embedding(batch.following[:, :rows], tiny_target.embedding)
        unroll = Unroll(drafter, embeds, drafter.fuse_taps(batch.features.float()), batch.starts)
        unroll.advance(
            F.embedding(batch.following.gather(1, batch.starts + 1), tiny_target.embedding)
        )
        outs.append(unroll.out[0, : samples[0].answer_rows])
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-5)


def test_an_epoch_holds_every_sample_once_and_differs_by_epoch(tiny_store: Store) -> None:
    plans = [plan_epoch(tiny_store.entries, 40, 0, epoch) for epoch in (0, 0, 1)]
    ids = [[e.prompt_id for batch in plan for e in batch] for plan in plans]
    assert ids[0] == ids[1] != ids[2]
    assert sorted(ids[0]) == sorted(ids[2]) == [e.prompt_id for e in tiny_store.entries]
    longer = [replace(e, length=e.length) for e in tiny_store.entries]
    assert plan_epoch(longer, 40, 0, 0) == plans[0]
