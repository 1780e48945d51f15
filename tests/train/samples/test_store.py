"""A store that was damaged after it was written: named, refused, left out only when asked."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sgl_entropy.train.prompts.file import load_prompts
from sgl_entropy.train.samples import shards
from sgl_entropy.train.samples.shards import Sample, write_shard
from sgl_entropy.train.samples.store import FORMAT, Store, StoreMeta, write_meta
from sgl_entropy.train.settings.file import load_settings
from sgl_entropy.train.stages import data
from sgl_entropy.train.workspace import Workspace


def sample(number: int, length: int = 5) -> Sample:
    return Sample(
        number,
        2,
        torch.arange(length),
        torch.full((length - 1, 4), float(number)),
        torch.zeros(length - 1, 2),
        torch.zeros(length - 1),
        torch.zeros(length - 1, dtype=torch.long),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of two samples each."""
    folder = tmp_path / "store"
    write_meta(folder, StoreMeta((0, 1), 2))
    write_shard(folder / "a.safetensors", [sample(0), sample(1)])
    write_shard(folder / "b.safetensors", [sample(2), sample(3, 7)])
    return folder


def cut(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-3])


def empty(shard: Path) -> None:
    shard.write_bytes(b"")


def flip(shard: Path) -> None:
    held = bytearray(shard.read_bytes())
    held[-40] ^= 1
    shard.write_bytes(held)


def lose_record(shard: Path) -> None:
    shard.with_suffix(".json").unlink()


def break_record(shard: Path) -> None:
    shard.with_suffix(".json").write_text('{"bytes": "many"}', encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "bytes, expected"),
        (empty, "0 bytes, expected"),
        (flip, "sha256"),
        (lose_record, "record b.json cannot be read"),
        (break_record, "record b.json cannot be read"),
    ],
)
def test_a_damaged_shard_is_named_and_skipped_only_when_asked(
    folder: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(folder / "b.safetensors")
    with pytest.raises(ValueError, match=rf"b\.safetensors: .*{said}") as raised:
        Store(folder, whole=True)
    assert "a.safetensors" not in str(raised.value)
    kept = Store(folder, whole=True, skip_damaged=True)
    assert [entry.prompt_id for entry in kept.entries] == [0, 1]
    assert list(kept.skipped) == ["b.safetensors"]


@pytest.mark.parametrize(
    ("answers", "stage"), [({}, "generate"), ({"answers": "given"}, "features")]
)
def test_the_hint_names_the_stage_that_makes_a_damaged_shard_again(
    folder: Path, answers: dict[str, str], stage: str
) -> None:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    (folder / "meta.json").write_text(json.dumps(meta | answers), encoding="utf-8")
    cut(folder / "b.safetensors")
    with pytest.raises(ValueError, match=rf"remove these shards, and `train {stage}`") as raised:
        Store(folder)
    assert "`train fit` and `compare` alone go on without them, with" in str(raised.value)


def test_sizes_are_checked_even_without_hashing(folder: Path) -> None:
    flip(folder / "a.safetensors")
    assert len(Store(folder).entries) == 4
    cut(folder / "b.safetensors")
    with pytest.raises(ValueError, match=r"b\.safetensors"):
        Store(folder)


def test_the_record_says_what_the_shard_holds(folder: Path) -> None:
    record = json.loads((folder / "b.json").read_text(encoding="utf-8"))
    assert record["sequences"] == 2
    assert record["answer_tokens"] == 3 + 5
    assert Store(folder).bytes() == sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def test_a_store_of_nothing_but_damage_is_no_store(folder: Path) -> None:
    for shard in folder.glob("*.safetensors"):
        cut(shard)
    with pytest.raises(ValueError, match="holds no shards"):
        Store(folder, skip_damaged=True)


def test_a_full_disk_leaves_no_half_shard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "save_file", full)
    with pytest.raises(OSError, match=r"c\.safetensors could not be written.*No space left"):
        write_shard(folder / "c.safetensors", [sample(4)])
    assert not list(folder.glob("c.*"))
    assert len(Store(folder, whole=True).entries) == 4


def test_an_older_format_is_refused(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    (folder / "meta.json").write_text(json.dumps({**meta, "format": 2}), encoding="utf-8")
    with pytest.raises(ValueError, match="format 2, this version reads"):
        Store(folder)


@pytest.mark.usefixtures("one_process")
def test_generate_refuses_a_damaged_store_and_goes_on_without_the_shard(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path
) -> None:
    """A damaged shard must not pass for an empty store, whose answers would all be made again."""
    from tests.train.fit.test_processes import work_folder

    work = work_folder(tmp_path / "work", tiny_store)
    meta = {
        "format": FORMAT,
        "target": tiny_folder.name,
        "tap_layers": list(tiny_store.tap_layers),
        "hidden_size": 32,
        "max_new_tokens": 20,
        "dtype": "float32",
        "prompts_sha256": "",
    }
    settings = load_settings(
        None,
        [
            f"work={work}",
            f"target={tiny_folder}",
            "drafter.edsd_layers=[1, 2]",
            "generate.max_new_tokens=20",
            "generate.dtype=float32",
            "generate.workers=1",
            "generate.answer_tokens=100000",
        ],
    )
    meta["prompts_sha256"] = load_prompts(Workspace.of(settings), print)[1]
    (work / "store" / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    shard = sorted((work / "store").glob("*.safetensors"))[0]
    cut(shard)
    with pytest.raises(ValueError, match="remove these shards"):
        data.generate(Workspace.of(settings), lambda line: None)
    shard.unlink()
    lines: list[str] = []
    data.generate(Workspace.of(settings), lines.append)
    assert len(Store(work / "store", whole=True).entries) == len(tiny_store.entries)
    assert "bytes a token" in lines[-2]
    assert lines[-1].startswith("100.0% of some answers' tokens")
    shutil.rmtree(work)
