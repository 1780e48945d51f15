"""The drafters' shape: one checked object, read from the settings file's ``drafter`` section."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from sgl_entropy.drafter.config import Algorithm, default_eagle3_layer_ids
from sgl_entropy.select.selection_report import read_choice
from sgl_entropy.train.settings.checks import no_taps, out_of_range


@dataclass(frozen=True)
class DrafterSettings:
    """The drafters' shape.

    Attributes:
        algorithms: the drafters whose layers are stored (or computed online): EDSD, EAGLE3 or both,
            to compare them on the same store. EDSD alone needs three fifths of the space of both.
        edsd_layers: the target's layers that EDSD taps, counted from 0 and rising; the last layer
            cannot be tapped. Two, or another number for comparison.
        eagle3_layers: the layers that EAGLE-3 taps; empty = SGLang's default three.
        select_report: a report of `sgl-entropy select`, whose two layers replace edsd_layers.
        fuse_size: m of EDFuse; 0 = the target's FFN size.
        fuse_residual: EDSD adds the fused features to EDFuse's output (ours; higher acceptance
            length wherever it was tried).
        fuse_norm: EDFuse normalises the token embedding (the paper).
        fuse_tokens: EDSD's attention reads the token's embedding beside the fused state (ours).
        draft_vocab_size: tokens a drafter can propose.
        prompt_weight: how much the prompts weigh against the answers, as a whole, when the draft
            vocabulary is chosen.
    """

    algorithms: tuple[str, ...] = get_args(Algorithm)
    edsd_layers: tuple[int, ...] = (14, 27)
    eagle3_layers: tuple[int, ...] = ()
    select_report: str = ""
    fuse_size: int = 0
    fuse_residual: bool = False
    fuse_norm: bool = True
    fuse_tokens: bool = False
    draft_vocab_size: int = 8192
    prompt_weight: float = 0.3

    def __post_init__(self) -> None:
        wrong = [
            *no_taps("drafter", "edsd_layers", self.edsd_layers, empty=False),
            *no_taps("drafter", "eagle3_layers", self.eagle3_layers, empty=True),
            *out_of_range("drafter", self, ("fuse_size", "prompt_weight"), 0),
            *out_of_range("drafter", self, ("draft_vocab_size",), 1),
        ]
        if not self.algorithms or any(name not in get_args(Algorithm) for name in self.algorithms):
            wrong.append(
                f"drafter.algorithms must list some of {list(get_args(Algorithm))}, found "
                f"{list(self.algorithms)!r}"
            )
        if wrong:
            raise ValueError("\n".join(wrong))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that EDSD taps."""
        if self.select_report:
            return read_choice(Path(self.select_report).expanduser())
        return self.edsd_layers

    def eagle3_taps(self, num_target_layers: int) -> tuple[int, ...]:
        """The layers that EAGLE-3 taps."""
        return self.eagle3_layers or default_eagle3_layer_ids(num_target_layers)

    def tap_layers(self, num_target_layers: int) -> tuple[int, ...]:
        """The layers whose outputs the drafters ``algorithms`` need."""
        wanted = {
            *(self.layers if "EDSD" in self.algorithms else ()),
            *(self.eagle3_taps(num_target_layers) if "EAGLE3" in self.algorithms else ()),
        }
        return tuple(sorted(wanted))
