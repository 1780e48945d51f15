"""The fake server's command line and laws."""

from __future__ import annotations

import random
import statistics

import pytest
from sgl_entropy_bench.fakeserver.laws import RandomLaw
from sgl_entropy_bench.fakeserver.settings import parse_options


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--cycle normal:1", "--cycle: expected constant:M"),
        ("--cycle gamma:1", "--cycle: expected constant:M"),
        ("--ttft -1", "--ttft: the mean must be 0 or more"),
        ("--ttft nan", "--ttft: the mean must be 0 or more"),
        ("--ttft gamma:1:-1", "--ttft: the coefficient of variation"),
        ("--acceptance 1.1", "--acceptance: expected a number from 0 to 1"),
        ("--slots 0", "--slots: expected a whole number of at least 1"),
        ("--fault fire", "--fault: invalid choice: 'fire'"),
        ("--easd 0.1 --depth 0", "--easd: needs a --depth"),
    ],
)
def test_bad_arguments(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_options(words.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--help"])
    text = capsys.readouterr().out
    example = text[text.index("python -m", text.index("example:")) :].partition("\n\n")[0]
    assert parse_options(example.replace("\\", "").split()[3:]).fault == "drop"


@pytest.mark.parametrize(
    ("written", "variation"),
    [("2", 0.0), ("constant:2", 0.0), ("exponential:2", 1.0), ("gamma:2:0.5", 0.5)],
)
def test_laws(written: str, variation: float) -> None:
    law, generator = RandomLaw.parse(written), random.Random(0)
    values = [law.draw(generator) for _ in range(20000)]
    assert statistics.mean(values) == pytest.approx(2, rel=0.03)
    assert statistics.pstdev(values) / 2 == pytest.approx(variation, abs=0.03)
