"""Rename a drafter between known layouts. Tensor bytes are copied, never computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_entropy.base.safetensors_header import TensorEntry
from sgl_entropy.checkpoint.files import SINGLE_NAME, read_weight_files
from sgl_entropy.checkpoint.findings import Finding, raise_errors
from sgl_entropy.checkpoint.raw_config import is_int, read_raw_config, show
from sgl_entropy.checkpoint.staging import staged_folder
from sgl_entropy.checkpoint.tensors import write_renamed
from sgl_entropy.drafter.config import (
    EAGLE3_ARCHITECTURES,
    SPECULATORS_ARCHITECTURES,
    DrafterConfig,
    DrafterError,
    hidden_state_number,
)
from sgl_entropy.drafter.headers import check_entries
from sgl_entropy.drafter.layouts import (
    LAYOUTS,
    TARGET_COPIES,
    Layout,
    detect_layout,
    from_published,
    to_published,
)

# Keys of one decoder layer that both nestings of the config share.
_LAYER_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "max_position_embeddings",
    "attention_bias",
    "mlp_bias",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_CARRIED = (".json", ".md", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class ConvertReport:
    """What ``convert`` did; every source tensor is in ``tensors`` or in ``dropped``.

    Attributes:
        tensors: (name in the source, name in the destination).
        dropped: copies of the target's own tensors that drafters do not use.
        carried: other files taken along (tokenizer, model card).
    """

    source: Path
    destination: Path
    source_layout: Layout
    layout: Layout
    tensors: tuple[tuple[str, str], ...]
    dropped: tuple[str, ...]
    carried: tuple[str, ...]


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: str = "published",
    overwrite: bool = False,
) -> ConvertReport:
    """Write ``source`` to ``destination`` in the layout ``to``, whole or not at all.

    Raises:
        DrafterError: a source that is not complete and sound, a layout that does not exist for
            its algorithm, or a destination in the way.
    """
    source, destination = Path(source), Path(destination)
    layout = next((known for known in LAYOUTS if known == to), None)
    if layout is None:
        raise DrafterError(f"layout {to!r} is not known: choose from {', '.join(LAYOUTS)}")
    if source.resolve() == destination.resolve():
        raise DrafterError(f"{destination}: is the source itself; choose another destination")
    weights = read_weight_files(source)
    raise_errors(source, weights.findings)
    raw = _config_to_published(read_raw_config(source), f"{source / 'config.json'}")
    config = DrafterConfig.from_dict(raw, source=str(source / "config.json"))
    if layout == "speculators" and config.algorithm != "EAGLE3":
        raise DrafterError("the speculators layout has no EDSD drafters; use --to published")
    dropped = tuple(name for name in weights.entries if name in TARGET_COPIES)
    entries = _published_entries(source, weights.entries)
    raise_errors(source, check_entries(config, entries)[1])
    if layout == "speculators":
        raw = _config_to_speculators(raw, config)
    renamed = {name: from_published(name, layout) for name in entries}
    carried = _carried(source)
    with staged_folder(destination, overwrite=overwrite) as stage:
        write_renamed(
            stage / SINGLE_NAME, [(renamed[name], entry) for name, entry in entries.items()]
        )
        (stage / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        for path in carried:
            shutil.copy2(path, stage / path.name)
    return ConvertReport(
        source=source,
        destination=destination,
        source_layout=detect_layout(weights.entries),
        layout=layout,
        tensors=tuple(sorted((entry.name, renamed[name]) for name, entry in entries.items())),
        dropped=dropped,
        carried=tuple(path.name for path in carried),
    )


def _published_entries(source: Path, entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    out: dict[str, TensorEntry] = {}
    clashes = []
    for name, entry in entries.items():
        if name in TARGET_COPIES:
            continue
        published = to_published(name)
        if published in out:
            text = f"{out[published].name} and {name} are both {published} in the published layout"
            clashes.append(Finding("error", name, text))
        out[published] = entry
    raise_errors(source, clashes)
    return out


def _carried(source: Path) -> list[Path]:
    """Small companions; weights, their index and the config are written anew."""
    return [
        path
        for path in sorted(source.iterdir())
        if path.is_file()
        and (path.suffix in _CARRIED or path.name.startswith("LICENSE"))
        and path.name != "config.json"
        and not path.name.endswith(".index.json")
    ]


def _config_to_published(raw: dict[str, Any], source: str) -> dict[str, Any]:
    """The flat config; a speculators one is unnested, any other is returned as it is."""
    architectures = raw.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    if first not in SPECULATORS_ARCHITECTURES:
        return raw
    layer = raw.get("transformer_layer_config")
    if not isinstance(layer, dict):
        raise DrafterError(
            f"{source}: a speculators config needs an object transformer_layer_config, found "
            f"{show(layer)}"
        )
    out: dict[str, Any] = {"architectures": [EAGLE3_ARCHITECTURES[0]], "model_type": "llama"}
    out |= {key: layer[key] for key in _LAYER_KEYS if layer.get(key) is not None}
    newer = layer.get("rope_parameters")
    if isinstance(newer, dict):
        rope = dict(newer)
        out.setdefault("rope_theta", rope.pop("rope_theta", 10000.0))
        if rope.get("rope_type", "default") != "default":
            out.setdefault("rope_scaling", rope)
    out |= {"num_hidden_layers": 1, "tie_word_embeddings": False}
    draft_vocab_size = raw.get("draft_vocab_size")
    out["draft_vocab_size"] = (
        layer.get("vocab_size") if draft_vocab_size is None else draft_vocab_size
    )
    for key in ("target_hidden_size", "torch_dtype", "norm_before_residual", "norm_before_fc"):
        if raw.get(key) is not None:
            out[key] = raw[key]
    numbers = raw.get("eagle_aux_hidden_state_layer_ids")
    if numbers is not None:
        # vLLM counts hidden states (captures the input of layer n), SGLang's config layers.
        if not isinstance(numbers, list) or not all(is_int(n) and n >= 1 for n in numbers):
            raise DrafterError(
                f"{source}: eagle_aux_hidden_state_layer_ids must be a list of hidden-state "
                f"numbers from 1, found {show(numbers)}"
            )
        out["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": [n - 1 for n in numbers]}
    return out


def _config_to_speculators(raw: Mapping[str, Any], config: DrafterConfig) -> dict[str, Any]:
    layer = {key: raw[key] for key in _LAYER_KEYS if raw.get(key) is not None}
    ids = config.target_layer_ids
    out: dict[str, Any] = {
        "architectures": [SPECULATORS_ARCHITECTURES[0]],
        "speculators_model_type": "eagle3",
        "draft_vocab_size": config.draft_vocab_size,
        "norm_before_residual": False,
        "target_hidden_size": raw.get("target_hidden_size"),
        "eagle_aux_hidden_state_layer_ids": (
            None if ids is None else [hidden_state_number(i) for i in ids]
        ),
        "tie_word_embeddings": False,
        "transformer_layer_config": {"model_type": "llama", **layer, "num_hidden_layers": 1},
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 4}],
            "verifier": {"name_or_path": None, "architectures": []},
        },
    }
    if raw.get("torch_dtype") is not None:
        out["torch_dtype"] = raw["torch_dtype"]
    return out
