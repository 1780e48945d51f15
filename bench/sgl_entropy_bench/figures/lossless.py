"""Greedy output with every drafter, token for token that of the target alone.

The same prompts' token ids go to transformers' generate (a process of its own, since this
package does not import torch) and to every arm, at batch 1 and at batch 8 with the benchmarks'
lengths mixed. Where two sequences differ, the target's two best tokens there are asked for: a
gap near zero is a tie that rounding decided, a wide one is a bug.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sgl_entropy.base.progress import Progress
from sgl_entropy.base.tables import markdown_table
from sgl_entropy_bench.demo import first_difference
from sgl_entropy_bench.figures.figure_plan import (
    BenchPrompt,
    FigurePlan,
    Records,
    benchmark_prompts,
    in_parallel,
)
from sgl_entropy_bench.http.client import Client
from sgl_entropy_bench.server.arms import ServeArm

BATCHES = (1, 8)
TOKENS_PER_S_GUESS = 25.0
REFERENCE = "transformers"


@dataclass(frozen=True)
class SequenceDifference:
    """A prompt whose sequence is not the reference's, from token ``position`` on.

    Attributes:
        top2_gap: in log-probability between the target's two best tokens there.
    """

    prompt: str
    position: int
    top2_gap: float | None = None


@dataclass(frozen=True)
class LosslessRun:
    """One arm at one batch size: prompts with the sequence of the reference, of transformers."""

    equal: int
    equal_to_transformers: int
    differences: Sequence[SequenceDifference]


@dataclass(frozen=True)
class LosslessFigure:
    """The whole figure, by run; ``reference``: the run that the others are compared with."""

    prompts: int
    max_new_tokens: int
    dtype: str
    reference: str
    tokens: int
    runs: Mapping[str, LosslessRun]


def measure(plan: FigurePlan) -> tuple[LosslessFigure, str]:
    """Returns the figure and its page."""
    per_benchmark, limit = (2, 32) if plan.quick else (20, 128)
    prompts = benchmark_prompts(plan.prompts, per_benchmark)
    arms = [
        *plan.arms(),
        ServeArm("edsd-tree", "EDSD", plan.edsd, steps=4, topk=3, draft_tokens=12),
    ]
    ids = reference(plan, prompts, limit, tokens_only=True)
    runs: dict[str, dict[str, list[int]]] = {}
    for index, arm in enumerate(arms):
        for batch, records in run_arm(plan, arm, ids, limit, f"{index + 1}/{len(arms)}").items():
            runs[f"{arm.name} batch {batch}"] = {
                name: records.rows[name]["output_ids"] for name in ids
            }
    runs[REFERENCE] = reference(plan, prompts, limit, tokens_only=False)
    base = f"none batch {BATCHES[0]}"
    unequal = {name: differences(runs[base], run) for name, run in runs.items() if name != base}
    if any(unequal.values()):
        unequal = explain(plan, ids, runs[base], unequal)
    figure = LosslessFigure(
        len(prompts),
        limit,
        plan.engine.dtype,
        base,
        sum(map(len, runs[base].values())),
        {
            name: LosslessRun(
                len(prompts) - len(differences(runs[base], run)),
                len(prompts) - len(differences(runs[REFERENCE], run)),
                unequal.get(name, []),
            )
            for name, run in runs.items()
        },
    )
    return figure, page(figure)


def run_arm(
    plan: FigurePlan, arm: ServeArm, ids: Mapping[str, Sequence[int]], limit: int, label: str
) -> dict[int, Records]:
    """Everything that is still missing of one arm, at each batch size; one server for all."""
    key = plan.arm_key(arm)
    stores = {
        batch: Records(plan.work / "lossless" / f"{arm.name}-{key}-{limit}-b{batch}.jsonl")
        for batch in BATCHES
    }
    todo = {batch: store.missing(ids) for batch, store in stores.items()}
    total = sum(map(len, todo.values()))
    if not total:
        return stores
    progress = Progress(30 + sum(len(todo[b]) * limit / TOKENS_PER_S_GUESS / b**0.6 for b in todo))
    progress.step(f"lossless: {arm.name} ({label}): starting the server", 0.0)
    finished = 0
    with plan.server(arm).start() as server:
        for batch, names in todo.items():
            # Mixed lengths: neighbours in the list are of different benchmarks, and shuffled.
            order = list(names)
            random.Random(batch).shuffle(order)
            server.client.forget_prefixes()

            def ask(name: str, client: Client = server.client) -> dict[str, Any]:
                done = client.generate(input_ids=ids[name], max_new_tokens=limit)
                return {"id": name, "output_ids": done.output_ids, "cycles": done.cycles}

            def keep(row: dict[str, Any], batch: int = batch) -> None:
                nonlocal finished
                stores[batch].add(row)
                finished += 1
                progress.update(
                    f"lossless: {arm.name} ({label}): batch {batch}, {finished}/{total} prompts",
                    finished / total,
                )

            in_parallel(order, batch, ask, keep)
    progress.close()
    return stores


def reference(
    plan: FigurePlan, prompts: Sequence[BenchPrompt], limit: int, tokens_only: bool
) -> dict[str, list[int]]:
    """Prompt ids (``tokens_only``) or greedy output ids by transformers, by prompt."""
    folder = plan.work / "lossless"
    folder.mkdir(parents=True, exist_ok=True)
    key = plan.target_key()
    asked = folder / "prompts.jsonl"
    asked.write_text(
        "".join(json.dumps({"id": p.id, "messages": p.messages}) + "\n" for p in prompts)
    )
    out = folder / (
        f"prompt-ids-{key}.jsonl" if tokens_only else f"{REFERENCE}-{key}-{limit}.jsonl"
    )
    command = [
        *(
            sys.executable,
            "-m",
            "sgl_entropy.figures.transformers_greedy",
            "--target",
            str(plan.engine.target),
        ),
        *("--prompts", str(asked), "--out", str(out), "--max-new-tokens", str(limit)),
        *(["--tokens-only"] if tokens_only else []),
    ]
    done = subprocess.run(command, env=plan.engine.environment())
    if done.returncode:
        raise RuntimeError(f"the reference in transformers failed: {' '.join(command)}")
    rows = Records(out).rows
    field = "prompt_ids" if tokens_only else "output_ids"
    return {prompt.id: rows[prompt.id][field] for prompt in prompts}


def differences(
    expected: Mapping[str, Sequence[int]], actual: Mapping[str, Sequence[int]]
) -> list[SequenceDifference]:
    """Prompts whose sequences differ, with the first position that does."""
    unequal = []
    for name, ids in expected.items():
        position = first_difference(ids, actual[name])
        if position is not None:
            unequal.append(SequenceDifference(name, position))
    return unequal


def explain(
    plan: FigurePlan,
    ids: Mapping[str, Sequence[int]],
    base: Mapping[str, Sequence[int]],
    unequal: Mapping[str, list[SequenceDifference]],
) -> dict[str, list[SequenceDifference]]:
    """The differences with the gap between the target's two best tokens at each."""
    with plan.server(ServeArm("none")).start() as server:

        def explained(one: SequenceDifference) -> SequenceDifference:
            prefix = [*ids[one.prompt], *base[one.prompt][: one.position]]
            done = server.client.generate(
                input_ids=prefix, max_new_tokens=1, return_logprob=True, top_logprobs_num=2
            )
            best = done.raw["output_top_logprobs"][0]
            return replace(one, top2_gap=round(best[0][0] - best[1][0], 6))

        return {name: list(map(explained, several)) for name, several in unequal.items()}


def page(figure: LosslessFigure) -> str:
    """The figure as Markdown."""
    total = figure.prompts
    rows = [
        [name, f"{run.equal}/{total}", f"{run.equal_to_transformers}/{total}"]
        for name, run in figure.runs.items()
    ]
    wrong = [
        f"- {name}: {row.prompt} from token {row.position}, gap between the target's two "
        f"best tokens there {row.top2_gap:.6f}"
        for name, run in figure.runs.items()
        for row in run.differences
    ]
    return "\n\n".join(
        [
            "# Lossless: greedy output with and without drafters",
            f"{total} prompts (the first of each of the five benchmarks), {figure.dtype}, "
            f"temperature 0, at most {figure.max_new_tokens} new tokens, {figure.tokens} tokens "
            "in all. Counted: prompts whose whole token sequence is identical. edsd-tree: depth "
            "4, top-3, 12 tokens; the others are chains of 4. Batch 8 mixes the benchmarks' "
            f"lengths. {REFERENCE}: `generate` with the same weights.",
            markdown_table(("run", f"equal to {figure.reference}", f"to {REFERENCE}"), rows),
            "Differences (a gap near 0 is a tie decided by rounding):\n\n" + "\n".join(wrong)
            if wrong
            else "No sequence differs.",
        ]
    )
