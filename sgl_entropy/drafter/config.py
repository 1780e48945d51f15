"""What a drafter is, read from its ``config.json``: frozen, validated, the same for everyone.

Three conventions count target layers; this module is the one place where they meet:

* ``target_layer_ids`` (checkpoints): decoder layers from 0; id ``i`` means the *output* of layer i.
* the paper's Table 15: hidden states, 0 = embedding output, so the paper's number is id + 1.
* SGLang's ``set_eagle3_layers_to_capture(ids)`` takes ``target_layer_ids`` and captures the
  *input* of layer ``id + 1``; so the highest id it can capture is ``num_target_layers - 2``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sgl_entropy.checkpoint.errors import DrafterError
from sgl_entropy.checkpoint.raw_config import (
    default,
    is_int,
    is_number,
    layer_ids,
    number,
    read_raw_config,
    refuse_other_mathematics,
    rope_scaling,
    show,
)

__all__ = [
    "Algorithm",
    "DrafterConfig",
    "DrafterError",
    "default_eagle3_layer_ids",
    "hidden_state_number",
    "highest_layer_id",
    "target_layer_id",
]

Algorithm = Literal["EDSD", "EAGLE3"]

# The published form, its name in this project's own checkpoints, and ours with options: a name of
# its own, since a reader that ignores the options would compute something else.
EDSD_ARCHITECTURES = ("EdsdDraftModel", "LlamaForCausalLMEdsd", "EdsdVariantDraftModel")
EDSD_VARIANT = EDSD_ARCHITECTURES[2]
EAGLE3_ARCHITECTURES = ("LlamaForCausalLMEagle3",)
# vLLM's speculators library: another nesting of the same EAGLE-3; ``convert`` reads it.
SPECULATORS_ARCHITECTURES = ("Eagle3Speculator", "Eagle3DraftModel")

_VARIANT_KEYS = ("edfuse_residual", "edfuse_norm", "edfuse_tokens")
_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
    "draft_vocab_size",
)

# Sizes beyond these are a broken file, not a drafter.
_MAX_SIZE = 1 << 20
_MAX_VOCAB = 1 << 24
_INTEGERS = {
    "hidden_size": _MAX_SIZE,
    "intermediate_size": _MAX_SIZE,
    "num_attention_heads": _MAX_SIZE,
    "num_key_value_heads": _MAX_SIZE,
    "head_dim": _MAX_SIZE,
    "target_hidden_size": _MAX_SIZE,
    "vocab_size": _MAX_VOCAB,
    "draft_vocab_size": _MAX_VOCAB,
    "max_position_embeddings": _MAX_VOCAB,
}


def hidden_state_number(target_layer_id: int) -> int:
    """The paper's number (Table 15: 0 = embedding output) of a ``target_layer_ids`` entry."""
    return target_layer_id + 1


def target_layer_id(hidden_state: int) -> int:
    """The ``target_layer_ids`` entry of the paper's hidden-state number (at least 1)."""
    if hidden_state < 1:
        raise ValueError(f"hidden state {hidden_state} is the embedding output, not a layer's")
    return hidden_state - 1


def default_eagle3_layer_ids(num_target_layers: int) -> tuple[int, int, int]:
    """EAGLE-3's low, middle and high taps as ``target_layer_ids`` (SGLang's default picks).

    SGLang captures the inputs of layers 2, n // 2 and n - 3, that is the outputs of the
    layers before them.
    """
    return (1, num_target_layers // 2 - 1, num_target_layers - 4)


def highest_layer_id(num_target_layers: int) -> int:
    """The highest ``target_layer_ids`` entry that a server can serve: SGLang captures the input of
    the layer after it, so the last layer's output is out of reach."""
    return num_target_layers - 2


@dataclass(frozen=True)
class DrafterConfig:
    """The sizes and conventions of one drafter checkpoint.

    Source of the keys: the authors' published checkpoints and SGLang's EAGLE-3 ones.

    Attributes:
        algorithm: the ``--speculative-algorithm`` that serves it.
        hidden_size: d, the drafter's width.
        intermediate_size: the drafter's own MLP width.
        fuse_size: m, the width inside EDFuse (EDSD alone; None for EAGLE-3). Not in the published
            config: it is read from the weights, see ``checkpoint.read_config``.
        target_layer_ids: tapped decoder layers counted from 0; None = SGLang's three defaults.
        target_hidden_size: width of one tap.
        rope_scaling: the Hugging Face ``rope_scaling`` object as it is; None = plain rotary.
        fuse_residual: EDSD with z + f instead of z (ours).
        fuse_norm: False = EDSD without the norm on token embeddings (the paper's ablation).
        fuse_tokens: EDSD whose queries, keys and values also see what EDFuse takes of the token
            embedding, beside the normed z: 2d wide, as EAGLE-3's (ours).
    """

    algorithm: Algorithm
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    draft_vocab_size: int
    target_hidden_size: int
    target_layer_ids: tuple[int, ...] | None
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    fuse_size: int | None = None
    rope_scaling: Mapping[str, Any] | None = field(default=None, hash=False)
    fuse_residual: bool = False
    fuse_norm: bool = True
    fuse_tokens: bool = False

    def __post_init__(self) -> None:
        # Values are compared only where their types are right.
        for problems in (self._wrong_types, self._wrong_values):
            if wrong := list(problems()):
                raise DrafterError("\n".join(wrong))

    def _wrong_types(self) -> Iterator[str]:
        if self.algorithm not in ("EDSD", "EAGLE3"):
            yield f"algorithm {self.algorithm!r} is neither EDSD nor EAGLE3"
        for name, most in _INTEGERS.items():
            value = getattr(self, name)
            if not is_int(value) or not 1 <= value <= most:
                yield f"{name} must be an integer in 1..{most}, found {show(value)}"
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if not is_number(value):
                yield f"{name} must be a finite number, found {show(value)}"
        scaling: object = self.rope_scaling
        if scaling is not None and not isinstance(scaling, Mapping):
            yield f"rope_scaling must be an object or null, found {show(scaling)}"

    def _wrong_values(self) -> Iterator[str]:
        if self.num_attention_heads % self.num_key_value_heads:
            yield (
                f"num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            yield f"head_dim must be even for rotary embeddings, found {self.head_dim}"
        if self.draft_vocab_size > self.vocab_size:
            yield f"draft_vocab_size {self.draft_vocab_size} exceeds vocab_size {self.vocab_size}"
        fuse = self.fuse_size
        if fuse is not None and (not is_int(fuse) or not 1 <= fuse <= _MAX_SIZE):
            yield f"the EDFuse size must be in 1..{_MAX_SIZE}, found {show(fuse)}"
        if not 0.0 < self.rms_norm_eps < 1.0:
            yield f"rms_norm_eps must lie in (0, 1), found {self.rms_norm_eps!r}"
        if not self.rope_theta > 0.0:
            yield f"rope_theta must be positive, found {self.rope_theta!r}"
        ids = self.target_layer_ids
        if ids is not None:
            if not ids or any(not is_int(i) or not 0 <= i < _MAX_SIZE for i in ids):
                yield f"target_layer_ids must be layer numbers from 0, found {show(list(ids))}"
            elif list(ids) != sorted(set(ids)):
                yield f"target_layer_ids must rise without repeats, found {list(ids)!r}"
        for name in ("fuse_residual", "fuse_norm", "fuse_tokens"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                yield f"edfuse_{name[5:]} must be true or false, found {show(value)}"
        if self.algorithm != "EDSD" and self.is_variant:
            yield f"{', '.join(_VARIANT_KEYS)} are options of EDSD alone"
        if self.algorithm == "EDSD" and ids is None:
            yield "an EDSD drafter needs target_layer_ids in its config.json"

    @property
    def is_variant(self) -> bool:
        """Whether it computes something else than the published form."""
        return self.fuse_residual or not self.fuse_norm or self.fuse_tokens

    @property
    def attention_width(self) -> int:
        """Columns of the query, key and value projections."""
        return self.hidden_size * (1 if self.algorithm == "EDSD" and not self.fuse_tokens else 2)

    @property
    def num_taps(self) -> int:
        """How many target layers feed ``fc``."""
        return 3 if self.target_layer_ids is None else len(self.target_layer_ids)

    @property
    def tap_width(self) -> int:
        """Columns of ``fc``: taps times the target's width."""
        return self.num_taps * self.target_hidden_size

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, source: str = "config.json") -> DrafterConfig:
        """Read a Hugging Face style config. Keys that are not the drafter's are ignored.

        Raises:
            DrafterError: missing keys, an unknown architecture or impossible sizes, all listed.
        """
        architecture, algorithm = _architecture(raw, source)
        missing = [key for key in _REQUIRED if raw.get(key) is None]
        if missing:
            raise DrafterError(f"{source}: missing keys: {', '.join(missing)}")
        refuse_other_mathematics(raw, source)
        variant = _variant(raw, architecture, source)
        heads, hidden = raw["num_attention_heads"], raw["hidden_size"]
        head_dim = raw.get("head_dim")
        if head_dim is None and is_int(heads) and is_int(hidden) and heads > 0:
            head_dim = hidden // heads
        try:
            return cls(
                algorithm=algorithm,
                hidden_size=hidden,
                intermediate_size=raw["intermediate_size"],
                num_attention_heads=heads,
                num_key_value_heads=default(raw, "num_key_value_heads", heads),
                head_dim=head_dim,  # type: ignore[arg-type]
                vocab_size=raw["vocab_size"],
                draft_vocab_size=raw["draft_vocab_size"],
                target_hidden_size=default(raw, "target_hidden_size", hidden),
                target_layer_ids=layer_ids(raw, source),
                rms_norm_eps=number(raw, "rms_norm_eps", 1e-6, source),
                rope_theta=number(raw, "rope_theta", 10000.0, source),
                max_position_embeddings=default(raw, "max_position_embeddings", 2048),
                fuse_size=raw.get("edfuse_intermediate_size"),
                rope_scaling=rope_scaling(raw),
                **variant,
            )
        except DrafterError as error:
            raise DrafterError(
                "\n".join(f"{source}: {line}" for line in str(error).splitlines())
            ) from None

    @classmethod
    def from_folder(cls, folder: str | Path) -> DrafterConfig:
        """Read ``config.json`` of a checkpoint folder."""
        return cls.from_dict(read_raw_config(folder), source=str(Path(folder) / "config.json"))

    def to_dict(self, *, torch_dtype: str = "bfloat16") -> dict[str, Any]:
        """The published ``config.json`` layout of this drafter."""
        out: dict[str, Any] = {
            "architectures": [
                EDSD_ARCHITECTURES[0] if self.algorithm == "EDSD" else EAGLE3_ARCHITECTURES[0]
            ],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "num_hidden_layers": 1,
            "hidden_act": "silu",
            "vocab_size": self.vocab_size,
            "draft_vocab_size": self.draft_vocab_size,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": False,
            "torch_dtype": torch_dtype,
        }
        if self.is_variant:
            out["architectures"] = [EDSD_VARIANT]
            out |= {
                "edfuse_residual": self.fuse_residual,
                "edfuse_norm": self.fuse_norm,
                "edfuse_tokens": self.fuse_tokens,
            }
        if self.rope_scaling is not None:
            out["rope_scaling"] = dict(self.rope_scaling)
        if self.target_hidden_size != self.hidden_size:
            out["target_hidden_size"] = self.target_hidden_size
        if self.target_layer_ids is not None:
            if self.algorithm == "EDSD":
                out["target_layer_ids"] = list(self.target_layer_ids)
            else:
                out["eagle_config"] = {
                    "eagle_aux_hidden_state_layer_ids": list(self.target_layer_ids)
                }
        return out

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the published state dict with its shape.

        Raises:
            DrafterError: an EDSD config whose ``fuse_size`` is not known yet.
        """
        d, inner = self.hidden_size, self.intermediate_size
        q = self.num_attention_heads * self.head_dim
        kv = self.num_key_value_heads * self.head_dim
        attn_in = self.attention_width
        shapes: dict[str, tuple[int, ...]] = {
            "fc.weight": (d, self.tap_width),
            "midlayer.self_attn.q_proj.weight": (q, attn_in),
            "midlayer.self_attn.k_proj.weight": (kv, attn_in),
            "midlayer.self_attn.v_proj.weight": (kv, attn_in),
            "midlayer.self_attn.o_proj.weight": (d, q),
            "midlayer.hidden_norm.weight": (d,),
            "midlayer.post_attention_layernorm.weight": (d,),
            "midlayer.mlp.gate_proj.weight": (inner, d),
            "midlayer.mlp.up_proj.weight": (inner, d),
            "midlayer.mlp.down_proj.weight": (d, inner),
            "norm.weight": (d,),
            "lm_head.weight": (self.draft_vocab_size, d),
            "t2d": (self.vocab_size,),
            "d2t": (self.draft_vocab_size,),
        }
        if self.algorithm == "EAGLE3":
            shapes["midlayer.input_layernorm.weight"] = (d,)
            return shapes
        if self.fuse_size is None:
            raise DrafterError("the EDFuse size is not known: read it from the weights")
        shapes |= {
            "edfuse.gate_proj.weight": (self.fuse_size, d),
            "edfuse.up_proj.weight": (self.fuse_size, d),
            "edfuse.down_proj.weight": (d, self.fuse_size),
        }
        if self.fuse_norm:
            shapes["embnorm.weight"] = (d,)
        return shapes


def _architecture(raw: Mapping[str, Any], source: str) -> tuple[str, Algorithm]:
    """The architecture's name, and the algorithm that serves it."""
    names = raw.get("architectures")
    first = names[0] if isinstance(names, list) and names else None
    if first in EDSD_ARCHITECTURES:
        return first, "EDSD"
    if first in EAGLE3_ARCHITECTURES:
        return first, "EAGLE3"
    known = ", ".join((*EDSD_ARCHITECTURES[:1], *EAGLE3_ARCHITECTURES))
    hint = ""
    if first in SPECULATORS_ARCHITECTURES:
        hint = "; this is the vLLM speculators layout: run `sgl-entropy drafter convert`"
    raise DrafterError(
        f"{source}: architectures {show(names)} is no drafter known here (known: {known}){hint}"
    )


def _variant(raw: Mapping[str, Any], architecture: str, source: str) -> dict[str, Any]:
    """Our options of EDSD, under their names in :class:`DrafterConfig`."""
    given = {key: raw[key] for key in _VARIANT_KEYS if key in raw}
    if architecture != EDSD_VARIANT:
        if given:
            raise DrafterError(
                f"{source}: {', '.join(given)} belong to the architecture {EDSD_VARIANT}, "
                f"found {architecture}"
            )
        return {}
    if len(given) != len(_VARIANT_KEYS):
        raise DrafterError(f"{source}: {EDSD_VARIANT} needs {', '.join(_VARIANT_KEYS)}")
    return {key.removeprefix("ed"): value for key, value in given.items()}
