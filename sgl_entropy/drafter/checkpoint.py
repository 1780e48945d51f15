"""Drafter checkpoints: read, verify, write. Safetensors only; nothing is ever unpickled.

``verify_headers`` is what a server runs before it allocates anything: it reads the config and
the safetensors headers, a few KB, and imports neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sgl_entropy.checkpoint.files import SINGLE_NAME, WeightFiles, read_weight_files
from sgl_entropy.checkpoint.findings import Finding, raise_errors
from sgl_entropy.checkpoint.staging import staged_folder
from sgl_entropy.drafter.config import DrafterConfig, DrafterError
from sgl_entropy.drafter.headers import EMBEDDING, IGNORED, check_entries, infer_fuse_size
from sgl_entropy.drafter.values import complete_vocabulary_maps, validate_values

if TYPE_CHECKING:
    import torch

__all__ = [
    "inspect_checkpoint",
    "inspect_values",
    "load_tensors",
    "read_config",
    "save",
    "validate_values",
    "verify_headers",
]

_SAVE_DTYPES = ("float32", "float16", "bfloat16")


def read_config(folder: str | Path) -> DrafterConfig:
    """The drafter's config, with EDFuse's width m read from the weights' header.

    Raises:
        DrafterError: a bad config; for EDSD also weight files without EDFuse's tensors.
    """
    config = DrafterConfig.from_folder(folder)
    if config.algorithm != "EDSD":
        return config
    weights = read_weight_files(Path(folder))
    raise_errors(folder, weights.findings)
    fuse_size = infer_fuse_size(weights.entries)
    if fuse_size is None:
        raise DrafterError(
            f"{folder}: no edfuse.gate_proj.weight in the weights; an EDSD drafter has one, and "
            "EDFuse's width is read from it"
        )
    return replace(config, fuse_size=fuse_size)


def inspect_checkpoint(folder: str | Path) -> list[Finding]:
    """Account for every tensor of a checkpoint, from its headers alone.

    Returns:
        Problems of the config, the weight files and the tensors together; one ``ok`` finding if
        there is none. A checkpoint without ``error`` findings can be served.
    """
    return _inspect(Path(folder))[2]


def verify_headers(folder: str | Path) -> DrafterConfig:
    """The config of a checkpoint whose every tensor is in place.

    Raises:
        DrafterError: one message with everything that ``inspect_checkpoint`` found.
    """
    config, _, findings = _inspect(Path(folder))
    raise_errors(folder, findings)
    assert config is not None, "a config that cannot be read is an error finding"
    return config


def _inspect(folder: Path) -> tuple[DrafterConfig | None, WeightFiles, list[Finding]]:
    weights = read_weight_files(folder)
    findings = list(weights.findings)
    config: DrafterConfig | None = None
    if folder.is_dir():  # without one, one message is enough
        try:
            config = DrafterConfig.from_folder(folder)
        except DrafterError as error:
            findings += [Finding("error", "config", line) for line in str(error).splitlines()]
    # A broken shard would make its tensors look missing: name the shard, not its tensors.
    if config is not None and weights.entries and not weights.findings:
        config, more = check_entries(config, weights.entries)
        findings += more
    return config, weights, findings


def load_tensors(
    folder: str | Path, *, device: str = "cpu"
) -> tuple[DrafterConfig, dict[str, torch.Tensor]]:
    """Load a checkpoint after every check.

    Returns:
        The config (with ``fuse_size``) and the tensors of ``config.tensor_shapes()``, in their
        stored dtypes. ``d2t`` and ``t2d`` are always there: what a checkpoint may leave out is
        derived. ``embed_tokens.weight`` [V, d] only where the target's embedding cannot be
        shared, that is ``target_hidden_size != hidden_size``.

    Raises:
        DrafterError: one message with everything that is wrong.
    """
    config, tensors = _load_unchecked(Path(folder), device)
    raise_errors(folder, validate_values(config, tensors))
    return config, complete_vocabulary_maps(config, tensors)


def inspect_values(folder: str | Path) -> list[Finding]:
    """``validate_values`` of a checkpoint whose headers are in order (else ``DrafterError``)."""
    return validate_values(*_load_unchecked(Path(folder), "cpu"))


def _load_unchecked(folder: Path, device: str) -> tuple[DrafterConfig, dict[str, torch.Tensor]]:
    """The tensors that are used, with headers verified and values not yet."""
    from safetensors import safe_open

    config, weights, findings = _inspect(folder)
    raise_errors(folder, findings)
    assert config is not None, "a config that cannot be read is an error finding"
    tensors: dict[str, torch.Tensor] = {}
    for path in weights.files:
        with safe_open(str(path), framework="pt", device=device) as file:
            for name in file.keys():  # noqa: SIM118  (no iterator of its own)
                tensors[name] = file.get_tensor(name)
    for name in IGNORED:
        tensors.pop(name, None)
    if config.target_hidden_size == config.hidden_size:
        tensors.pop(EMBEDDING, None)  # the target's own is used
    return config, tensors


def save(
    folder: str | Path,
    config: DrafterConfig,
    tensors: Mapping[str, torch.Tensor],
    dtype: str = "bfloat16",
    *,
    overwrite: bool = False,
    extra_files: Mapping[str, str] | None = None,
) -> Path:
    """Write a checkpoint in the published layout: all of it, or nothing.

    Args:
        tensors: by published name; ``t2d`` may be left out.
        dtype: of the floating-point tensors: float32, float16 or bfloat16.
        overwrite: replace a checkpoint that is already in ``folder`` (its other files stay).
        extra_files: texts to write beside it, such as a model card, by plain file name.

    Raises:
        DrafterError: tensors that do not fit the config, values that the dtype cannot hold, a
            folder in the way, or a disk that is full; nothing has been changed then.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if dtype not in _SAVE_DTYPES:
        raise DrafterError(f"dtype {dtype!r}: expected one of {', '.join(_SAVE_DTYPES)}")
    folder = Path(folder)
    kind: torch.dtype = getattr(torch, dtype)
    # Clones: the file format refuses tensors that share memory.
    cast = {
        name: (t.detach().to(kind) if t.is_floating_point() else t.detach())
        .to("cpu")
        .contiguous()
        .clone()
        for name, t in tensors.items()
    }
    wrong = [
        Finding("error", name, f"{name}: expected {list(shape)}, found {_shape(cast.get(name))}")
        for name, shape in config.tensor_shapes().items()
        if _shape(cast.get(name)) != list(shape) and not (name == "t2d" and name not in cast)
    ]
    unknown = cast.keys() - config.tensor_shapes().keys() - {EMBEDDING}
    wrong += [Finding("error", name, f"{name}: unexpected") for name in sorted(unknown)]
    raise_errors(f"not saved to {folder}", wrong or validate_values(config, cast))
    cast = complete_vocabulary_maps(config, cast)
    with staged_folder(folder, overwrite=overwrite) as stage:
        try:
            save_file(cast, str(stage / SINGLE_NAME), metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk arrives as this, not as an OSError
            raise DrafterError(f"{folder}: cannot be written: {error}") from None
        text = json.dumps(config.to_dict(torch_dtype=dtype), indent=2)
        (stage / "config.json").write_text(text + "\n", encoding="utf-8")
        for name, content in (extra_files or {}).items():
            (stage / Path(name).name).write_text(content, encoding="utf-8")
    return folder


def _shape(tensor: torch.Tensor | None) -> list[int] | None:
    return None if tensor is None else list(tensor.shape)
