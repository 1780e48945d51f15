"""Answers of ``/v1/completions`` and ``/v1/chat/completions``: an event holds what is new."""

from __future__ import annotations

import time

from sgl_entropy_bench.fakeserver.job import Job
from sgl_entropy_bench.fakeserver.wire import Json, dumps

# Marks where the text goes while the bytes of a chunk are prepared.
HOLE = b"@text@"


class OpenAIJob(Job):
    """A request to one of OpenAI's routes."""

    def prepare(self) -> None:
        self.chat = self.ask.path == "/v1/chat/completions"
        # The last match is the place of the text: the name of a model may hold the mark too.
        self._before, _, self._behind = dumps(self._chunk(HOLE.decode())).rpartition(HOLE)

    def payloads(self, finish: Json | None) -> list[bytes]:
        text = self.text(self.told)
        if not self.chat and finish is not None:
            return [dumps(self._chunk(text.decode(), finish))]
        chunks = []
        if self.chat and self.told == 0:
            chunks.append(dumps(self._chunk("", role="assistant")))
        if text:
            chunks.append(self._before + text + self._behind)
        if finish is not None:
            chunks.append(dumps(self._chunk(None, finish)))
        return chunks

    def closing(self) -> list[bytes]:
        if not self.ask.usage or self.fault == "no-usage":
            return []
        return [dumps(self._answer("chat.completion.chunk", [], self._usage()))]

    def whole(self, finish: Json) -> Json:
        choice = self._choice(self.text().decode(), finish, "assistant")
        if self.chat:
            choice["message"] = choice.pop("delta")
        answer = self._answer("chat.completion", [choice], self._usage())
        if self.fault == "no-usage":
            del answer["usage"]
        return answer

    def _chunk(self, text: str | None, finish: Json | None = None, role: str | None = None) -> Json:
        return self._answer("chat.completion.chunk", [self._choice(text, finish, role)], None)

    def _answer(self, chat_object: str, choices: list[Json], usage: Json | None) -> Json:
        return {
            "id": self.ask.rid,
            "object": chat_object if self.chat else "text_completion",
            "created": int(time.time()),
            "model": self.ask.model,
            "choices": choices,
            "usage": usage,
        }

    def _choice(self, text: str | None, finish: Json | None, role: str | None) -> Json:
        message = {"role": role, "content": text, "reasoning_content": None, "tool_calls": None}
        return {
            "index": 0,
            **({"delta": message} if self.chat else {"text": text}),
            "logprobs": None,
            "finish_reason": finish["type"] if finish else None,
            "matched_stop": finish.get("matched") if finish else None,
        }

    def _usage(self) -> Json:
        return {
            "prompt_tokens": self.ask.prompt_tokens,
            "total_tokens": self.ask.prompt_tokens + self.made,
            "completion_tokens": self.made,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "reasoning_tokens": 0,
        }
