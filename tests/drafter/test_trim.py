"""A smaller draft vocabulary: the same drafter, with fewer tokens to propose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sgl_entropy.checkpoint.errors import DrafterError
from sgl_entropy.cli import main
from sgl_entropy.drafter.model import load_drafter
from sgl_entropy.drafter.trim import most_frequent, trim
from tests.drafter.tiny import eagle3_config, edsd_config, write_drafter


@pytest.mark.parametrize("config", [edsd_config(), eagle3_config()], ids=["edsd", "eagle3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_kept_tokens_have_the_logits_that_they_had(
    tmp_path: Path, config: object, dtype: torch.dtype
) -> None:
    source = write_drafter(tmp_path / "a", config, dtype=dtype)  # type: ignore[arg-type]
    before = load_drafter(source)
    own = before.target_ids(torch.arange(32))
    kept = own[torch.randperm(32, generator=torch.Generator().manual_seed(1))[:11]].sort().values

    trim(source, tmp_path / "b", kept)

    after = load_drafter(tmp_path / "b")
    assert torch.equal(after.target_ids(torch.arange(11)), kept)
    assert after.t2d.nonzero().squeeze(-1).tolist() == kept.tolist()
    out = torch.randn(5, 16)
    wanted = before.logits(out)[:, torch.isin(own, kept)]
    torch.testing.assert_close(after.logits(out), wanted)
    for name, weight in before.named_parameters():
        if name != "lm_head.weight":
            assert torch.equal(dict(after.named_parameters())[name], weight), name


def test_the_most_frequent_are_kept() -> None:
    counts = torch.tensor([9.0, 1, 5, 5, 0, 7])
    own = torch.tensor([1, 2, 3, 5])
    assert most_frequent(own, counts, 2).tolist() == [2, 5]
    assert most_frequent(own, counts, 3).tolist() == [2, 3, 5]
    for size in (0, 4, 9):
        with pytest.raises(DrafterError, match="holds 1 to 3 tokens"):
            most_frequent(own, counts, size)


def test_a_foreign_token_is_refused_and_nothing_written(tmp_path: Path) -> None:
    source = write_drafter(tmp_path / "a", edsd_config())
    own = load_drafter(source).target_ids(torch.arange(32)).tolist()
    foreign = next(i for i in range(64) if i not in own)
    with pytest.raises(DrafterError, match="1 tokens are not in the draft vocabulary"):
        trim(source, tmp_path / "b", torch.tensor(sorted([own[0], foreign])))
    assert not (tmp_path / "b").exists()


def test_the_command_counts_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_drafter(tmp_path / "a", edsd_config())
    own = load_drafter(source).target_ids(torch.arange(32)).tolist()
    answers = tmp_path / "answers.jsonl"
    # The prompt's tokens do not count.
    rows = [
        {"prompt_id": 0, "prompt_length": 2, "tokens": [own[9], own[9], own[4], own[7], own[7]]},
        {"prompt_id": 1, "prompt_length": 1, "tokens": [own[9], own[30], own[7]]},
    ]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["drafter", "trim", str(source), str(tmp_path / "b"), "--answers", str(answers)]
    assert main([*words, "--size", "3"]) == 0
    assert "3 of 32 tokens" in capsys.readouterr().out
    found = load_drafter(tmp_path / "b").target_ids(torch.arange(3)).tolist()
    assert found == [own[4], own[7], own[30]]
    assert main([*words, "--size", "3"]) != 0, "what is there is not replaced"
    assert main([*words, "--size", "32"]) != 0
    answers.write_text("")
    assert main([*words, "--size", "2"]) != 0
    assert "no answers there" in capsys.readouterr().err
