"""``drafter eval`` without a server, and through one: the same cycles and tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sgl_entropy.cli import main
from tests.engine.conftest import Fleet


@pytest.mark.parametrize(("server", "drafter"), [("edsd_chain", "edsd"), ("eagle3", "eagle3")])
def test_offline_and_served_agree(fleet: Fleet, tmp_path: Path, server: str, drafter: str) -> None:
    client = fleet.server(server).client
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(["Hello", "The quick brown fox", '{"a": 1}', "q" * 40, "0 1 2 3"]))
    words = ["drafter", "eval", str(fleet.folder / drafter), "--target", str(fleet.target)]
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


def test_a_server_without_a_drafter_or_with_another_is_refused(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("Hello")
    words = ["drafter", "eval", str(fleet.folder / "edsd"), "--target", str(fleet.target)]
    words += ["--texts", str(tmp_path / "texts.txt")]
    for name, message in (("none", "serves no drafter"), ("eagle3", "not with")):
        client = fleet.server(name).client
        assert main([*words, "--server", f"http://{client.host}:{client.port}"]) == 2
        assert message in capsys.readouterr().err
