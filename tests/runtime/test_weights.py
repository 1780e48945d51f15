"""A route that writes weights refuses what the model cannot take, and the served ones come back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sgl_entropy.runtime.v0_5_6 import ours, weights
from sgl_entropy.runtime.v0_5_6.cpu import gemm


@pytest.fixture(autouse=True)
def _served(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt import server_args

    monkeypatch.setattr(ours, "active", lambda: True)
    args = SimpleNamespace(model_path="served", load_format="auto")
    monkeypatch.setattr(server_args, "_global_server_args", args)


def asked(kind: str, **fields: Any) -> Any:
    return type(kind, (), fields)()


def scheduler(**functions: Any) -> Any:
    return SimpleNamespace(draft_worker=None, tp_worker=SimpleNamespace(**functions))


def test_a_folder_that_fails_in_the_middle_is_followed_by_the_served_one() -> None:
    read = []

    def update(request: Any) -> tuple[bool, str]:
        read.append((request.model_path, request.load_format))
        if request.model_path == "other":
            raise RuntimeError("no such tensor")
        return True, ""

    before = gemm.updates()
    request = asked("UpdateWeightFromDiskReqInput", model_path="other", load_format="{}")
    success, message = weights.write(scheduler(update_weights_from_disk=update), request)
    assert not success
    assert "no such tensor" in message
    assert read == [("other", "{}"), ("served", "auto")]
    assert gemm.updates() == before + 1


def test_tensors_that_do_not_fit_are_refused() -> None:
    def update(request: Any) -> tuple[bool, str]:
        raise ValueError("shapes differ")

    drafting = SimpleNamespace(draft_worker=SimpleNamespace(update_weights_from_tensor=update))
    success, message = weights.write(drafting, asked("UpdateWeightsFromTensorReqInput"))
    assert not success
    assert "shapes differ" in message


def test_without_our_flags_an_exception_is_upstreams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "active", lambda: False)

    def update(request: Any) -> tuple[bool, str]:
        raise ValueError("shapes differ")

    with pytest.raises(ValueError, match="shapes differ"):
        weights.write(
            scheduler(update_weights_from_distributed=update),
            asked("UpdateWeightsFromDistributedReqInput"),
        )
