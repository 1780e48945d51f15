"""EDSelect from a target's folder and a file of texts to a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from sgl_entropy.base.progress import counter
from sgl_entropy.base.texts import text_files
from sgl_entropy.select.against import TrainedPair, check_tapped, read_trained, score_pairs
from sgl_entropy.select.bootstrap import curvature_profiles, interval, lidar_profiles
from sgl_entropy.select.choice import Choice, check_layers, choose, win_share
from sgl_entropy.select.hidden_states import measure
from sgl_entropy.select.probe import HELD_OUT, LEARNED, Probe, collect, probe
from sgl_entropy.select.samples import CalibrationSample, noisy_ids, sample_texts
from sgl_entropy.select.selection_report import Profile, SelectReport, TextsUsed
from sgl_entropy.select.settings import SelectSettings
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.target.tokenizer import load_tokenizer
from sgl_entropy.verify.resampling import resample_counts, seeded

Device = torch.device | str


def select_layers(
    target_folder: Path,
    texts: Sequence[Path],
    settings: SelectSettings,
    report: Callable[[str], None],
    device: Device = "cpu",
    comparison: Path | None = None,
) -> SelectReport:
    """Profiles, choice and its stability.

    Args:
        target_folder: a Hugging Face llama folder with its tokenizer.
        texts: files, or folders of them; see ``samples.sample_texts``.
        report: called with warning lines.
        device: where target and metrics are computed.
        comparison: a report of trained pairs to compare the scores with.

    Raises:
        DrafterError: the target is no plain llama.
        ValueError: texts, tokenizer or a fixed layer do not do; says which and why.
    """
    files = text_files(texts)  # before a large target is read
    trained = [] if comparison is None else read_trained(comparison)
    began = time.monotonic()
    target = _read_target(target_folder, settings, trained, device)
    tokenizer = load_tokenizer(target_folder, target.embedding.shape[0])
    sample = sample_texts(
        files, tokenizer, settings.count, settings.max_tokens, settings.seed, report
    )
    choice, curvature, lidar = _measured(target, tokenizer, sample, settings, device)
    probed = _probed(target, sample, settings, choice, trained, device)
    pairs = None
    if trained:
        explained = None if probed is None else probed.pairs
        pairs = score_pairs(trained, curvature.values, lidar.values, explained)
    return SelectReport(
        target=target_folder.resolve().name,
        texts=TextsUsed(
            ", ".join(file.name for file in files),
            sample.sha256,
            len(sample.ids),
            sample.short,
            sum(map(len, sample.ids)),
        ),
        settings=settings,
        curvature=curvature,
        lidar=lidar,
        choice=choice,
        probe=probed,
        against=pairs,
        threads=torch.get_num_threads(),
        seconds=time.monotonic() - began,
    )


def _read_target(
    folder: Path, settings: SelectSettings, trained: Sequence[TrainedPair], device: Device
) -> PlainTarget:
    """Refuses a target that lacks the asked layers or positions."""
    target = PlainTarget.from_folder(folder, getattr(torch, settings.dtype), device)
    check_layers(target.num_layers, settings.fix_a, settings.fix_b)
    check_tapped(trained, target.num_layers)
    longest = max(settings.max_tokens, settings.view_tokens)
    if longest > target.max_positions:
        raise ValueError(
            f"texts of {longest} tokens were asked for (--max-tokens, --view-tokens); the target "
            f"has {target.max_positions} positions"
        )
    return target


def _measured(
    target: PlainTarget,
    tokenizer: object,
    sample: CalibrationSample,
    settings: SelectSettings,
    device: Device,
) -> tuple[Choice, Profile, Profile]:
    """The metrics' choice, and the profiles of curvature and LiDAR."""
    views = noisy_ids(
        tokenizer,
        sample.texts,
        settings.views,
        settings.view_tokens,
        settings.seed,
        settings.noise,
    )
    measured = measure(target, sample.ids, views, counter("tokens through the target"))
    counts = resample_counts(len(sample.ids), settings.resamples, seeded(settings.seed))
    bends = measured.curvature.mean(1)
    bends_again = curvature_profiles(measured.curvature, counts)
    told = counter("hidden states' LiDAR")
    tells, tells_again = lidar_profiles(
        measured.pooled, counts[: settings.lidar_resamples], told, device
    )
    choice = choose(bends.tolist(), tells.tolist(), settings.fix_a, settings.fix_b)
    # A runner-up competes with the other metric's pick left out.
    without_a = {choice.b} if choice.stepped_down == "a" else set()
    without_b = {choice.a} if choice.stepped_down == "b" else set()
    curvature, lidar = (
        Profile(profile.tolist(), interval(profile, again), win_share(again.tolist(), *chosen))
        for profile, again, chosen in (
            (bends, bends_again, (choice.a, without_a)),
            (tells, tells_again, (choice.b, without_b)),
        )
    )
    return choice, curvature, lidar


def _probed(
    target: PlainTarget,
    sample: CalibrationSample,
    settings: SelectSettings,
    choice: Choice,
    trained: Sequence[TrainedPair],
    device: Device,
) -> Probe | None:
    if settings.by != "probe":
        return None
    rows = collect(target, sample.ids, LEARNED, HELD_OUT)
    also = {choice.target_layer_ids, *(one.layers for one in trained)}
    told = counter("pairs probed")
    return probe(rows, settings.resamples, settings.seed, also, told, device)
