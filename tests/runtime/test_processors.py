"""Custom logit processors at every node of a draft, and those that raise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_entropy.runtime.v0_5_6 import ours, processors

VOCABULARY = 6
Params = list[dict[str, Any]]


def ban(logits: torch.Tensor, params: Params) -> torch.Tensor:
    """Row by row, as SGLang's documentation shows it."""
    assert len(params) == len(logits)
    for row, param in zip(logits, params, strict=True):
        row[param["ban"]] = -torch.inf
    return logits


def ban_last(logits: torch.Tensor, params: Params) -> torch.Tensor:
    """Of state: no token twice in a row."""
    for row, param in zip(logits, params, strict=True):
        row[param["__req__"].output_ids[-1]] = -torch.inf
    return logits


def same_for_all(logits: torch.Tensor, params: Params) -> torch.Tensor:
    assert len({param["ban"] for param in params}) == 1
    return ban(logits, params)


def raises_for_4(logits: torch.Tensor, params: Params) -> torch.Tensor:
    if any(param["ban"] == 4 for param in params):
        raise KeyError("four")
    return ban(logits, params)


@pytest.fixture(autouse=True)
def _active(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "active", lambda: True)


def requests(*bans: int | None) -> list[Any]:
    reqs = [SimpleNamespace(rid=str(i), output_ids=[1], to_finish=None) for i in range(len(bans))]
    for req, token in zip(reqs, bans, strict=True):
        req.params = None if token is None else {"ban": token, "__req__": req}
    return reqs


def settings(reqs: list[Any], processor: Any, chosen: list[bool]) -> Any:
    return SimpleNamespace(
        has_custom_logit_processor=True,
        custom_params=[req.params for req in reqs],
        custom_logit_processor={0: (processor, torch.tensor(chosen))},
        __len__=lambda: len(reqs),
    )


def draft(nodes: int, children: list[list[int]], siblings: list[list[int]]) -> Any:
    tokens = torch.arange(len(children) * nodes) % VOCABULARY
    return SimpleNamespace(
        draft_token_num=nodes,
        draft_token=tokens,
        retrive_next_token=torch.tensor(children),
        retrive_next_sibling=torch.tensor(siblings),
    )


# A chain of three, and a tree whose root has two children.
DRAFT = draft(3, [[1, 2, -1], [1, -1, -1]], [[-1, -1, -1], [-1, 2, -1]])


def test_every_node_is_a_row_of_its_request() -> None:
    reqs, logits = requests(2, 4), torch.zeros(6, VOCABULARY)
    info = settings(reqs, ban, [True, True])
    assert processors.applied_to_nodes(DRAFT, SimpleNamespace(reqs=reqs), info, logits)
    assert (logits == -torch.inf).nonzero().tolist() == [
        [0, 2],
        [1, 2],
        [2, 2],
        [3, 4],
        [4, 4],
        [5, 4],
    ]


def test_a_request_has_written_the_path_to_each_node() -> None:
    reqs, logits = requests(0, 0), torch.zeros(6, VOCABULARY)
    info = settings(reqs, ban_last, [True, True])
    assert processors.applied_to_nodes(DRAFT, SimpleNamespace(reqs=reqs), info, logits)
    # At the roots the last token of the answer, below them the drafted ones (4 and 5: siblings).
    assert (logits == -torch.inf).nonzero()[:, 1].tolist() == [1, 1, 2, 1, 4, 5]
    assert reqs[0].output_ids == [1]


def test_others_are_left_alone() -> None:
    reqs, logits = requests(2, None), torch.zeros(6, VOCABULARY)
    info = settings(reqs, ban, [True, False])
    assert processors.applied_to_nodes(DRAFT, SimpleNamespace(reqs=reqs), info, logits)
    assert (logits[3:] == 0).all()


def test_one_that_can_do_only_one_request_gets_one_at_a_time() -> None:
    reqs, logits = requests(2, 4), torch.zeros(2, VOCABULARY)
    info = settings(reqs, same_for_all, [True, True])
    assert processors.applied(info, logits)
    assert (logits == -torch.inf).nonzero().tolist() == [[0, 2], [1, 4]]


def test_one_that_raises_ends_its_request_alone() -> None:
    reqs, logits = requests(2, 4), torch.zeros(6, VOCABULARY)
    info = settings(reqs, raises_for_4, [True, True])
    assert processors.applied_to_nodes(DRAFT, SimpleNamespace(reqs=reqs), info, logits)
    assert reqs[0].to_finish is None
    assert reqs[1].to_finish.status_code == 400
    assert "raised KeyError('four')" in reqs[1].to_finish.message
    assert (logits[:3, 2] == -torch.inf).all()
    assert (logits[3:] == 0).all()


def test_where_we_are_not_asked_upstream_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "active", lambda: False)
    reqs, logits = requests(2, 4), torch.zeros(6, VOCABULARY)
    info = settings(reqs, ban, [True, True])
    assert not processors.applied_to_nodes(DRAFT, SimpleNamespace(reqs=reqs), info, logits)
    assert not processors.applied(info, logits[:2])
    assert (logits == 0).all()


def test_a_string_that_is_no_processor_is_refused() -> None:
    for text in ("x", "{}", '{"callable": "00"}', '{"callable": 3}'):
        with pytest.raises(ValueError, match=r"^custom_logit_processor: expected what .*to_str"):
            processors.check(text)
