"""One request: sent whole, answered whole."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgl_entropy_bench.http.client import Client
from sgl_entropy_bench.http.record import RequestRecord
from sgl_entropy_bench.http.replies import StreamError, answer_of, reader_of
from sgl_entropy_bench.http.routes import Api, Output, body_of
from sgl_entropy_bench.load.run.endpoint import Endpoint


@dataclass(frozen=True)
class Reply:
    """A reply's text, its counts, and the seconds that it took."""

    text: str
    counts: RequestRecord
    seconds: float


def ask(target: Endpoint, prompt: str, output: Output, timeout_s: float) -> Reply:
    """Send one request and wait for its end.

    Args:
        prompt: as the route takes it: the chat template, where there is one, is in it.

    Raises:
        ServerError: refused, broken off or aborted; ``status`` where the server gave one.
        StreamError: a reply that is not what the route promises.
        OSError: no connection.
    """
    path, body = body_of(target.api, target.model, prompt, output)
    client = Client(target.client.host, target.client.port, timeout_s)
    begun = time.monotonic()
    reply = client.post(path, body)
    seconds = time.monotonic() - begun
    counts = RequestRecord(0, "", "", "measured", 0.0, sent=0.0)
    reader = reader_of(target.api)
    try:
        reader.whole(json.dumps(reply).encode(), seconds)
        reader.finish(counts)
        return Reply(answer_of(target.api, reply), counts, seconds)
    except (AttributeError, TypeError, LookupError) as error:
        raise StreamError(f"the reply is of another form: {error}") from None


def sampling_of(
    api: Api, custom_params: Mapping[str, Any], temperature: float, seed: int
) -> dict[str, Any]:
    """Sampling parameters other than length and temperature, as the route names them.

    The seed is left out where nothing is drawn. SGLang heeds it if it was started with
    ``--enable-deterministic-inference``.
    """
    sampling: dict[str, Any] = {"custom_params": dict(custom_params)} if custom_params else {}
    if temperature > 0:
        sampling["sampling_seed" if api == "generate" else "seed"] = seed
    return sampling


def seed_of(seed: int, question: str, sample: int) -> int:
    """The seed of one answer: the same in every arm; from 0, below 2**31."""
    digest = hashlib.sha256(f"{seed}:{question}:{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
