"""``sgl-entropy drafter robustness``: what foreign system prompts cost each drafter."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sgl_entropy.base.cache import cache_dir
from sgl_entropy.base.disk import file_sha256
from sgl_entropy.base.texts import read_texts, text_files
from sgl_entropy.base.typed_json import as_json
from sgl_entropy.cli.devices import add_device, checked_device
from sgl_entropy.cli.drafter_eval import add_sizes, check_sizes
from sgl_entropy.cli.inputs import input_file
from sgl_entropy.cli.output import say, write_json, write_text
from sgl_entropy.cli.prompt_groups import add_texts, read_groups

EPILOG = """examples:
  sgl-entropy drafter robustness edsd=DIR eagle3=DIR --target TARGET --texts FOLDER \\
      --systems systems.txt --page robustness.md
  sgl-entropy drafter robustness edsd=DIR --target TARGET --texts mt_bench.jsonl \\
      --systems systems.jsonl --max-prompts 5 --json robustness.json

Each prompt is answered under the template's own system prompt and under each foreign one. After an
interrupt, repeat the command: it measures only what is missing (--records)."""


def options(parser: argparse.ArgumentParser) -> None:
    """Options of ``drafter robustness``."""
    parser.add_argument(
        "drafters", nargs="+", metavar="NAME=DIR", help="drafters of one target, compared"
    )
    parser.add_argument("--target", type=Path, required=True, help="the target's folder")
    add_texts(parser, "prompts, a group a file")
    parser.add_argument(
        "--systems",
        type=input_file("--systems", "system prompts, one a line, or JSON Lines"),
        required=True,
        metavar="FILE",
        help="foreign system prompts: plain text, one a line, or JSON Lines with `text`",
    )
    add_sizes(parser, max_prompt_tokens=1536)
    add_device(parser, "target and drafters compute")
    parser.add_argument(
        "--records",
        type=Path,
        metavar="FILE",
        help="keep counts there, to continue after an interrupt (default: in the cache)",
    )
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write the figures there, as Markdown"
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    check_sizes(args)
    drafters = _named(args.drafters)
    systems = [text.prompt for text in read_texts(args.systems)]
    groups = read_groups(args.texts, args.max_prompts)

    import torch

    from sgl_entropy.base.provenance import footer, provenance
    from sgl_entropy.evaluate import robustness

    torch.set_num_threads(args.threads)
    records = args.records or cache_dir() / "robustness.jsonl"
    records.parent.mkdir(parents=True, exist_ok=True)
    settings = robustness.RobustnessSettings(
        args.target,
        drafters,
        groups,
        systems,
        args.depth,
        args.max_new_tokens,
        args.max_prompt_tokens,
        args.dtype,
    )
    device = checked_device(args.device)
    report = robustness.RobustnessReport(
        figures=robustness.measure(settings, records, say, device),
        systems=len(systems),
        systems_sha256=file_sha256(args.systems),
        texts_sha256={file.name: file_sha256(file) for file in text_files(args.texts)},
        depth=args.depth,
        max_new_tokens=args.max_new_tokens,
        dtype=args.dtype,
        provenance=provenance(args.threads, {"target": args.target, **drafters}),
    )
    taken = write_json(as_json(report), args.json)
    page = f"{report.page()}\n\n{footer(dict(report.provenance))}\n"
    taken = write_text(page, args.page) or taken
    if not taken:
        print(report.figures.table())
    return 0


def _named(words: Sequence[str]) -> dict[str, Path]:
    """From ``NAME=DIR``."""
    drafters: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or not name or name in drafters:
            raise ValueError(f"expected NAME=DIR, each name once, found {word!r}")
        if not (Path(folder) / "model.safetensors").is_file():
            raise ValueError(f"{name}: no drafter in {folder} (it has no model.safetensors)")
        drafters[name] = Path(folder)
    return drafters
