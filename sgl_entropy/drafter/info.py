"""What a drafter checkpoint is, from its config and headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_entropy.base.safetensors_header import DTYPE_BYTES
from sgl_entropy.checkpoint.files import read_weight_files
from sgl_entropy.checkpoint.findings import Finding
from sgl_entropy.drafter.checkpoint import inspect_checkpoint, read_config
from sgl_entropy.drafter.config import DrafterConfig, hidden_state_number
from sgl_entropy.drafter.fold import up_table_bytes

_COPIED = (
    "algorithm",
    "hidden_size",
    "target_hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "draft_vocab_size",
)


@dataclass(frozen=True)
class DrafterInfo:
    """A checkpoint's config, its size, and what a check of it says.

    Attributes:
        parameters: floating-point numbers in the files.
        num_bytes: of all tensors.
        dtypes: dtype -> number of floating-point tensors that have it.
        files: names of the weight files.
    """

    folder: str
    config: DrafterConfig
    parameters: int
    num_bytes: int
    dtypes: Mapping[str, int]
    files: tuple[str, ...]
    findings: tuple[Finding, ...]

    def facts(self) -> dict[str, Any]:
        """What ``drafter info`` shows, in its order: layers in both countings, EDSD's tables."""
        config, ids = self.config, self.config.target_layer_ids
        facts: dict[str, Any] = {
            "folder": self.folder,
            **{name: getattr(config, name) for name in _COPIED},
            "target_layer_ids": None if ids is None else list(ids),
            "hidden_state_numbers": None if ids is None else [hidden_state_number(i) for i in ids],
            "max_position_embeddings": config.max_position_embeddings,
            "rope_theta": config.rope_theta,
            "rope_scaling": None if config.rope_scaling is None else dict(config.rope_scaling),
            "parameters": self.parameters,
            "bytes": self.num_bytes,
            "dtypes": dict(self.dtypes),
            "files": list(self.files),
        }
        if config.fuse_size is not None:
            commonest = max(self.dtypes, key=lambda name: self.dtypes[name], default="BF16")
            facts["fuse_size"] = config.fuse_size
            facts["inverse_rms_table_bytes"] = 4 * config.vocab_size
            facts["up_table_bytes"] = up_table_bytes(
                config.draft_vocab_size, config.fuse_size, DTYPE_BYTES[commonest]
            )
        return facts

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**self.facts(), "findings": [finding.to_dict() for finding in self.findings]}


def drafter_info(folder: str | Path) -> DrafterInfo:
    """Read config and headers, and check the checkpoint.

    Raises:
        DrafterError: a config or weight files that cannot be read.
    """
    config = read_config(folder)
    weights = read_weight_files(Path(folder))
    floats = [e for e in weights.entries.values() if e.dtype in ("F32", "F16", "BF16")]
    return DrafterInfo(
        folder=str(folder),
        config=config,
        parameters=sum(entry.num_bytes // DTYPE_BYTES[entry.dtype] for entry in floats),
        num_bytes=sum(entry.num_bytes for entry in weights.entries.values()),
        dtypes=Counter(entry.dtype for entry in floats),
        files=tuple(path.name for path in weights.files),
        findings=tuple(inspect_checkpoint(folder)),
    )
