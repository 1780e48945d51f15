"""Drawing is optional: matplotlib is asked for when a plot is, and before any work is done."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def require_plots(path: Path) -> None:
    """Say at once, not after minutes of work, that nothing can be drawn to ``path``.

    Raises:
        ValueError: matplotlib is missing, the name is no PNG's, or there is no such folder.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "--plot needs matplotlib, which is not installed: pip install 'sgl-entropy[plots]'"
        )
    if path.suffix.lower() != ".png":
        raise ValueError(f"--plot {path}: a PNG is written; end the name in .png")
    if not path.parent.is_dir():
        raise ValueError(f"--plot {path}: no such folder")
