"""Continuous batching must write what transformers' own greedy generation writes."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sgl_entropy.cli import main
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.prompts.order import Prompt, in_length_blocks, to_begin
from sgl_entropy.train.samples.generate import WorkerPlan, run_worker
from sgl_entropy.train.samples.store import Store, StoreMeta, write_meta
from tests.interrupted import interrupt
from tests.train.conftest import TAPS, tiny_prompts


def test_answers_and_features_equal_transformers(tiny_folder: Path, tiny_store: Store) -> None:
    """Five slots for 24 prompts: refills, ragged lengths, the shrinking tail, ends of answers."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_folder)
    prompts = {prompt.prompt_id: prompt for prompt in tiny_prompts()}
    ended = 0
    for entry in tiny_store.entries:
        sample = tiny_store.sample(entry)
        prompt = torch.tensor([prompts[entry.prompt_id].tokens])
        with torch.no_grad():
            wanted = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=20,
                do_sample=False,
                pad_token_id=2,
            )[0]
            states = model(wanted[None], output_hidden_states=True).hidden_states
        assert sample.tokens.tolist() == wanted.tolist()
        ended += int(wanted[-1]) == model.config.eos_token_id
        n = len(wanted)
        answered = n - entry.prompt_length
        features = torch.cat([states[layer + 1][0, : n - 1] for layer in TAPS], dim=-1)
        # The store holds bfloat16: 8 bits of mantissa.
        torch.testing.assert_close(sample.features.float(), features, rtol=8e-3, atol=2e-3)
        final = states[-1][0, : n - 1]
        torch.testing.assert_close(sample.final.float(), final, rtol=8e-3, atol=2e-3)
        logits = model.lm_head(final)
        law = torch.distributions.Categorical(logits=logits.double())
        torch.testing.assert_close(sample.entropy.double(), law.entropy(), rtol=1e-4, atol=1e-4)
        assert torch.equal(sample.best, logits.argmax(-1))
        assert torch.equal(sample.best[entry.prompt_length - 1 :], sample.tokens[-answered:])
    assert {e.prompt_id for e in tiny_store.entries} <= set(prompts)
    assert len(tiny_store.entries) >= 20
    assert ended, "no answer ended by itself: the test would not notice a missed end token"


def test_ragged_extend_equals_one_pass(tiny_target: PlainTarget) -> None:
    """Rows added behind prompts of different lengths see exactly their own prefix."""
    torch.manual_seed(3)
    ids = torch.randint(3, 160, (3, 9))
    lengths = torch.tensor([9, 4, 6])
    more = torch.randint(3, 160, (3, 3))
    cache = tiny_target.new_cache(3)
    tiny_target.forward(ids, torch.zeros(3, dtype=torch.long), cache)
    out = tiny_target.forward(more, lengths, cache)
    for row, length in enumerate(lengths.tolist()):
        whole = torch.cat([ids[row, :length], more[row]])[None]
        start = torch.zeros(1, dtype=torch.long)
        alone = tiny_target.forward(whole, start, tiny_target.new_cache(1))
        torch.testing.assert_close(out.final[row], alone.final[0, length:])


def test_a_short_prefill_leaves_the_other_slots_their_rows(tiny_folder: Path) -> None:
    """A slot that is filled again beside a long sequence must not shorten the cache."""
    config = json.loads((tiny_folder / "config.json").read_text()) | {
        "max_position_embeddings": 512
    }
    weights = load_file(tiny_folder / "model.safetensors")
    target = PlainTarget(config, weights)
    torch.manual_seed(5)
    long, one = torch.randint(3, 160, (1, 260)), torch.zeros(1, dtype=torch.long)
    cache = target.new_cache(2)
    target.forward(long, one, cache, slots=torch.tensor([0]))
    target.forward(long[:, :50], one, cache, slots=torch.tensor([1]))
    out = target.forward(torch.tensor([[7], [7]]), torch.tensor([260, 50]), cache)
    whole = torch.cat([long, torch.tensor([[7]])], dim=1)
    alone = target.forward(whole, one, target.new_cache(1))
    torch.testing.assert_close(out.final[0, 0], alone.final[0, -1])


def test_length_blocks_keep_every_prompt_and_match_neighbours() -> None:
    prompts = [Prompt(i, (0,) * (1 + (i * 37) % 50)) for i in range(100)]
    ordered = in_length_blocks(prompts, 40)
    assert sorted(p.prompt_id for p in ordered) == list(range(100))
    assert {p.prompt_id for p in ordered[:40]} == set(range(40))
    lengths = [len(p.tokens) for p in ordered]
    assert lengths[:40] == sorted(lengths[:40])
    assert lengths[40:80] == sorted(lengths[40:80], reverse=True)


def test_a_store_of_other_settings_is_refused(tmp_path: Path) -> None:
    write_meta(tmp_path, StoreMeta((1,), 32, 20))
    write_meta(tmp_path, StoreMeta((1,), 32, 20))
    with pytest.raises(ValueError, match="max_new_tokens"):
        write_meta(tmp_path, StoreMeta((1,), 32, 21))


def test_the_token_budget_cuts_no_answer_short(
    tiny_folder: Path, tiny_store: Store, tmp_path: Path
) -> None:
    """What is begun when the tokens are reached is finished: else long answers would be missing."""
    write_meta(tmp_path, StoreMeta((1,), 32))
    prompts = tuple(tiny_prompts())
    run_worker(
        WorkerPlan(0, str(tiny_folder), str(tmp_path), prompts, (1,), 20, 24, 150, "float32")
    )
    store = Store(tmp_path)
    assert 150 <= store.answer_tokens() < 150 + 20 < tiny_store.answer_tokens()
    whole = {e.prompt_id: tiny_store.tokens(e).tolist() for e in tiny_store.entries}
    for entry in store.entries:
        assert store.tokens(entry).tolist() == whole[entry.prompt_id]


@pytest.mark.parametrize("slots", [1, 12, 96])
@pytest.mark.parametrize("wanted", [300, 3000, 15_500])
def test_no_more_is_begun_than_brings_the_tokens(wanted: int, slots: int) -> None:
    """Answers that end anywhere, two in three at the limit: a worker's loop, without the target."""
    chance = random.Random(wanted + slots)
    under_way: list[tuple[int, int]] = []
    tokens = ended = 0
    while True:
        over = [length for written, length in under_way if written >= length]
        under_way = [one for one in under_way if one[0] < one[1]]
        tokens, ended = tokens + sum(over), ended + len(over)
        more = to_begin(wanted, 128, tokens, ended, [written for written, _ in under_way])
        if not more and not under_way:
            break
        for _ in range(min(more, slots - len(under_way))):
            length = 128 if chance.random() < 0.67 else chance.randint(2, 127)
            under_way.append((1, length))
        under_way = [(written + 1, length) for written, length in under_way]
    assert wanted <= tokens < wanted + 128 + 0.1 * wanted


def endless(stage: str, target: Path, work: Path) -> list[str]:
    """Words of a ``train`` command that answers for longer than a test takes."""
    given = tiny_prompts()
    rows = [
        {"prompt_id": i, "tokens": given[i % len(given)].tokens} for i in range(200 * len(given))
    ]
    (work / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    overrides = [
        f"target={target}",
        f"work={work}",
        "drafter.edsd_layers=[1, 2]",
        "generate.max_new_tokens=100",
        "generate.answer_tokens=1000000000",
        "generate.dtype=float32",
        "generate.slots=4",
    ]
    return ["train", stage, *(word for one in overrides for word in ("--set", one))]


def test_a_killed_parent_leaves_no_worker_and_loses_no_answer(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """SIGKILL, which nothing can catch: the workers notice, write what is finished and leave."""
    command = [sys.executable, "-m", "sgl_entropy", *endless("generate", tiny_folder, tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait(lambda: any((tmp_path / "store").glob("*.safetensors")))
        workers = _children(parent.pid)
        assert len(workers) >= 2
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), seconds=30)
    # What was under way is written too, under its own name, and whole.
    ids = [entry.prompt_id for entry in Store(tmp_path / "store").entries]
    assert len(ids) > 64
    assert len(set(ids)) == len(ids)
    assert not list((tmp_path / "store").glob("*.partial"))


@pytest.mark.slow
def test_an_interrupt_of_the_command_keeps_finished_shards(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """One line, and a store that the same command goes on with."""
    words = endless("features", tiny_folder, tmp_path)
    store = tmp_path / "store"
    code, said = interrupt(words, tmp_path / "log", lambda _: any(store.glob("*.safetensors")))
    assert code == 130
    assert said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said
    held = Store(store, whole=True)
    ids = [entry.prompt_id for entry in held.entries]
    assert len(ids) > 64
    assert len(set(ids)) == len(ids)
    assert not list(store.glob("*.partial"))

    before = {path.name: path.read_bytes() for path in store.glob("*.safetensors")}
    more = ["--set", f"generate.answer_tokens={held.answer_tokens() + 200}"]
    assert main([*words, *more]) == 0
    assert Store(store).answer_tokens() > held.answer_tokens()
    for name, content in before.items():
        assert (store / name).read_bytes() == content


def _wait(done: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def _children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
