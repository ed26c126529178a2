"""Online allocators: one small protocol, and the one loop that drives a trace through any of them."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from graphsim.errors import out_of_memory
from graphsim.layout import Layout
from graphsim.trace import Trace


class Pool(Protocol):
    """The state of an allocator while a trace runs through it. All sizes in bytes."""

    used: int
    """Bytes handed out, as the allocator rounds them."""
    reserved: int
    """Bytes held from the device."""

    def malloc(self, nbytes: int) -> int:
        """Return a handle to a block of at least *nbytes* > 0 bytes; raise `PoolFull` if there is no room."""

    def free(self, handle: int) -> None:
        """Take the block back; raise KeyError if *handle* is not in use."""

    def place(self, handle: int) -> tuple[int, int]:
        """Return (segment, first byte within it) of a block in use."""


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
    blocks, signed = (column.tolist() for column in trace.stream)
    handles = [0] * len(trace.nbytes)
    segments, addresses = [0] * len(handles), [0] * len(handles)
    used, reserved = [0] * len(blocks), [0] * len(blocks)
    for event, (block, change) in enumerate(zip(blocks, signed, strict=True)):
        if change > 0:
            try:
                handle = pool.malloc(change)
            except PoolFull as full:
                raise out_of_memory(event, full.requested, full.reserved, full.limit) from None
            handles[block] = handle
            segments[block], addresses[block] = pool.place(handle)
        else:
            pool.free(handles[block])
        used[event], reserved[event] = pool.used, pool.reserved
    return Layout(
        address=np.array(addresses, dtype=np.int64),
        segment=np.array(segments, dtype=np.int64),
        used=np.array(used, dtype=np.int64),
        reserved=np.array(reserved, dtype=np.int64),
    )
