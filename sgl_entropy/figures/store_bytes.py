"""What a token takes in the feature store, from shards that are really written."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgl_entropy.train.plan.counts import row_bytes
from sgl_entropy.train.samples.shards import write_shard
from sgl_entropy.train.samples.store import Store

_TOKENS = 2000


def bytes_a_token(
    store: Store, taps: Mapping[str, tuple[int, ...]], tokens: int = _TOKENS
) -> dict[str, Any]:
    """Bytes a token of prompt and answer, by the layers that are kept.

    Args:
        taps: the layers that each drafter taps; one that the store does not hold is left out.
        tokens: at least so many are written, of the store's first samples.

    Returns:
        ``tokens`` written; ``layers``, a list of ``drafter``, ``layers``, ``bytes`` a token in the
        shard, and ``formula``, what a plan counts; and ``store``: the same of the whole store.
    """
    held, chosen = 0, []
    for entry in store.entries:
        chosen.append(entry)
        held += entry.length
        if held >= tokens:
            break
    wanted = {name: layers for name, layers in taps.items() if {*layers} <= {*store.tap_layers}}
    out: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, layers in {**wanted, "all in the store": store.tap_layers}.items():
            path = Path(folder) / f"{len(out)}.safetensors"
            write_shard(path, [store.sample(entry, layers) for entry in chosen])
            out.append(
                {
                    "drafter": name,
                    "layers": list(layers),
                    "bytes": round(path.stat().st_size / held, 1),
                    "formula": row_bytes(store.width, len(layers)),
                }
            )
    every = sum(entry.length for entry in store.entries)
    whole = {"tokens": every, "bytes": round(store.bytes() / every, 1)}
    return {"tokens": held, "layers": out, "store": whole}
