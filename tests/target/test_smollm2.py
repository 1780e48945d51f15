"""The conversion of the small target: row order, digits, special tokens, an atomic folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sgl_entropy.target import from_gguf, smollm2
from sgl_entropy.target.rotary import apply_rotary, rotary_tables


def test_unpermute_turns_interleaved_rotary_into_halves() -> None:
    """Rows are named for their place: head, half, index; GGUF keeps (index, half) in a head."""
    heads, half, columns = 3, 4, 2
    named = np.arange(heads * 2 * half, dtype=np.float32).reshape(heads, 2, half)
    stored = named.swapaxes(1, 2).reshape(-1, 1).repeat(columns, 1)
    found = from_gguf.unpermute(stored, heads)
    assert found[:, 0].tolist() == named.reshape(-1).tolist()


def test_unpermuted_rows_rotate_as_the_stored_ones_do() -> None:
    """Scores under Hugging Face's rotary equal those of GGUF's interleaved one."""
    import torch

    torch.manual_seed(0)
    stored = torch.randn(8, 5)  # one head of 8
    x = torch.randn(6, 5)
    cos, sin = rotary_tables(8, 10000.0, 6)

    def interleaved(rows: torch.Tensor) -> torch.Tensor:
        even, odd = rows[:, 0::2], rows[:, 1::2]
        c, s = cos[:, :4], sin[:, :4]
        return torch.stack([even * c - odd * s, odd * c + even * s], -1).flatten(1)

    wanted = interleaved(x @ stored.T)
    weight = torch.from_numpy(from_gguf.unpermute(stored.numpy(), 1))
    found = apply_rotary((x @ weight.T)[:, None], cos, sin)[:, 0]
    torch.testing.assert_close(found @ found.T, wanted @ wanted.T)


def test_tokenizer_splits_digits_and_knows_special_tokens() -> None:
    from tokenizers import Tokenizer

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "1", "2", "12", "a", "Ġ", "Ġa"]
    meta = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3, 1, 1, 1, 1, 1, 1],
        "tokenizer.ggml.merges": ["1 2", "Ġ a"],
    }
    tokenizer = Tokenizer.from_str(json.dumps(from_gguf.tokenizer_json(meta)))
    assert tokenizer.encode("<|im_start|>a 12").tokens == ["<|im_start|>", "a", "Ġ", "1", "2"]
    assert tokenizer.encode("a a").tokens == ["a", "Ġa"]
    assert len(from_gguf.special_tokens(meta)) == 3


def test_foreign_tensors_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    assert (
        from_gguf.hf_tensor_name("blk.7.attn_q.weight") == "model.layers.7.self_attn.q_proj.weight"
    )
    with pytest.raises(from_gguf.TargetError, match=r"blk\.0\.attn_q\.bias"):
        from_gguf.hf_tensor_name("blk.0.attn_q.bias")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(from_gguf.TargetError, match="other files"):
        smollm2.ensure_small_target(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_finished_folder_is_taken_as_it_is_and_a_damaged_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []

    def convert(gguf: Path, out: Path) -> None:
        built.append(gguf)
        out.mkdir(parents=True)
        (out / "config.json").write_text("{}")

    source = tmp_path / "model.gguf"
    source.write_bytes(b"weights")
    monkeypatch.setattr(smollm2, "convert_gguf", convert)
    monkeypatch.setattr(smollm2, "_installed_gguf", lambda: source)
    with pytest.raises(from_gguf.TargetError, match="sha256"):
        smollm2.ensure_small_target(tmp_path / "out")
    import hashlib

    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    for _ in range(2):
        assert smollm2.ensure_small_target(tmp_path / "out") == tmp_path / "out"
    assert len(built) == 1
    (tmp_path / "out" / "config.json").write_text("{} ")  # another size: a broken copy
    smollm2.ensure_small_target(tmp_path / "out")
    assert len(built) == 2
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
