"""Requests that servers leak on: a seeded mix of aborts, stops, grammars and broken input.

Pure data: a request's body, how its client behaves, and what has to come of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
# kind -> share in percent
MIX = {
    "plain": 11,
    "sampled": 12,
    "stop": 15,
    "disconnect": 14,
    "abort": 10,
    "json": 6,
    "regex": 4,
    "bad_grammar": 7,
    "bad_input": 5,
    "long": 16,
}
# kinds that the server has to refuse, and with what
REFUSED = {"bad_grammar": 400, "bad_input": 400}


@dataclass(frozen=True)
class Case:
    """One request. ``leave_after``: events after which its client leaves (None: stays).

    ``by_abort``: it leaves by ``/abort_request`` rather than by closing the connection.
    """

    index: int
    kind: str
    body: dict[str, Any]
    leave_after: int | None = None
    by_abort: bool = False

    @property
    def rid(self) -> str:
        """The request's id on the server."""
        return str(self.body["rid"])


def cases(texts: Sequence[str], count: int, vocabulary: int, seed: int = 0) -> Iterator[Case]:
    """``count`` cases over the prompts in ``texts``; the same seed gives the same cases."""
    rng = random.Random(seed)
    kinds = rng.choices(list(MIX), weights=list(MIX.values()), k=count)
    for index, kind in enumerate(kinds):
        body: dict[str, Any] = {"text": rng.choice(texts), "rid": f"leak-{seed}-{index}"}
        parameters: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": rng.randint(1, 14)}
        leave_after = None
        if kind == "sampled":
            parameters.update(
                temperature=rng.choice([0.7, 1.3]),
                top_p=0.9,
                frequency_penalty=rng.choice([0.0, 0.5]),
                presence_penalty=rng.choice([0.0, 0.5]),
            )
        elif kind == "stop":
            parameters.update(stop=[" the", ".", "\n"], max_new_tokens=60)
        elif kind in ("disconnect", "abort"):
            parameters["max_new_tokens"] = 120
            leave_after = rng.randint(1, 8)
        elif kind == "json":
            # Enough room to finish, so that the grammar ends within a draft.
            parameters.update(json_schema=json.dumps(SCHEMA), max_new_tokens=40)
        elif kind == "regex":
            parameters.update(regex=r"(yes|no)[.!]", max_new_tokens=12)
        elif kind == "bad_grammar":
            parameters.update(
                rng.choice([{"json_schema": '{"type": "no such type"'}, {"regex": "(unclosed"}])
            )
        elif kind == "bad_input":
            del body["text"]
            body["input_ids"] = rng.choice(
                [[], [vocabulary + 7], [-3], [1] * 200_000]  # empty, foreign, negative, too long
            )
        elif kind == "long":
            parameters["max_new_tokens"] = rng.randint(150, 260)
        body["sampling_params"] = parameters
        yield Case(index, kind, body, leave_after, by_abort=kind == "abort")
