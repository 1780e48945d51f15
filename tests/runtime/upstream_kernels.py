"""Run SGLang's own Triton kernels in Triton's interpreter beside the CPU engine's functions.

A program (``python -m tests.runtime.upstream_kernels``), as the interpreter must be asked for
before Triton is imported. The kernels' text is cut out of the installed SGLang: on the CPU engine
the names of that module are ours. Prints one line a kernel, exits 1 on the first difference.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import random
import sys
import tempfile
from pathlib import Path
from types import ModuleType

os.environ["TRITON_INTERPRET"] = "1"

import torch

from sgl_entropy.runtime.v0_5_6.cpu import spec_ops

KERNELS = (
    "create_extend_after_decode_spec_info",
    "assign_req_to_token_pool",
    "assign_draft_cache_locs",
)


def upstream(folder: Path) -> ModuleType:
    """A module with the kernels alone, as the installed SGLang has them."""
    root = Path(importlib.util.find_spec("sglang").submodule_search_locations[0])
    text = (root / "srt/speculative/spec_utils.py").read_text()
    wanted = [
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name in KERNELS
    ]
    assert len(wanted) == len(KERNELS), [node.name for node in wanted]
    lines = text.splitlines()
    parts = ["import triton", "import triton.language as tl"]
    for node in wanted:
        first = min(decorator.lineno for decorator in node.decorator_list)
        parts += lines[first - 1 : node.end_lineno]
    path = folder / "upstream_kernels_cut_out.py"
    path.write_text("\n".join(parts) + "\n")
    spec = importlib.util.spec_from_file_location("upstream_kernels_cut_out", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], what: str) -> None:
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), f"{what}: {name}\n{value}\n{theirs[name]}"


def extend_after_decode(kernels: ModuleType, rng: random.Random) -> None:
    batch, steps = rng.randint(1, 9), rng.randint(1, 7)
    lens = [rng.randint(1, steps + 1) for _ in range(batch)]
    accept = torch.tensor(lens, dtype=torch.int32)
    seq = accept + torch.tensor([rng.randint(0, 300) for _ in lens])
    verified = torch.randint(0, 999, (sum(lens),), dtype=torch.int32)
    out = []
    for kernel in (
        spec_ops.create_extend_after_decode_spec_info,
        kernels.create_extend_after_decode_spec_info,
    ):
        got = {
            "positions": torch.full((sum(lens),), -7),
            "last": torch.full((batch,), -7, dtype=torch.int32),
        }
        kernel[(batch,)](
            verified, seq, accept, got["positions"], got["last"], power_of_2(max(steps + 1, batch))
        )
        out.append(got)
    equal(*out, f"create_extend_after_decode_spec_info {lens}")


def req_to_token_pool(kernels: ModuleType, rng: random.Random) -> None:
    batch, width = rng.randint(1, 9), 400
    rows = torch.tensor(rng.sample(range(12), batch))
    start = torch.tensor([rng.randint(0, 300) for _ in range(batch)])
    end = start + torch.tensor([rng.choice([0, 1, 5, 31, 32, 33, 90]) for _ in range(batch)])
    slots = torch.randperm(2000)[: int((end - start).sum())]
    out = []
    for kernel in (spec_ops.assign_req_to_token_pool, kernels.assign_req_to_token_pool):
        table = torch.full((12, width), -7, dtype=torch.int32)
        kernel[(batch,)](rows, table, start, end, slots, width, power_of_2(batch))
        out.append({"req_to_token": table})
    equal(*out, f"assign_req_to_token_pool {start} {end}")


def draft_cache_locs(kernels: ModuleType, rng: random.Random) -> None:
    batch, width = rng.randint(1, 9), 500
    topk, steps = rng.choice([1, 1, 3, 6]), rng.choice([1, 2, 4, 8, 40])
    rows = torch.tensor(rng.sample(range(12), batch))
    seq = torch.tensor([rng.randint(1, 200) for _ in range(batch)])
    slots = torch.randperm(5000)[: batch * topk * steps]
    out = []
    for kernel in (spec_ops.assign_draft_cache_locs, kernels.assign_draft_cache_locs):
        table = torch.full((12, width), -7, dtype=torch.int32)
        given = slots.clone()
        unused = torch.empty(())
        kernel[(batch,)](
            *(rows, table, seq, unused, unused, given, None, None, None, 0, width, topk, steps, 1),
            *(power_of_2(batch), power_of_2(steps + 1)),
        )
        out.append({"req_to_token": table, "out_cache_loc": given})
    equal(*out, f"assign_draft_cache_locs batch {batch} topk {topk} steps {steps}")


def main() -> int:
    rng = random.Random(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        kernels = upstream(Path(folder))
        for compare, rounds in (
            (extend_after_decode, 25),
            (req_to_token_pool, 20),
            (draft_cache_locs, 15),
        ):
            for _ in range(rounds):
                compare(kernels, rng)
            print(f"{compare.__name__}: {rounds} equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
