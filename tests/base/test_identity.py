"""A model's identity: every copy has it, no other model does, and committed ones stay valid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sgl_entropy.base.identity import Identity

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path, seed: int = 0, shards: int = 1, **changes: torch.Tensor) -> Path:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (8, 4), "b": (5,), "c": (2, 3, 4), "d": (0, 4), "e": ()}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tensors |= changes
    folder.mkdir()
    for shard in range(shards):
        part = dict(list(tensors.items())[shard::shards])
        save_file(part, folder / f"model-{shard}.safetensors")
    return folder


def test_an_identity_is_that_of_the_weights(tmp_path: Path) -> None:
    first = Identity.of(write(tmp_path / "first"))
    assert first.name == "first"
    assert Identity.of(write(tmp_path / "copy", shards=3)).sha256 == first.sha256
    others = [
        write(tmp_path / "trained", seed=1),
        write(tmp_path / "vector", b=torch.zeros(5)),
        write(tmp_path / "scalar", e=torch.tensor(0.5)),
        write(tmp_path / "dtype", a=torch.zeros(8, 4).bfloat16()),
        write(tmp_path / "zeros", a=torch.zeros(8, 4)),
        write(tmp_path / "more", f=torch.zeros(1)),
    ]
    digests = {Identity.of(folder).sha256 for folder in others} | {first.sha256}
    assert len(digests) == 1 + len(others)
    hub = tmp_path / "models--org--small" / "snapshots"
    hub.mkdir(parents=True)
    assert Identity.of(write(hub / "0123")).name == "org/small"


def test_weights_beside_those_of_the_index_do_not_count(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", shards=2)
    own = Identity.of(folder).sha256
    save_file({"again": torch.ones(3)}, folder / "consolidated.safetensors")
    assert Identity.of(folder).sha256 != own
    names = {f"{n}": f"model-{i % 2}.safetensors" for i, n in enumerate("abcde")}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert Identity.of(folder).sha256 == own
    index.write_text(json.dumps({"weight_map": {**names, "z": "model-9.safetensors"}}))
    with pytest.raises(ValueError, match=r"model-9.safetensors: cannot be read"):
        Identity.of(folder)
    with pytest.raises(ValueError, match="gone: no such folder"):
        Identity.of(tmp_path / "gone")
    for text, why in (
        ("[]", "expected a JSON object"),
        ('{"weight_map": {"a": 7}}', "expected an object weight_map"),
        ("[" * 100_000, "nested too deeply"),
    ):
        index.write_text(text)
        with pytest.raises(ValueError, match=f"index.json: .*{why}"):
            Identity.of(folder)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("empty", "not a safetensors file"),
        ("pointer", "a Git LFS pointer"),
        ("cut", "truncated"),
        ("header", "not a safetensors file"),
        ("deep", "not valid JSON"),
        ("offsets", "its data_offsets hold"),
        ("shape", "must have a known dtype, a shape"),
    ],
)
def test_damaged_weights_are_refused(damage: str, why: str, tmp_path: Path) -> None:
    """Nothing is allocated, or read, by what a header only claims."""
    file = write(tmp_path / "model") / "model-0.safetensors"
    whole = file.read_bytes()
    entry = '{"a": {"dtype": "F32", "shape": %s, "data_offsets": [0, %d]}}'
    headers = {
        "deep": '{"a": ' + "[" * 100_000,
        "offsets": entry % ("[1]", 1 << 45),
        "shape": entry % ("[-1, 4]", 16),
    }
    text = headers.get(damage, "").encode()
    file.write_bytes(
        {
            "empty": b"",
            "pointer": b"version https://git-lfs.github.com/spec/v1",
            "cut": whole[:-8],
            "header": whole[:8] + whole[9:],
        }.get(damage, len(text).to_bytes(8, "little") + text + bytes(16))
    )
    with pytest.raises(ValueError, match=f"{file}: .*{why}"):
        Identity.of(file.parent)


def test_the_committed_calibration_knows_the_committed_drafter() -> None:
    """Whatever changes here: identities in files that people have must stay what they are."""
    name = "edsd-smollm2-135m"
    made_for = json.loads((ROOT / "bench/results/calibration" / f"{name}.json").read_text())
    assert Identity.of(ROOT / "bench/drafters" / name).sha256 == made_for["drafter"]["sha256"]
