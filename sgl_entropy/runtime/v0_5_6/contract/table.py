"""Everything of SGLang v0.5.6.post2 that we and the patches rely on, and what it was tested with.

``uses.json`` is written by ``generate``, never by hand. ``check_contract`` compares it with an
SGLang folder by reading its sources: nothing of SGLang is imported, so that ``sgl-entropy doctor``
can ask on any machine.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from sgl_entropy.apiuse.uses import Mismatch, Use, check_uses, load_uses

SGLANG = "0.5.6.post2"

# Packages that this release was released or, on the CPU engine, tested with; the first is pinned
# by SGLang itself.
TESTED_PACKAGES = {
    "torch": ("2.9.1", "2.13.0"),
    "transformers": ("4.57.1",),
    "triton": ("3.5.1",),
    "xgrammar": ("0.1.27",),
}
TESTED_KERNELS = "0.3.19"

USES_FILE = Path(__file__).with_name("uses.json")


@lru_cache(maxsize=1)
def contract() -> tuple[Use, ...]:
    """Every use, from the generated file."""
    return load_uses(USES_FILE.read_text(encoding="utf-8"))


def check_contract(root: Path) -> list[Mismatch]:
    """What the SGLang in the package folder ``root`` does not offer as we use it.

    Raises:
        OSError: a source file of SGLang cannot be read.
    """
    return check_uses(root, "sglang", contract())
