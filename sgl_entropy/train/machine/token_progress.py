"""The progress line of stages that count answer tokens."""

from __future__ import annotations

import time

from sgl_entropy.base.progress import Progress


class TokenProgress:
    """Tells on stderr how many answer tokens there are, at which rate they come, and the time left.

    Args:
        stored: tokens that were there before; ``wanted``: tokens at the end.
    """

    def __init__(self, stored: int, wanted: int) -> None:
        self.stored, self.wanted = stored, wanted
        self._line = Progress(expected_s=None, every_s=10.0)
        self._began = time.monotonic()

    def update(self, tokens: int) -> None:
        """There are ``tokens`` now."""
        new = tokens - self.stored
        rate = new / max(1e-9, time.monotonic() - self._began)
        text = f"{tokens:,} of {self.wanted:,} answer tokens, {rate:.0f} tokens/s"
        self._line.update(text, min(1.0, new / max(1, self.wanted - self.stored)))

    def close(self) -> None:
        """Leave the line of the terminal clean."""
        self._line.close()
