"""How the two layers are chosen: what the flags of ``select`` set."""

from __future__ import annotations

from dataclasses import dataclass

from sgl_entropy.select.noise import RATE
from sgl_entropy.select.samples import MIN_COUNT, MIN_TOKENS

CHOOSERS = ("metrics", "probe")


@dataclass(frozen=True)
class SelectSettings:
    """How the two layers are chosen.

    Attributes:
        count: calibration texts; None = 128 [paper], or as many as the file has.
        views: noisy views of each text, q of LiDAR [ours: 16, as the metric's reference].
        max_tokens: of a text; curvature is measured on the clean texts.
        view_tokens: of a noisy view [ours]: views are nearly all of the work, so they are cut
            shorter than the texts.
        noise: share of a view's words that are changed [ours].
        resamples: of the texts, for curvature.
        lidar_resamples: the first so many of them serve LiDAR too, which costs more.
        seed: of sample, noise and resamples.
        dtype: the target's; the metrics are computed in float64 of what it gives.
        fix_a, fix_b: decoder layer ids to take instead of the metrics' picks.
        by: what chooses, of ``CHOOSERS``: the paper's metrics, or the probe of ours.
    """

    count: int | None = None
    views: int = 16
    max_tokens: int = 64
    view_tokens: int = 24
    noise: float = RATE
    resamples: int = 200
    lidar_resamples: int = 20
    seed: int = 0
    dtype: str = "float32"
    fix_a: int | None = None
    fix_b: int | None = None
    by: str = "metrics"

    def __post_init__(self) -> None:
        least = {
            "count": MIN_COUNT,
            "views": 2,
            "max_tokens": MIN_TOKENS,
            "view_tokens": MIN_TOKENS,
            "resamples": 1,
            "lidar_resamples": 1,
        }
        wrong = [
            f"--{name.replace('_', '-')} must be at least {low}, found {value}"
            for name, low in least.items()
            if (value := getattr(self, name)) is not None and value < low
        ]
        if self.lidar_resamples > self.resamples:
            wrong.append(
                f"--lidar-resamples {self.lidar_resamples} must not exceed --resamples "
                f"{self.resamples}: they are the first of them"
            )
        if self.by not in CHOOSERS:
            wrong.append(f"--by must be one of {CHOOSERS}, found {self.by!r}")
        if self.by == "probe" and (self.fix_a is not None or self.fix_b is not None):
            wrong.append("--fix-a and --fix-b take the place of the metrics' picks: not --by probe")
        if not 0 <= self.noise <= 1:
            wrong.append(f"--noise must be a share from 0 to 1, found {self.noise}")
        if wrong:
            raise ValueError("\n".join(wrong))
