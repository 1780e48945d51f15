"""The folder that keeps what can be made again: the small target, trainings, records."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$SGL_ENTROPY_CACHE``, or ``~/.cache/sgl-entropy``."""
    return Path(os.environ.get("SGL_ENTROPY_CACHE") or "~/.cache/sgl-entropy").expanduser()
