"""For which target a store or a report was made; targets of one name and size are told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgl_entropy.base.identity import Identity
from sgl_entropy.base.json_file import read_object
from sgl_entropy.target.config import read_target_config

# The config values that decide a target's hidden states and answers, apart from its weights.
_DECIDES = (
    "model_type",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "eos_token_id",
)
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
# Fingerprints of another making begin otherwise: those are not compared.
_FORM = "2:"


def target_fingerprint(folder: Path) -> str:
    """What decides the target's hidden states, in 16 hexadecimal digits: its :class:`Identity`
    (names, types, shapes and a part of the bytes of its weights) and its config. Where the folder
    lies, what it is called and how its weights are split into files do not count.

    Raises:
        ValueError: no weights or config, or not readable.
    """
    config = read_target_config(folder)
    parts = [[config.get(key) for key in _DECIDES], Identity.of(folder).sha256]
    return _FORM + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def tokenizer_fingerprint(folder: Path) -> str:
    """16 hexadecimal digits of the tokenizer's files, chat template included."""
    digest = hashlib.sha256()
    for name in _TOKENIZER:
        if (folder / name).is_file():
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()[:16]


def made_for(target: Path) -> dict[str, str]:
    """What a store, and a report of ``sgl-entropy select``, records of its target."""
    return {"target": target.resolve().name, "target_fingerprint": target_fingerprint(target)}


def refuse_other_report(report: Path, target: Path) -> None:
    """Refuse the layers that ``sgl-entropy select`` chose for another target. Reports without a
    fingerprint of today's form, and targets whose weights are not there yet, are compared by their
    number of layers alone.

    Args:
        report: one that ``read_choice`` takes.

    Raises:
        ValueError: another target.
    """
    raw = read_object(report)
    recorded = _comparable(raw)
    config = read_target_config(target)
    layers, count = len(raw["profiles"]["curvature"]) - 1, int(config["num_hidden_layers"])
    same, differ = layers == count, f"{layers} layers, now {count}"
    if same and recorded and any(target.glob("*.safetensors")):
        now = target_fingerprint(target)
        same, differ = recorded == now, f"other weights or config: {recorded}, now {now}"
    if not same:
        raise ValueError(
            f"drafter.select_report {report} was made for another target, "
            f"{raw.get('target', 'unnamed')}, than {target} ({differ}): give the report of this "
            "one (`sgl-entropy select`), or name layers in drafter.edsd_layers instead"
        )


def refuse_other_target(
    meta: Mapping[str, Any], target: Path, where: Path, *, by_name: bool = False
) -> dict[str, str]:
    """Refuse what was made for another target. Stores without a fingerprint of today's form are
    compared by the target's width and number of layers, and by its name where more is to be
    written.

    Args:
        meta: of the store in ``where``.
        by_name: whether such a store's target must have the same name: folders are renamed.

    Returns:
        The part of ``meta`` that names the target.

    Raises:
        ValueError: another target.
    """
    named = {key: meta[key] for key in ("target", "target_fingerprint") if key in meta}
    if recorded := _comparable(meta):
        now = target_fingerprint(target)
        same, differ = recorded == now, f"other weights or config: {recorded}, now {now}"
    else:
        config = read_target_config(target)
        sizes = (int(config["hidden_size"]), int(config["num_hidden_layers"]))
        names = (target.name, target.resolve().name)
        same = (
            (not by_name or named.get("target", target.name) in names)
            and meta["hidden_size"] == sizes[0]
            and max(meta["tap_layers"], default=0) < sizes[1]
        )
        differ = (
            f"width {meta['hidden_size']} and layers {list(meta['tap_layers'])} stored, "
            f"now width {sizes[0]} and {sizes[1]} layers"
        )
    if not same:
        raise ValueError(
            f"{where} was made for another target, {named.get('target', 'unnamed')}, than {target} "
            f"({differ}): give the target that it was made for (--target), or another work folder "
            "(--work)"
        )
    return named


def _comparable(record: Mapping[str, Any]) -> str | None:
    """The record's fingerprint, if it is one that :func:`target_fingerprint` gives today."""
    recorded = str(record.get("target_fingerprint"))
    return recorded if recorded.startswith(_FORM) else None
