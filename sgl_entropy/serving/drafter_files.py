"""Where a drafter's files are, and its config; each is read once a process."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from sgl_entropy.drafter.checkpoint import read_config
from sgl_entropy.drafter.config import DrafterConfig


@lru_cache(maxsize=4)
def local_folder(path: str, revision: str | None = None) -> Path:
    """The folder of a drafter that is named by a folder or by a Hugging Face repository id."""
    folder = Path(path)
    if folder.exists() or path.startswith(("/", ".")):
        return folder
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(path, revision=revision, allow_patterns=["*.safetensors", "*.json"])
    )


@lru_cache(maxsize=4)
def drafter_config(path: str, revision: str | None = None) -> DrafterConfig:
    """The drafter's config; EDFuse's size comes from the weights' header."""
    return read_config(local_folder(path, revision))
