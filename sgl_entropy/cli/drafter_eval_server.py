"""``drafter eval --server``: a server's counts, and its entropies where it records traces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sgl_entropy.base.identity import Identity
from sgl_entropy.cli.running_server import Asking, RunningServer, TracedAnswer
from sgl_entropy.evaluate.report import DrafterEvalSettings, JudgedPrompt, Unverified
from sgl_entropy.evaluate.uncertainty import FirstDrafts
from sgl_entropy.evaluate.walk import ChainFigures
from sgl_entropy.train.answers.same_target import comparable, other_target, weights_here

Report = Callable[[str], None]

# Settings of the server that the figures depend on, as it names them.
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
        drafted: tokens that it verified; whole: the tokens of as many whole chains.

    Raises:
        ValueError: another drafter, another target, or no chains; says which.
    """

    def __init__(self, url: str, drafter: Path, target: Path, report: Report) -> None:
        self._server, self._report = RunningServer.at(url), report
        info, where = self._server.info, self._server.where
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
        self.depth, self.untraced = self._server.depth, self._server.untraced
        self.drafted = self.whole = 0

    def judged(
        self, prompts: Mapping[str, Sequence[Sequence[int]]], max_new_tokens: int
    ) -> Iterator[JudgedPrompt]:
        """As ``offline.judged``, one prompt at a time; without traces no first drafts.

        Raises:
            ValueError: the server counts no cycles, refuses a prompt, or is gone.
        """
        named = {
            f"prompt {at + 1} of {group}": (group, ids)
            for group, some in prompts.items()
            for at, ids in enumerate(some)
        }
        asked = {name: ids for name, (_, ids) in named.items()}
        asking = Asking(max_new_tokens, traced=self.untraced is None)
        for number, (name, answer) in enumerate(self._server.answers(asked, asking)):
            drafts = FirstDrafts.of(answer.cycles)
            yield JudgedPrompt(number, named[name][0], self._counted(answer), drafts)
            if (number + 1) % 10 == 0 or number + 1 == len(named):
                self._report(f"server: {number + 1} of {len(named)} prompts")

    def _counted(self, answer: TracedAnswer) -> ChainFigures:
        counts = answer.counts
        if (counts.completion_tokens or 0) > 1 and counts.own_cycles is None:
            raise ValueError(
                f"{self._server.where} does not count cycles: patch its SGLang "
                "(`sgl-entropy patch apply`); for EAGLE-3 on a GPU also set "
                "SGL_ENTROPY_COUNTERS=1"
            )
        cycles = counts.own_cycles or 0
        whole = cycles * self.depth
        self.whole += whole
        if answer.cycles:
            # A trace leaves out fillers after a chain's own end; the counter on a GPU does not.
            self.drafted += sum(cycle.verified for cycle in answer.cycles)
        else:
            self.drafted += whole if counts.drafted is None else counts.drafted
        return ChainFigures(counts.emitted or 0, cycles, counts.accepted or (0,) * self.depth)

    def settings(
        self, max_new_tokens: int, max_prompts: int, max_prompt_tokens: int
    ) -> DrafterEvalSettings:
        """With what the server says of itself, and whether it has verified whole chains so far."""
        info, unverified = self._server.info, None
        if self.drafted < self.whole:
            unverified = Unverified(self.drafted, self.whole, self._remedy())
        return DrafterEvalSettings(
            depth=self.depth,
            max_new_tokens=max_new_tokens,
            max_prompts=max_prompts,
            max_prompt_tokens=max_prompt_tokens,
            server={key: info[key] for key in _DECIDES if key in info},
            unverified=unverified,
        )

    def warn(self) -> None:
        """Say that chains were cut, where they were."""
        if self.drafted < self.whole:
            self._report(
                f"warning: {self._server.where} verified {self.drafted:,} of the {self.whole:,} "
                f"tokens of whole chains, so its tau is below that of depth {self.depth}: "
                f"{self._remedy()}"
            )

    def _remedy(self) -> str:
        if self._server.info.get("draft_stop"):
            return "start it without --speculative-draft-stop"
        return (
            "the CPU engine leaves out what is not worth its time (beside other requests, or of "
            "more than 7 drafts): start it with SGL_ENTROPY_CPU_CYCLE_ROWS=inf"
        )


def _other_drafter(served: str, drafter: Path) -> str | None:
    """Why the served drafter is another one, None = nothing tells them apart: by its weights where
    both are files of this machine, else by its name."""
    if not weights_here(served) or not weights_here(str(drafter.absolute())):
        named = (drafter.name, drafter.resolve().name)
        return None if Path(served).name in named else "its name is another"
    if Path(served).resolve() == drafter.resolve():
        return None
    same = Identity.of(served).sha256 == Identity.of(drafter).sha256
    return None if same else "its weights are others"
