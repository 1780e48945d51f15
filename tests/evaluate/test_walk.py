"""tau offline: counted by hand, and against a verify loop that runs the target row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sgl_entropy.drafter.config import DrafterError
from sgl_entropy.drafter.model import DraftCache, Drafter, build_drafter, draft_chain
from sgl_entropy.drafter.unroll import Unroll
from sgl_entropy.evaluate.report import AcceptanceReport, JudgedPrompt
from sgl_entropy.evaluate.uncertainty import FirstDrafts
from sgl_entropy.evaluate.walk import (
    ChainFigures,
    GreedyAnswer,
    answered_together,
    draft_answer,
    greedy_answers,
    walk,
)
from sgl_entropy.target.plain import PlainTarget
from tests.drafter.test_model import ARMS, make


def random_target() -> PlainTarget:
    """A llama of three layers with random weights, float32, an end token that never comes."""
    chance = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=chance) * (0.6 if len(shape) > 1 else 0.1)

    weights = {"model.embed_tokens.weight": draw(64, 16), "model.norm.weight": 1 + draw(16)}
    for i in range(3):
        at = f"model.layers.{i}."
        weights |= {
            f"{at}input_layernorm.weight": 1 + draw(16),
            f"{at}post_attention_layernorm.weight": 1 + draw(16),
            f"{at}self_attn.q_proj.weight": draw(24, 16),
            f"{at}self_attn.k_proj.weight": draw(12, 16),
            f"{at}self_attn.v_proj.weight": draw(12, 16),
            f"{at}self_attn.o_proj.weight": draw(16, 24),
            f"{at}mlp.gate_proj.weight": draw(24, 16),
            f"{at}mlp.up_proj.weight": draw(24, 16),
            f"{at}mlp.down_proj.weight": draw(16, 24),
        }
    config = {
        "model_type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "eos_token_id": [],
    }
    return PlainTarget(config, weights)


def test_walk_counts_a_loop_done_by_hand() -> None:
    truth = torch.tensor([5, 6, 7, 8, 9])
    drafted = torch.tensor(
        [
            [5, 6, 0],  # two accepted, then the target's own token 7: three emitted
            [9, 9, 9],
            [9, 9, 9],
            [0, 9, 0],  # starts where 8 is due: none accepted, one emitted
            [9, 1, 1],  # one accepted, and the answer is over
        ]
    )
    found, begun = walk(drafted, truth)
    assert begun == [0, 3, 4]
    assert found == ChainFigures(tokens=5, cycles=3, accepted_at=(2, 1, 0))
    assert found.tau == pytest.approx(5 / 3)
    assert found.acceptance == pytest.approx([2 / 3, 1 / 2, 0.0])


def test_a_report_means_groups_and_pools_tokens() -> None:
    def report(*groups: tuple[str, ChainFigures]) -> AcceptanceReport:
        judged = [JudgedPrompt(at, *one, FirstDrafts.of([])) for at, one in enumerate(groups)]
        return AcceptanceReport.of(judged)

    even = report(("a", ChainFigures(30, 10, (20,))), ("b", ChainFigures(10, 10, (0,))))
    assert even.mean_of_groups == even.pooled.acceptance_length == 2.0
    uneven = report(("a", ChainFigures(90, 30, (60,))), ("b", ChainFigures(10, 10, (0,))))
    assert uneven.mean_of_groups == 2.0
    assert uneven.pooled.acceptance_length == 2.5


@pytest.mark.parametrize("arm", ARMS)
def test_offline_counts_equal_a_verify_loop(arm: str) -> None:
    """Draft, verify with the target, draft again: tokens, cycles and acceptance must agree."""
    target, drafter = random_target(), make(arm)
    layers = drafter.config.target_layer_ids
    assert layers is not None
    prompts = [[3, 9, 27], [11, 5, 60, 2, 8], [40, 41]]
    depth, new = 3, 24
    answers = greedy_answers(target, prompts, new, layers, batch=2)
    some_accepted = False
    for prompt, answer in zip(prompts, answers, strict=True):
        _teach(drafter, target, answer)
        found = draft_answer(drafter, target.embedding, answer, depth)[0]
        assert found == _verify_loop(target, drafter, prompt, layers, depth, new)
        some_accepted |= found.accepted_at[1] > 0
        assert found.tokens == new - 1
    assert some_accepted, "nothing was ever accepted: the comparison would show nothing"


def _teach(drafter: Drafter, target: PlainTarget, answer: GreedyAnswer) -> None:
    """Solve the head so that chains over this answer are often right, at later steps too."""
    n, first = len(answer.tokens), answer.prompt_length - 1
    draft_id = torch.cumsum(drafter.t2d, 0) - 1
    embedded = target.embedding[answer.tokens]
    with torch.no_grad():
        features = drafter.fuse_taps(answer.features[: n - 2])[None]
        starts = torch.arange(first, n - 4)[None]
        unroll = Unroll(drafter, embedded[None, 1 : n - 1], features, starts)
        rows, labels = [], []
        for step in range(3):
            if step:
                unroll.advance(embedded[starts + 1 + step])
            rows.append(drafter.norm(unroll.out)[0])
            labels.append(answer.tokens[starts[0] + 2 + step])
        x = torch.cat(rows).double()
        wanted = F.one_hot(draft_id[torch.cat(labels)].clamp(min=0), 40).double()
        gram = x.T @ x + 1e-2 * torch.eye(16, dtype=torch.double)
        drafter.lm_head.weight.copy_(torch.linalg.solve(gram, x.T @ wanted).T)


def _verify_loop(
    target: PlainTarget,
    drafter: Drafter,
    prompt: list[int],
    layers: tuple[int, ...],
    depth: int,
    new: int,
) -> ChainFigures:
    """Greedy speculative decoding for one sequence, every forward done afresh."""

    def run(tokens: list[int]) -> tuple[list[int], torch.Tensor]:
        ids = torch.tensor([tokens])
        zero = torch.zeros(1, dtype=torch.long)
        out = target.forward(ids, zero, target.new_cache(1), tap_layers=layers)
        return target.logits(out.final)[0].argmax(-1).tolist(), torch.cat(out.taps, -1)[0]

    tokens = [*prompt, run(prompt)[0][-1]]
    emitted = cycles = 0
    accepted_at = [0] * depth
    wanted = new - 1
    while emitted < wanted:
        taps = run(tokens)[1][:-1]
        cache = DraftCache()
        with torch.no_grad():
            f0 = drafter.fuse_taps(taps)
            n = len(f0)
            if n > 1:
                embeds = target.embedding[torch.tensor(tokens[1:-1])][None]
                drafter(embeds, f0[None, :-1], torch.arange(n - 1)[None], cache)
        last = torch.tensor(tokens[-1])
        chain = draft_chain(drafter, target.embedding, cache, last, f0[-1], n - 1, depth).tolist()
        best = run(tokens + chain)[0][len(tokens) - 1 :]
        accepted = 0
        while accepted < depth and chain[accepted] == best[accepted]:
            accepted += 1
        for i in range(min(accepted, wanted - emitted)):
            accepted_at[i] += 1
        tokens += best[: accepted + 1]
        emitted = min(wanted, emitted + accepted + 1)
        cycles += 1
    return ChainFigures(wanted, cycles, tuple(accepted_at))


def test_build_refuses_an_edsd_config_without_its_fuse_size() -> None:
    with pytest.raises(DrafterError, match="EDFuse size"):
        build_drafter(replace(make("edsd").config, fuse_size=None))


def test_prompts_are_answered_together_as_far_as_rows_allow() -> None:
    lengths = [9, 30_000, 5, 20_000, 7, 10_000, 11_000]
    found = answered_together(lengths, torch.device("cpu"))
    assert found == [[2, 4, 0], [5, 6], [3], [1]]
    assert [len(batch) for batch in answered_together([3] * 40, torch.device("cpu"))] == [16, 16, 8]
    assert [len(batch) for batch in answered_together([3] * 5, torch.device("cpu"), 2)] == [2, 2, 1]
    assert answered_together([], torch.device("cpu")) == []
