"""The page of ``train benchmark``."""

from __future__ import annotations

from collections.abc import Sequence

from sgl_entropy.base.tables import markdown_table
from sgl_entropy.figures.store_bytes import Storage
from sgl_entropy.figures.train_throughput import OURS, PARTS, PLAIN, Throughput

_HEAD, _LAYER = {"target", "head"}, {"layer", "fusion", "attention", "mlp", "backward"}


def page(data: Throughput) -> str:
    """The figures as Markdown."""
    ours, plain = data.arms[OURS], data.arms[PLAIN]
    return "\n\n".join(
        [
            "# Training throughput",
            _what(data),
            _speed_table(data),
            f"Per answer token the straightforward loop takes {plain.seconds_over_ours:.2f} "
            f"times as long ({plain.rows_per_s:,.0f} against {ours.rows_per_s:,.0f} rows/s).",
            "## Where the time goes",
            _parts_table(data),
            "Milliseconds a batch, without the parts inside a part. " + _shares(data),
            "## The two learn the same",
            _loss_table(data),
            "Mean loss by draft step, counted rows alone. Both losses are defined alike: the "
            "target's softmax over its whole vocabulary, cut and renormalised, is its softmax over "
            "the draft vocabulary. At the first batch weights are equal; later they drift apart as "
            "roundings add up. Differences are relative to the straightforward loop.",
            "## What a token takes in the feature store",
            storage_table(data.storage),
            f"Bytes a token of prompt and answer, from shards of {data.storage.tokens:,} tokens, "
            f"written for this; the whole store takes {data.storage.store.bytes:,.0f} "
            f"({data.storage.store.tokens:,} tokens). The target's final state, which the "
            "drafter learns, is kept beside the layers.",
        ]
    )


def _what(data: Throughput) -> str:
    return (
        f"{data.algorithm}, {data.batches} batches of about {data.fit['rows']} chains, as many of "
        f"each of {data.fit['epochs']} epochs ({data.answer_tokens:,} answer tokens, "
        f"{data.tokens:,} with prompts), {data.threads} thread(s). All loops learn from the "
        "same batches in turn, from the same starting weights. A row is a chain at one draft step. "
        "By batch: a batch's time over ours, median (quartiles). Peak: memory of a process of its "
        "own on the widest batches, over a bare one. The straightforward loop takes one answer at "
        "a time, every row of it, the target's whole vocabulary in float32, dense masks over the "
        "rows of all steps, and plain AdamW (`sgl_entropy/figures/plain_loop.py`)."
    )


def _speed_table(data: Throughput) -> str:
    rows = []
    for name, arm in data.arms.items():
        low, high = arm.by_batch.quartiles
        rows.append(
            [
                name,
                f"{arm.rows_per_s:,.0f}",
                f"{arm.answer_tokens_per_s:,.0f}",
                f"{arm.seconds_over_ours:.2f}",
                f"{arm.by_batch.median:.2f} ({low:.2f} to {high:.2f})",
                f"{arm.memory.needed / 1e6:,.0f}",
            ]
        )
    head = ["loop", "rows/s", "answer tok/s", "time / ours", "by batch", "peak MB"]
    return markdown_table(head, rows)


def _parts_table(data: Throughput) -> str:
    rows = []
    for part in data.profile[OURS]:
        row = [part + (f": {PARTS[part]}" if part in PARTS else "")]
        for name in (OURS, PLAIN):
            seconds = data.profile[name]
            row.append(f"{1000 * seconds[part] / data.batches:,.1f}")
            row.append(f"{100 * seconds[part] / sum(seconds.values()):.1f} %")
        rows.append(row)
    return markdown_table(["part", "ours, ms", "share", "straightforward, ms", "share"], rows)


def _shares(data: Throughput) -> str:
    profile = data.profile[OURS]

    def percent(parts: set[str]) -> float:
        return 100 * sum(profile[part] for part in parts) / sum(profile.values())

    head, layer, rest = (
        percent(parts & {*profile}) for parts in (_HEAD, _LAYER, {*profile} - _HEAD - _LAYER)
    )
    return (
        f"In ours, head and loss over the draft vocabulary with the target's distribution take "
        f"{head:.0f} %, the layer forward and backward {layer:.0f} %, all else {rest:.0f} %. The "
        "head's gradient is computed with its loss, so that backward is the layer's alone."
    )


def _loss_table(data: Throughput) -> str:
    def shown(losses: Sequence[float]) -> str:
        return ", ".join(f"{loss:.4f}" for loss in losses)

    rows = [
        (
            name,
            shown(one.first),
            f"{one.first_differs:.1e}",
            shown(one.last),
            f"{one.all_differ:.1e}",
        )
        for name, one in data.losses.items()
    ]
    header = ["loop", "first batch", "differs", "last batch", "differs in any"]
    return markdown_table(header, rows)


def storage_table(storage: Storage) -> str:
    """Bytes by layers, and over those of EAGLE-3, or of all that the store holds."""
    sizes = {row.drafter: row.bytes for row in storage.layers}
    base = sizes.get("EAGLE3", storage.layers[-1].bytes)
    rows = [
        (
            row.drafter,
            ", ".join(map(str, row.layers)),
            f"{row.bytes:,.0f}",
            f"{row.formula:,}",
            f"{row.bytes / base:.2f}",
        )
        for row in storage.layers
    ]
    header = ["drafter", "layers", "bytes a token", "planned", "over EAGLE-3's"]
    return markdown_table(header, rows)
