"""The drafter that this server was started with, found and read once a process."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from sgl_entropy.drafter.checkpoint import read_config
from sgl_entropy.drafter.config import DrafterConfig


@lru_cache(maxsize=4)
def local_folder(path: str, revision: str | None = None) -> Path:
    """The folder of a drafter given as a folder or as a Hugging Face repository id."""
    folder = Path(path)
    if folder.exists() or path.startswith(("/", ".")):
        return folder
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(path, revision=revision, allow_patterns=["*.safetensors", "*.json"])
    )


@lru_cache(maxsize=4)
def drafter_config(path: str, revision: str | None = None) -> DrafterConfig:
    """Its config, EDFuse's size read from the weights' header."""
    return read_config(local_folder(path, revision))


def served_edsd() -> DrafterConfig | None:
    """The config of the served EDSD drafter; None under every other algorithm."""
    from sglang.srt.server_args import get_global_server_args

    args = get_global_server_args()
    if args.speculative_algorithm != "EDSD":
        return None
    return drafter_config(args.speculative_draft_model_path, args.speculative_draft_model_revision)
