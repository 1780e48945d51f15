"""The target's embedding and head alone: what a drafter shares with it, without its layers."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from sgl_entropy.checkpoint.errors import DrafterError
from sgl_entropy.checkpoint.files import target_files
from sgl_entropy.target.config import read_target_config
from sgl_entropy.target.layers import check_family

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def read_embedding_and_head(folder: Path) -> tuple[Tensor, Tensor]:
    """Embedding and head of a Hugging Face folder, each [vocab, d], in the dtype of its files. The
    head is the embedding itself where they are tied, as ``PlainTarget`` has it.

    Raises:
        DrafterError: a family that is not known here, or no embedding in the folder's files.
        JsonFileError: no config, or not readable.
    """
    config = read_target_config(folder)
    check_family(config)
    tensors: dict[str, Tensor] = {}
    for path in target_files(folder):
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            tensors |= {name: file.get_tensor(name) for name in (EMBEDDING, HEAD) if name in names}
    if EMBEDDING not in tensors:
        raise DrafterError(f"{folder}: expected {EMBEDDING} in *.safetensors of the target")
    if config.get("tie_word_embeddings"):
        return tensors[EMBEDDING], tensors[EMBEDDING]
    return tensors[EMBEDDING], tensors.get(HEAD, tensors[EMBEDDING])
