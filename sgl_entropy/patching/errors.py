"""The one error of this room."""

from __future__ import annotations

from collections.abc import Mapping


class PatchError(RuntimeError):
    """The series cannot be read, applied, reverted or checked; the message says why and what to do.

    Attributes:
        files: the files that prevent it, name -> state; empty where none does.
    """

    def __init__(self, message: str, files: Mapping[str, str] | None = None) -> None:
        self.files = dict(files or {})
        listed = "".join(f"\n  {name}: {state}" for name, state in self.files.items())
        super().__init__(message + listed)
