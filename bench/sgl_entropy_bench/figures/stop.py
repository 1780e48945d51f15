"""Drafts that end early against drafts of fixed length, paired.

Each drafter is served at fixed length and with each draft stop, as served by default and with all
drafted tokens verified (``SGL_ENTROPY_CPU_CYCLE_ROWS=inf``). By default the CPU engine leaves out
drafted tokens that are not worth their rows, fixed length or not; elsewhere nothing is left out,
and there the second comparison counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sgl_entropy.base.disk import file_sha256
from sgl_entropy.base.intervals import jackknife, shown
from sgl_entropy.base.tables import markdown_table
from sgl_entropy_bench.figures.easd_grid import ALL_VERIFIED
from sgl_entropy_bench.figures.figure_plan import FigurePlan, Rounded
from sgl_entropy_bench.figures.paired import (
    PairedArms,
    Rows,
    end_to_end,
    equal_share,
    pooled,
    ratio,
    tokens_per_s,
    with_windows,
)
from sgl_entropy_bench.server.arms import ServeArm

ROUNDS = {1: 12, 4: 8}
QUICK_ROUNDS = {1: 3, 4: 2}
FIXED, SVIP, CALIBRATED = "fixed", "svip", "calibrated"
# What follows a stop's name where all drafted tokens are verified.
WHOLE = "-all"


@dataclass(frozen=True)
class StopRow:
    """One arm at one batch size; ratios are over fixed length, verified likewise."""

    batches: int
    windows: int
    decode_tokens_per_s: float
    cycle_ms: float
    decode_ratio: Rounded
    end_to_end_ratio: Rounded
    verified_per_cycle: float
    acceptance_length: float
    equal_outputs: float


# Of one drafter: by batch size (as text) and arm.
BySize = Mapping[str, Mapping[str, StopRow]]


@dataclass(frozen=True)
class CalibrationFile:
    """Which calibration the calibrated stop used."""

    file: str
    sha256: str


@dataclass(frozen=True)
class StopFigure:
    """The whole figure, by drafter."""

    dtype: str
    max_new_tokens: int
    drafters: Mapping[str, BySize]
    calibration: CalibrationFile | None = None


def measure(
    plan: FigurePlan,
    drafters: Sequence[str] = ("eagle3", "edsd"),
    calibration: Path | None = None,
    rounds: Mapping[int, int] | None = None,
) -> tuple[StopFigure, str]:
    """Returns the figure and its page.

    Args:
        calibration: of the one drafter; None = the calibrated stop is left out.

    Raises:
        ValueError: a calibration and several drafters, or no such file.
    """
    if calibration is not None and len(drafters) > 1:
        raise ValueError("--calibration is made for one drafter: name it with --drafter")
    if calibration is not None and not calibration.is_file():
        raise ValueError(f"--calibration {calibration}: no such file")
    rounds = rounds or (QUICK_ROUNDS if plan.quick else ROUNDS)
    limit = 24 if plan.quick else 64
    used = None
    if calibration is not None:
        used = CalibrationFile(calibration.name, file_sha256(calibration)[:16])
    by_drafter = {name: one_drafter(plan, name, calibration, rounds, limit) for name in drafters}
    figure = StopFigure(plan.engine.dtype, limit, by_drafter, used)
    return figure, page(figure)


def one_drafter(
    plan: FigurePlan, drafter: str, calibration: Path | None, rounds: Mapping[int, int], limit: int
) -> BySize:
    """The figures of one drafter by batch size."""
    arms = arms_of(plan.drafted(drafter), calibration)
    digest = "" if calibration is None else file_sha256(calibration)
    more = f"{digest}{dict(rounds)}"
    with PairedArms(plan, arms, limit, "stop", f"stop: {drafter}", more) as paired:
        batches, _ = paired.batches(rounds, 6 if plan.quick else 12)
        measured = paired.measure(batches)
    return {str(size): summarise(rows) for size, rows in measured.items()}


def arms_of(arm: ServeArm, calibration: Path | None) -> list[ServeArm]:
    """Fixed length first; each stop as served by default, then with all tokens verified."""
    flags: dict[str, tuple[str, ...]] = {FIXED: (), SVIP: ("--speculative-draft-stop", SVIP)}
    if calibration is not None:
        given = ("--easd-calibration", str(calibration.resolve()))
        flags[CALIBRATED] = ("--speculative-draft-stop", CALIBRATED, *given)
    served = [replace(arm, name=name, extra_flags=more) for name, more in flags.items()]
    whole = [replace(one, name=one.name + WHOLE, variables=ALL_VERIFIED) for one in served]
    return [*served, *whole]


def summarise(rows: Rows) -> dict[str, StopRow]:
    """The figures of one batch size by arm."""
    whole = with_windows(rows)
    figures = {}
    for name in rows[0]:
        base = FIXED + WHOLE if name.endswith(WHOLE) else FIXED
        every = [row[name] for row in rows]
        cycles = sum(batch.cycles for batch in every)
        window = pooled([row[name] for row in whole])
        figures[name] = StopRow(
            batches=len(rows),
            windows=len(whole),
            decode_tokens_per_s=round(window.tokens_per_s, 2),
            cycle_ms=round(window.step_s * 1000, 2),
            decode_ratio=jackknife(whole, partial(ratio, tokens_per_s, name, base)).rounded(),
            end_to_end_ratio=jackknife(rows, partial(ratio, end_to_end, name, base)).rounded(),
            verified_per_cycle=round(sum(b.verified for b in every) / max(1, cycles), 4),
            acceptance_length=round(sum(b.emitted for b in every) / max(1, cycles), 4),
            equal_outputs=round(equal_share(rows, name, FIXED), 4),
        )
    return figures


def page(figure: StopFigure) -> str:
    """The figure as Markdown."""
    rows = []
    for drafter, sizes in figure.drafters.items():
        for size, arms in sizes.items():
            for name, row in arms.items():
                stop = name.removesuffix(WHOLE)
                drafted = arms[stop + WHOLE].verified_per_cycle
                label = f"{stop}, all verified" if name.endswith(WHOLE) else stop
                rows.append(
                    [
                        f"{drafter}, batch {size}, {label}",
                        f"{row.decode_tokens_per_s:.1f}",
                        shown(row.decode_ratio, 3),
                        shown(row.end_to_end_ratio, 3),
                        f"{row.cycle_ms:.1f}",
                        f"{drafted:.2f}",
                        f"{row.verified_per_cycle:.2f}",
                        f"{row.acceptance_length:.2f}",
                        f"{row.equal_outputs:.3f}",
                    ]
                )
    header = (
        *("arm", "decode tok/s", "over fixed (95 %)", "end to end, over fixed", "cycle ms"),
        *("drafted a cycle", "verified", "tau", "equal outputs"),
    )
    return "\n\n".join(
        [
            "# Drafts that end early",
            f"Chains of at most 4, {figure.dtype}, temperature 0, {figure.max_new_tokens} "
            "tokens. Tokens a second in the window in which the whole batch decodes, over fixed "
            "length in the same run and verified likewise, with an interval from the batches. "
            "By default the CPU engine leaves out drafted tokens that are not worth their rows; "
            '"all verified" (`SGL_ENTROPY_CPU_CYCLE_ROWS=inf`) switches that off, and is what '
            "drafted tokens a cycle, up to a request's own stop, are counted under: a batch drafts "
            "on until every chain in it has ended. tau: tokens a cycle. Equal outputs: share of "
            "requests with the same token ids as at fixed length. The claim to test is 15 to 30 % "
            "over plain speculation.",
            markdown_table(header, rows),
        ]
    )
