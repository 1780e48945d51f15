"""Requests to a running server, for tests: batches, pool state, and errors as values."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sgl_entropy_bench.http.client import Client, ServerError

Json = dict[str, Any]


class EngineClient:
    """One server's ``/generate``, with ids in and ids out.

    Args:
        settings: sampling parameters of every request that does not set them itself.
    """

    def __init__(self, client: Client, name: str, settings: Json | None = None) -> None:
        self.http = client
        self.name = name
        self.settings = settings or {}

    def __repr__(self) -> str:
        return self.name

    def generate(self, input_ids: Sequence[int], max_new_tokens: int = 48, **settings: Any) -> Json:
        """One request; the whole reply. Keys known as request fields go beside the sampling."""
        reply = self.post(_body([*input_ids], max_new_tokens, settings))
        assert isinstance(reply, dict), reply
        return reply

    def batch(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int = 48, **settings: Any
    ) -> list[Json]:
        """Many prompts in one request, which the server runs together."""
        replies = self.post(_body([[*p] for p in prompts], max_new_tokens, settings))
        assert isinstance(replies, list), replies
        return replies

    def post(self, body: Json) -> Any:
        """A request as it is, with this client's settings where it has none."""
        return self.http.post("/generate", self._with_settings(body))

    def events(self, body: Json) -> Generator[Json, None, None]:
        """The same, streamed: one event a chunk."""
        return self.http.events("/generate", self._with_settings(body))

    def _with_settings(self, body: Json) -> Json:
        given = body["sampling_params"]
        if isinstance(given, list):
            return {**body, "sampling_params": [self.settings | each for each in given]}
        return {**body, "sampling_params": self.settings | given}

    def together(self, requests: Sequence[Json]) -> list[Json]:
        """Requests of their own, sent at the same time; each a dict of ``generate``'s arguments."""
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(lambda request: self.generate(**request), requests))

    def refusal(self, body: Json, path: str = "/generate") -> tuple[int | None, str]:
        """The status and message with which the server refuses; status 200 if it does not."""
        try:
            reply = self.http.post(path, body, timeout_s=30.0)
        except ServerError as error:
            return error.status, str(error)
        return 200, str(reply)

    def occupied(self) -> tuple[int, int]:
        """Requests at work and KV slots held by them; slots of the radix cache do not count."""
        ranks = self.http.get("/get_load")
        return sum(rank["num_reqs"] for rank in ranks), sum(rank["num_tokens"] for rank in ranks)

    def settle(self, timeout_s: float = 20.0) -> None:
        """Wait until no request runs and no slot is held, then empty the radix cache.

        The scheduler itself also counts its slots and request rows whenever it is idle, and
        ends if one is missing.
        """
        deadline = time.monotonic() + timeout_s
        while (held := self.occupied()) != (0, 0):
            assert time.monotonic() < deadline, f"{self.name}: (requests, slots) held: {held}"
            time.sleep(0.1)
        self.http.post("/flush_cache", timeout_s=10.0)


class RememberingClient(EngineClient):
    """A server that many tests compare with: a greedy request is sent once, then remembered.

    ``settle`` forgets, as it empties the server's own cache.
    """

    def __init__(self, client: Client, name: str) -> None:
        super().__init__(client, name)
        self._replies: dict[str, Any] = {}

    def post(self, body: Json) -> Any:
        if body["sampling_params"].get("temperature", 1.0) != 0:
            return super().post(body)
        key = json.dumps(body, sort_keys=True)
        if key not in self._replies:
            self._replies[key] = super().post(body)
        return self._replies[key]

    def settle(self, timeout_s: float = 20.0) -> None:
        super().settle(timeout_s)
        self._replies.clear()


FIELDS = frozenset(
    {
        "return_logprob",
        "logprob_start_len",
        "top_logprobs_num",
        "token_ids_logprob",
        "rid",
        "return_text_in_logprobs",
        "custom_logit_processor",
    }
)


def _body(input_ids: list[Any], max_new_tokens: int, settings: Json) -> Json:
    fields = {key: value for key, value in settings.items() if key in FIELDS}
    sampling = {key: value for key, value in settings.items() if key not in FIELDS}
    sampling = {"temperature": 0.0, "max_new_tokens": max_new_tokens} | sampling
    return {"input_ids": input_ids, "sampling_params": sampling, **fields}
