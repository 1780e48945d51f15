"""EASD's rule as pure functions of tensors, and the plain walk along a chain.

EASD (eq. numbers as in the paper's second version): a drafted token x is rejected, although
ordinary acceptance might take it, where target and drafter are both uncertain and agree:

    H(P_t) > tau_t  and  H(P_d) > tau_d  and  |topN(P_t) & topN(P_d)| / N >= tau_o

The next token is then drawn from P_t without x, and the rest of the draft is dropped. Entropies
are those of raw logits at temperature 1, also when decoding greedily (ours: at temperature 0
every entropy is 0 and nothing would ever fire).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sgl_entropy.entropy import shannon_entropy
from sgl_entropy.verify.rule import EasdRule


@dataclass(frozen=True)
class Uncertainty:
    """What EASD compares of one model at some positions.

    Attributes:
        entropy: float32 [...], nats, or a share of ln(vocabulary) under ``normalised``.
        top_ids: int64 [..., N], the most likely tokens, as ids of the target; -1 = none.
    """

    entropy: Tensor
    top_ids: Tensor

    def at(self, index: Tensor) -> Uncertainty:
        """Those of some positions of the first dimension."""
        return Uncertainty(self.entropy[index], self.top_ids[index])


def uncertainty(logits: Tensor, rule: EasdRule, d2t: Tensor | None = None) -> Uncertainty:
    """Entropy and most likely tokens of raw logits.

    Args:
        logits: [..., vocab], before temperature, penalties and masks.
        d2t: int64 [draft vocab]: the logits are over a draft vocabulary, and id + d2t[id] is the
            target's id.
    """
    ids = likeliest(logits, rule.top_n)
    if d2t is not None:
        ids = torch.where(ids >= 0, ids + d2t[ids.clamp_min(0)], ids)
    return Uncertainty(compared(shannon_entropy(logits), logits.shape[-1], rule), ids)


def compared(nats: Tensor, vocab: int, rule: EasdRule) -> Tensor:
    """Entropies as the rule compares them: nats, or shares of ln(vocab) under ``normalised``."""
    return nats / math.log(max(2, vocab)) if rule.normalised else nats


def likeliest(logits: Tensor, count: int) -> Tensor:
    """int64 [..., count], the most likely tokens of logits [..., vocab]; -1 = there are no more."""
    vocab = logits.shape[-1]
    ids = logits.topk(min(count, vocab), dim=-1).indices
    if count > vocab:
        ids = torch.nn.functional.pad(ids, (0, count - vocab), value=-1)
    return ids


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Share of ids in common: two sets int64 [..., N] without repetition, -1 = none -> [...]."""
    common = (a.unsqueeze(-1) == b.unsqueeze(-2)) & (a.unsqueeze(-1) >= 0)
    return common.sum((-1, -2)).float() / a.shape[-1]


@dataclass(frozen=True)
class Thresholds:
    """Each request's thresholds, float32 [...] beside the positions; inf = it never fires."""

    target_entropy: Tensor
    draft_entropy: Tensor
    overlap: Tensor

    @classmethod
    def of(cls, rules: list[EasdRule | None]) -> Thresholds:
        """One entry a request; None = EASD is off for it."""

        def column(name: str) -> Tensor:
            return torch.tensor(
                [math.inf if rule is None else getattr(rule, name) for rule in rules],
                dtype=torch.float32,
            )

        return cls(column("target_entropy"), column("draft_entropy"), column("overlap"))

    def at(self, index: Tensor) -> Thresholds:
        """One entry a position, from each position's request."""
        return Thresholds(
            self.target_entropy[index], self.draft_entropy[index], self.overlap[index]
        )


def fires(target: Uncertainty, draft: Uncertainty, limits: Thresholds) -> Tensor:
    """The three conditions at each position: bool [...]. NaN entropies never fire."""
    return (
        (target.entropy > limits.target_entropy)
        & (draft.entropy > limits.draft_entropy)
        & (overlap(target.top_ids, draft.top_ids) >= limits.overlap)
    )


def without(probs: Tensor, token: Tensor, draft: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The distribution from which a rejected token's replacement is drawn.

    Args:
        probs: [n, vocab], the target's, as the request samples from it (temperature, filters,
            grammar); greedy: of raw logits, the replacement is its mode.
        token: int64 [n], the rejected one.
        draft: [n, vocab] of the drafter: norm(max(P_t - P_d, 0)) instead, without the token too.

    Returns:
        ([n, vocab], bool [n] whether anything is left). Where nothing is, as under a grammar that
        allows the token alone, ``probs`` stays as it is: a token without alternative is kept.
    """
    left = probs if draft is None else (probs - draft).clamp_min(0)
    left = left.scatter(-1, token.unsqueeze(-1), 0.0)
    total = left.sum(-1, keepdim=True)
    if draft is not None:
        # The drafter may be above the target wherever something is allowed.
        plain = probs.scatter(-1, token.unsqueeze(-1), 0.0)
        left = torch.where(total > 0, left, plain)
        total = left.sum(-1, keepdim=True)
    some = total > 0
    return torch.where(some, left / total.clamp_min(1e-38), probs), some.squeeze(-1)


@dataclass(frozen=True)
class Walk:
    """How one chain was verified.

    Attributes:
        tokens: emitted: the accepted drafts and one of the target's own.
        checked: positions at which the rule was evaluated.
        fired: the position at which it fired; None = nowhere.
    """

    tokens: list[int]
    checked: int
    fired: int | None

    @property
    def accepted(self) -> int:
        return len(self.tokens) - 1


def verify_chain(
    raw: Tensor,
    probs: Tensor,
    drafted: Tensor,
    draft: Uncertainty,
    rule: EasdRule | None,
    coins: Tensor | None = None,
    draft_probs: Tensor | None = None,
) -> Walk:
    """Verify one drafted chain: the reference that engines are compared with.

    At each position the target draws its token, and a drafted token is kept where it equals that
    draw, which samples exactly (the drafter proposes one token: a point mass). A fired position
    ends the walk. Its token is drawn from ``without``, with a coin of its own; but where the draw
    is another token than the drafted one, it is a draw of P_t without that token already, and
    is kept, unless the residual is asked for.

    Args:
        raw: [k + 1, vocab], the target's raw logits at the root and after each drafted token.
        probs: [k + 1, vocab], what the request samples from there.
        drafted: int64 [k].
        draft: the drafter's at the k positions that the drafted tokens were chosen at.
        rule: None = ordinary verification.
        coins: [2, k + 1] in [0, 1), by inversion: of the draws and of what replaces fired ones;
            None = greedy: the mode of ``probs``.
        draft_probs: [k, vocab] over the target's vocabulary; for ``rule.residual``.
    """
    tokens: list[int] = []
    checked = 0
    target = None if rule is None else uncertainty(raw, rule)
    for at in range(len(raw)):
        choice = _draw(probs[at], None if coins is None else coins[0, at])
        if at == len(drafted):
            return Walk([*tokens, choice], checked, None)
        token = int(drafted[at])
        if rule is not None and target is not None and (choice == token or not rule.accepted_only):
            checked += 1
            here = torch.tensor([at])
            limits = Thresholds.of([rule])
            if bool(fires(target.at(here), draft.at(here), limits)):
                if choice != token and not rule.residual:
                    return Walk([*tokens, choice], checked, at)
                beside = (
                    draft_probs[at : at + 1] if rule.residual and draft_probs is not None else None
                )
                left, some = without(probs[at : at + 1], drafted[at : at + 1], beside)
                if bool(some):
                    other = _draw(left[0], None if coins is None else coins[1, at])
                    return Walk([*tokens, other], checked, at)
        tokens.append(choice)
        if choice != token:
            return Walk(tokens, checked, None)
    raise AssertionError("the loop returns at the last position")


def _draw(probs: Tensor, coin: Tensor | None) -> int:
    if coin is None:
        return int(probs.argmax())
    edges = probs.double().cumsum(-1)
    at = int(torch.searchsorted(edges, coin.double() * edges[-1], right=True))
    # A coin at the very end must not fall on a token of no probability.
    return min(at, int(probs.nonzero()[-1]))
