"""The drafter that this server was started with."""

from __future__ import annotations

from sgl_entropy.drafter.config import DrafterConfig
from sgl_entropy.serving.drafter_files import drafter_config


def served_edsd() -> DrafterConfig | None:
    """The config of the served EDSD drafter; None under every other algorithm."""
    from sglang.srt.server_args import get_global_server_args

    args = get_global_server_args()
    if args.speculative_algorithm != "EDSD":
        return None
    return drafter_config(args.speculative_draft_model_path, args.speculative_draft_model_revision)
