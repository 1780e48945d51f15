"""Run patches, forwards or backwards, on file contents: patch-ng does the work, strictly.

patch-ng is lenient where this room is not: text that belongs to no hunk is skipped, a file
that looks patched already is passed over, git's headers without a hunk (an empty new file, a
binary one) are ignored, a missing newline at the end of a file is lost. Each is an error here.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import patch_ng

from sgl_entropy.patching.errors import PatchError

_NULL = b"/dev/null"
_HEADER_WORDS = (b"diff ", b"index ", b"new file mode ", b"deleted file mode ", b"similarity ")

Contents = Mapping[str, bytes | None]
"""File name (``sglang/...``) -> its bytes; None: there is no such file."""


@dataclass(frozen=True)
class PatchFile:
    """One patch of a series: its file name and bytes (a unified diff with a/ and b/ paths)."""

    name: str
    data: bytes


def touched(patch: PatchFile) -> list[str]:
    """The files that ``patch`` changes, creates or deletes, in the patch's order.

    Raises:
        PatchError: the patch is malformed or names a file outside ``sglang/``.
    """
    return [_name(patch, item) for item in _parse(patch).items]


def run_series(patches: Iterable[PatchFile], contents: Contents) -> dict[str, bytes | None]:
    """``contents`` after all ``patches``, in order; works in a temporary folder of its own.

    Args:
        contents: every file that the patches touch; None for one that they create.

    Raises:
        PatchError: a patch is malformed or does not fit exactly.
    """
    return _run(patches, contents, reverse=False)


def reverse_series(patches: Iterable[PatchFile], contents: Contents) -> dict[str, bytes | None]:
    """Undo :func:`run_series`, as far as patches tell: files that were deleted stay lost.

    Raises:
        PatchError: a patch is malformed, deletes a file, or does not fit exactly.
    """
    return _run(list(patches)[::-1], contents, reverse=True)


def _run(
    patches: Iterable[PatchFile], contents: Contents, *, reverse: bool
) -> dict[str, bytes | None]:
    with tempfile.TemporaryDirectory(prefix="sgl-entropy-patch-") as folder:
        root = Path(folder)
        for name, data in contents.items():
            if data is not None:
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        for patch in patches:
            _apply(patch, root, reverse=reverse)
        paths = {name: root / name for name in contents}
        return {n: path.read_bytes() if path.is_file() else None for n, path in paths.items()}


def _apply(patch: PatchFile, root: Path, *, reverse: bool) -> None:
    patchset = _parse(patch)
    kept = []
    for item in patchset.items:
        path = root / _name(patch, item)
        creates, deletes = item.source == _NULL, item.target == _NULL
        if deletes and reverse:
            raise PatchError(f"{patch.name} deletes {path.relative_to(root)}: not reversible")
        if not (creates and not reverse) and not path.is_file():
            raise PatchError(f"{patch.name}: {path.relative_to(root)} does not exist")
        if creates and reverse:  # patch-ng would create it once more
            path.unlink()
            continue
        if creates and path.exists():
            raise PatchError(f"{patch.name} creates {path.relative_to(root)}, which exists")
        # Absolute names, so that patch-ng need not change the process's working directory.
        item.source = _NULL if creates else str(path).encode()
        item.target = _NULL if deletes else str(path).encode()
        kept.append(item)
    patchset.items = kept
    with _log() as lines:
        fits = patchset.revert() if reverse else patchset.apply(fuzz=False)
    if not fits or lines:
        told = "; ".join(lines).replace(f"{root}/", "") or "patch-ng gave no reason"
        raise PatchError(f"{patch.name} does not {'reverse' if reverse else 'apply'}: {told}")


def _parse(patch: PatchFile) -> Any:
    """The patch-ng PatchSet of ``patch``; raises :class:`PatchError` on anything doubtful."""
    with _log() as lines:
        patchset = patch_ng.PatchSet()
        try:
            parsed = patchset.parse(io.BytesIO(patch.data))
        except Exception as error:  # patch-ng's parser breaks in many ways on broken input
            raise PatchError(f"{patch.name} is malformed: {error!r}") from error
    if not parsed or lines or not patchset.items:
        told = "; ".join(line.strip() for line in lines) or "it holds no patch data"
        raise PatchError(f"{patch.name} is malformed: {told}")
    last = b"".join(patchset.items[-1].hunks[-1].text) if patchset.items[-1].hunks else b"\0"
    _, at, tail = patch.data.rpartition(last)
    if not at or (tail.strip() and not tail.startswith(b"-- \n")):
        raise PatchError(
            f"{patch.name} is malformed: the line counts of a hunk header do not fit its text, or "
            "something that is no unified diff follows the last hunk"
        )
    for index, item in enumerate(patchset.items):
        _check_item(patch, item, first=index == 0)
    return patchset


def _check_item(patch: PatchFile, item: Any, *, first: bool) -> None:
    name = _name(patch, item)
    lines = [line for hunk in item.hunks for line in hunk.text]
    stray = [line for line in item.header if not first and not line.startswith(_HEADER_WORDS)]
    if sum(line.startswith(b"diff --git ") for line in item.header) > 1:
        reason = "a file before it has no hunk (empty, binary, renamed or its mode changed)"
    elif any(line.startswith(b"\\") for line in lines + stray):
        reason = "files without a newline at the end are not supported"
    elif stray:
        reason = f"the line {stray[0]!r} before it belongs to no hunk"
    elif item.mode == "rename" or (item.source != _NULL != item.target and item.filemode):
        reason = "renames and changes of mode are not supported"
    elif not item.hunks or (_NULL in (item.source, item.target) and len(item.hunks) != 1):
        reason = "wrong number of hunks"
    else:
        return
    raise PatchError(f"{patch.name} is malformed at {name}: {reason}")


def _name(patch: PatchFile, item: Any) -> str:
    source, target = (
        raw.decode("utf-8", "replace").removeprefix(prefix)
        for raw, prefix in ((item.source, "a/"), (item.target, "b/"))
    )
    name = target if item.source == _NULL else source
    if _NULL not in (item.source, item.target) and source != target:
        raise PatchError(f"{patch.name} renames {source} to {target}: not supported")
    return check_name(name, patch.name)


def check_name(name: str, where: str) -> str:
    """``name``, if it is a file inside the package, written ``sglang/...``.

    Raises:
        PatchError: it leads elsewhere; ``where`` says who named it.
    """
    parts = PurePosixPath(name).parts
    inside = len(parts) > 1 and parts[0] == "sglang" and ".." not in parts
    if not inside or "\\" in name or str(PurePosixPath(name)) != name:
        raise PatchError(f"{where} names the file {name!r}; expected a path like sglang/srt/x.py")
    return name


@contextmanager
def _log() -> Iterator[list[str]]:
    """What patch-ng warns of meanwhile; every warning counts as a failure here."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, keep = logging.getLogger("patch_ng"), Keep(logging.WARNING)
    before = logger.propagate, logger.disabled, logger.level
    logger.propagate, logger.disabled = False, False
    logger.setLevel(logging.WARNING)
    logger.addHandler(keep)
    try:
        yield lines
    finally:
        logger.removeHandler(keep)
        logger.propagate, logger.disabled = before[:2]
        logger.setLevel(before[2])
