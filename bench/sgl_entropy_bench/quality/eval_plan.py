"""What an evaluation asks."""

from __future__ import annotations

from dataclasses import dataclass, field

from sgl_entropy_bench.quality.tasks import Question, Task, Tools


@dataclass(frozen=True)
class EvalPlan:
    """What is asked, and how.

    Attributes:
        source: of the questions, for captions.
        samples: answers to each question.
        concurrency: requests at a time, over all arms.
        tools: those that the task's judge needs.
    """

    task: Task
    questions: tuple[Question, ...]
    source: str
    max_tokens: int
    temperature: float = 0.0
    samples: int = 1
    concurrency: int = 8
    seed: int = 0
    timeout_s: float = 600.0
    tools: Tools = field(default_factory=Tools)

    def __post_init__(self) -> None:
        for name in ("max_tokens", "samples", "concurrency"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} must be at least 1, found {getattr(self, name)}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"--temperature must be at least 0, found {self.temperature}")
        if not 0 < self.timeout_s < float("inf"):
            raise ValueError(f"--timeout must be above 0 seconds, found {self.timeout_s}")
        if not self.questions:
            raise ValueError("there is no question to ask")
