"""``--device`` and ``--dtype`` of the commands that compute with the plain target."""

from __future__ import annotations

import argparse


def add_device(parser: argparse.ArgumentParser, what: str, dtype: str | None = "float32") -> None:
    """Both options.

    Args:
        what: the words of the help for what computes there.
        dtype: the default of ``--dtype``; None = ``check_sizes`` sets it.
    """
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        help=f"where {what}: cpu, cuda, cuda:1 (default: cuda where there is one, else cpu)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default=dtype,
        help="numbers of the target (default: float32)",
    )


def checked_device(name: str | None) -> str:
    """The device of that name; without a name, CUDA where there is one, else the CPU.

    Raises:
        ValueError: no such device here.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"--device {name}: cannot compute there: {why}") from None
    return name
