"""The plan's count of what a batch keeps for backward, against what autograd really saves."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sgl_entropy.drafter.config import Algorithm, DrafterConfig
from sgl_entropy.drafter.model import build_drafter
from sgl_entropy.train.loss.unrolled import TargetSide, unrolled_loss
from sgl_entropy.train.plan.lengths import Lengths, drawn, expected_lengths
from sgl_entropy.train.plan.memory import fit_memory, kept_bytes, largest_batch
from sgl_entropy.train.prompts.order import Prompt
from sgl_entropy.train.samples.batches import Batch
from sgl_entropy.train.settings.file import GenerateSettings
from sgl_entropy.train.settings.fit import FitSettings

D, INNER, DRAFT = 256, 640, 512


def config_of(algorithm: Algorithm, fuse_size: int | None, fuse_tokens: bool) -> DrafterConfig:
    return DrafterConfig(
        algorithm=algorithm,
        hidden_size=D,
        intermediate_size=INNER,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        vocab_size=1024,
        draft_vocab_size=DRAFT,
        target_hidden_size=D,
        target_layer_ids=(1, 2) if algorithm == "EDSD" else (1, 2, 3),
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        max_position_embeddings=512,
        fuse_size=fuse_size,
        fuse_residual=fuse_tokens,
        fuse_tokens=fuse_tokens,
    )


def saved_bytes(
    config: DrafterConfig, count: int, rows: int, chains: int, steps: int, dtype: torch.dtype
) -> int:
    """Of one batch's forward; weights and their copies in ``dtype`` left out."""
    drafter = build_drafter(config)
    drafter.t2d[:DRAFT] = True
    side = TargetSide(
        torch.randn(1024, D).to(dtype), torch.randn(DRAFT, D).to(dtype), torch.ones(1)
    )
    batch = Batch(
        torch.randint(DRAFT, (count, rows + steps + 1)),
        torch.randn(count, rows, config.tap_width).to(torch.bfloat16),
        torch.arange(rows - chains, rows).expand(count, chains).clone(),
        torch.full((count,), chains),
        torch.randn(count * chains, D).to(torch.bfloat16),
        torch.randint(DRAFT, (count * chains,)),
        torch.ones(count * chains, dtype=torch.bool),
    )
    weights = {weight.untyped_storage().data_ptr() for weight in drafter.parameters()}
    matrices = [weight for weight in drafter.parameters() if weight.dim() == 2]
    shapes = {tuple(shape) for weight in matrices for shape in (weight.shape, weight.T.shape)}
    kept: dict[int, Tensor] = {}

    def pack(one: Tensor) -> Tensor:
        copy = one.dtype == torch.bfloat16 and tuple(one.shape) in shapes
        if one.untyped_storage().data_ptr() not in weights and not copy:
            kept[one.untyped_storage().data_ptr()] = one
        return one

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        unrolled_loss(drafter, side, batch, steps)
    return sum(one.untyped_storage().nbytes() for one in kept.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "config",
    [
        config_of("EAGLE3", None, False),
        config_of("EDSD", INNER, False),
        config_of("EDSD", INNER, True),
        config_of("EDSD", D, True),
    ],
    ids=["eagle3", "edsd", "edsd-tokens", "edsd-tokens-d"],
)
def test_kept_for_backward_is_what_autograd_saves(
    config: DrafterConfig, dtype: torch.dtype
) -> None:
    """Where prompts are long, where chains are many, and where steps are."""
    for rows, chains, steps in ((200, 20, 1), (60, 50, 1), (60, 50, 3)):
        planned = kept_bytes(config, 2 * rows, 2 * chains, rows, steps, dtype.itemsize)
        assert planned == pytest.approx(
            saved_bytes(config, 2, rows, chains, steps, dtype), rel=0.2
        ), (rows, chains, steps)


def test_memory_grows_with_what_a_batch_holds() -> None:
    config = config_of("EDSD", INNER, True)
    fit = FitSettings(epochs=2, steps=(1, 2))
    lengths = Lengths(tuple(drawn(i, 50, 100) for i in range(100)))
    longer = Lengths((*lengths.entries, *(drawn(101 + i, 600, 100) for i in range(6))))
    base = fit_memory(config, fit, lengths, 2)
    assert fit_memory(config, fit, longer, 2) > base
    assert fit_memory(config, replace(fit, steps=(2, 3)), lengths, 2) > base
    assert fit_memory(config, replace(fit, rows=1020), lengths, 2) > base
    assert fit_memory(config, fit, lengths, 4) > base
    weights = sum(weight.numel() for weight in build_drafter(config).parameters())
    assert base > 16 * weights


def test_drawn_lengths_tell_the_largest_batch_where_their_mean_does_not() -> None:
    """A store of many short prompts and some long ones; half of the answers end before the cut."""
    chance = random.Random(5)
    long = [chance.random() < 0.25 for _ in range(1500)]
    asked = [chance.randint(200, 640) if one else chance.randint(30, 190) for one in long]
    prompts = [Prompt(i, (0,) * tokens) for i, tokens in enumerate(asked)]
    ends = [chance.randint(20, 380) for _ in long]
    true = [
        drawn(i, tokens, min(192, end))
        for i, (tokens, end) in enumerate(zip(asked, ends, strict=True))
    ]
    config, fit = config_of("EDSD", INNER, True), FitSettings(epochs=2, steps=(2, 3))
    held = largest_batch(config, fit, Lengths(tuple(true)), 2)
    given = GenerateSettings(answer_tokens=10**6, max_new_tokens=192)
    planned = largest_batch(config, fit, expected_lengths(prompts, given, None), 2)
    assert planned == pytest.approx(held, rel=0.25)
    mean = round(sum(one.length - one.prompt_length for one in true) / len(true))
    equal = [drawn(i, round(sum(asked) / len(asked)), mean) for i in range(len(true))]
    assert largest_batch(config, fit, Lengths(tuple(equal)), 2) < 0.75 * held
