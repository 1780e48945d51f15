"""The processes of one training: alone, or started by torchrun.

Every process reads the same store and plans the same batches; each takes its share of every
batch's sequences, and losses are divided by the rows that all processes count together. So the
number of processes changes only the order of sums: checkpoints, batches and the loss curve are
those of one process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ProcessGroup:
    """This process among all.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        device: where it computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints, logs and reports."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of a batch; may be empty. Neighbours, which are of similar length,
        go to different processes."""
        return items[self.rank :: self.size]

    def sum(self, values: Tensor) -> Tensor:
        """``values`` summed over all processes, which must all call this."""
        if self.size > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values.cpu()

    def any(self, here: bool) -> bool:
        """Whether ``here`` is true in any process; all must call this."""
        return bool(self.sum(torch.tensor(int(here)))) if self.size > 1 else here

    def agree(self, choice: str) -> str:
        """The leader's ``choice``, for all processes."""
        choices = [choice]
        if self.size > 1:
            dist.broadcast_object_list(choices, src=0)
        return choices[0]


def device_of(number: int) -> str:
    """Where worker ``number`` of this machine computes: the GPUs in turn, or the CPU."""
    return f"cuda:{number % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def device_name(device: torch.device) -> str:
    """The device's name in reports."""
    return "a CPU thread" if device.type == "cpu" else torch.cuda.get_device_name(device)


def join_group(environment: Mapping[str, str] = os.environ) -> ProcessGroup:
    """The group that torchrun's variables describe; without them, this process alone.

    A process uses ``cuda:LOCAL_RANK`` (NCCL) where there is CUDA, else the CPU (gloo).

    Raises:
        ValueError: some of torchrun's variables are missing, or more processes than GPUs.
    """
    cuda = torch.cuda.is_available()
    if "WORLD_SIZE" not in environment:
        return ProcessGroup(device=torch.device("cuda") if cuda else CPU)
    missing = [
        name
        for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        if name not in environment
    ]
    if missing:
        raise ValueError(f"WORLD_SIZE is set, {', '.join(missing)} not: start with torchrun")
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    device = CPU
    if cuda:
        local = int(environment["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"process {local} of this machine has no GPU of its own: "
                f"start at most {torch.cuda.device_count()} (torchrun --nproc-per-node)"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=size)
    return ProcessGroup(rank, size, device)


def leave_group(group: ProcessGroup) -> None:
    """End what ``join_group`` began."""
    if group.size > 1:
        dist.destroy_process_group()
