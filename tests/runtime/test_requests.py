"""Where requests are checked: in a server under our flags, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sgl_entropy.runtime.v0_5_6 import ours, requests


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Any:
    from sglang.srt import server_args

    model = SimpleNamespace(vocab_size=10, hidden_size=2, is_multimodal=False)
    args = SimpleNamespace(
        get_model_config=lambda: model,
        dp_size=1,
        skip_tokenizer_init=False,
        speculative_algorithm="EDSD",
        easd=None,
        draft_stop=None,
        enable_custom_logit_processor=False,
    )
    monkeypatch.setattr(server_args, "_global_server_args", args)
    monkeypatch.setattr(ours, "active", lambda: True)
    return args


def test_a_request_is_checked_as_it_is_made(served: Any) -> None:
    from sglang.srt.managers.io_struct import ConfigureLoggingReq, GenerateReqInput

    GenerateReqInput(input_ids=[1, 9])
    with pytest.raises(ValueError, match="input_ids must be whole"):
        GenerateReqInput(input_ids=[1, 10])
    with pytest.raises(ValueError, match="log_requests_level"):
        ConfigureLoggingReq(log_requests_level=9)


@pytest.mark.parametrize("reason", ["no server", "not ours"])
def test_elsewhere_upstream_takes_it(
    served: Any, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    from sglang.srt import server_args
    from sglang.srt.managers.io_struct import ConfigureLoggingReq, GenerateReqInput

    if reason == "no server":
        monkeypatch.setattr(server_args, "_global_server_args", None)
    else:
        monkeypatch.setattr(ours, "active", lambda: False)
    GenerateReqInput(input_ids=[1, 10])
    ConfigureLoggingReq(log_requests_level=9)


def test_a_name_in_use_and_one_that_is_none(served: Any) -> None:
    request = SimpleNamespace(rid="a")
    requests.check(request, {}, [1], served)
    with pytest.raises(ValueError, match="'a', which is being answered"):
        requests.check(request, {"a": object()}, [1], served)
    with pytest.raises(ValueError, match=r"^rid: expected a name"):
        requests.check(SimpleNamespace(rid=["a"]), {}, [1], served)


def test_ids_that_no_text_is_made_of(served: Any) -> None:
    requests.admit_tokens([1, 9], served)
    requests.admit_tokens([], served)
    wrong: list[list[Any]] = [[10], [[1], [-1]], [2**63]]
    for tokens in wrong:
        with pytest.raises(ValueError, match=r"^tokens must be whole numbers"):
            requests.admit_tokens(tokens, served)
