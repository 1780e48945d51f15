"""``drafter eval`` without a server, and through one: the same cycles and tokens."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from sgl_entropy.cli import main
from tests.engine.conftest import Fleet

SERVERS = [
    ("edsd_chain", "edsd", False),
    ("easd_chain", "edsd", True),
    ("eagle3", "eagle3", True),
]


@pytest.mark.parametrize(("server", "drafter", "traces"), SERVERS)
def test_offline_and_served_agree(
    fleet: Fleet, tmp_path: Path, server: str, drafter: str, traces: bool
) -> None:
    """Also a server whose EASD would fire; it records traces, and so knows the entropies."""
    client = fleet.server(server).client
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(["Hello", "The quick brown fox", '{"a": 1}', "q" * 40, "0 1 2 3"]))
    words = ["drafter", "eval", str(fleet.folder / drafter), "--target"]
    words += [str(fleet.served_target(server))]
    words += ["--texts", str(texts), "--max-new-tokens", "80"]

    def evaluate(*more: str) -> dict[str, Any]:
        out = tmp_path / "out.json"
        assert main([*words, *more, "--json", str(out)]) == 0
        found: dict[str, Any] = json.loads(out.read_text())
        return found

    plain = evaluate()
    served = evaluate("--server", f"http://{client.host}:{client.port}")
    assert (served["tokens"], served["cycles"]) == (plain["tokens"], plain["cycles"])
    assert served["acceptance_length"] == plain["acceptance_length"] > 1.2
    assert served["interval"] == plain["interval"]
    # The last cycle of an answer may run past its end, where the server's counters stop.
    assert served["by_position"] == pytest.approx(plain["by_position"], abs=0.03)
    assert served["depth"] == plain["depth"] == 4
    assert "unverified" not in served
    assert ("by_target_entropy_decile" in served) == ("heat_map" in served) == traces
    if not traces:
        return
    ours, theirs = (one["by_target_entropy_decile"] for one in (plain, served))
    assert [row["positions"] for row in theirs] == [row["positions"] for row in ours]
    for row, other in zip(ours, theirs, strict=True):
        assert other["entropy"] == pytest.approx(row["entropy"], abs=2e-3)
        # Two that are as unsure may change places at the edge of a decile.
        assert other["acceptance"] == pytest.approx(row["acceptance"], abs=0.05)
    for name in ("positions", "accepted"):
        cells, others = ([*chain(*one["heat_map"][name])] for one in (plain, served))
        assert sum(others) == sum(cells)
        assert sum(abs(a - b) for a, b in zip(cells, others, strict=True)) <= 0.02 * sum(cells)
    plot = tmp_path / "served.png"
    evaluate("--server", f"http://{client.host}:{client.port}", "--plot", str(plot))
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_server_of_something_else_is_refused(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("Hello")
    words = ["drafter", "eval", str(fleet.folder / "edsd")]
    words += ["--texts", str(tmp_path / "texts.txt")]
    for name, target, more, message in (
        ("none", fleet.target, [], "serves no drafter"),
        ("eagle3", fleet.target, [], "not with"),
        ("edsd_tree", fleet.target, [], "drafts trees of 3 branches"),
        ("edsd_chain", fleet.targets["easd_chain"], [], "does not serve the target"),
        ("edsd_chain", fleet.target, ["--plot", "a.png"], "--speculative-verify-mode easd"),
    ):
        client = fleet.server(name).client
        server = ["--target", str(target), "--server", f"http://{client.host}:{client.port}"]
        assert main([*words, *server, *more]) == 2
        assert message in capsys.readouterr().err
