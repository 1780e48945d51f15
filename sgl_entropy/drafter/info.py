"""What a drafter checkpoint is, from its config and headers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sgl_entropy.checkpoint.files import read_weight_files
from sgl_entropy.checkpoint.tensors import DTYPE_BYTES
from sgl_entropy.drafter.checkpoint import inspect_checkpoint, read_config
from sgl_entropy.drafter.config import hidden_state_number
from sgl_entropy.drafter.fold import up_table_bytes


def drafter_info(folder: str | Path) -> dict[str, Any]:
    """Sizes, parameters, bytes, layers in both countings, and the checkpoint's findings.

    Raises:
        DrafterError: a config or weight files that cannot be read.
    """
    config = read_config(folder)
    weights = read_weight_files(Path(folder))
    floats = [e for e in weights.entries.values() if e.dtype in ("F32", "F16", "BF16")]
    dtypes = Counter(entry.dtype for entry in floats)
    ids = config.target_layer_ids
    info: dict[str, Any] = {
        "folder": str(folder),
        "algorithm": config.algorithm,
        "hidden_size": config.hidden_size,
        "target_hidden_size": config.target_hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "draft_vocab_size": config.draft_vocab_size,
        "target_layer_ids": None if ids is None else list(ids),
        "hidden_state_numbers": None if ids is None else [hidden_state_number(i) for i in ids],
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else dict(config.rope_scaling),
        "parameters": sum(entry.num_bytes // DTYPE_BYTES[entry.dtype] for entry in floats),
        "bytes": sum(entry.num_bytes for entry in weights.entries.values()),
        "dtypes": dict(dtypes),
        "files": [path.name for path in weights.files],
        "findings": [finding.to_dict() for finding in inspect_checkpoint(folder)],
    }
    if config.fuse_size is not None:
        width = DTYPE_BYTES[dtypes.most_common(1)[0][0]] if dtypes else 2
        info["fuse_size"] = config.fuse_size
        info["inverse_rms_table_bytes"] = 4 * config.vocab_size
        info["up_table_bytes"] = up_table_bytes(config.draft_vocab_size, config.fuse_size, width)
    return info
