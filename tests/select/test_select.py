"""The command from a folder and a file to JSON, table and figure; and every input it refuses."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_entropy.cli import main
from sgl_entropy.select import bootstrap
from sgl_entropy.select import hidden_states as measuring
from sgl_entropy.select.hidden_states import hidden_states, measure
from sgl_entropy.select.samples import noisy_ids, sample_texts
from sgl_entropy.select.selection_report import read_choice
from sgl_entropy.target.batches import by_length
from sgl_entropy.target.fingerprint import target_fingerprint
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.target.tokenizer import load_tokenizer
from tests.interrupted import interrupt
from tests.select.conftest import write_target, write_tokenizer

QUICK = ("--views", "3", "--resamples", "20", "--lidar-resamples", "5", "--view-tokens", "12")
Texts = Callable[..., Path]


def test_hidden_states_are_hugging_faces(target_folder: Path, target: PlainTarget) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(target_folder)
    ids = [[5, 9, 200, 31, 7]]
    states, lengths = hidden_states(target, ids)
    seen: list[torch.Tensor] = []  # transformers norms its last one: take the layer's own output
    last = model.model.layers[-1]
    last.register_forward_hook(
        lambda _m, _i, out: seen.append(out if torch.is_tensor(out) else out[0])
    )
    with torch.no_grad():
        theirs = model(torch.tensor(ids), output_hidden_states=True).hidden_states
    assert lengths.tolist() == [5]
    assert len(states) == len(theirs) == 5
    for ours, other in zip(states, [*theirs[:-1], seen[0]], strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)


def test_a_batch_measures_what_each_text_alone_does(target: PlainTarget) -> None:
    chance = torch.Generator().manual_seed(2)

    def text(length: int) -> list[int]:
        return torch.randint(1, 250, (length,), generator=chance).tolist()

    texts = [text(n) for n in (4, 17, 9, 30)]
    views = [[text(n), text(n + 3)] for n in (5, 1, 12, 20)]
    together = measure(target, texts, views)
    for i in range(4):
        alone = measure(target, [texts[i]], [views[i]])
        torch.testing.assert_close(
            together.curvature[:, i], alone.curvature[:, 0], rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(together.pooled[:, i], alone.pooled[:, 0], rtol=1e-3, atol=1e-5)
    assert float(together.curvature.min()) > 0.1
    assert float(together.pooled[1:, 0].abs().max()) > 0.01


def test_many_pooled_vectors_lie_in_a_file(
    target: PlainTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [[1 + (7 * i + j) % 250 for j in range(9)] for i in range(6)]
    views = [[text, text[::-1]] for text in texts]
    held = measure(target, texts, views)
    monkeypatch.setattr(measuring, "HELD_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mapped = measure(target, texts, views)
    assert torch.equal(mapped.pooled, held.pooled)
    assert any(str(tmp_path) in line for line in Path("/proc/self/maps").read_text().splitlines())
    assert not list(tmp_path.iterdir()), "a killed run leaves nothing behind"
    with pytest.raises(ValueError, match=r"take 4000\.0 GB, and .* refuses them"):
        measuring.room(10**6, 10**6)


def test_batches_hold_every_text_once_and_keep_their_bounds() -> None:
    lengths = [7, 3, 50, 3, 9, 8, 7, 3]
    made = by_length(lengths, rows=2, tokens=20)
    assert sorted(i for group in made for i in group) == list(range(8))
    assert [len(group) for group in made] == [2, 2, 2, 1, 1]
    assert made[-1] == [2]


@pytest.fixture
def run(target_folder: Path, tmp_path: Path) -> Callable[..., int]:
    def run(texts: Path, *words: str, target: Path = target_folder) -> int:
        return main(["select", str(target), *QUICK, "--texts", str(texts), *words])

    return run


def profiles(run: Callable[..., int], texts: Path, report: Path, *words: str) -> torch.Tensor:
    """float64 [2, hidden states]: curvature and LiDAR."""
    assert run(texts, "--json", str(report), *words) == 0
    found = json.loads(report.read_text())
    return torch.tensor(list(found["profiles"].values()), dtype=torch.float64)


@pytest.mark.gpu
def test_a_gpu_measures_as_the_cpu_does(
    run: Callable[..., int],
    texts_file: Texts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine with CUDA: pytest -m gpu tests/select. Both forms of LiDAR."""
    texts, report = texts_file(), tmp_path / "r.json"
    for sums in (False, True):
        monkeypatch.setattr(bootstrap, "prefers_sums", lambda _vectors, sums=sums: sums)
        here = profiles(run, texts, report, "--device", "cpu")
        there = profiles(run, texts, report, "--device", "cuda")
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)


def test_a_target_in_bfloat16_has_much_the_same_profiles(
    run: Callable[..., int], texts_file: Texts, tmp_path: Path
) -> None:
    texts, report = texts_file(), tmp_path / "r.json"
    exact = profiles(run, texts, report)
    rounded = profiles(run, texts, report, "--dtype", "bfloat16")
    assert json.loads(report.read_text())["settings"]["dtype"] == "bfloat16"
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.02)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_message(
    run: Callable[..., int], texts_file: Texts, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(texts_file(), "--device", "cuda") == 2
    assert "--device cuda: cannot compute there" in capsys.readouterr().err


def test_from_texts_to_json_table_and_figure(
    run: Callable[..., int],
    target_folder: Path,
    texts_file: Texts,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts, report, figure = texts_file(), tmp_path / "r.json", tmp_path / "r.png"
    code = run(texts, "--json", str(report), "--plot", str(figure))
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "warning" in err  # 12 texts instead of 128
    assert "12 usable texts of 12" in err
    assert "(about 0:00 left)" in err
    found = json.loads(report.read_text())
    assert {len(found["profiles"][name]) for name in ("curvature", "lidar")} == {5}
    assert all(0 < value < math.pi / 2 for value in found["profiles"]["curvature"])
    assert all(0 < value <= math.log(11) for value in found["profiles"]["lidar"])
    choice = found["choice"]
    assert choice["a"]["hidden_state"] == 1 + max(
        range(3), key=lambda i: found["profiles"]["curvature"][1 + i]
    )
    assert choice["hidden_states"] == sorted(choice[x]["hidden_state"] for x in "ab")
    assert choice["target_layer_ids"] == [number - 1 for number in choice["hidden_states"]]
    assert read_choice(report) == tuple(choice["target_layer_ids"])
    assert [len(found["runner_ups"][name]) for name in ("curvature", "lidar")] == [2, 2]
    stability = found["stability"]
    assert 0 < stability["a_share"] <= 1
    for name in ("curvature", "lidar"):
        assert all(low <= high for low, high in stability[name])
    assert found["texts"]["sha256"] == hashlib.sha256(texts.read_bytes()).hexdigest()
    assert found["texts"]["count"] == 12
    # Reports are committed and sent around: names, no machine's folders.
    assert found["texts"]["file"] == texts.name
    assert found["target"] == target_folder.name
    assert found["target_fingerprint"] == target_fingerprint(target_folder)
    assert 0 <= found["seconds"] < 60
    assert found["provenance"]["commit"]
    assert set(found["versions"]) == {"sgl-entropy", "torch", "transformers"}
    assert out.splitlines()[-1] == f"target_layer_ids: {choice['target_layer_ids']}"
    assert out.count("not a candidate") == 2
    assert out.count("<- a") == out.count("<- b") == 1
    assert figure.read_bytes().startswith(b"\x89PNG")

    # The same again, as JSON on stdout alone, and with a layer fixed.
    assert run(texts, "--json", "-") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["profiles"] == found["profiles"]
    assert again["stability"] == found["stability"]
    assert run(texts, "--json", "-", "--fix-a", "0", "--seed", "3") == 0
    other = json.loads(capsys.readouterr().out)
    assert other["choice"]["a"] == {
        "hidden_state": 1,
        "target_layer_id": 0,
        "metric": "curvature",
        "fixed": True,
    }
    assert other["profiles"]["lidar"] != found["profiles"]["lidar"]


def test_samples(
    target_folder: Path, tmp_path: Path, texts_file: Texts, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(target_folder, 260)
    said: list[str] = []
    path = texts_file(40)
    with path.open("a") as file:
        file.write(json.dumps({"text": "abc"}) + "\n")
        file.write(json.dumps({"text": "half \ud83d a pair"}) + "\n")
    sample = sample_texts([path], tokenizer, None, 16, 0, said.append)
    assert len(sample.ids) == 41
    assert sample.short == 1
    assert len(said) == 1
    assert max(map(len, sample.ids)) == 16
    assert "half ? a pair" in sample.texts
    fewer = sample_texts([path], tokenizer, 10, 16, 0, said.append)
    assert fewer.texts == sample.texts[:10]  # the seed's order
    assert fewer.texts != sample_texts([path], tokenizer, 10, 16, 1, said.append).texts
    assert len(said) == 1
    views = noisy_ids(tokenizer, fewer.texts, 3, 9, 0, 0.3)
    assert [len(text) for text in views] == [3] * 10
    assert all(4 <= len(view) <= 9 for text in views for view in text)
    plain = tmp_path / "lines.txt"
    plain.write_text("".join(f"line number {i}\n\n" for i in range(9)))
    assert len(sample_texts([plain], tokenizer, 9, 16, 0, said.append).ids) == 9
    both = sample_texts([path, plain], tokenizer, 50, 16, 0, said.append)
    assert len(both.ids) == 41 + 9
    assert both.sha256 == hashlib.sha256(path.read_bytes() + plain.read_bytes()).hexdigest()


def test_several_files_or_a_folder_of_them(
    run: Callable[..., int], texts_file: Texts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    texts_file(6).rename(folder / "a.jsonl")
    (folder / "b.txt").write_text("".join(f"line number {i}\n" for i in range(5)))
    reports = []
    for words in ((folder,), (folder / "a.jsonl", str(folder / "b.txt"))):
        assert run(*words, "--json", str(tmp_path / "r.json")) == 0
        reports.append(json.loads((tmp_path / "r.json").read_text()))
    one, other = reports
    assert one["texts"]["count"] == 11
    assert one["texts"]["file"] == "a.jsonl, b.txt"
    assert (one["texts"], one["profiles"]) == (other["texts"], other["profiles"])
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    refused(capsys, run(tmp_path / "empty"), "empty: a folder without .jsonl or .txt files")


def copied(folder: Path, to: Path, **changes: Any) -> Path:
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **changes}))
    return to


def refused(capsys: pytest.CaptureFixture[str], code: int, *parts: str) -> None:
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert "\nsgl-entropy select: " in "\n" + err
    for part in parts:
        assert part in err


def test_texts_that_do_not_do(
    run: Callable[..., int], texts_file: Texts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, run(tmp_path / "gone.jsonl"), "gone.jsonl: no such file")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    refused(capsys, run(empty), "empty.jsonl: holds no text")
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"speech": "what is this"}\n')
    refused(capsys, run(odd), "odd.jsonl, line 1", "`conversations`")
    refused(capsys, run(texts_file(7)), "7 usable texts of 7", "at least 8")
    refused(capsys, run(texts_file(12), "--count", "13"), "12 usable texts", "--count asks for 13")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--count", "7"), "--count must be at least 8, found 7"),
        (("--views", "1"), "--views must be at least 2"),
        (("--max-tokens", "3"), "--max-tokens must be at least 4"),
        (("--max-tokens", "129"), "has 128 positions"),
        (("--resamples", "0"), "--resamples must be at least 1"),
        (("--lidar-resamples", "21"), "must not exceed --resamples 20"),
        (("--noise", "1.5"), "--noise must be a share"),
        (("--threads", "0"), "--threads must be at least 1"),
        (("--fix-a", "3"), "--fix-a 3: expected a decoder layer id from 0 to 2"),
        (("--fix-a", "1", "--fix-b", "1"), "both name layer 1"),
        (("--json", "/nowhere/r.json"), "--json /nowhere/r.json: no such folder"),
        (("--plot", "r.svg"), "end the name in .png"),
    ],
)
def test_flags_that_do_not_do(
    run: Callable[..., int],
    texts_file: Texts,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    refused(capsys, run(texts_file(), *words), message)


def test_targets_that_do_not_do(
    run: Callable[..., int],
    texts_file: Texts,
    target_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = texts_file()
    refused(capsys, run(texts, target=tmp_path / "gone"), "gone: no such folder")
    gemma = copied(target_folder, tmp_path / "gemma", model_type="gemma2")
    refused(capsys, run(texts, target=gemma), "targets of the llama family", "'gemma2'")
    (tmp_path / "mute").mkdir()
    mute = write_target(tmp_path / "mute", num_hidden_layers=3)
    refused(capsys, run(texts, target=mute), "mute: no tokenizer there")
    (tmp_path / "shallow").mkdir()
    shallow = write_target(tmp_path / "shallow", num_hidden_layers=2)
    refused(capsys, run(texts, target=shallow), "2 decoder layers", "at least 3")
    (tmp_path / "narrow").mkdir()
    narrow = write_target(tmp_path / "narrow", vocab=256)
    write_tokenizer(narrow)  # ids 0 to 256
    refused(capsys, run(texts, target=narrow), "up to token 256", "embeds 256 tokens")


@pytest.mark.slow
def test_an_interrupt_is_one_line(target_folder: Path, texts_file: Texts, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    words = ["select", str(target_folder), "--texts", str(texts_file(40)), "--count", "40"]
    words += ["--resamples", "2000", "--lidar-resamples", "2000", "--json", str(report)]
    code, said = interrupt(words, tmp_path / "log", lambda text: "through the target" in text)
    assert code == 130
    assert said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said
    assert not report.exists()


def test_a_plot_without_matplotlib_is_refused_before_any_work(
    run: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    # The missing texts and target would be complained about by any work.
    code = run(tmp_path / "gone", "--plot", str(tmp_path / "p.png"), target=tmp_path / "gone")
    refused(capsys, code, "pip install 'sgl-entropy[plots]'")
