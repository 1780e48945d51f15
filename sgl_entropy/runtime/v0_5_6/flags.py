"""What EDSD asks of the launch flags, checked before anything is allocated.

``ServerArgs._handle_speculative_decoding`` calls ``prepare`` once. It fills in the paper's defaults
(a chain of depth 4), and refuses what cannot work with one message. It does nothing without one of
our flags, the CPU engine or one of our drafters.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, NoReturn

from sgl_entropy.drafter.check import algorithm_mismatch
from sgl_entropy.drafter.checkpoint import load_tensors
from sgl_entropy.drafter.config import DrafterConfig, DrafterError
from sgl_entropy.runtime.v0_5_6 import modes, switch_args
from sgl_entropy.runtime.v0_5_6.cpu.standins import cpu_engine_asked
from sgl_entropy.serving.drafter_files import drafter_config, local_folder
from sgl_entropy.serving.pruning import cycle_rows

logger = logging.getLogger(__name__)

# The paper's serving set-up (EDSD, section 4.4): a chain of depth 4.
DEFAULT_STEPS, DEFAULT_TOPK, DEFAULT_DRAFT_TOKENS = 4, 1, 5


def prepare(args: Any) -> None:
    """Check and complete the speculative flags of ``ServerArgs`` in place.

    Raises:
        DrafterError: under the Engine API; the launch command exits with the message instead.
    """
    algorithm = args.speculative_algorithm
    try:
        if algorithm not in ("EAGLE", "EAGLE3", "EDSD"):
            modes.prepare(args)
            switch_args.prepare(args)
            return
        if args.speculative_draft_model_path is not None:
            _check_algorithm(args)
        if algorithm == "EDSD":
            _prepare_edsd(args)
        if cpu_engine_asked():
            _check_cpu(args)
        modes.prepare(args)
        second = switch_args.prepare(args)
        if second is not None:
            _check_target(args, second, args.speculative_second_draft_model_path)
            check_draft_shape(args, second)
        entropy_mode = args.easd is not None or args.draft_stop is not None
        if entropy_mode:
            _refuse_overlap("an entropy mode")
        if entropy_mode or algorithm == "EDSD" or cpu_engine_asked():
            _check_grammar(args)
    except DrafterError as error:
        _refuse(error)


def _refuse(error: DrafterError) -> NoReturn:
    """End the launch command with the message alone; let a caller of the Engine API see it."""
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main is not None and main.name == "sglang.launch_server":
        raise SystemExit(f"sgl-entropy: {error}")
    raise error


def _check_grammar(args: Any) -> None:
    """A draft's grammar goes back over rejected tokens, which one backend alone can do."""
    if args.grammar_backend not in (None, "xgrammar", "none"):
        raise DrafterError(
            f"--grammar-backend {args.grammar_backend} cannot take back drafted tokens: its first "
            "grammar would end the server or be broken; leave it out, or give xgrammar or none"
        )


def _check_algorithm(args: Any) -> None:
    folder = local_folder(args.speculative_draft_model_path, args.speculative_draft_model_revision)
    if not folder.exists():
        if args.speculative_algorithm == "EDSD":
            raise DrafterError(
                f"--speculative-draft-model-path {folder}: no such folder; give a folder with "
                "config.json and model.safetensors"
            )
        return
    message = algorithm_mismatch(folder, args.speculative_algorithm)
    if message is not None:
        raise DrafterError(message)


def _prepare_edsd(args: Any) -> None:
    path = args.speculative_draft_model_path
    if path is None:
        raise DrafterError(
            "--speculative-algorithm EDSD needs --speculative-draft-model-path DRAFTER"
        )
    _refuse_overlap("EDSD")
    revision = args.speculative_draft_model_revision
    folder = local_folder(path, revision)
    # Reads and checks every tensor: a broken file ends here, before the target is loaded.
    load_tensors(folder)
    drafter = drafter_config(path, revision)
    _check_target(args, drafter, path)
    if args.speculative_num_steps is None:
        if args.speculative_eagle_topk is not None or args.speculative_num_draft_tokens is not None:
            raise DrafterError(
                "--speculative-eagle-topk and --speculative-num-draft-tokens need "
                "--speculative-num-steps as well"
            )
        args.speculative_num_steps = DEFAULT_STEPS
        args.speculative_eagle_topk = DEFAULT_TOPK
        args.speculative_num_draft_tokens = DEFAULT_DRAFT_TOKENS
    check_draft_shape(args, drafter)


def check_draft_shape(args: Any, drafter: DrafterConfig) -> None:
    """Steps, branches and draft tokens must describe a tree that can exist."""
    steps, topk = args.speculative_num_steps, args.speculative_eagle_topk
    tokens = args.speculative_num_draft_tokens
    if steps < 1:
        raise DrafterError(f"--speculative-num-steps must be at least 1, found {steps}")
    if topk is None:
        topk = args.speculative_eagle_topk = DEFAULT_TOPK
    if not 1 <= topk <= drafter.draft_vocab_size:
        raise DrafterError(
            f"--speculative-eagle-topk must lie in 1..{drafter.draft_vocab_size} "
            f"(the draft vocabulary), found {topk}"
        )
    if topk == 1:
        if tokens not in (None, steps + 1):
            raise DrafterError(
                f"a chain of {steps} steps has {steps + 1} draft tokens: set "
                f"--speculative-num-draft-tokens {steps + 1} or leave it out, found {tokens}"
            )
        args.speculative_num_draft_tokens = steps + 1
        return
    most = 1 + topk + (steps - 1) * topk * topk
    if tokens is None or not 2 <= tokens <= most:
        raise DrafterError(
            f"--speculative-num-draft-tokens must lie in 2..{most} for {steps} steps of "
            f"{topk} branches, found {tokens}"
        )


def _check_target(args: Any, drafter: DrafterConfig, path: str) -> None:
    target = args.get_hf_config()
    target = target.get_text_config() if hasattr(target, "get_text_config") else target
    wrong = []
    if drafter.vocab_size != target.vocab_size:
        wrong.append(
            f"the drafter's vocabulary has {drafter.vocab_size} tokens, the target's "
            f"{target.vocab_size}: it was trained for another target"
        )
    if drafter.target_hidden_size != target.hidden_size:
        wrong.append(
            f"the drafter expects target features of width {drafter.target_hidden_size}, the "
            f"target has {target.hidden_size}"
        )
    if drafter.hidden_size != target.hidden_size:
        wrong.append(
            f"the drafter shares the target's embedding, so its hidden_size "
            f"{drafter.hidden_size} must be {target.hidden_size}"
        )
    highest = target.num_hidden_layers - 2
    if drafter.target_layer_ids and max(drafter.target_layer_ids) > highest:
        wrong.append(
            f"target_layer_ids {list(drafter.target_layer_ids)}: SGLang can tap layers "
            f"0..{highest} of this target ({target.num_hidden_layers} layers)"
        )
    if wrong:
        raise DrafterError(f"{path} does not fit {args.model_path}:\n" + "\n".join(wrong))
    context = args.context_length or target.max_position_embeddings
    if drafter.max_position_embeddings < context:
        logger.warning(
            "the drafter was made for %d positions, the server serves %d: drafts beyond its "
            "window will be accepted less (output stays exact)",
            drafter.max_position_embeddings,
            context,
        )


def _refuse_overlap(what: str) -> None:
    if os.getenv("SGLANG_ENABLE_SPEC_V2", "").lower() in ("1", "true", "yes", "y"):
        raise DrafterError(
            f"{what} drafts in the scheduler's own step: unset SGLANG_ENABLE_SPEC_V2 (the "
            "overlapped worker needs CUDA and serves EAGLE alone)"
        )


def _check_cpu(args: Any) -> None:
    _refuse_overlap("speculation on the CPU engine")
    if args.speculative_algorithm == "EAGLE3" and args.speculative_draft_model_path is not None:
        # On this engine the baseline is checked too; elsewhere EAGLE-3 is left to upstream.
        path, revision = args.speculative_draft_model_path, args.speculative_draft_model_revision
        load_tensors(local_folder(path, revision))
        if args.speculative_num_steps is not None:
            check_draft_shape(args, drafter_config(path, revision))
    if args.page_size not in (None, 1):
        raise DrafterError(
            f"speculation on the CPU engine serves --page-size 1, found {args.page_size}"
        )
    if args.speculative_accept_threshold_single != 1.0 or (
        args.speculative_accept_threshold_acc != 1.0
    ):
        raise DrafterError(
            "speculation on the CPU engine accepts exactly: leave "
            "--speculative-accept-threshold-single and -acc at 1.0"
        )
    try:
        cycle_rows()
    except ValueError as error:
        raise DrafterError(str(error)) from None


def allow_short_window(model_config: Any) -> bool:
    """Whether a draft window shorter than the context is a warning (EDSD), not an error."""
    from sgl_entropy.drafter.config import EDSD_ARCHITECTURES

    return bool(
        model_config.is_draft_model
        and model_config.hf_config.architectures[0] in EDSD_ARCHITECTURES
    )
