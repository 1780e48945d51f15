"""Account for every tensor of a drafter: names, shapes and dtypes against its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sgl_entropy.base.safetensors_header import TensorEntry
from sgl_entropy.checkpoint.findings import Finding, errors_of
from sgl_entropy.drafter.config import DrafterConfig, DrafterError
from sgl_entropy.drafter.layouts import detect_layout

EMBEDDING = "embed_tokens.weight"
# Saved by old transformers, computed from rope_theta by everyone: read by nobody.
IGNORED = ("midlayer.self_attn.rotary_emb.inv_freq",)
_FLOATS = ("F32", "F16", "BF16")
_EDFUSE = "edfuse.{}_proj.weight"


def infer_fuse_size(entries: Mapping[str, TensorEntry]) -> int | None:
    """m, the width inside EDFuse: rows of gate (or of up, or columns of down); None without."""
    for part, axis in (("gate", 0), ("up", 0), ("down", 1)):
        entry = entries.get(_EDFUSE.format(part))
        if entry is not None and len(entry.shape) == 2:
            return entry.shape[axis]
    return None


def check_entries(
    config: DrafterConfig, entries: Mapping[str, TensorEntry]
) -> tuple[DrafterConfig, list[Finding]]:
    """Compare header entries with what ``config`` asks for.

    Returns:
        The config with ``fuse_size`` filled in where it could be read, and the findings.
    """
    layout = detect_layout(entries)
    if layout != "published":
        return config, [
            Finding(
                "error",
                "layout",
                f"the tensors carry the names of the {layout} layout",
                "rename them with `sgl-entropy drafter convert SRC DST`",
            )
        ]
    findings: list[Finding] = []
    expected, config = _expected(config, entries, findings)
    optional = _optional(config)
    for name, shape in expected.items():
        entry = entries.get(name)
        if entry is None:
            if name not in optional:
                text = f"missing: {name}, expected {_describe(name, shape)}"
                findings.append(Finding("error", name, text))
            continue
        if shape is not None and entry.shape != shape:
            text = f"{name}: expected shape {list(shape)}, found {list(entry.shape)}"
            text += _shape_hint(config, name, entry.shape)
            findings.append(Finding("error", name, text))
        if entry.dtype not in _dtypes(name):
            text = f"{name}: expected {' or '.join(_dtypes(name))}, found {entry.dtype}"
            findings.append(Finding("error", name, text))
    for name in sorted(entries.keys() - expected.keys() - set(IGNORED)):
        entry = entries[name]
        text = f"unexpected: {name}, {entry.dtype} {list(entry.shape)}"
        findings.append(Finding("error", name, text))
    if errors_of(findings):
        findings += _other_algorithm(config, entries)
    else:
        count = len(entries)
        findings.append(Finding("ok", "tensors", f"{count} tensors, every one accounted for"))
    return config, findings


def _expected(
    config: DrafterConfig, entries: Mapping[str, TensorEntry], findings: list[Finding]
) -> tuple[dict[str, tuple[int, ...] | None], DrafterConfig]:
    """Names with shapes; None for a shape that cannot be known."""
    unknown_fuse = False
    if config.algorithm == "EDSD":
        inferred = infer_fuse_size(entries)
        if config.fuse_size is not None and inferred not in (None, config.fuse_size):
            text = (
                f"config says edfuse_intermediate_size {config.fuse_size}, the weights {inferred}"
            )
            findings.append(Finding("error", "edfuse", text))
        elif config.fuse_size is None:
            try:
                unknown_fuse = inferred is None
                config = replace(config, fuse_size=inferred or 1)
                if inferred == 0:
                    raise DrafterError("the EDFuse size must be positive, found 0")
            except DrafterError as error:
                findings.append(Finding("error", "edfuse", str(error)))
                unknown_fuse = True
                config = replace(config, fuse_size=1)
    shapes: dict[str, tuple[int, ...] | None] = dict(config.tensor_shapes())
    if unknown_fuse:
        for part in ("gate", "up", "down"):
            shapes[_EDFUSE.format(part)] = None
        config = replace(config, fuse_size=None)
    if EMBEDDING in entries or config.target_hidden_size != config.hidden_size:
        # With another width than the target's, its embedding cannot be shared (SGLang's rule).
        shapes[EMBEDDING] = (config.vocab_size, config.hidden_size)
    return shapes, config


def _optional(config: DrafterConfig) -> set[str]:
    if config.draft_vocab_size == config.vocab_size:
        return {"t2d", "d2t"}  # the whole vocabulary needs no map
    return {"t2d"}  # follows from d2t


def _dtypes(name: str) -> tuple[str, ...]:
    return {"t2d": ("BOOL",), "d2t": ("I64",)}.get(name, _FLOATS)


def _describe(name: str, shape: tuple[int, ...] | None) -> str:
    size = "with EDFuse's width" if shape is None else str(list(shape))
    return f"{'/'.join(_dtypes(name))} {size}"


def _shape_hint(config: DrafterConfig, name: str, shape: tuple[int, ...]) -> str:
    if name == "fc.weight" and len(shape) == 2 and shape[1] % config.target_hidden_size == 0:
        taps = shape[1] // config.target_hidden_size
        if taps != config.num_taps:
            named = (
                "SGLang's three default layers are tapped"
                if config.target_layer_ids is None
                else f"the config taps {config.num_taps} ({list(config.target_layer_ids)})"
            )
            return f": fc takes {taps} layers of width {config.target_hidden_size}, but {named}"
    return ""


def _other_algorithm(config: DrafterConfig, entries: Mapping[str, TensorEntry]) -> list[Finding]:
    has_fuse = any(name.startswith("edfuse.") for name in entries)
    has_input_norm = "midlayer.input_layernorm.weight" in entries
    if config.algorithm == "EAGLE3" and has_fuse:
        text = "these are an EDSD drafter's tensors under an EAGLE-3 config"
        fix = 'set architectures to ["EdsdDraftModel"] and name its target_layer_ids'
        return [Finding("error", "algorithm", text, fix)]
    if config.algorithm == "EDSD" and has_input_norm and not has_fuse:
        text = "these are an EAGLE-3 drafter's tensors under an EDSD config"
        return [
            Finding("error", "algorithm", text, 'set architectures to ["LlamaForCausalLMEagle3"]')
        ]
    return []
