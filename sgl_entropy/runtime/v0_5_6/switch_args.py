"""The flags of two drafters loaded at once, and what a server was started with.

``ServerArgs`` inherits :class:`SwitchArgs` (through ``modes.EntropyArgs``). ``drafter_switch`` in
``/get_server_info`` says which drafter is the small one, which the large one, and when the server
changes between them.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_entropy.drafter.check import algorithm_mismatch
from sgl_entropy.drafter.checkpoint import load_tensors
from sgl_entropy.drafter.config import DrafterConfig, DrafterError
from sgl_entropy.serving.drafter_files import drafter_config, local_folder
from sgl_entropy.verify.policies import DrafterSwitch

FLAG, THRESHOLDS = "--speculative-second-draft-model-path", "--speculative-drafter-switch"
DEFAULT = DrafterSwitch()


@dataclass(kw_only=True)
class SwitchArgs:
    """Fields of ``ServerArgs``; None = not given."""

    speculative_second_draft_model_path: str | None = None
    speculative_drafter_switch: str | None = None
    # Filled by ``prepare``: thresholds, and the paths of the small and the large drafter.
    drafter_switch: dict[str, Any] | None = None


def add_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags to the group of the entropy modes."""
    group.add_argument(
        FLAG,
        metavar="DRAFTER",
        help="a second EDSD drafter of the same target, loaded beside the first: the smaller of "
        "the two drafts while text is easy, the larger while it is not. Outputs stay exact.",
    )
    group.add_argument(
        THRESHOLDS,
        metavar="DOWN,UP",
        help="the larger takes over when the target's mean entropy over a batch's last cycle is "
        "above UP nats, the smaller below DOWN "
        f"(default: {DEFAULT.down:g},{DEFAULT.up:g}).",
    )


def prepare(args: Any) -> DrafterConfig | None:
    """Check the flags of ``ServerArgs`` and fill in ``drafter_switch``, in place.

    Returns:
        The second drafter's config, for the checks that every drafter has to pass; None = one
        drafter.

    Raises:
        DrafterError: what cannot be served, in one message.
    """
    path = args.speculative_second_draft_model_path
    if path is None:
        if args.speculative_drafter_switch is not None:
            raise DrafterError(f"{THRESHOLDS} needs {FLAG} DRAFTER")
        return None
    if args.speculative_algorithm != "EDSD":
        raise DrafterError(
            f"{FLAG} needs --speculative-algorithm EDSD, found {args.speculative_algorithm}"
        )
    policy = _policy(args.speculative_drafter_switch)
    _refuse_beside(args)
    folder = local_folder(path)
    if not folder.exists():
        raise DrafterError(f"{FLAG} {folder}: no such folder")
    message = algorithm_mismatch(folder, "EDSD")
    if message is not None:
        raise DrafterError(f"{FLAG}: {message}")
    load_tensors(folder)
    first_path, revision = args.speculative_draft_model_path, args.speculative_draft_model_revision
    first, second = drafter_config(first_path, revision), drafter_config(path)
    _compare(args, first, second, local_folder(first_path, revision), folder)
    # If both have the same size, the first counts as the small one.
    small, large = (path, first_path) if _weights(second) < _weights(first) else (first_path, path)
    args.drafter_switch = ServedDrafters(policy, small, large).to_dict()
    return second


def _policy(given: str | None) -> DrafterSwitch:
    if given is None:
        return DEFAULT
    try:
        down, up = (float(part) for part in given.split(","))
        return DrafterSwitch(down, up)
    except ValueError:
        raise DrafterError(
            f"{THRESHOLDS} takes two numbers of nats with 0 <= DOWN < UP, as in 1.0,1.5; found "
            f"{given!r}"
        ) from None


def _refuse_beside(args: Any) -> None:
    if args.easd_calibration is not None:
        raise DrafterError(f"--easd-calibration was made for one drafter: leave it or {FLAG} out")
    if getattr(args, "enable_dp_attention", False):
        raise DrafterError(
            f"{FLAG}: with --enable-dp-attention the ranks draft together, and each would choose "
            "its own drafter"
        )
    if getattr(args, "pp_size", 1) > 1:
        raise DrafterError(f"{FLAG} serves --pp-size 1, found {args.pp_size}")
    mode = getattr(args, "disaggregation_mode", "null")
    if mode != "null":
        raise DrafterError(
            f"{FLAG}: --disaggregation-mode {mode} hands on the KV cache of one drafter alone"
        )


def _compare(
    args: Any, first: DrafterConfig, second: DrafterConfig, where: Path, folder: Path
) -> None:
    if folder.resolve() == where.resolve():
        raise DrafterError(f"{FLAG} {folder}: that is --speculative-draft-model-path already")
    if first.target_layer_ids != second.target_layer_ids:
        raise DrafterError(
            f"both drafters read the same features of the target, so their target_layer_ids must "
            f"be equal: {where} has {_ids(first)}, {folder} has {_ids(second)}"
        )
    # ``modes`` has checked the first; a server without EASD has no top N.
    if args.easd is not None and args.easd["top_n"] > second.draft_vocab_size:
        raise DrafterError(
            f"--easd-top-n must be at most the second drafter's vocabulary of "
            f"{second.draft_vocab_size}, found {args.easd['top_n']}"
        )


def _ids(config: DrafterConfig) -> list[int] | None:
    return None if config.target_layer_ids is None else list(config.target_layer_ids)


def _weights(config: DrafterConfig) -> int:
    return sum(math.prod(shape) for shape in config.tensor_shapes().values())


@dataclass(frozen=True)
class ServedDrafters:
    """What this server switches between; the small drafter is number 0, the large one 1."""

    policy: DrafterSwitch
    small: str
    large: str

    def to_dict(self) -> dict[str, Any]:
        """As ``ServerArgs.drafter_switch`` holds it; ``served_switch`` reads it back."""
        policy = self.policy
        return {"down": policy.down, "up": policy.up, "small": self.small, "large": self.large}


def served_switch() -> ServedDrafters | None:
    """None = one drafter."""
    from sglang.srt.server_args import get_global_server_args

    given = getattr(get_global_server_args(), "drafter_switch", None)
    if given is None:
        return None
    policy = DrafterSwitch(given["down"], given["up"])
    return ServedDrafters(policy, given["small"], given["large"])
