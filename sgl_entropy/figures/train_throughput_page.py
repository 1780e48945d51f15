"""The page of ``train benchmark``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sgl_entropy.figures.stopwatch import PARTS
from sgl_entropy.figures.train_throughput import OURS, PLAIN

_MB = 1e6
_TENSORS = ("largest tensor", "as wide as the vocabulary")


def page(data: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    arms = data["arms"]
    ours, plain = arms[OURS], arms[PLAIN]
    speed = [
        [
            name,
            f"{arm['rows_per_s']:,.0f}",
            f"{arm['answer_tokens_per_s']:,.0f}",
            f"{arm['seconds_over_ours']:.2f}",
            _spread(arm["by_batch"]),
            f"{(arm['memory']['peak'] - arm['memory']['bare']) / _MB:,.0f}",
            _tensor(arm["tensors"]["largest"]),
            _tensor(arm["tensors"]["wide"]),
        ]
        for name, arm in arms.items()
    ]
    parts = [
        [
            part,
            meaning,
            *(cell for name in (OURS, PLAIN) for cell in _part(data, name, part)),
        ]
        for part, meaning in PARTS.items()
    ]
    losses = [
        [
            name,
            ", ".join(f"{loss:.4f}" for loss in held["first"]),
            f"{held['first_differs']:.1e}",
            ", ".join(f"{loss:.4f}" for loss in held["last"]),
            f"{held['all_differ']:.1e}",
        ]
        for name, held in data["losses"].items()
    ]
    return "\n\n".join(
        [
            "# Training throughput",
            _what(data),
            table(
                ("arm", "rows/s", "answer tok/s", "time / ours", "by batch", "peak MB", *_TENSORS),
                speed,
                text=(0, 6, 7),
            ),
            f"Per answer token the straightforward loop takes {plain['seconds_over_ours']:.2f} "
            f"times as long ({plain['rows_per_s']:,.0f} against {ours['rows_per_s']:,.0f} rows/s).",
            "## Where the time goes",
            table(
                ["part", "", "ours, ms", "share", "straightforward, ms", "share"],
                parts,
                text=(0, 1),
            ),
            "Milliseconds a batch; every function is charged for itself alone. "
            + _shares(data["profile"][OURS]),
            "## The two learn the same",
            table(["arm", "first batch", "differs", "last batch", "differs in any"], losses),
            "Mean loss by draft step, counted rows alone: the definitions are the same, since the "
            "target's softmax over its whole vocabulary, cut and renormalised, is its softmax over "
            "the draft vocabulary. At the first batch weights are equal, later ones drift apart as "
            "roundings add up. Differences are relative, from the straightforward loop's.",
            "## What a token takes in the feature store",
            storage_table(data["storage"]),
            _stored(data["storage"]),
        ]
    )


def _what(data: Mapping[str, Any]) -> str:
    fit = data["fit"]
    return (
        f"{data['algorithm']}, {data['batches']} batches of about {fit['rows']} chains, as many of "
        f"each of {fit['epochs']} epochs ({data['answer_tokens']:,} answer tokens, "
        f"{data['tokens']:,} with prompts), {data['threads']} thread(s). All arms learn from the "
        "same batches in turn, from the same weights on. A row is a chain at one draft step. By "
        "batch: a batch's time over ours, median (quartiles). Peak: anonymous memory of a process "
        "of its own on the widest batches, over a bare one. Tensors: the largest that an operation "
        "makes, and the largest with rows as wide as the target's vocabulary. "
        "straightforward: one answer at a time, every row of it, the target's whole vocabulary in "
        "float32, dense masks over the rows of all steps, plain AdamW "
        "(`sgl_entropy/train/straightforward.py`)."
    )


def _stored(storage: Mapping[str, Any]) -> str:
    whole = storage["store"]
    return (
        f"Bytes a token of prompt and answer, from shards of {storage['tokens']:,} tokens, written "
        f"for this; the whole store takes {whole['bytes']:,.0f} ({whole['tokens']:,} tokens). The "
        "target's final state, which is what is learned, is kept beside the layers."
    )


def storage_table(storage: Mapping[str, Any]) -> str:
    """Bytes by layers, and over the most layers that one drafter needs."""
    base = next(
        (row["bytes"] for row in storage["layers"] if row["drafter"] == "EAGLE3"),
        storage["layers"][-1]["bytes"],
    )
    rows = [
        [
            row["drafter"],
            ", ".join(map(str, row["layers"])),
            f"{row['bytes']:,.0f}",
            f"{row['formula']:,}",
            f"{row['bytes'] / base:.2f}",
        ]
        for row in storage["layers"]
    ]
    return table(["drafter", "layers", "bytes a token", "planned", "over EAGLE-3's"], rows, (0, 1))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = (0,)) -> str:
    """Markdown; the columns ``text`` to the left, the others to the right."""
    rule = ["---" if i in text else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *rows])


def _part(data: Mapping[str, Any], name: str, part: str) -> tuple[str, str]:
    profile = data["profile"][name]
    return (
        f"{1000 * profile[part] / data['batches']:,.1f}",
        f"{100 * profile[part] / sum(profile.values()):.1f} %",
    )


def _shares(profile: Mapping[str, float]) -> str:
    whole = sum(profile.values())
    head = 100 * (profile["target"] + profile["head"]) / whole
    layer = 100 * sum(profile[part] for part in ("fusion", "attention", "mlp", "backward")) / whole
    rest = 100 * sum(profile[part] for part in ("data", "optimizer", "rest")) / whole
    return (
        f"In ours, head and loss over the draft vocabulary with the target's distribution take "
        f"{head:.0f} %, the layer forward and backward {layer:.0f} %, all else {rest:.0f} %. The "
        "head's gradient is computed with its loss, so that backward is the layer's alone."
    )


def _spread(held: Mapping[str, Any]) -> str:
    low, high = held["quartiles"]
    return f"{held['median']:.2f} ({low:.2f} to {high:.2f})"


def _tensor(held: Mapping[str, Any]) -> str:
    if not held["bytes"]:
        return "none"
    shape = " x ".join(map(str, held["shape"]))
    return f"{shape} {held['dtype']}, {held['bytes'] / _MB:.0f} MB"
