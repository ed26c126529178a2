"""Online allocators: one small protocol, and the one loop that drives a trace through any of them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from graphsim.core.layout import Layout
from graphsim.core.trace import Trace
from graphsim.errors import out_of_memory


class Block(Protocol):
    """A piece of a segment; where it stands never changes, whatever becomes of it."""

    segment: int
    address: int
    size: int
    free: bool


class Pool(Protocol):
    """The state of an allocator while a trace runs through it. All sizes in bytes."""

    used: int
    """Bytes handed out, as the allocator rounds them."""
    reserved: int
    """Bytes held from the device."""

    def malloc(self, nbytes: int) -> Any:
        """Return a `Block` of at least *nbytes* > 0 bytes; raise `PoolFull` if there is no room."""

    def free(self, block: Any) -> None:
        """Take the block back; raise KeyError if it is not in use."""


class PoolFull(Exception):  # noqa: N818
    """A pool cannot serve a request within its limit."""

    def __init__(self, requested: int, reserved: int, limit: int) -> None:
        super().__init__(requested, reserved, limit)
        self.requested, self.reserved, self.limit = requested, reserved, limit


def drive(pool: Pool, trace: Trace) -> Layout:
    """Run the events of *trace* through *pool*.

    Raises:
        OutOfMemoryError: a request does not fit; `event` is its number in the trace.
    """
    numbers, changes = (column.tolist() for column in trace.stream)
    blocks: list[Any] = [None] * len(trace.nbytes)
    used: list[int] = []
    reserved: list[int] = []
    malloc, free = pool.malloc, pool.free
    for number, change in zip(numbers, changes, strict=True):
        if change > 0:
            try:
                blocks[number] = malloc(change)
            except PoolFull as full:
                raise out_of_memory(len(used), full.requested, full.reserved, full.limit) from None
        else:
            free(blocks[number])
        used.append(pool.used)
        reserved.append(pool.reserved)
    return Layout(
        address=np.array([block.address for block in blocks], dtype=np.int64),
        segment=np.array([block.segment for block in blocks], dtype=np.int64),
        used=np.array(used, dtype=np.int64),
        reserved=np.array(reserved, dtype=np.int64),
    )
