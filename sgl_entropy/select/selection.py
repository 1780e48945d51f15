"""EDSelect from a target's folder and a file of texts to a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from sgl_entropy.base.texts import text_files
from sgl_entropy.select.against import against, check_tapped, read_trained
from sgl_entropy.select.bootstrap import (
    curvature_profiles,
    interval,
    lidar_profiles,
    resample_counts,
)
from sgl_entropy.select.choice import check_layers, choose, win_share
from sgl_entropy.select.hidden_states import measure
from sgl_entropy.select.noise import RATE
from sgl_entropy.select.probe import HELD_OUT, LEARNED, collect, probe
from sgl_entropy.select.samples import MIN_COUNT, MIN_TOKENS, noisy_ids, sample_texts
from sgl_entropy.select.selection_report import SelectReport
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.target.tokenizer import load_tokenizer

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


def select_layers(
    target_folder: Path,
    texts: Sequence[Path],
    settings: SelectSettings,
    report: Callable[[str], None],
    device: torch.device | str = "cpu",
    comparison: Path | None = None,
) -> SelectReport:
    """Profiles, choice and its stability.

    Args:
        target_folder: a Hugging Face llama folder with its tokenizer.
        texts: files, or folders of them; see ``samples.sample_texts``.
        report: called with progress and warning lines.
        device: where target and metrics are computed.
        comparison: a report of trained pairs to hold the scores against.

    Raises:
        DrafterError: the target is no plain llama.
        ValueError: texts, tokenizer or a fixed layer do not do; says which and why.
    """
    files = text_files(texts)  # before a large target is read
    trained = [] if comparison is None else read_trained(comparison)
    began = time.monotonic()
    target = PlainTarget.from_folder(target_folder, getattr(torch, settings.dtype), device)
    check_layers(target.num_layers, settings.fix_a, settings.fix_b)
    check_tapped(trained, target.num_layers)
    longest = max(settings.max_tokens, settings.view_tokens)
    if longest > target.max_positions:
        raise ValueError(
            f"texts of {longest} tokens were asked for (--max-tokens, --view-tokens); the target "
            f"has {target.max_positions} positions"
        )
    tokenizer = load_tokenizer(target_folder, target.embedding.shape[0])
    seed = settings.seed
    sample = sample_texts(files, tokenizer, settings.count, settings.max_tokens, seed, report)
    views = noisy_ids(
        tokenizer, sample.texts, settings.views, settings.view_tokens, seed, settings.noise
    )
    measured = measure(target, sample.ids, views, report)

    counts = resample_counts(len(sample.ids), settings.resamples, seed)
    curvature = measured.curvature.mean(1)
    curvature_again = curvature_profiles(measured.curvature, counts)
    states = target.num_layers + 1
    lidar, lidar_again = lidar_profiles(
        measured.pooled,
        counts[: settings.lidar_resamples],
        _every_few(report, states),
        device,
    )
    choice = choose(curvature.tolist(), lidar.tolist(), settings.fix_a, settings.fix_b)
    found = None
    if settings.by == "probe":
        rows = collect(target, sample.ids, LEARNED, HELD_OUT)
        also = {choice.target_layer_ids, *(one.layers for one in trained)}
        found = probe(rows, settings.resamples, seed, also, report, device)
    aside_a = {choice.b} if choice.stepped_down == "a" else set()
    aside_b = {choice.a} if choice.stepped_down == "b" else set()
    return SelectReport(
        target=target_folder.resolve().name,
        texts={
            "file": ", ".join(file.name for file in files),
            "sha256": sample.sha256,
            "count": len(sample.ids),
            "short": sample.short,
            "tokens": sum(map(len, sample.ids)),
        },
        settings=asdict(settings),
        curvature=curvature.tolist(),
        lidar=lidar.tolist(),
        curvature_interval=interval(curvature, curvature_again),
        lidar_interval=interval(lidar, lidar_again),
        curvature_share=win_share(curvature_again.tolist(), choice.a, aside_a),
        lidar_share=win_share(lidar_again.tolist(), choice.b, aside_b),
        choice=choice,
        probe=found,
        against=against(
            trained, curvature.tolist(), lidar.tolist(), None if found is None else found.pairs
        )
        if trained
        else None,
        threads=torch.get_num_threads(),
        seconds=time.monotonic() - began,
    )


def _every_few(report: Callable[[str], None], total: int) -> Callable[[int], None]:
    began = time.monotonic()

    def done(number: int) -> None:
        if number % 5 == 0 or number == total:
            left = (time.monotonic() - began) * (total - number) / number
            report(f"LiDAR: {number} of {total} hidden states, {left:.0f} s left")

    return done
