"""Greedy generation by transformers, as the reference of the lossless figure.

``python -m sgl_entropy.figures.transformers_greedy --target DIR --prompts IN.jsonl --out
OUT.jsonl``: a process of its own, so that the measuring side needs no torch. Rows in: ``{"id",
"messages"}``; rows out: ``{"id", "prompt_ids", "output_ids"}`` in float32, one prompt at a time
(padding would change the sums' order and with it near-ties). Rows that are in the output
already are skipped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from sgl_entropy.base.json_file import read_lines


def run(target: Path, prompts: Path, out: Path, limit: int, tokens_only: bool) -> None:
    """Append a row to ``out`` for each prompt that it lacks; progress goes to stderr.

    ``tokens_only``: write the prompts' token ids alone, without ``output_ids``.
    """
    have = {row["id"] for row in read_lines(out)}
    todo = [row for row in read_lines(prompts) if row["id"] not in have]
    if not todo:
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(target)
    model = None
    if not tokens_only:
        model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    begun = time.monotonic()
    with out.open("a") as handle, torch.inference_mode():
        # Ends a line that was cut short; empty lines are skipped.
        handle.write("\n" if have else "")
        for index, row in enumerate(todo):
            ids = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True)
            result: dict[str, Any] = {"id": row["id"], "prompt_ids": list(ids)}
            if model is not None:
                batch = torch.tensor([ids])
                written = model.generate(
                    batch,
                    attention_mask=torch.ones_like(batch),
                    max_new_tokens=limit,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    # Never used: nothing is padded. Unset, every call warns.
                    pad_token_id=0,
                )
                result["output_ids"] = written[0, len(ids) :].tolist()
                left = (time.monotonic() - begun) / (index + 1) * (len(todo) - index - 1)
                if index % 5 == 4 or index == len(todo) - 1:
                    print(
                        f"transformers: {index + 1}/{len(todo)} prompts (about {left:.0f} s left)",
                        file=sys.stderr,
                        flush=True,
                    )
            handle.write(json.dumps(result) + "\n")
            handle.flush()


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description="Greedy reference by transformers.")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--tokens-only", action="store_true")
    args = parser.parse_args()
    try:
        run(args.target, args.prompts, args.out, args.max_new_tokens, args.tokens_only)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
