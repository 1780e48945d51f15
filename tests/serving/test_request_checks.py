"""What a request may ask of the entropy mode: all else is refused with what was expected."""

from __future__ import annotations

from typing import Any

import pytest

from sgl_entropy.serving.mode import Mode
from sgl_entropy.serving.request_checks import check_custom
from sgl_entropy.verify.policies import Svip
from sgl_entropy.verify.rule import EasdRule

EASD = Mode(EasdRule())
STOPS = Mode(EasdRule(), verifies=False, stop=Svip())


def test_a_request_may_ask_who_drafted_where_there_are_two() -> None:
    check_custom({"spec_drafters": True}, None, two_drafters=True)
    for wrong in (1, "yes", None):
        with pytest.raises(ValueError, match="spec_drafters must be true or false"):
            check_custom({"spec_drafters": wrong}, None, two_drafters=True)
    check_custom({"spec_drafters": False}, None, two_drafters=False)
    with pytest.raises(ValueError, match="--speculative-second-draft-model-path"):
        check_custom({"spec_drafters": True}, None, two_drafters=False)


@pytest.mark.parametrize(
    ("given", "mode", "message"),
    [
        ([], None, "custom_params must be an object"),
        ({"easd": True}, None, "this server verifies exactly"),
        ({"easd": {}}, STOPS, "this server verifies exactly"),
        ({"easd": {"top_n": 3}}, EASD, "unknown key top_n"),
        ({"spec_trace": 1}, EASD, "spec_trace must be true or false, found 1"),
        ({"spec_trace": True}, None, "records no traces"),
        ({"spec_trace": True}, Mode(EasdRule(), chain=False), "--speculative-eagle-topk 1"),
    ],
)
def test_what_this_server_cannot_do_is_refused(given: Any, mode: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_custom(given, mode, two_drafters=False)


def test_what_this_server_can_do_is_taken() -> None:
    check_custom(None, None, two_drafters=False)
    check_custom({"easd": False, "of_a_logit_processor": object()}, None, two_drafters=False)
    check_custom({"easd": {"overlap": 0.1}, "spec_trace": True}, EASD, two_drafters=False)
    check_custom({"spec_trace": True}, STOPS, two_drafters=False)
