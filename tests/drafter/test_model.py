"""Both drafters in plain torch: published names, incremental chains, and what each formula says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from sgl_entropy.drafter.config import DrafterConfig, DrafterError
from sgl_entropy.drafter.model import DraftCache, Drafter, build_drafter, draft_chain, load_drafter
from sgl_entropy.drafter.unroll import Unroll
from sgl_entropy.train.fit.export import export_drafter

ARMS = {"edsd": ("EDSD", (1, 2)), "eagle3": ("EAGLE3", (0, 1, 2)), "variant": ("EDSD", (0, 2))}


def make(arm: str, draft_vocab: int = 40) -> Drafter:
    algorithm, layers = ARMS[arm]
    torch.manual_seed(5)
    config = DrafterConfig(
        algorithm=algorithm,  # type: ignore[arg-type]
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        vocab_size=64,
        draft_vocab_size=draft_vocab,
        target_hidden_size=16,
        target_layer_ids=layers,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        max_position_embeddings=64,
        fuse_size=20 if algorithm == "EDSD" else None,
        fuse_residual=arm == "variant",
        fuse_norm=arm != "variant",
        fuse_tokens=arm == "variant",
    )
    drafter = build_drafter(config)
    chosen = torch.randperm(64)[:draft_vocab].sort().values
    drafter.t2d[chosen] = True
    drafter.d2t.copy_(chosen - torch.arange(draft_vocab))
    for name, weight in drafter.named_parameters():
        if weight.dim() == 1:  # norms that are not all ones, or a missing one would not show
            torch.nn.init.uniform_(weight, 0.5, 1.5)
        elif "lm_head" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    return drafter.eval()


@pytest.mark.parametrize("arm", ARMS)
def test_state_dict_is_the_published_one(arm: str) -> None:
    drafter = make(arm)
    shapes = {name: tuple(value.shape) for name, value in drafter.state_dict().items()}
    assert shapes == drafter.config.tensor_shapes()


@pytest.mark.parametrize("arm", ["edsd", "variant"])
def test_edsd_formula(arm: str) -> None:
    """SPEC 1, written out for one row: attention over one row is its value."""
    d = make(arm)
    w = d.state_dict()
    e, f = torch.randn(1, 1, 16), torch.randn(1, 1, 16)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return w[name] * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)

    gate = F.silu(f @ w["edfuse.gate_proj.weight"].T)
    normed = norm(e, "embnorm.weight") if arm == "edsd" else e
    z = (gate * (normed @ w["edfuse.up_proj.weight"].T)) @ w["edfuse.down_proj.weight"].T
    if arm == "variant":
        z = z + f
    seen = norm(z, "midlayer.hidden_norm.weight")
    if arm == "variant":
        seen = torch.cat([normed, seen], -1)
    v = seen @ w["midlayer.self_attn.v_proj.weight"].T
    heads = v.view(1, 1, 2, 6).repeat_interleave(2, dim=2).reshape(1, 1, 24)
    y = z + heads @ w["midlayer.self_attn.o_proj.weight"].T
    n = norm(y, "midlayer.post_attention_layernorm.weight")
    inner = F.silu(n @ w["midlayer.mlp.gate_proj.weight"].T) * (
        n @ w["midlayer.mlp.up_proj.weight"].T
    )
    out = y + inner @ w["midlayer.mlp.down_proj.weight"].T
    with torch.no_grad():
        found = d(e, f, torch.zeros(1, 1, dtype=torch.long))
        torch.testing.assert_close(found, out)
        torch.testing.assert_close(
            d.logits(found), norm(out, "norm.weight") @ w["lm_head.weight"].T
        )


def test_eagle3_formula() -> None:
    """SGLang's llama_eagle3: residual is the feature, q, k, v take both norms side by side."""
    d = make("eagle3")
    w = d.state_dict()
    e, f = torch.randn(1, 1, 16), torch.randn(1, 1, 16)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return w[name] * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)

    both = torch.cat(
        [norm(e, "midlayer.input_layernorm.weight"), norm(f, "midlayer.hidden_norm.weight")], -1
    )
    v = both @ w["midlayer.self_attn.v_proj.weight"].T
    heads = v.view(1, 1, 2, 6).repeat_interleave(2, dim=2).reshape(1, 1, 24)
    y = f + heads @ w["midlayer.self_attn.o_proj.weight"].T
    n = norm(y, "midlayer.post_attention_layernorm.weight")
    inner = F.silu(n @ w["midlayer.mlp.gate_proj.weight"].T) * (
        n @ w["midlayer.mlp.up_proj.weight"].T
    )
    with torch.no_grad():
        found = d(e, f, torch.zeros(1, 1, dtype=torch.long))
    torch.testing.assert_close(found, y + inner @ w["midlayer.mlp.down_proj.weight"].T)


@pytest.mark.parametrize("arm", ARMS)
def test_chain_with_cache_equals_recompute_and_unroll(arm: str) -> None:
    """Three ways to the same drafts: cached rows, everything afresh, all chains at once."""
    drafter = make(arm)
    torch.manual_seed(6)
    embedding = torch.randn(64, 16)
    tokens = torch.randint(0, 64, (9,))
    taps = torch.randn(8, drafter.config.tap_width)
    depth = 4
    with torch.no_grad():
        f0 = drafter.fuse_taps(taps)
        rows = embedding[tokens[1:]]
        starts = torch.arange(8)[None]
        unroll = Unroll(drafter, rows[None], f0[None], starts)
        together = [drafter.target_ids(drafter.logits(unroll.out)[0].argmax(-1))]
        for _ in range(depth - 1):
            unroll.advance(embedding[together[-1]][None])
            together.append(drafter.target_ids(drafter.logits(unroll.out)[0].argmax(-1)))

        cache = DraftCache()
        for row in range(8):
            before = cache.rows
            chain = draft_chain(drafter, embedding, cache, tokens[row + 1], f0[row], row, depth)
            assert cache.rows == before == row, "drafted rows must not stay in the verified cache"
            drafter(
                rows[None, row : row + 1], f0[None, row : row + 1], torch.tensor([[row]]), cache
            )

            embeds, features = rows[: row + 1], f0[: row + 1]
            again = []
            for step in range(depth):
                n = row + 1 + step
                out = drafter(embeds[None], features[None], torch.arange(n)[None])
                token = drafter.target_ids(drafter.logits(out)[0, -1].argmax())
                again.append(int(token))
                embeds = torch.cat([embeds, embedding[token][None]])
                features = torch.cat([features, out[0, -1:]])
            assert chain.tolist() == again
            assert [int(step[row]) for step in together] == again


@pytest.mark.parametrize("arm", ARMS)
def test_padded_rows_of_the_cache_are_not_attended(arm: str) -> None:
    drafter = make(arm)
    embeds, features = torch.randn(2, 6, 16), torch.randn(2, 6, 16)
    positions = torch.arange(6).expand(2, 6)
    new_e, new_f = torch.randn(2, 1, 16), torch.randn(2, 1, 16)
    lengths = torch.tensor([6, 3])
    with torch.no_grad():
        cache = DraftCache()
        drafter(embeds, features, positions, cache)
        both = drafter(new_e, new_f, lengths[:, None], cache, lengths)
        short = DraftCache()
        drafter(embeds[1:, :3], features[1:, :3], positions[1:, :3], short)
        alone = drafter(new_e[1:], new_f[1:], lengths[1:, None], short)
    torch.testing.assert_close(both[1:], alone)


@pytest.mark.parametrize("arm", ARMS)
def test_a_checkpoint_loads_as_it_was_written(arm: str, tmp_path: Path) -> None:
    drafter = make(arm)
    export_drafter(drafter, torch.ones(drafter.config.tap_width), tmp_path, torch.float32)
    loaded = load_drafter(tmp_path)
    assert loaded.config == drafter.config
    for name, value in drafter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_checkpoint_with_odd_tensors_is_refused_by_name(tmp_path: Path) -> None:
    drafter = make("edsd")
    export_drafter(drafter, torch.ones(drafter.config.tap_width), tmp_path)
    tensors = {k: v for k, v in drafter.state_dict().items() if k != "embnorm.weight"}
    tensors["midlayer.input_layernorm.weight"] = torch.ones(16)
    tensors["fc.weight"] = torch.ones(16, 30)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(DrafterError) as error:
        load_drafter(tmp_path)
    text = str(error.value)
    for part in ("missing tensor embnorm", "unknown tensor midlayer.input_lay", "fc.weight: shape"):
        assert part in text
