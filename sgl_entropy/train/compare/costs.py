"""What a training costs: seconds a chain, tokens, floating-point operations."""

from __future__ import annotations

import math
import time

from sgl_entropy.train.fit.trainer import Fit
from sgl_entropy.train.plan.counts import muon_flops, muon_matrices
from sgl_entropy.train.samples.batches import chain_count


def chain_seconds(fit: Fit, epoch: int, tries: int = 2) -> float:
    """Seconds a chain of ``epoch`` costs, the best of some optimizer steps on its largest batches.
    They are real steps: for estimates, on a training that is thrown away."""
    plan = fit.plan(epoch)
    plan.sort(key=lambda batch: -sum(chain_count(e, fit.prompt_from) for e in batch))
    best = math.inf
    for number in range(tries + 1):
        before = time.perf_counter()
        figures = fit.learn(plan[number % len(plan)], epoch, 10**6)
        if number:  # the first one makes kernels
            best = min(best, (time.perf_counter() - before) / figures[0].rows)
    return best


def answer_tokens(fit: Fit) -> int:
    """Answer tokens that are learned from in an epoch."""
    return sum(entry.length - entry.prompt_length for entry in fit.train)


def flops(fit: Fit) -> float:
    """Floating-point operations of the rows trained so far: 6 a weight and row, forward and
    backward, of the layer (fusion included) and of the head, and Muon's matmuls. Attention scores,
    ``fc`` and the target's side are left out: a few percent, the same for all schedules."""
    layer = head = 0
    for name, weight in fit.drafter.named_parameters():
        if name.startswith("lm_head."):
            head += weight.numel()
        elif weight.dim() == 2 and not name.startswith("fc."):
            layer += weight.numel()
    rows = fit.costs.values()
    muon = sum(muon_flops(shape) for shape in muon_matrices(fit.config, fit.settings))
    return fit.step * muon + 6.0 * (
        layer * sum(c["layer_rows"] for c in rows) + head * sum(c["head_rows"] for c in rows)
    )
