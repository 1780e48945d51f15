"""The draft state: which rows stay when requests leave a batch, what and where they read next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sgl_entropy.runtime.v0_5_6 import ours

if TYPE_CHECKING:
    import torch


def already_filtered(upstream: bool, rows: int, kept: int) -> bool:
    """Whether ``EagleDraftInput`` holds the rows of the remaining requests alone.

    Verification drops the rows of the requests that it finished. The row of a request that ends
    with its first token (in the prompt's forward), or is retracted, is still there. Upstream then
    cuts off the last rows instead of these, and later requests continue from each other's tokens.

    Args:
        upstream: what SGLang believes.
        rows: rows that the draft state holds.
        kept: requests that stay.
    """
    return upstream and not (ours.active() and rows > kept)


def keep_chosen_logprobs(req: Any, output: Any, row: int) -> None:
    """Keep the log-probabilities of ``token_ids_logprob``, which upstream computes and drops.

    Args:
        output: ``LogitsProcessorOutput`` with one entry a verified token.
        row: the token's entry.
    """
    if req.token_ids_logprob is None or not ours.active():
        return
    req.output_token_ids_logprobs_val.append(output.next_token_token_ids_logprobs_val[row])
    req.output_token_ids_logprobs_idx.append(output.next_token_token_ids_logprobs_idx[row])


def rows_of_a_cycle(args: Any) -> int:
    """KV slots that one request may take in the next step: its draft, then its verification.

    Upstream retracts until one slot a request is free, also with speculation. The next draft then
    finds too few slots, and the server ends.

    Args:
        args: SGLang's ``ServerArgs``.
    """
    if args.speculative_algorithm is None or not ours.active():
        return 1
    return int(
        args.speculative_num_draft_tokens
        + (args.speculative_eagle_topk or 1) * (args.speculative_num_steps or 1)
    )


def steps_ahead(step: int) -> int:
    """How far a draft's rows move on before their next forward: 1, but 0 before the first.

    They start at the position of the next token, where the first forward belongs. Upstream moves
    them on before that forward too, so that every token after the first is drafted one rotary
    position too far.

    Args:
        step: of the token just drafted, from 0.
    """
    return 0 if step == 0 and ours.active() else 1


def tokens_after(reqs: list[Any], drawn: torch.Tensor) -> torch.Tensor:
    """The token that follows each request's part of a prompt, which the draft reads at its end.

    After a whole prompt it is the token just drawn; after a chunk of one, the prompt's own next
    token. Upstream takes the drawn one there too, so that the drafter remembers a token which
    never was, and drafts depend on where a prompt was cut. Upstream mended this in 2026.

    Args:
        reqs: SGLang's requests of the batch, one a row.
        drawn: int, (batch,): the tokens that the target's forward drew.
    """
    if not ours.active():
        return drawn
    tokens = drawn
    for row, req in enumerate(reqs):
        taken, prompt = len(req.fill_ids), len(req.origin_input_ids)
        if taken < prompt + len(req.output_ids):
            if tokens is drawn:
                tokens = drawn.clone()
            tokens[row] = (
                req.origin_input_ids[taken] if taken < prompt else req.output_ids[taken - prompt]
            )
    return tokens
