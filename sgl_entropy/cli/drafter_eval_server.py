"""``drafter eval --server``: the counts, and where it records traces the entropies, of a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sgl_entropy_bench.http.replies import MetaInfo

from sgl_entropy.base.identity import Identity
from sgl_entropy.cli.served import Served
from sgl_entropy.evaluate.report import Counted
from sgl_entropy.evaluate.uncertainty import FirstDrafts
from sgl_entropy.evaluate.walk import ChainFigures
from sgl_entropy.train.answers.same_target import comparable, other_target, weights_here
from sgl_entropy.verify.trace import CycleRecord

Report = Callable[[str], None]

# What decides the figures, as the server names it.
_DECIDES = (
    "model_path",
    "speculative_draft_model_path",
    "speculative_algorithm",
    "speculative_num_steps",
    "speculative_eagle_topk",
    "speculative_verify_mode",
    "draft_stop",
    "dtype",
    "device",
    "attention_backend",
    "version",
)


class ServedDrafter:
    """A server's drafter, asked prompt by prompt.

    Attributes:
        depth: of its chains.
        untraced: why it tells no entropies, and what to do about it; None = it does.
        drafted: tokens that it verified; whole: those of as many whole chains.

    Raises:
        ValueError: another drafter, another target, or no chains; says which.
    """

    def __init__(self, url: str, drafter: Path, target: Path, report: Report) -> None:
        self._served, self._report = Served.at(url), report
        info, where = self._served.info, self._served.where
        served = info.get("speculative_draft_model_path")
        if not served:
            raise ValueError(f"{where}: it serves no drafter")
        if problem := other_target(info, target):
            raise ValueError(f"{where} does not serve the target {target}: {problem}")
        if why := _other_drafter(str(served), drafter):
            raise ValueError(f"{where} drafts with {served}, not with {drafter}: {why}")
        if second := info.get("speculative_second_draft_model_path"):
            raise ValueError(
                f"{where} drafts with two drafters, {served} and {second}: start it without "
                "--speculative-second-draft-model-path"
            )
        if (branches := info.get("speculative_eagle_topk")) not in (None, 1):
            raise ValueError(
                f"{where} drafts trees of {branches} branches, and a chain is measured: start it "
                "with --speculative-eagle-topk 1"
            )
        if not comparable(info, target):
            report(
                f"warning: {where} serves {info.get('model_path') or 'a target without a name'}, "
                f"which cannot be compared with {target} from here"
            )
        self.depth, self.untraced = self._served.depth, self._served.untraced
        self.drafted = self.whole = 0

    def judged(
        self, prompts: Mapping[str, Sequence[Sequence[int]]], max_new_tokens: int
    ) -> Iterator[tuple[int, Counted, FirstDrafts]]:
        """As ``evaluation.judged``, one prompt at a time; without traces no first drafts.

        Raises:
            ValueError: the server counts no cycles, refuses a prompt, or is gone.
        """
        done, total = 0, sum(map(len, prompts.values()))
        for group, held in prompts.items():
            for ids in held:
                meta = self._served.ask(ids, max_new_tokens, traced=self.untraced is None)
                cycles = [] if self.untraced else self._served.cycles(meta)
                yield done, (group, self._counted(meta, cycles)), FirstDrafts.of(cycles)
                done += 1
                if done % 10 == 0 or done == total:
                    self._report(f"server: {done} of {total} prompts")

    def _counted(self, meta: MetaInfo, traced: Sequence[CycleRecord]) -> ChainFigures:
        if (meta.completion_tokens or 0) > 1 and meta.own_cycles is None:
            raise ValueError(
                f"{self._served.where} does not count cycles: patch its SGLang "
                "(`sgl-entropy patch apply`); for EAGLE-3 on a GPU also set "
                "SGL_ENTROPY_COUNTERS=1"
            )
        cycles = meta.own_cycles or 0
        whole = cycles * self.depth
        self.whole += whole
        # A trace knows fillers behind a chain's own end, which the counter on a GPU does not.
        verified = sum(cycle.verified for cycle in traced)
        drafted = whole if meta.drafted is None else meta.drafted
        self.drafted += verified if traced else drafted
        accepted = meta.accepted or (0,) * self.depth
        return ChainFigures(meta.emitted or 0 if cycles else 0, cycles, accepted)

    def facts(self) -> dict[str, Any]:
        """What the JSON says of the server: ``server``, and where it verified fewer tokens than
        its depth ``unverified``."""
        info = self._served.info
        out: dict[str, Any] = {"server": {key: info[key] for key in _DECIDES if key in info}}
        if self.drafted < self.whole:
            out["unverified"] = {
                "verified": self.drafted,
                "of": self.whole,
                "to_verify_all": self._remedy(),
            }
        return out

    def warn(self) -> None:
        """Say that chains were cut, where they were."""
        if self.drafted < self.whole:
            self._report(
                f"warning: {self._served.where} verified {self.drafted:,} of the {self.whole:,} "
                f"tokens of whole chains, so its tau is below that of depth {self.depth}: "
                f"{self._remedy()}"
            )

    def _remedy(self) -> str:
        if self._served.info.get("draft_stop"):
            return "start it without --speculative-draft-stop"
        return (
            "the CPU engine leaves out what is not worth its time (beside other requests, or of "
            "more than 7 drafts): start it with SGL_ENTROPY_CPU_CYCLE_ROWS=inf"
        )


def _other_drafter(served: str, drafter: Path) -> str | None:
    """Why the served drafter is another one: by its weights where both are files of this machine,
    else by its name. None = nothing tells them apart."""
    if not weights_here(served) or not weights_here(str(drafter.absolute())):
        named = (drafter.name, drafter.resolve().name)
        return None if Path(served).name in named else "its name is another"
    if Path(served).resolve() == drafter.resolve():
        return None
    same = Identity.of(served).sha256 == Identity.of(drafter).sha256
    return None if same else "its weights are others"
