"""The launch flags of the entropy modes, and what a server was started with.

``ServerArgs`` inherits :class:`EntropyArgs`, so the values travel to every process and show in
``/get_server_info``. Its field ``easd`` shows the thresholds in force, however they were given.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, replace
from typing import Any

from sgl_entropy.drafter.checkpoint import load_tensors
from sgl_entropy.drafter.config import DrafterError
from sgl_entropy.runtime.v0_5_6 import switch_args
from sgl_entropy.serving import attached
from sgl_entropy.serving.drafter_files import drafter_config, local_folder
from sgl_entropy.serving.mode import Mode
from sgl_entropy.verify.calibration import Calibration
from sgl_entropy.verify.policies import CalibratedStop, Svip
from sgl_entropy.verify.replay.stop import stop_of
from sgl_entropy.verify.rule import EasdRule

logger = logging.getLogger(__name__)

VERIFY_MODES = ("standard", "easd")
DRAFT_STOPS = ("off", "svip", "calibrated")
# The cost of a draft step in tokens, for a one-layer drafter and cycles that emit two.
DEFAULT_COST = 0.1

# flag -> field of the rule
_RULE = {
    "easd_target_entropy": "target_entropy",
    "easd_draft_entropy": "draft_entropy",
    "easd_top_n": "top_n",
    "easd_overlap": "overlap",
    "easd_normalised": "normalised",
    "easd_residual": "residual",
    "easd_accepted_only": "accepted_only",
}


@dataclass(kw_only=True)
class EntropyArgs(switch_args.SwitchArgs):
    """Fields of ``ServerArgs``; None = not given."""

    speculative_verify_mode: str = "standard"
    easd_target_entropy: float | None = None
    easd_draft_entropy: float | None = None
    easd_top_n: int | None = None
    easd_overlap: float | None = None
    easd_normalised: bool = False
    easd_residual: bool = False
    easd_accepted_only: bool = False
    easd_calibration: str | None = None
    easd_relaxed_below: float | None = None
    speculative_draft_stop: str = "off"
    speculative_draft_stop_cost: float | None = None
    # Filled by ``prepare``: the rule and the draft stop in force, as dicts.
    easd: dict[str, Any] | None = None
    draft_stop: dict[str, Any] | None = None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags to SGLang's own parser."""
    group = parser.add_argument_group("entropy-aware speculative decoding (sgl-entropy)")
    group.add_argument(
        "--speculative-verify-mode",
        choices=VERIFY_MODES,
        default="standard",
        help="standard: exact. easd: a drafted token is rejected where target and drafter are both "
        "unsure and agree; output is no longer the target's own (EDSD and EAGLE3).",
    )
    group.add_argument(
        "--easd-target-entropy",
        type=float,
        metavar="NATS",
        help="EASD fires above this entropy of the target (default: 2.0, or the calibration's).",
    )
    group.add_argument(
        "--easd-draft-entropy",
        type=float,
        metavar="NATS",
        help="... and above this of the drafter (default: 2.0, or the calibration's).",
    )
    group.add_argument(
        "--easd-top-n", type=int, metavar="N", help="likeliest tokens compared (default: 10)."
    )
    group.add_argument(
        "--easd-overlap",
        type=float,
        metavar="SHARE",
        help="least share of them in common, 0 to 1 (default: 0.5).",
    )
    group.add_argument(
        "--easd-normalised",
        action="store_true",
        help="entropies as shares of ln(vocabulary), thresholds too.",
    )
    group.add_argument(
        "--easd-residual",
        action="store_true",
        help="replacements from norm(max(P_t - P_d, 0)) instead of P_t without the token.",
    )
    group.add_argument(
        "--easd-accepted-only",
        action="store_true",
        help="check only tokens that ordinary acceptance would take.",
    )
    group.add_argument(
        "--easd-calibration",
        metavar="FILE",
        help="thresholds from `sgl-entropy calibrate`, made for this target and drafter; single "
        "flags override it.",
    )
    group.add_argument(
        "--easd-relaxed-below",
        type=float,
        metavar="NATS",
        help="typical acceptance where the target's entropy is below (default: never).",
    )
    group.add_argument(
        "--speculative-draft-stop",
        choices=DRAFT_STOPS,
        default="off",
        help="end a chain where the drafter is unsure: svip, above 0.6 nats; calibrated, where by "
        "--easd-calibration one more token is not worth its draft step. Outputs stay exact.",
    )
    group.add_argument(
        "--speculative-draft-stop-cost",
        type=float,
        metavar="TOKENS",
        help=f"calibrated: what a draft step costs (default: {DEFAULT_COST}).",
    )
    switch_args.add_flags(group)
    parser.set_defaults(easd=None, draft_stop=None, drafter_switch=None)


def prepare(args: Any) -> None:
    """Check the flags of ``ServerArgs`` and fill in the rule, in place.

    Raises:
        DrafterError: what cannot be served, in one message.
    """
    given = [name for name in (*_RULE, "easd_relaxed_below") if _given(args, name)]
    if args.speculative_verify_mode not in VERIFY_MODES:
        raise DrafterError(
            f"--speculative-verify-mode must be one of {', '.join(VERIFY_MODES)}, found "
            f"{args.speculative_verify_mode!r}"
        )
    if args.speculative_draft_stop not in DRAFT_STOPS:
        raise DrafterError(
            f"--speculative-draft-stop must be one of {', '.join(DRAFT_STOPS)}, found "
            f"{args.speculative_draft_stop!r}"
        )
    if args.speculative_verify_mode == "standard" and given:
        raise DrafterError(
            f"{', '.join('--' + name.replace('_', '-') for name in given)} "
            "needs --speculative-verify-mode easd"
        )
    verifies, stops = args.speculative_verify_mode == "easd", args.speculative_draft_stop != "off"
    if not verifies and not stops:
        if args.easd_calibration is not None:
            raise DrafterError(
                "--easd-calibration needs --speculative-verify-mode easd or "
                "--speculative-draft-stop calibrated"
            )
        return
    what = "--speculative-verify-mode easd" if verifies else "--speculative-draft-stop"
    if args.speculative_algorithm not in ("EDSD", "EAGLE3"):
        raise DrafterError(
            f"{what} needs --speculative-algorithm EDSD or EAGLE3, found "
            f"{args.speculative_algorithm}"
        )
    if args.speculative_draft_model_path is None:
        raise DrafterError(f"{what} needs --speculative-draft-model-path")
    calibration = _calibration(args)
    stop = _draft_stop(args, calibration)
    args.draft_stop = None if stop is None else _as_header(stop)
    if verifies:
        _prepare_easd(args, calibration)


def _prepare_easd(args: Any, calibration: Calibration | None) -> None:
    rule = _rule(args, EasdRule() if calibration is None else calibration.rule)
    path, revision = args.speculative_draft_model_path, args.speculative_draft_model_revision
    # Refuses a reduced vocabulary without its map to the target's.
    load_tensors(local_folder(path, revision))
    vocab = drafter_config(path, revision).draft_vocab_size
    if rule.top_n > vocab:
        raise DrafterError(
            f"--easd-top-n must be at most the draft vocabulary of {vocab}, found {rule.top_n}"
        )
    relaxed = args.easd_relaxed_below
    if relaxed is not None and not 0 <= relaxed < float("inf"):
        raise DrafterError(f"--easd-relaxed-below must be a number from 0, found {relaxed}")
    args.easd = rule.to_dict()
    logger.warning(
        "sgl-entropy: EASD verification is not lossless: a drafted token is rejected above %g "
        "(target) and %g (draft) %s where %g of the %d likeliest tokens are common%s",
        rule.target_entropy,
        rule.draft_entropy,
        "of ln(vocabulary)" if rule.normalised else "nats",
        rule.overlap,
        rule.top_n,
        f"; relaxed acceptance below {relaxed:g} nats" if relaxed else "",
    )


def _given(args: Any, flag: str) -> bool:
    value = getattr(args, flag)
    return value is not None and value is not False


def _rule(args: Any, base: EasdRule) -> EasdRule:
    """``base``, changed by the single flags."""
    given = {field: getattr(args, flag) for flag, field in _RULE.items() if _given(args, flag)}
    try:
        return replace(base, **given)
    except ValueError as error:
        raise DrafterError(f"--speculative-verify-mode easd: {error}") from None


def _calibration(args: Any) -> Calibration | None:
    if args.easd_calibration is None:
        return None
    folder = local_folder(args.speculative_draft_model_path, args.speculative_draft_model_revision)
    try:
        calibration = Calibration.load(args.easd_calibration)
        calibration.check(local_folder(args.model_path, args.revision), folder)
    except (ValueError, OSError) as error:
        raise DrafterError(f"--easd-calibration {args.easd_calibration}: {error}") from None
    return calibration


def _draft_stop(args: Any, calibration: Calibration | None) -> Svip | CalibratedStop | None:
    """The stop in force; None = chains of full length."""
    name, cost = args.speculative_draft_stop, args.speculative_draft_stop_cost
    if cost is not None and name != "calibrated":
        raise DrafterError(
            "--speculative-draft-stop-cost needs --speculative-draft-stop calibrated"
        )
    if name == "off":
        return None
    if args.speculative_eagle_topk not in (None, 1):
        raise DrafterError(
            "--speculative-draft-stop ends chains: it needs --speculative-eagle-topk 1, found "
            f"{args.speculative_eagle_topk}"
        )
    if name == "svip":
        return Svip()
    if calibration is None:
        raise DrafterError("--speculative-draft-stop calibrated needs --easd-calibration FILE")
    try:
        return calibration.stop(DEFAULT_COST if cost is None else cost)
    except ValueError as error:
        raise DrafterError(f"--speculative-draft-stop calibrated: {error}") from None


def _as_header(stop: Svip | CalibratedStop) -> dict[str, Any]:
    """As a trace's header has it; ``stop_of`` reads it back."""
    if isinstance(stop, Svip):
        return {"name": "svip", "factor": stop.factor, "limit": stop.limit}
    return {
        "name": "calibrated",
        "edges": list(stop.edges),
        "acceptance": list(stop.acceptance),
        "cost": stop.cost,
    }


def served_mode() -> Mode | None:
    """This server's mode; None = upstream's drafting and exact verification."""
    from sglang.srt.server_args import get_global_server_args

    args = get_global_server_args()
    if args.easd is None and args.draft_stop is None:
        return None
    # Neither changes once the server has started.
    mode = attached.of(args, Mode)
    if mode is None:
        mode = Mode(
            EasdRule() if args.easd is None else EasdRule.from_dict(args.easd),
            args.easd_relaxed_below or 0.0,
            chain=args.speculative_eagle_topk in (None, 1),
            verifies=args.easd is not None,
            stop=None if args.draft_stop is None else stop_of(args.draft_stop),
        )
        attached.put(args, mode)
    return mode
