"""Which weight files a checkpoint folder has, and every tensor in them, from headers alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sgl_entropy.base.json_file import JsonFileError, read_object
from sgl_entropy.base.safetensors_header import TensorEntry
from sgl_entropy.checkpoint.errors import DrafterError
from sgl_entropy.checkpoint.findings import Finding
from sgl_entropy.checkpoint.tensors import read_header

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class WeightFiles:
    """``entries`` by tensor name, the ``files`` that hold them, and what was wrong."""

    entries: dict[str, TensorEntry]
    files: tuple[Path, ...]
    findings: tuple[Finding, ...]


def read_weight_files(folder: Path) -> WeightFiles:
    """Find the safetensors files of ``folder`` (one, or shards with an index); read headers.

    Never raises for what the folder holds: problems are findings, listed together.
    """
    if not folder.is_dir():
        problem = Finding("error", "folder", f"{folder}: no such folder", "check the path")
        return WeightFiles({}, (), (problem,))
    if (folder / INDEX_NAME).exists():
        return _read_sharded(folder)
    files = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors")
    if not files:
        return WeightFiles({}, (), (_no_weights(folder),))
    if len(files) > 1:
        names = ", ".join(p.name for p in files)
        problem = Finding(
            "error",
            "weight files",
            f"{folder}: several safetensors files ({names}) and no {INDEX_NAME}",
            f"keep {SINGLE_NAME} alone, or add the index of the shards",
        )
        return WeightFiles({}, tuple(files), (problem,))
    try:
        return WeightFiles(read_header(files[0]), tuple(files), ())
    except DrafterError as error:
        return WeightFiles({}, tuple(files), (Finding("error", "weight file", str(error)),))


def target_files(folder: Path) -> list[Path]:
    """The safetensors files of a target: those that its index names, else ``model.safetensors``,
    else all. Some repositories hold the weights a second time, in another layout, beside them.

    Every header is read: the library that loads them says little of a damaged file.

    Raises:
        DrafterError: the index cannot be read, a file that it names is missing, or one is damaged.
    """
    if (folder / INDEX_NAME).is_file():
        shards = _read_sharded(folder)
        wrong = [finding.detail for finding in shards.findings if finding.level == "error"]
        if wrong:
            raise DrafterError("; ".join(wrong))
        return list(shards.files)
    single = folder / SINGLE_NAME
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    for file in files:
        read_header(file)
    return files


def _no_weights(folder: Path) -> Finding:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickles:
        return Finding(
            "error",
            "weight files",
            f"{folder}: only pickle weights ({', '.join(pickles)}), which are refused because "
            "loading a pickle runs code",
            f"save them as {SINGLE_NAME} on a machine where you trust the file",
        )
    return Finding(
        "error",
        "weight files",
        f"{folder}: no weights found",
        f"a drafter folder holds {SINGLE_NAME}, or shards with {INDEX_NAME}",
    )


def _read_sharded(folder: Path) -> WeightFiles:
    index = folder / INDEX_NAME
    try:
        weight_map = read_object(index, limit=1 << 26).get("weight_map")
    except JsonFileError as error:
        return WeightFiles({}, (), (Finding("error", "index", str(error)),))
    if not isinstance(weight_map, dict) or not weight_map:
        problem = Finding("error", "index", f"{index}: expected an object weight_map")
        return WeightFiles({}, (), (problem,))
    findings: list[Finding] = []
    entries: dict[str, TensorEntry] = {}
    files: list[Path] = []
    for shard in sorted({str(value) for value in weight_map.values()}):
        # A shard is a plain name in this very folder: an index is not trusted with paths.
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            detail = f"{index}: shard {shard[:120]!r} is not the plain name of a .safetensors file"
            findings.append(Finding("error", "index", detail, "shards lie beside their index"))
            continue
        path = folder / shard
        if not path.exists():
            detail = f"{index}: names {shard}, which is missing"
            findings.append(Finding("error", "index", detail, "copy or download it again"))
            continue
        files.append(path)
        try:
            header = read_header(path)
        except DrafterError as error:
            findings.append(Finding("error", "shard", str(error)))
            continue
        listed = {name for name, value in weight_map.items() if str(value) == shard}
        for name in sorted(listed - header.keys()):
            detail = f"{index}: says that {shard} holds {name}; it does not"
            findings.append(Finding("error", "index", detail))
        for name in sorted(header.keys() - listed):
            detail = f"{index}: does not list {name}, which {shard} holds"
            findings.append(Finding("error", "index", detail))
        entries |= {name: entry for name, entry in header.items() if name in listed}
    return WeightFiles(entries, tuple(files), tuple(findings))
