"""The entropy modes in SGLang's verification, which calls ``serving.verification`` here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from sgl_entropy.runtime.v0_5_6.modes import served_mode
from sgl_entropy.serving import attached, verification
from sgl_entropy.serving.cycle import Cycle
from sgl_entropy.serving.mode_time import timed
from sgl_entropy.serving.trees import DraftTree

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
    from sglang.srt.speculative.eagle_info import EagleVerifyInput


@timed
def begin(draft: EagleVerifyInput, batch: ScheduleBatch, logits: Tensor) -> Cycle | None:
    """Find the nodes at which the rule fires.

    Args:
        logits: [b * n, vocabulary], the target's, raw.

    Returns:
        None: verification is upstream's.
    """
    cycle = attached.cycle_for(draft)
    mode = None if cycle.nodes is None else served_mode()
    asked = []
    if mode is not None:
        asked = [
            attached.request_state(req).asks(req.sampling_params.custom_params, mode)
            for req in batch.reqs
        ]
    tree = DraftTree(
        draft.draft_token,
        draft.retrive_index,
        draft.retrive_next_token,
        draft.retrive_next_sibling,
    )
    verification.begin(cycle, tree, logits, mode, asked)
    return None if cycle.verification is None else cycle


@timed
def decide(
    cycle: Cycle | None,
    draft: EagleVerifyInput,
    logits: Tensor,
    chosen: Tensor,
    info: SamplingBatchInfo,
    coins: Tensor | None = None,
) -> None:
    """Change the target's tokens where the mode asks for it, in place.

    Args:
        cycle: what ``begin`` returned.
        logits: [b * n, vocabulary] after bias, penalties and grammar masks.
        chosen: [b, n] the target's draw at every node; fired ones get their replacement.
        coins: [b * n] of the repeated draws of sampled requests; None = fresh ones.

    ``draft.retrive_next_token`` loses the links below fired nodes.
    """
    if cycle is not None:
        verification.decide(cycle, logits, chosen, info, coins)
