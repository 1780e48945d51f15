"""Log-probabilities with a drafter are those without one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.client import EngineClient, Json
from tests.engine.prompts import MIXED

CASES: dict[str, dict[str, Any]] = {
    "output": {"ignore_eos": True},
    "top": {"ignore_eos": True, "top_logprobs_num": 4},
    "input": {"logprob_start_len": 0, "top_logprobs_num": 2},
    "stopped_in_a_draft": {"stop_token_ids": [100, 42]},
    "chosen_ids": {"ignore_eos": True, "token_ids_logprob": [20, 33]},
}
LISTS = ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs")
INPUT_LISTS = ("input_token_logprobs", "input_top_logprobs", "input_token_ids_logprobs")


def entries(reply: Json, names: tuple[str, ...]) -> list[Any]:
    """All (logprob, id) pairs, flattened, None kept."""
    out: list[Any] = []
    for name in names:
        for entry in reply["meta_info"].get(name) or []:
            out += entry if entry and isinstance(entry[0], list) else [entry]
    return out


@pytest.mark.parametrize("name", CASES)
def test_equal_to_no_speculation(none: EngineClient, drafting: EngineClient, name: str) -> None:
    settings = {"return_logprob": True, **CASES[name]}
    plain = none.batch(MIXED, 24, **settings)
    drafted = drafting.batch(MIXED, 24, **settings)
    for expected, reply in zip(plain, drafted, strict=True):
        assert reply["output_ids"] == expected["output_ids"]
        for names in (LISTS, INPUT_LISTS):
            ours, theirs = entries(reply, names), entries(expected, names)
            assert len(ours) == len(theirs)
            for one, other in zip(ours, theirs, strict=True):
                assert (one is None) == (other is None)
                if one is not None:
                    assert one[1] == other[1]
                    assert one[0] == pytest.approx(other[0], abs=1e-4)
        tokens = [entry[1] for entry in reply["meta_info"]["output_token_logprobs"]]
        assert tokens == reply["output_ids"], "one entry a token that was returned"
