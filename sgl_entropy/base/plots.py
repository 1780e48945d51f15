"""Drawing is optional: without matplotlib a plot is refused before any work is done."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def require_plots(path: Path, kinds: tuple[str, ...] = ("png",)) -> None:
    """Refuse a plot that cannot be drawn, at once and not after minutes of work.

    Args:
        kinds: endings of names, and so formats, that the verb can write.

    Raises:
        ValueError: matplotlib is missing, the name ends otherwise, or there is no such folder.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "--plot needs matplotlib, which is not installed: pip install 'sgl-entropy[plots]'"
        )
    if path.suffix.lower().removeprefix(".") not in kinds:
        written = " or ".join(kind.upper() for kind in kinds)
        ends = " or ".join(f".{kind}" for kind in kinds)
        raise ValueError(f"--plot {path}: a {written} is written; end the name in {ends}")
    if not path.parent.is_dir():
        raise ValueError(f"--plot {path}: no such folder")
