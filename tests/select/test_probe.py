"""The solved drafter: against plain ridge regression, on planted layers, and as the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sgl_entropy.select import probe as module
from sgl_entropy.select.hidden_states import hidden_states
from sgl_entropy.select.probe import ProbeRows, collect, kernel, left_and_all, probe
from sgl_entropy.select.selection_report import read_choice
from sgl_entropy.select.settings import SelectSettings
from sgl_entropy.target.plain import PlainTarget
from tests.select.conftest import command

Texts = Callable[..., Path]


def planted(noise: float = 0.1, layers: int = 6, rows: int = 700, d: int = 8) -> ProbeRows:
    """Layers 1 and 4 hold what the final state is made of, gated by the token; the others hold
    nothing. Seventy texts of ten rows, of which the last thirty are held out."""
    chance = torch.Generator().manual_seed(4)
    taps = torch.randn((layers, rows, d), generator=chance)
    embeds = torch.randn((rows, d), generator=chance)
    mixed = torch.randn((2, d, d), generator=chance)
    final = taps[1] @ mixed[0] + (taps[4] @ mixed[1]) * embeds
    final += noise * torch.randn((rows, d), generator=chance)
    return ProbeRows(taps, embeds, final, torch.arange(rows) // 10, 400)


def test_it_is_ridge_regression_on_all_products() -> None:
    rows = planted()
    n, d = rows.learned, 8

    def scaled(x: torch.Tensor) -> torch.Tensor:
        x = x.double()
        return (x - x[:n].mean(0)) / x[:n].std(0) / d**0.5

    ones = torch.ones(len(rows.final), 1).double()
    pair = torch.cat([scaled(rows.taps[1]), scaled(rows.taps[4])], 1) / 2**0.5
    left, right = torch.cat([ones, pair], 1), torch.cat([ones, scaled(rows.embeds)], 1)
    wide = (left[:, :, None] * right[:, None]).flatten(1)
    told = rows.final.double() - rows.final[:n].double().mean(0)
    ridge = module._STRENGTH * n * torch.eye(wide.shape[1]).double()
    weights = torch.linalg.solve(wide[:n].T @ wide[:n] + ridge, wide[:n].T @ told[:n])
    expected = (told[n:] - wide[n:] @ weights).pow(2).sum(1)

    states = (kernel(rows.taps[1].double(), n) + kernel(rows.taps[4].double(), n)) / 2
    products = (1 + states) * (1 + kernel(rows.embeds.double(), n))
    found = left_and_all(products, rows.final.double(), n)
    torch.testing.assert_close(found[:, 0], expected)
    torch.testing.assert_close(found[:, 1], told[n:].pow(2).sum(1))


def test_the_layers_that_tell_are_found() -> None:
    found = probe(planted(), 50, 0, also=[(2, 3)])
    assert found.best == (1, 4)
    assert found.pairs[1, 4] > 0.95
    assert found.share == 1.0
    assert sorted(range(6), key=lambda layer: -found.alone[layer])[:2] in ([1, 4], [4, 1])
    values = list(found.pairs.values())
    assert values == sorted(values, reverse=True)
    assert found.pairs[2, 3] < 0.1
    assert (found.learned, found.held_out) == (400, 300)


def test_where_nothing_tells_nothing_is_explained() -> None:
    rows = planted()
    chance = torch.Generator().manual_seed(5)
    deaf = ProbeRows(
        rows.taps, rows.embeds, torch.randn((700, 8), generator=chance), rows.texts, 400
    )
    found = probe(deaf, 50, 0)
    assert max(found.pairs.values()) < 0.05
    assert found.share < 0.9
    still = ProbeRows(rows.taps, rows.embeds, torch.ones(700, 8), rows.texts, 400)
    assert set(probe(still, 5, 0).pairs.values()) == {0.0}


def test_few_directions_rank_as_all_do(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = probe(planted(), 20, 0)
    monkeypatch.setattr(module, "_DIRECTIONS", 4)
    part = probe(planted(), 20, 0)
    assert part.best == whole.best
    assert part.pairs[1, 4] == pytest.approx(whole.pairs[1, 4], abs=0.05)


def test_rows_are_the_targets_states(target: PlainTarget) -> None:
    chance = torch.Generator().manual_seed(2)
    texts = [torch.randint(1, 250, (n,), generator=chance).tolist() for n in (4, 17, 9, 30, 12)]
    rows = collect(target, texts, learned=12, held_out=8)
    # Of five texts the last two are held out; four rows of each at most, none of the first token.
    assert rows.texts.tolist() == [0, 0, *[1] * 4, *[2] * 4, *[3] * 4, *[4] * 4]
    assert rows.learned == 10
    at = {0: [1, 2], 1: [1, 6, 10, 15], 2: [1, 3, 5, 7], 3: [1, 10, 19, 28], 4: [1, 4, 7, 10]}
    for number, text in enumerate(texts):
        states, _ = hidden_states(target, [text])
        mine = rows.texts == number
        here = torch.tensor(at[number])
        for layer in range(target.num_layers - 1):
            expected = states[layer + 1][0, here]
            torch.testing.assert_close(rows.taps[layer, mine], expected, rtol=1e-4, atol=1e-5)
        ids = torch.tensor(text)
        assert torch.equal(rows.embeds[mine], F.embedding(ids[here + 1], target.embedding))
        zeros = torch.zeros(1, dtype=torch.long)
        final = target.forward(ids[None], zeros, None).final[0, here + 1]
        torch.testing.assert_close(rows.final[mine], final, rtol=1e-4, atol=1e-5)


def test_the_probe_chooses_where_it_is_asked(
    target_folder: Path, texts_file: Texts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, report = texts_file(20), tmp_path / "r.json"
    assert command(target_folder, texts, "--json", str(report)) == 0
    plain = json.loads(report.read_text())
    assert plain["choice"]["by"] == "metrics"
    assert "probe" not in plain
    capsys.readouterr()
    figure = ("--plot", str(tmp_path / "r.png"))
    assert command(target_folder, texts, "--by", "probe", "--json", str(report), *figure) == 0
    picture = (tmp_path / "r.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20], "big") == 15 * 150, "three panels"
    found = json.loads(report.read_text())
    assert found["profiles"] == plain["profiles"]
    assert found["choice"]["a"] == plain["choice"]["a"]
    best = found["probe"]["pairs"][0]
    chosen = found["choice"]
    assert chosen["by"] == "probe"
    assert chosen["target_layer_ids"] == best["target_layer_ids"]
    assert chosen["hidden_states"] == [layer + 1 for layer in best["target_layer_ids"]]
    assert read_choice(report) == tuple(best["target_layer_ids"])
    assert len(found["probe"]["explained"]) == 3, "of four layers, the last cannot be tapped"
    assert len(found["probe"]["pairs"]) == 3
    out, err = capsys.readouterr()
    assert "3 of 3 pairs probed" in err
    assert out.splitlines()[-1] == f"target_layer_ids: {chosen['target_layer_ids']}"
    assert f"the metrics' {plain['choice']['target_layer_ids']}: " in out


def test_there_are_two_choosers() -> None:
    with pytest.raises(ValueError, match="--by must be one of"):
        SelectSettings(by="luck")


def test_a_fixed_layer_is_of_the_metrics(
    target_folder: Path, texts_file: Texts, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(target_folder, texts_file(), "--by", "probe", "--fix-a", "1") == 2
    assert "not --by probe" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_gpu_probes_as_the_cpu_does() -> None:
    """On a machine with CUDA: pytest -m gpu tests/select"""
    here, there = (probe(planted(), 50, 0, device=name) for name in ("cpu", "cuda"))
    assert there.best == here.best
    for pair, share in here.pairs.items():
        assert there.pairs[pair] == pytest.approx(share, abs=1e-3)
