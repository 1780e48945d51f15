"""From a comparison's rows to its table: mean tau of each arm, and intervals on every difference.

tau of an arm is the mean over the groups of prompts (the benchmarks) of tokens / cycles, pooled
within a group over prompts and seeds. Intervals come from a bootstrap of both levels: the prompts
of each group, drawn once for all arms (every arm answers the same ones, so that a hard prompt
weighs on all alike), and each arm's seeds, drawn for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.train.compare.scaling_law import curve_table, foresee

_LEVEL = 0.95


def summarise(
    rows: Sequence[Mapping[str, Any]], baseline: str, resamples: int = 4000, seed: int = 0
) -> dict[str, Any]:
    """Figures of each arm, and of each against ``baseline``.

    Args:
        rows: of ``compare.run``: ``arm``, ``seed``, ``fit``, ``prompts``.

    Returns:
        ``baseline``, ``groups`` and ``arms``: name -> ``tau``, ``interval``, ``tau_by_group``,
        ``tau_by_seed``, ``by_position`` (acceptance of each draft, given that all before it were
        accepted, pooled; None of records that do not hold it), ``seconds`` (of the optimizer
        steps), ``flops``, ``layer_rows`` and ``head_rows`` (that pass the drafter's layer and its
        head; means over seeds), ``seconds_by_seed``, and for every arm but the baseline ``ratio``
        (of tau) with its ``ratio_interval``, ``differs`` (the interval excludes 1) and
        ``seconds_ratio``, ``flops_ratio``, ``rows_ratio``. ``curves``: name -> ``curve.foresee``
        of the arms that are its points.

    Raises:
        ValueError: arms that were judged on other prompts than the baseline.
    """
    names = list(dict.fromkeys(row["arm"] for row in rows))
    groups = [group for group, _, _ in rows[0]["prompts"]]
    for row in rows:
        if [group for group, _, _ in row["prompts"]] != groups:
            raise ValueError(f"{row['arm']}, seed {row['seed']}: judged on other prompts")
    # [seeds, prompts, (tokens, cycles)] of each arm
    counts = {
        name: torch.tensor(
            [[p[1:] for p in row["prompts"]] for row in rows if row["arm"] == name],
            dtype=torch.float64,
        )
        for name in names
    }
    order = list(dict.fromkeys(groups))
    members = [torch.tensor([i for i, g in enumerate(groups) if g == name]) for name in order]
    chance = torch.Generator().manual_seed(seed)
    drawn_prompts = [
        m[torch.randint(len(m), (resamples, len(m)), generator=chance)] for m in members
    ]
    drawn = {}
    for name in names:
        seeds = len(counts[name])
        pick = torch.randint(seeds, (resamples, seeds), generator=chance)
        weight = torch.zeros(resamples, seeds).double()
        weight.scatter_add_(1, pick, torch.ones(resamples, seeds).double())
        drawn[name] = _resampled(counts[name], weight, drawn_prompts)
    arms: dict[str, Any] = {}
    for name in names:
        held = [row["fit"] for row in rows if row["arm"] == name]
        by_group = [_tau(counts[name][:, m].sum((0, 1))) for m in members]
        arms[name] = {
            "tau": round(sum(by_group) / len(by_group), 4),
            "interval": _interval(drawn[name]),
            "tau_by_group": dict(zip(order, (round(t, 4) for t in by_group), strict=True)),
            "tau_by_seed": [
                round(sum(_tau(one[m].sum(0)) for m in members) / len(members), 4)
                for one in counts[name]
            ],
            "by_position": _by_position([row for row in rows if row["arm"] == name]),
            "seconds": round(sum(fit["seconds"] for fit in held) / len(held), 1),
            "seconds_by_seed": [fit["seconds"] for fit in held],
            "flops": sum(fit["flops"] for fit in held) / len(held),
            **{
                key: round(
                    sum(epoch[key] for fit in held for epoch in fit["epochs"].values()) / len(held)
                )
                for key in ("layer_rows", "head_rows")
            },
        }
    plain = arms[baseline]
    for name in names:
        if name == baseline:
            continue
        low, high = _interval(drawn[name] / drawn[baseline])
        arms[name] |= {
            "ratio": round(arms[name]["tau"] / plain["tau"], 4),
            "ratio_interval": [low, high],
            "differs": not low <= 1.0 <= high,
            "seconds_ratio": round(arms[name]["seconds"] / max(plain["seconds"], 1e-9), 4),
            "flops_ratio": round(arms[name]["flops"] / max(plain["flops"], 1e-9), 4),
            "rows_ratio": round(arms[name]["layer_rows"] / max(plain["layer_rows"], 1), 4),
        }
    return {
        "baseline": baseline,
        "groups": order,
        "arms": arms,
        "curves": _curves(rows, arms, drawn),
    }


def _by_position(rows: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """Pooled over the rows of an arm."""
    counts = [row.get("accepted_at") for row in rows]
    if any(one is None for one in counts):
        return None
    accepted = torch.tensor(counts, dtype=torch.float64).sum(0)
    cycles = sum(cycles for row in rows for _, _, cycles in row["prompts"])
    reached = torch.cat([torch.tensor([float(cycles)]), accepted[:-1]])
    return [round(float(one), 4) for one in accepted / reached.clamp_min(1)]


def _curves(
    rows: Sequence[Mapping[str, Any]], arms: Mapping[str, Any], drawn: Mapping[str, Tensor]
) -> dict[str, Any]:
    tokens = {row["arm"]: row["fit"]["answer_tokens"] for row in rows if row.get("curve")}
    members: dict[str, list[str]] = {}
    for row in rows:
        if row.get("curve") and row["arm"] not in members.setdefault(row["curve"], []):
            members[row["curve"]].append(row["arm"])
    out = {}
    for curve, names in members.items():
        names.sort(key=tokens.__getitem__)
        out[curve] = foresee(
            [tokens[name] for name in names],
            [arms[name]["tau"] for name in names],
            torch.stack([drawn[name] for name in names], dim=1),
        )
    return out


def table(summary: Mapping[str, Any]) -> str:
    """The figures for people; a difference whose interval includes none is said to be none."""
    rows = _rows(summary)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if summary["curves"]:
        lines += ["", curve_table(summary["curves"])]
    return "\n".join(lines)


def page(
    summary: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], title: str, at_once: int
) -> str:
    """The same as Markdown, with tau on each benchmark.

    Args:
        at_once: trainings that ran side by side, which their seconds depend on.
    """
    header, *rows = _rows(summary)
    by_group = [
        [name, *(f"{arm['tau_by_group'][group]:.3f}" for group in summary["groups"])]
        for name, arm in summary["arms"].items()
    ]
    seeds = sorted({run["seed"] for run in runs})
    tokens = sorted({run["fit"]["answer_tokens"] for run in runs})
    devices = sorted({run["fit"].get("device", "a CPU") for run in runs})
    parts = [
        f"# {title}",
        f"tau: mean over {len(summary['groups'])} benchmarks of pooled tokens a cycle, greedy "
        f"chains by the plain drafter. Seeds: {', '.join(map(str, seeds))}; answer tokens: "
        f"{', '.join(map(str, tokens))}. Intervals: 95 %, over prompts (and seeds); differences "
        f"are paired by prompt. Seconds are of one training on {' or '.join(devices)}, "
        f"{at_once} at a time, in its optimizer steps: the start, held-out answers and "
        "checkpoints, alike for all, are left out.",
        _markdown(header, rows),
        _markdown(["tau", *summary["groups"]], by_group),
        _markdown(*_costs(summary)),
    ]
    positions = {name: arm["by_position"] for name, arm in summary["arms"].items()}
    if all(positions.values()):
        depth = len(positions[summary["baseline"]])
        parts.append(
            _markdown(
                ["acceptance of draft", *map(str, range(1, depth + 1))],
                [[name, *(f"{one:.3f}" for one in found)] for name, found in positions.items()],
            )
        )
    if summary["curves"]:
        parts.append("```\n" + curve_table(summary["curves"]) + "\n```")
    return "\n\n".join(parts)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Header and a row an arm."""
    rows: list[tuple[str, ...]] = [
        ("arm", "tau", "95 % interval", "against " + summary["baseline"], "seconds", "TFLOP")
    ]
    for name, arm in summary["arms"].items():
        against = ""
        if "ratio" in arm:
            low, high = arm["ratio_interval"]
            against = f"{100 * (arm['ratio'] - 1):+.1f} % ({100 * (low - 1):+.1f} to "
            against += f"{100 * (high - 1):+.1f})" + ("" if arm["differs"] else ", no difference")
        rows.append(
            (
                name,
                f"{arm['tau']:.3f}",
                f"{arm['interval'][0]:.3f} to {arm['interval'][1]:.3f}",
                against,
                f"{arm['seconds']:.0f}",
                f"{arm['flops'] / 1e12:.1f}",
            )
        )
    return rows


def _costs(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and a row an arm: what it processed and took, and how much more or less than the
    baseline."""
    against = f"against {summary['baseline']}: "
    header = ["cost", "rows, 1000s", "of them judged", "TFLOP", "seconds by seed"]
    header += [f"{against}rows", "FLOPs", "seconds"]
    rows = []
    for name, arm in summary["arms"].items():
        rows.append(
            [
                name,
                f"{arm['layer_rows'] / 1e3:,.0f}",
                f"{arm['head_rows'] / 1e3:,.0f}",
                f"{arm['flops'] / 1e12:.1f}",
                ", ".join(f"{one:.0f}" for one in arm["seconds_by_seed"]),
                *(
                    f"{100 * (arm[key] - 1):+.1f} %" if key in arm else ""
                    for key in ("rows_ratio", "flops_ratio", "seconds_ratio")
                ),
            ]
        )
    return header, rows


def _resampled(counts: Tensor, weight: Tensor, drawn_prompts: Sequence[Tensor]) -> Tensor:
    """tau of each resample: [resamples].

    Args:
        counts: [seeds, prompts, 2]; weight: [resamples, seeds], how often a seed was drawn.
        drawn_prompts: of each group, [resamples, its prompts].
    """
    taus = []
    for drawn in drawn_prompts:
        # [seeds, resamples, 2] -> weighted over seeds: [resamples, 2]
        sums = counts[:, drawn].sum(2)
        pooled = torch.einsum("rs,src->rc", weight, sums)
        taus.append(pooled[:, 0] / pooled[:, 1].clamp_min(1))
    return torch.stack(taus).mean(0)


def _interval(values: Tensor) -> list[float]:
    edges = torch.tensor([0.5 - _LEVEL / 2, 0.5 + _LEVEL / 2], dtype=torch.float64)
    return [round(float(edge), 4) for edge in torch.quantile(values, edges)]


def _tau(pooled: Tensor) -> float:
    return float(pooled[0] / pooled[1].clamp_min(1))
