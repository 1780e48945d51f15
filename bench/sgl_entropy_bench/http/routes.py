"""What is sent to a server, route by route; ``replies`` reads what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]
Api = Literal["generate", "chat", "completions"]


@dataclass(frozen=True)
class Output:
    """How long answers get and how they are sampled.

    Attributes:
        max_tokens: the most tokens of an answer.
        ignore_eos: every answer has ``max_tokens`` tokens.
        temperature: 0 = greedy.
        stream: False = one reply at the end: no first token, no chunks.
        sampling: further sampling parameters of the request.
    """

    max_tokens: int = 256
    ignore_eos: bool = False
    temperature: float = 0.0
    stream: bool = True
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        length = f"exactly {self.max_tokens} tokens (ignore_eos)"
        if not self.ignore_eos:
            length = f"natural stop, at most {self.max_tokens} tokens"
        return f"{length}, temperature {self.temperature:g}"


def body_of(api: Api, model: str, text: str, output: Output) -> tuple[str, Json]:
    """(path, body) of one request; ``text``: for chat the user's message, else the whole prompt."""
    if api == "generate":
        sampling = {
            "max_new_tokens": output.max_tokens,
            "temperature": output.temperature,
            "ignore_eos": output.ignore_eos,
            **output.sampling,
        }
        return "/generate", {"text": text, "sampling_params": sampling, "stream": output.stream}
    body: Json = {
        "model": model,
        "max_tokens": output.max_tokens,
        "temperature": output.temperature,
        "stream": output.stream,
        **({"ignore_eos": True} if output.ignore_eos else {}),
        **({"stream_options": {"include_usage": True}} if output.stream else {}),
        **output.sampling,
    }
    if api == "chat":
        return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": text}]}
    return "/v1/completions", {**body, "prompt": text}
