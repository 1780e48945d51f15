"""From where a training stands to its end, or to a signal: steps, checkpoints, validations."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import accumulate

from sgl_entropy.drafter.model import Drafter
from sgl_entropy.train.fit.progress import FitProgress
from sgl_entropy.train.fit.trainer import Fit
from sgl_entropy.train.machine.interrupts import Interrupt
from sgl_entropy.train.samples.store import Entry

_LOG = "fit.jsonl"
Plan = list[list[Entry]]


def run_fit(
    fit: Fit, report: Callable[[str], None] = print, stop_after: int | None = None
) -> Drafter:
    """Train to the end (or ``stop_after`` optimizer steps in all) and return the drafter.

    A signal to end, to any process of the group, is followed after the step at hand.

    Args:
        report: takes lines of progress, in the leading process alone.

    Raises:
        KeyboardInterrupt: ended by a signal; a checkpoint holds all steps.
    """
    plans = [fit.plan(epoch) for epoch in range(fit.settings.epochs)]
    total = sum(map(len, plans))
    progress = _progress(fit, report, plans)
    with Interrupt() as interrupt:
        try:
            done = _train(fit, plans, progress, interrupt, stop_after)
        except OSError:  # no room for the log, or nobody reads it: nothing is lost by that
            fit.save()
            raise
        fit.save()
        if not done and fit.group.leads:
            report(
                f"stopped at step {fit.step} of {total}, which {fit.checkpoints.path} holds: "
                f"the same command goes on from there"
            )
    if not done or interrupt.asked:
        interrupt.pass_on()
    return fit.drafter


def _progress(fit: Fit, report: Callable[[str], None], plans: Sequence[Plan]) -> FitProgress:
    ends = list(accumulate(map(len, plans)))
    cost = sum(
        min(len(plan), max(0, end - fit.step)) * fit.settings.steps_in(epoch)
        for epoch, (plan, end) in enumerate(zip(plans, ends, strict=True))
    )
    if fit.group.leads:
        if fit.checkpoints.note:
            report(fit.checkpoints.note)
        if fit.settings.hold_gb and not fit.keeps_features:
            report("features are computed every epoch: fit.hold_gb would not hold them")
    progress = FitProgress(fit.folder / _LOG, report, not fit.group.leads, ends[-1], cost)
    if fit.changed:
        progress.changed(fit.changed)
    return progress


def _train(
    fit: Fit,
    plans: Sequence[Plan],
    progress: FitProgress,
    interrupt: Interrupt,
    stop_after: int | None,
) -> bool:
    """All steps that are left; False = ended before by a signal."""
    total, end = sum(map(len, plans)), 0
    saved = time.monotonic()
    for epoch, plan in enumerate(plans):
        begin, end = end, end + len(plan)
        left = plan[max(0, fit.step - begin) :]
        for batch in left:
            before = time.monotonic()
            figures = fit.learn(batch, epoch, total)
            now = time.monotonic()
            fit.seconds += now - before
            fit.costs.add(epoch, figures)
            progress.learned(epoch, fit.step, figures)
            if fit.group.any(interrupt.asked):
                return False
            if now - saved > fit.settings.checkpoint_seconds:
                fit.save()
                saved = now
            if stop_after is not None and fit.step >= stop_after:
                return True
        # Also where the last run ended between the epoch's last step and its validation.
        if fit.samples.validation and (left or _unvalidated(fit, progress, epoch, end)):
            judged = []
            for batch in fit.samples.validation_plan():
                judged.append(fit.validate(batch))
                if fit.group.any(interrupt.asked):
                    return False
            progress.validated(epoch, fit.step, judged, fit.costs.epochs[epoch + 1])
    return True


def _unvalidated(fit: Fit, progress: FitProgress, epoch: int, end: int) -> bool:
    """Whether the weights are those that ``epoch`` ended with, and the log has nothing of it."""
    return fit.step == end and fit.group.any(not progress.holds_validation(epoch))
