"""A request in service: its tokens, how far it is, and the sending of its answer.

Tokens have a fixed width, so that an event is a slice of bytes prepared when its request came.
"""

from __future__ import annotations

import math
import random
import time
from abc import ABC, abstractmethod

from sgl_entropy_bench.fakeserver.connection import Connection
from sgl_entropy_bench.fakeserver.ranks import CycleTally, Rank
from sgl_entropy_bench.fakeserver.request import MAX_TOKENS, Ask
from sgl_entropy_bench.fakeserver.settings import FakeServerOptions
from sgl_entropy_bench.fakeserver.wire import Json, Refused, dumps, events

# Ids of four digits and words of four letters: n of them with separators are 5 n - 1 bytes.
IDS = range(1000, 10000)
_SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnpqrstvwxz" for vowel in "aeiou"]
WORDS = [_SYLLABLES[number // 100] + _SYLLABLES[number % 100] for number in range(IDS.stop)]


class Job(ABC):
    """One request; each API has a subclass that writes its answers.

    Tokens are drawn from (server seed, prompt), times and acceptance from (server seed, number).
    """

    def __init__(
        self, ask: Ask, number: int, connection: Connection, options: FakeServerOptions
    ) -> None:
        self.ask = ask
        self.number = number
        self.connection = connection
        self.options = options
        self.rank: Rank
        self.arrived_s = time.monotonic()
        self.generator = random.Random(f"{options.seed}:{number}")
        self.tally = CycleTally([0] * (options.depth + 1))
        self.easd_fires = 0
        self.cached_tokens = 0
        self.started = self.over = False
        # Tokens that exist, and those that were sent to the client.
        self.made = self.told = 0
        # What ``faults`` plans for it, and the number of tokens at which it breaks.
        self.fault: str | None = None
        self.breaks_at: float = math.inf

        tokens = random.Random(b"%d:%b" % (options.seed, ask.key))
        drawn = max(1, round(min(options.output_tokens.draw(tokens), MAX_TOKENS)))
        limit = max(1, ask.limit)
        # SGLang looks at the length first: an end of sequence in the last place does not count.
        stops = drawn < limit and not ask.ignore_eos
        self.length = drawn if stops else limit
        self.finish: Json = (
            {"type": "stop", "matched": 2} if stops else {"type": "length", "length": limit}
        )
        self.ids = tokens.choices(IDS, k=self.length)
        if options.wrong_every and number % options.wrong_every == 0:
            self.ids[self.length // 2] ^= 1
        self._text = " ".join([WORDS[token] for token in self.ids]).encode()

    @abstractmethod
    def prepare(self) -> None:
        """Write the parts of events that never change; rank and cached tokens are known now."""

    @abstractmethod
    def payloads(self, finish: Json | None) -> list[bytes]:
        """The JSON of the events with all that the client was not sent yet."""

    @abstractmethod
    def whole(self, finish: Json) -> Json:
        """The answer that is not streamed."""

    def closing(self) -> list[bytes]:
        """The JSON of what follows the last token's event."""
        return []

    def text(self, first: int = 0) -> bytes:
        """The text of all tokens that exist, without the first ones."""
        return self._text[max(0, 5 * first - 1) : max(0, 5 * self.made - 1)]

    def advance(self) -> None:
        """Make the first token, which comes out of the prefill, or run a draft-verify cycle."""
        options = self.options
        if not self.made or not options.depth:
            self.made += 1
            return
        draw = self.generator.random
        accepted = 0
        while accepted < options.depth and draw() < options.acceptance:
            accepted += 1
        # A request that ends inside the draft emits fewer tokens than were accepted.
        left = self.length - self.made
        accepted, emitted = min(accepted, left), min(accepted + 1, left)
        self.tally.add(accepted, emitted)
        self.rank.tally.add(accepted, emitted)
        if options.easd is not None:
            self.easd_fires += draw() < options.easd
        self.made += emitted

    def tell(self) -> None:
        """Send the events of a cycle that is not the last.

        A client that is slow to read gets fewer and larger ones, as SGLang merges them too.
        """
        if self.ask.stream and not self.connection.congested:
            self.connection.send(events(self.payloads(None)))
            self.told = self.made

    def end(self, finish: Json) -> None:
        """Send the rest of the answer."""
        if self.ask.stream:
            payloads = [*self.payloads(finish), *self.closing()]
            if self.fault != "no-done":
                payloads.append(b"[DONE]")
            self.connection.end_stream(events(payloads))
        elif finish["type"] == "abort" and finish["status_code"]:
            self.connection.refuse(Refused(finish["message"], finish["status_code"]), self.ask.path)
        else:
            self.connection.reply(200, dumps(self.whole(finish)))
