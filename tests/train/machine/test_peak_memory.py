"""Memory that work needs, measured in a process of its own."""

from __future__ import annotations

from sgl_entropy.train.machine.peak_memory import in_own_processes


def _nothing(size: int) -> int:
    return size


def _allocate(size: int) -> int:
    return len(bytearray(b"x" * size))


def test_memory_is_that_of_the_work() -> None:
    sizes = (100_000_000, 200_000_000)
    for size, one in zip(sizes, in_own_processes(_nothing, _allocate, sizes), strict=True):
        assert one.result == size
        assert size <= one.memory.peak - one.memory.held < 2.3 * size
        assert one.memory.needed >= size
