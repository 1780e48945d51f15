"""Apply, check and revert the patch series on an installed SGLang, without importing it."""

from sgl_entropy.patching.errors import PatchError
from sgl_entropy.patching.install import SglangInstall, check_python, find_sglang
from sgl_entropy.patching.manifest import Series, load_series, read_series
from sgl_entropy.patching.verbs import PatchReport, apply, revert, status, verify

__all__ = [
    "PatchError",
    "PatchReport",
    "Series",
    "SglangInstall",
    "apply",
    "check_python",
    "find_sglang",
    "load_series",
    "read_series",
    "revert",
    "status",
    "verify",
]
