"""The feature store: answers by the target with the hidden states that drafters learn from.

A folder of shards, each a safetensors file that holds whole sequences, flat:

* ``tokens`` int32 [tokens]: prompt and answer of every sequence;
* ``lengths``, ``prompt_lengths``, ``prompt_ids`` int64 [sequences];
* ``features`` bfloat16 [rows, taps * d]: tapped layers' outputs, side by side in the order of
  ``meta.json``'s ``tap_layers``, for all tokens of a sequence but the last (length - 1 rows);
* ``final`` bfloat16 [rows, d]: the target's hidden states after its final norm: its logits are
  ``lm_head`` of them;
* ``entropy`` float32 [rows], ``best`` int32 [rows]: Shannon entropy (nats, whole vocabulary) of
  those logits, and the most likely token. In a greedy answer that is the token that follows; in a
  prompt, which the target did not write, it need not be.

Beside each shard lies its record, a JSON file of the same stem: ``bytes``, ``sha256``,
``sequences`` and ``answer_tokens``. The records together are the store's index. A shard gets its
name only when it and its record are complete, so an interrupt loses only what is being written; a
shard that was changed or cut short afterwards is noticed and named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from sgl_entropy.base.disk import write_whole
from sgl_entropy.base.json_file import read_object
from sgl_entropy.train.samples.shards import Sample, shard_problem

META = "meta.json"
# 2: shards hold entropies and best tokens, and final states of prompts too. 3: records of shards.
# 4: answers that saw their whole context; before, a slot filled beside them could cut it.
FORMAT = 4


@dataclass(frozen=True)
class StoreMeta:
    """What a store was made with: ``meta.json``. None = not recorded, as in older stores.

    Attributes:
        tap_layers: the layers whose outputs ``features`` holds.
        hidden_size: d.
        dtype: of the target's weights and matmuls.
        target, target_fingerprint: the target's name and what it is known by.
        prompts_sha256: of the prompt file.
        answers: "given" where the answers were there before their features.
    """

    tap_layers: tuple[int, ...]
    hidden_size: int
    max_new_tokens: int | None = None
    dtype: str | None = None
    target: str | None = None
    target_fingerprint: str | None = None
    prompts_sha256: str | None = None
    answers: str | None = None
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """As the file holds it."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        known["tap_layers"] = list(self.tap_layers)
        return {key: value for key, value in known.items() if value is not None}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> StoreMeta:
        """From ``to_json``; keys of other versions are passed over."""
        known = {field.name: raw[field.name] for field in fields(cls) if field.name in raw}
        return cls(**known | {"tap_layers": tuple(raw["tap_layers"])})


def refuse_other_settings(folder: Path, meta: StoreMeta) -> None:
    """
    Raises:
        ValueError: the folder holds a store that was made with other settings than ``meta``.
    """
    path = folder / META
    if not path.exists():
        return
    before, now = json.loads(path.read_text(encoding="utf-8")), meta.to_json()
    differ = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if differ:
        raise ValueError(
            f"{folder} was generated with other settings ({', '.join(differ)}): "
            f"use another work folder, or the settings of {path}"
        )


def write_meta(folder: Path, meta: StoreMeta) -> None:
    """Record what the store is made with; see ``refuse_other_settings``."""
    refuse_other_settings(folder, meta)
    path = folder / META
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(meta.to_json(), indent=1) + "\n")


def read_meta(folder: Path) -> StoreMeta:
    """What ``write_meta`` recorded.

    Raises:
        ValueError: nothing was generated there, or by another version.
    """
    path = folder / META
    if not path.is_file():
        raise ValueError(f"{path} not found: run `sgl-entropy train generate` first")
    raw = read_object(path)
    if raw.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {raw.get('format')!r}, this version reads {FORMAT}: "
            f"generate into another work folder"
        )
    return StoreMeta.from_json(raw)


def made_with(folder: Path) -> str | None:
    """The target's dtype of an existing store; None where there is none."""
    return read_meta(folder).dtype if (folder / META).is_file() else None


@dataclass(frozen=True)
class Entry:
    """A sample's place: its shard, and its offsets there."""

    shard: Path
    prompt_id: int
    prompt_length: int
    length: int
    token_start: int
    row_start: int

    @property
    def answer_rows(self) -> int:
        return self.length - 1 - self.prompt_length


class Samples(Protocol):
    """A source of training samples: the store, or the target itself (``OnlineStore``)."""

    folder: Path
    entries: list[Entry]
    tap_layers: tuple[int, ...]

    def tokens(self, entry: Entry) -> Tensor:
        """Prompt and answer of one sample: int64 [length]."""

    def sample(self, entry: Entry, columns: Sequence[int] | None = None) -> Sample:
        """One sample; ``columns``: the wanted tapped layers, in this order; None = all."""


class Store:
    """The samples of a folder, read on demand through memory maps.

    Attributes:
        entries: every sample, in the order of their prompt ids.
        skipped: damaged shards, each with what is wrong with it; empty unless asked to skip.
        tap_layers: the layers whose outputs ``features`` holds.
        width: d.
    """

    def __init__(self, folder: Path, *, whole: bool = False, skip_damaged: bool = False) -> None:
        """
        Args:
            whole: check every shard's bytes against its record, not its size alone.
            skip_damaged: leave damaged shards out instead of refusing the store.

        Raises:
            ValueError: no meta file, one of another format, no shards, or damaged ones (named).
        """
        self.folder = folder
        self.meta = read_meta(folder)
        self.skipped: dict[str, str] = {}
        shards = sorted(folder.glob("*.safetensors"))
        for shard in shards:
            problem = shard_problem(shard, whole=whole)
            if problem:
                self.skipped[shard.name] = problem
        if self.skipped and not skip_damaged:
            lines = [f"{folder / name}: {problem}" for name, problem in self.skipped.items()]
            exist = self.meta.answers == "given"
            again = "features` reads their" if exist else "generate` makes their"
            raise ValueError(
                "\n".join(lines) + f"\nremove these shards, and `train {again} answers again; or "
                "leave them: `train fit` and `compare` alone go on without them, with "
                "--set fit.skip_damaged=true"
            )
        self._shards = [shard for shard in shards if shard.name not in self.skipped]
        self.tap_layers, self.width = self.meta.tap_layers, self.meta.hidden_size
        self._open: dict[Path, Any] = {}
        self.entries = sorted(self._index(), key=lambda entry: entry.prompt_id)
        if not self.entries:
            raise ValueError(f"{folder} holds no shards: run `sgl-entropy train generate` first")

    def _index(self) -> Iterator[Entry]:
        for shard in self._shards:
            with safe_open(shard, framework="pt") as file:
                columns = [
                    file.get_tensor(name).tolist()
                    for name in ("prompt_ids", "prompt_lengths", "lengths")
                ]
            token = row = 0
            for prompt_id, prompt_length, length in zip(*columns, strict=True):
                yield Entry(shard, prompt_id, prompt_length, length, token, row)
                token += length
                row += length - 1

    def _file(self, entry: Entry) -> Any:
        if entry.shard not in self._open:
            self._open[entry.shard] = safe_open(entry.shard, framework="pt")
        return self._open[entry.shard]

    def tokens(self, entry: Entry) -> Tensor:
        """Prompt and answer of one sample: int64 [length]."""
        tokens = self._file(entry).get_slice("tokens")
        own: Tensor = tokens[entry.token_start : entry.token_start + entry.length]
        return own.long()

    def sample(self, entry: Entry, columns: Sequence[int] | None = None) -> Sample:
        """Read one sample.

        Args:
            columns: ids of the tapped layers wanted in ``features``, in this order; None = all.
        """
        file = self._file(entry)
        rows = slice(entry.row_start, entry.row_start + entry.length - 1)
        features = file.get_slice("features")[rows]
        if columns is not None:
            at = [self.tap_layers.index(layer) for layer in columns]
            features = features.view(len(features), len(self.tap_layers), self.width)[:, at]
            features = features.reshape(len(features), -1)
        return Sample(
            entry.prompt_id,
            entry.prompt_length,
            self.tokens(entry),
            features,
            file.get_slice("final")[rows],
            file.get_slice("entropy")[rows],
            file.get_slice("best")[rows].long(),
        )

    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.stat().st_size for shard in self._shards)

    def answer_tokens(self) -> int:
        """Number of answer tokens, including the first of each answer."""
        return sum(entry.length - entry.prompt_length for entry in self.entries)


def shared_prefix(store: Samples, most: int = 64) -> int:
    """How many tokens all prompts begin with (a chat template's head), at least 1.

    Args:
        most: how many sequences are compared, spread over the store.
    """
    step = max(1, len(store.entries) // most)
    prompts = [store.tokens(e)[: e.prompt_length] for e in store.entries[::step]]
    length = min(len(prompt) for prompt in prompts)
    same = torch.stack([prompt[:length] for prompt in prompts])
    return max(1, int((same == same[0]).all(0).cumprod(0).sum()))
