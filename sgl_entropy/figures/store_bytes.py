"""What a token takes in the feature store, from shards that are really written."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from sgl_entropy.train.plan.counts import row_bytes
from sgl_entropy.train.samples.shards import write_shard
from sgl_entropy.train.samples.store import Store


@dataclass(frozen=True)
class StoredLayers:
    """Bytes a token with these ``layers`` kept: in the shard, and as a plan counts them
    (``formula``); ``drafter``: which taps them."""

    drafter: str
    layers: list[int]
    bytes: float
    formula: int


@dataclass(frozen=True)
class WholeStore:
    """A store's tokens, and the bytes that each takes."""

    tokens: int
    bytes: float


@dataclass(frozen=True)
class Storage:
    """Bytes a token of prompt and answer.

    Attributes:
        tokens: that were written for ``layers``.
    """

    tokens: int
    layers: list[StoredLayers]
    store: WholeStore


def bytes_a_token(store: Store, taps: Mapping[str, tuple[int, ...]], tokens: int = 2000) -> Storage:
    """Bytes a token by the layers that are kept.

    Args:
        taps: the layers that each drafter taps; one that the store does not hold is left out.
        tokens: at least so many are written, of the store's first samples.
    """
    so_far = list(accumulate(entry.length for entry in store.entries))
    chosen = store.entries[: 1 + sum(length < tokens for length in so_far)]
    written = sum(entry.length for entry in chosen)
    wanted = {name: layers for name, layers in taps.items() if {*layers} <= {*store.tap_layers}}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.safetensors"
        for name, layers in {**wanted, "all in the store": store.tap_layers}.items():
            path.unlink(missing_ok=True)
            write_shard(path, [store.sample(entry, layers) for entry in chosen])
            size = round(path.stat().st_size / written, 1)
            rows.append(StoredLayers(name, list(layers), size, row_bytes(store.width, len(layers))))
    whole = WholeStore(so_far[-1], round(store.bytes() / so_far[-1], 1))
    return Storage(written, rows, whole)
