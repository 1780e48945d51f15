"""The arms of a comparison: a target served without a drafter, or with one."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ServeArm:
    """One way to serve the target. ``algorithm`` None: no speculation.

    ``steps`` draft steps of ``topk`` branches, ``draft_tokens`` verified a cycle (the root
    among them); a chain of n steps has topk 1 and n + 1 draft tokens. ``extra_flags`` and
    ``variables`` (names and values) go to this arm's server alone.
    """

    name: str
    algorithm: str | None = None
    drafter: Path | None = None
    steps: int = 4
    topk: int = 1
    draft_tokens: int = 5
    extra_flags: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if (self.algorithm is None) != (self.drafter is None):
            raise ValueError(f"arm {self.name}: an algorithm needs a drafter, and the reverse")

    def flags(self) -> list[str]:
        """SGLang's speculative flags for this arm, and its own."""
        if self.algorithm is None:
            return list(self.extra_flags)
        return [
            *("--speculative-algorithm", self.algorithm),
            *("--speculative-draft-model-path", str(self.drafter)),
            *("--speculative-num-steps", str(self.steps)),
            *("--speculative-eagle-topk", str(self.topk)),
            *("--speculative-num-draft-tokens", str(self.draft_tokens)),
            *self.extra_flags,
        ]


@dataclass(frozen=True)
class Engine:
    """The served target and the settings that all arms of one measurement share."""

    target: Path
    threads: int = 1
    dtype: str = "float32"
    max_running_requests: int = 16
    max_total_tokens: int = 16384
    context_length: int | None = None
    extra_flags: tuple[str, ...] = ()
    python: str = field(default_factory=lambda: sys.executable)

    def command(self, arm: ServeArm, port: int) -> list[str]:
        """The server's command line."""
        context = self.context_length
        return [
            *(self.python, "-m", "sglang.launch_server"),
            *("--model-path", str(self.target), "--device", "cpu"),
            *("--attention-backend", "torch_native", "--dtype", self.dtype),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--max-running-requests", str(self.max_running_requests)),
            *("--max-total-tokens", str(self.max_total_tokens)),
            # An idle scheduler polls without it, and takes a whole core from everyone else.
            "--sleep-on-idle",
            *([] if context is None else ["--context-length", str(context)]),
            *arm.flags(),
            *self.extra_flags,
        ]

    def environment(self) -> dict[str, str]:
        """The server's environment: ours, with the CPU engine and the thread count set.

        Threads are set on purpose: two on two busy cores can be 20 times slower than one.
        """
        return {
            **os.environ,
            "SGLANG_USE_CPU_ENGINE": "1",
            "TORCHDYNAMO_DISABLE": "1",
            "OMP_NUM_THREADS": str(self.threads),
            "MKL_NUM_THREADS": str(self.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }


def default_threads() -> int:
    """``OMP_NUM_THREADS`` where it is set, else 1.

    Raises ValueError where it is set to something that is not a positive number.
    """
    text = os.environ.get("OMP_NUM_THREADS", "1")
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"OMP_NUM_THREADS={text}: expected a whole number from 1")
    return int(text)
