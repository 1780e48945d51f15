"""Read the keys of a Hugging Face ``config.json`` that somebody else wrote, trusting none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgl_entropy.base.json_file import JsonFileError, read_object
from sgl_entropy.checkpoint.errors import DrafterError


def read_raw_config(folder: str | Path) -> dict[str, Any]:
    """``config.json`` of a drafter's folder as it is.

    Raises:
        DrafterError: no such folder, no such file, or no JSON object in it.
    """
    if not Path(folder).is_dir():
        raise DrafterError(f"{folder}: no such folder; a drafter is a folder with config.json")
    try:
        return read_object(Path(folder) / "config.json")
    except JsonFileError as error:
        raise DrafterError(f"{error}; a drafter folder holds config.json") from None


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """A finite float, or an integer that fits one."""
    if isinstance(value, float):
        return math.isfinite(value)
    return is_int(value) and abs(value) < 1 << 64  # type: ignore[arg-type]


def show(value: object) -> str:
    """``repr``, cut: a broken file may hold a megabyte where a number belongs."""
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def default(raw: Mapping[str, Any], key: str, otherwise: Any) -> Any:
    """``raw[key]``; ``otherwise`` only where the key is absent or null."""
    value = raw.get(key)
    return otherwise if value is None else value


def number(raw: Mapping[str, Any], key: str, otherwise: float, source: str) -> float:
    """A finite number; ``otherwise`` where the key is absent or null."""
    value = default(raw, key, otherwise)
    if not is_number(value):
        raise DrafterError(f"{source}: {key} must be a finite number, found {show(value)}")
    return float(value)


def refuse_other_mathematics(raw: Mapping[str, Any], source: str) -> None:
    """Keys that would make the same tensors mean another drafter: never ignored."""
    layers = raw.get("num_hidden_layers", 1)
    if not is_int(layers) or layers != 1:
        raise DrafterError(f"{source}: num_hidden_layers must be 1, found {show(layers)}")
    for key in (
        "norm_before_residual",
        "norm_before_fc",
        "tie_word_embeddings",
        "bias",
        "attention_bias",
        "mlp_bias",
    ):
        if raw.get(key) not in (None, False):
            raise DrafterError(
                f"{source}: {key} is {show(raw[key])}; drafters with it compute something else "
                "and cannot be served here"
            )
    activation = default(raw, "hidden_act", "silu")
    if activation != "silu":
        raise DrafterError(f"{source}: hidden_act must be silu, found {show(activation)}")
    if raw.get("quantization_config") is not None:
        raise DrafterError(
            f"{source}: quantization_config is set; quantised drafters are not supported, "
            "use the float32, float16 or bfloat16 checkpoint"
        )
    newer = raw.get("rope_parameters")
    if isinstance(newer, Mapping):
        theta = newer.get("rope_theta")
        if theta is not None and theta != raw.get("rope_theta"):
            raise DrafterError(
                f"{source}: rope_parameters.rope_theta is {show(theta)}, a key of newer "
                "transformers that this SGLang does not read: write rope_theta (and "
                "rope_scaling) at the top level"
            )


def rope_scaling(raw: Mapping[str, Any]) -> Any:
    """``rope_scaling``, or None where it is absent or says ``default`` (plain rotary)."""
    value = raw.get("rope_scaling")
    if isinstance(value, Mapping) and value.get("rope_type", value.get("type")) == "default":
        return None
    return value


def layer_ids(raw: Mapping[str, Any], source: str) -> tuple[int, ...] | None:
    """Taps from ``target_layer_ids`` or from ``eagle_config``; both at once must agree."""
    direct = raw.get("target_layer_ids")
    eagle = raw.get("eagle_config")
    if eagle is not None and not isinstance(eagle, dict):
        raise DrafterError(f"{source}: eagle_config must be an object, found {show(eagle)}")
    nested = None if eagle is None else eagle.get("eagle_aux_hidden_state_layer_ids")
    for name, value in (
        ("target_layer_ids", direct),
        ("eagle_config.eagle_aux_hidden_state_layer_ids", nested),
    ):
        if value is not None and not isinstance(value, (list, tuple)):
            raise DrafterError(
                f"{source}: {name} must be a list of layer numbers, found {show(value)}"
            )
    if direct is not None and nested is not None and list(direct) != list(nested):
        raise DrafterError(
            f"{source}: target_layer_ids {show(direct)} and "
            f"eagle_config.eagle_aux_hidden_state_layer_ids {show(nested)} disagree"
        )
    ids = direct if direct is not None else nested
    return None if ids is None else tuple(ids)
