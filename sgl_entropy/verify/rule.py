"""EASD's settings: one schema for the flags, the calibration file and the single request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class EasdRule:
    """When a drafted token is rejected because both models are unsure and agree.

    Defaults are ours where the paper gives none (N, the overlap); its entropy threshold is about
    2 nats for both models, set from a validation set.

    Attributes:
        target_entropy, draft_entropy: thresholds, in nats (``normalised``: shares of the most).
        top_n: N: how many of each model's most likely tokens are compared.
        overlap: least share of them that must be common.
        normalised: entropies are divided by ln of their vocabulary's size first.
        residual: a replacement is drawn from norm(max(P_t - P_d, 0)) instead of P_t without the
            rejected token.
        accepted_only: only tokens that ordinary acceptance would take are checked.
    """

    target_entropy: float = 2.0
    draft_entropy: float = 2.0
    top_n: int = 10
    overlap: float = 0.5
    normalised: bool = False
    residual: bool = False
    accepted_only: bool = False

    def __post_init__(self) -> None:
        wrong = []
        for name in ("target_entropy", "draft_entropy"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < math.inf:
                wrong.append(f"{name} must be a number from 0, found {value!r}")
            elif self.normalised and value > 1:
                wrong.append(f"{name} is a share with normalised: at most 1, found {value!r}")
        if type(self.top_n) is not int or not 1 <= self.top_n <= 1000:
            wrong.append(f"top_n must be a whole number from 1 to 1000, found {self.top_n!r}")
        if not _is_number(self.overlap) or not 0 <= self.overlap <= 1:
            wrong.append(f"overlap must be a share from 0 to 1, found {self.overlap!r}")
        for name in ("normalised", "residual", "accepted_only"):
            if type(getattr(self, name)) is not bool:
                wrong.append(f"{name} must be true or false, found {getattr(self, name)!r}")
        if wrong:
            raise ValueError("; ".join(f"easd: {line}" for line in wrong))

    def of_request(self, given: Any) -> EasdRule | None:
        """The rule of one request, from its ``custom_params["easd"]``.

        Args:
            given: False = none for this request; True or None = this rule; an object changes
                thresholds. ``top_n``, ``normalised``, ``residual`` and ``accepted_only`` are the
                server's: they shape what is computed for the whole batch.

        Raises:
            ValueError: another kind of value, an unknown key, or a value out of range.
        """
        if given is False:
            return None
        if given is True or given is None:
            return self
        if not isinstance(given, Mapping):
            raise ValueError(f"easd must be true, false or an object, found {given!r}")
        unknown = sorted(set(given) - set(PER_REQUEST), key=str)
        if unknown:
            raise ValueError(
                f"easd: unknown key {', '.join(map(str, unknown))}; a request may set "
                f"{', '.join(PER_REQUEST)}"
            )
        return replace(self, **given)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it; ``from_dict`` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> EasdRule:
        """Raises ValueError for unknown keys and values out of range."""
        unknown = sorted(set(raw) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"easd: unknown key {', '.join(unknown)}")
        return cls(**raw)


# What a single request may change.
PER_REQUEST = ("target_entropy", "draft_entropy", "overlap")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
