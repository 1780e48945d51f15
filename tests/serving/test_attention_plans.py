"""The CPU engine's attention against attention computed row by row in float64.

Every slot of the KV pool that a sequence does not own holds NaN, so that reading one too many
shows at once. Slot 0 is the pool's padding slot: it is never owned, and holds huge finite
values, as a padded key must be hidden by the mask and not by its value.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_entropy.serving import attention_plans as plans
from sgl_entropy.serving.attention_plans import (
    attend,
    draft_step_plans,
    group_by_length,
    make_plan,
    narrowed,
    reference_attention,
    tree_block,
)

DIM = 8
SCALING = DIM**-0.5


@dataclass
class Pool:
    """Requests of given lengths in a shuffled KV pool, with ``spare`` slots mapped after each."""

    req_to_token: torch.Tensor
    rows: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor

    def slots(self, request: int, length: int) -> list[int]:
        return self.req_to_token[self.rows[request], :length].tolist()


def make_pool(lengths: list[int], kv_heads: int, seed: int, spare: int = 0) -> Pool:
    rng = random.Random(seed)
    total = sum(lengths) + spare * len(lengths)
    slots = list(range(1, 2 * total + 8))
    rng.shuffle(slots)
    rows = rng.sample(range(len(lengths) + 3), len(lengths))
    # Behind a sequence the table holds what an earlier request left there.
    width = max(lengths) + spare + 5
    req_to_token = torch.tensor([[rng.choice(slots) for _ in range(width)] for _ in range(99)])
    req_to_token = req_to_token[: len(lengths) + 3].to(torch.int32)
    generator = torch.Generator().manual_seed(seed)
    keys = torch.full((2 * total + 8, kv_heads, DIM), torch.nan)
    values = torch.full((2 * total + 8, kv_heads, DIM), torch.nan)
    keys[0], values[0] = 1e4, 1e4
    for row, length in zip(rows, lengths, strict=True):
        own = torch.tensor([slots.pop() for _ in range(length + spare)])
        req_to_token[row, : length + spare] = own.to(torch.int32)
        keys[own] = torch.randn(length + spare, kv_heads, DIM, generator=generator)
        values[own] = torch.randn(length + spare, kv_heads, DIM, generator=generator)
    return Pool(req_to_token, torch.tensor(rows), keys, values)


def check(
    pool: Pool, plan: list[plans.AttentionGroup], visible: list[list[int]], ratio: int
) -> None:
    """Run a plan with random queries; every row must match the reference."""
    heads = pool.keys.shape[1] * ratio
    query = torch.randn(len(visible), heads, DIM, generator=torch.Generator().manual_seed(5))
    out = torch.full((len(visible), heads, DIM), torch.nan)
    returned = attend(query, pool.keys, pool.values, plan, SCALING, out)
    assert returned.data_ptr() == out.data_ptr()
    expected = reference_attention(query, pool.keys, pool.values, visible, SCALING)
    assert not expected.isnan().any(), "the test itself looks at a slot that nobody owns"
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


def causal(pool: Pool, kv_lens: list[int], new_lens: list[int]) -> list[list[int]]:
    """The slots that each new row sees, row by row."""
    return [
        pool.slots(i, kv - new + row + 1)
        for i, (kv, new) in enumerate(zip(kv_lens, new_lens, strict=True))
        for row in range(new)
    ]


MIXED = [300, 1, 17, 299, 64, 2, 150, 33]
SIMILAR = [90, 100, 95, 88]

CASES = {
    "decode_one": ([7], [1]),
    "decode_first_token": ([1], [1]),
    "decode_similar": (SIMILAR, [1] * 4),
    "decode_equal": ([50] * 3, [1] * 3),
    "decode_mixed": (MIXED, [1] * 8),
    "extend_whole_prompt": ([40], [40]),
    "extend_after_prefix": ([40], [7]),
    "extend_long_after_prefix": ([140], [33]),
    "extend_mixed": ([300, 20, 1, 64], [30, 20, 1, 17]),
    "extend_short_whole_prompts": ([5, 5], [5, 5]),
    "extend_short_one_whole": ([9, 5, 12], [4, 5, 12]),
    "verify_chain_similar": ([s + 5 for s in SIMILAR], [5] * 4),
    "verify_chain_mixed": ([s + 5 for s in MIXED], [5] * 8),
    "draft_extend_ragged": ([100, 101, 99, 100], [1, 5, 3, 2]),
    "draft_extend_ragged_mixed": ([300, 12, 7, 150, 290, 5], [1, 5, 3, 2, 4, 5]),
    "draft_extend_all_ones_but_one": ([40, 40, 40], [1, 2, 1]),
}


@pytest.mark.parametrize("ratio", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_rows_see_their_own_past(case: str, ratio: int) -> None:
    kv_lens, new_lens = CASES[case]
    pool = make_pool(kv_lens, kv_heads=2, seed=len(case))
    plan = make_plan(pool.req_to_token, pool.rows, kv_lens, new_lens)
    check(pool, plan, causal(pool, kv_lens, new_lens), ratio)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_rows_see_their_own_past_whatever_the_shape(data: st.DataObject) -> None:
    kv_lens = data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=9))
    most = data.draw(st.sampled_from([1, 2, 5, 16, 17, 40]))
    new_lens = [data.draw(st.integers(1, min(kv, most))) for kv in kv_lens]
    pool = make_pool(kv_lens, kv_heads=1, seed=sum(kv_lens))
    plan = make_plan(pool.req_to_token, pool.rows, kv_lens, new_lens)
    check(pool, plan, causal(pool, kv_lens, new_lens), data.draw(st.sampled_from([1, 3])))


def random_tree(rng: random.Random, n: int) -> list[int]:
    """Parents of n nodes, the root's -1; a node may also hang nowhere (-1), see ``build_tree``."""
    return [-1] + [rng.randrange(-1, node) if node > 1 else 0 for node in range(1, n)]


def tree_mask(parents: list[int]) -> torch.Tensor:
    n = len(parents)
    mask = torch.zeros(n, n, dtype=torch.bool)
    for node in range(n):
        up = node
        while up != -1:
            mask[node, up] = True
            up = parents[up]
    return mask


@pytest.mark.parametrize("ratio", [1, 3])
@pytest.mark.parametrize("prefixes", [[6], [90, 100, 95], [250, 3, 40, 1, 260]], ids=str)
@pytest.mark.parametrize("n", [2, 12, 16, 24, 40])
def test_tree_rows_see_the_prefix_and_their_ancestors(
    n: int, prefixes: list[int], ratio: int
) -> None:
    rng = random.Random(n)
    masks = [tree_mask(random_tree(rng, n)) for _ in prefixes]
    kv_lens = [prefix + n for prefix in prefixes]
    pool = make_pool(kv_lens, kv_heads=2, seed=n)
    plan = make_plan(pool.req_to_token, pool.rows, kv_lens, [n] * len(prefixes), masks)
    visible = []
    for i, prefix in enumerate(prefixes):
        slots = pool.slots(i, prefix + n)
        for row in range(n):
            visible.append(slots[:prefix] + [slots[prefix + j] for j in masks[i][row].nonzero()])
    check(pool, plan, visible, ratio)


@pytest.mark.parametrize("prefixes", [[6], [90, 100, 95], [250, 3, 40, 1, 260]], ids=str)
@pytest.mark.parametrize("n", [5, 12, 40])
def test_rows_of_a_pruned_tree_see_what_they_saw_in_the_whole(n: int, prefixes: list[int]) -> None:
    rng = random.Random(n)
    masks = [tree_mask(random_tree(rng, n)) for _ in prefixes]
    live = [[0, *sorted(rng.sample(range(1, n), rng.randrange(n)))] for _ in prefixes]
    kv_lens = [prefix + n for prefix in prefixes]
    pool = make_pool(kv_lens, kv_heads=2, seed=n)
    blocks = [mask[rows] for mask, rows in zip(masks, live, strict=True)]
    plan = make_plan(pool.req_to_token, pool.rows, kv_lens, [len(rows) for rows in live], blocks)
    visible = []
    for i, prefix in enumerate(prefixes):
        slots = pool.slots(i, prefix + n)
        for row in live[i]:
            visible.append(slots[:prefix] + [slots[prefix + j] for j in masks[i][row].nonzero()])
        # What a pruned node's slot holds was left by its last owner, whose logits were NaN.
        for node in range(n):
            if not any(masks[i][row][node] for row in live[i]):
                pool.keys[slots[prefix + node]] = pool.values[slots[prefix + node]] = torch.nan
    check(pool, plan, visible, 3)


def test_tree_block_cuts_the_draft_part_out_of_the_full_mask() -> None:
    lens, n = [3, 11, 1], 4
    masks = [tree_mask(random_tree(random.Random(i), n)) for i in range(3)]
    flat = torch.cat(
        [
            torch.cat([torch.ones(n, length, dtype=torch.bool), mask], 1).flatten()
            for length, mask in zip(lens, masks, strict=True)
        ]
    )
    assert torch.equal(tree_block(flat, lens, n), torch.stack(masks))


@pytest.mark.parametrize("ratio", [1, 3])
@pytest.mark.parametrize("topk", [1, 3])
@pytest.mark.parametrize("steps", [2, 4, 7])
@pytest.mark.parametrize(
    "seq_lens", [[1], [50], SIMILAR, MIXED, [300, 2, 299, 3]], ids=lambda lens: f"{len(lens)}seq"
)
def test_draft_steps_see_the_sequence_and_their_branch(
    seq_lens: list[int], steps: int, topk: int, ratio: int
) -> None:
    pool = make_pool(seq_lens, kv_heads=1, seed=steps * topk, spare=steps * topk)
    plans = draft_step_plans(pool.req_to_token, pool.rows, seq_lens, topk, steps)
    assert len(plans) == steps - 1
    for step, plan in enumerate(plans):
        visible = []
        for i, length in enumerate(seq_lens):
            slots = pool.slots(i, length + topk * steps)
            for branch in range(topk):
                start = length + branch * steps
                visible.append(slots[:length] + slots[start : start + step + 1])
        check(pool, plan, visible, ratio)


@pytest.mark.parametrize("seq_lens", [SIMILAR, MIXED, [300, 2, 299, 3]], ids=len)
def test_a_draft_step_of_some_sequences_sees_what_it_would_among_all(seq_lens: list[int]) -> None:
    steps = 4
    pool = make_pool(seq_lens, kv_heads=2, seed=3, spare=steps)
    query = torch.randn(len(seq_lens), 2, DIM)
    for step, plan in enumerate(draft_step_plans(pool.req_to_token, pool.rows, seq_lens, 1, steps)):
        whole = attend(query, pool.keys, pool.values, plan, SCALING, torch.empty_like(query))
        for seed in range(6):
            generator = torch.Generator().manual_seed(seed)
            live = torch.rand(len(seq_lens), generator=generator) < 0.5
            live[step % len(live)] = True
            some = query[live]
            out = torch.full_like(some, torch.nan)
            attend(some, pool.keys, pool.values, narrowed(plan, live), SCALING, out)
            torch.testing.assert_close(out, whole[live])


def test_later_draft_slots_may_hold_anything() -> None:
    """Step i runs before the slots of steps i + 1... are written: they must not be read."""
    topk, steps, seq_lens = 3, 5, [20, 140]
    pool = make_pool(seq_lens, kv_heads=2, seed=1, spare=topk * steps)
    plans = draft_step_plans(pool.req_to_token, pool.rows, seq_lens, topk, steps)
    for i, length in enumerate(seq_lens):
        slots = torch.tensor(pool.slots(i, length + topk * steps))[length:].view(topk, steps)
        pool.keys[slots[:, 2:]] = torch.nan
        pool.values[slots[:, 2:]] = torch.nan
    query = torch.randn(2 * topk, 2, DIM)
    for step, finite in ((0, True), (1, True), (2, False)):
        out = attend(query, pool.keys, pool.values, plans[step], SCALING, torch.empty_like(query))
        assert bool(out.isfinite().all()) is finite


@given(st.lists(st.integers(1, 3000), max_size=40))
def test_groups_hold_every_sequence_once_and_bound_the_padding(lengths: list[int]) -> None:
    groups = group_by_length(lengths)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[i] for i in group)
        assert all(lengths[i] >= 0.7 * longest - 32 for i in group)


def test_similar_sequences_share_one_kernel_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    kernel = plans.scaled_dot_product_attention
    monkeypatch.setattr(
        plans,
        "scaled_dot_product_attention",
        lambda *args, **kw: calls.append(args[0].shape) or kernel(*args, **kw),
    )
    lengths = [100, 96, 110, 99, 300]
    pool = make_pool(lengths, kv_heads=1, seed=0)
    plan = make_plan(pool.req_to_token, pool.rows, lengths, [1] * 5)
    query = torch.randn(5, 3, DIM)
    attend(query, pool.keys, pool.values, plan, SCALING, torch.empty_like(query))
    assert [shape[0] for shape in calls] == [1, 4]
