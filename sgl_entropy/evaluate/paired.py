"""One drafter's acceptance against another's on the same prompts, from two reports of ``drafter
eval``. (Ours.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sgl_entropy.base.json_file import read_object
from sgl_entropy.base.typed_json import from_json
from sgl_entropy.evaluate.report import DrafterReport, EvalSubject, TauRatio
from sgl_entropy.evaluate.tau import PromptCounts, group_means
from sgl_entropy.verify.resampling import interval

# Each prompt takes a line.
_MOST_BYTES = 1 << 26
# Settings that two reports must have in common: otherwise the answers are others.
_SAME = ("max_prompts", "max_prompt_tokens", "max_new_tokens", "depth")


def read_earlier(path: Path, now: EvalSubject) -> DrafterReport:
    """The report of another drafter that ``now`` is compared with.

    Raises:
        ValueError: no whole report of ``drafter eval``, or one of other prompts, sizes or target.
    """
    try:
        earlier = from_json(DrafterReport, read_object(path, limit=_MOST_BYTES))
    except ValueError as error:
        raise ValueError(
            f"--against {path}: no report of `drafter eval --json` that holds its prompts: {error}"
        ) from None
    if earlier.partial is not None:
        raise ValueError(f"--against {path}: it was interrupted; measure that drafter again")
    before = earlier.subject
    different = [n for n in _SAME if getattr(before.settings, n) != getattr(now.settings, n)]
    if before.texts != now.texts:
        different.append("texts")
    if not _same_target(before, now):
        different.append("target")
    if different:
        raise ValueError(f"--against {path}: it has other {', '.join(different)}")
    return earlier


def _same_target(earlier: EvalSubject, now: EvalSubject) -> bool:
    """By the targets' identities; where a report is older than these, by the folders' names."""
    one, two = (side.provenance.get("inputs", {}).get("target") for side in (earlier, now))
    if one is None or two is None:  # measured from a server
        return one is two and earlier.target == now.target
    key = "identity" if "identity" in one and "identity" in two else "folder"
    return bool(one[key] == two[key])


def paired_ratio(
    ours: Sequence[PromptCounts],
    theirs: Sequence[PromptCounts],
    resamples: int = 4000,
    seed: int = 0,
) -> TauRatio:
    """tau of one drafter over another's, each the mean of its groups' pooled taus.

    Raises:
        ValueError: of other prompts.
    """
    tau, resampled = group_means([ours, theirs], resamples, seed)
    low, high = interval(resampled[:, 0] / resampled[:, 1])
    return TauRatio(
        round(float(tau[0] / tau[1]), 4),
        (round(low, 4), round(high, 4)),
        not low <= 1.0 <= high,
    )
