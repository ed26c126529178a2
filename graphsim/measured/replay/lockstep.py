"""CuPy's pool and its model side by side: what differs then is an error of the model, not a tie.

Of several free chunks of one size the pool takes the one whose Python object has the lowest address.
The model cannot know it; here it is told where the pool's block came to stand.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphsim.core.layout import Layout
from graphsim.core.trace import Trace
from graphsim.errors import LayoutError, UsageError, out_of_memory
from graphsim.measured.backends import Backend
from graphsim.measured.backends.cupy import Cupy, make_pool, take
from graphsim.memory.allocators.cupy import Chunk, Chunks
from graphsim.memory.allocators.online import PoolFull


class GuidedChunks(Chunks):
    """The model, choosing among equal free chunks the one at the address `pointer`."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__(limit, ties="guided")
        self.pointer = 0
        self.bases: dict[int, int] = {}

    def follow(self, nbytes: int, pointer: int) -> Chunk:
        """Allocate as the pool did, which returned *pointer*.

        Raises:
            LayoutError: the pool took a chunk that is none of the best fits.
        """
        self.pointer = pointer
        chunk = self.malloc(nbytes)
        if self.bases.setdefault(chunk.segment, pointer - chunk.address) + chunk.address != pointer:
            raise LayoutError(f"the pool took a chunk at {pointer:#x} that is no best fit for {nbytes:,} bytes")
        return chunk

    def choose(self, first: int) -> int:
        """Return the position of the chunk that the pool took, of those as large as the *first*."""
        size = self.free_chunks[first].size
        for i in range(first, len(self.free_chunks)):
            chunk = self.free_chunks[i]
            if chunk.size != size:
                break
            if self.bases[chunk.segment] + chunk.address == self.pointer:
                return i
        return first


def lockstep(trace: Trace, backend: Backend) -> tuple[Layout, Layout]:
    """Return (measured, predicted) layouts of *trace* in a CuPy pool and in the model that follows it.

    Raises:
        UsageError: the backend has no such pool, or there is no GPU.
        OutOfMemoryError: as in the replay.
        LayoutError: the pool does what the model's rules forbid.
    """
    if not isinstance(backend, Cupy):
        raise UsageError("lock-step reads CuPy's pool: use --backend cupy")
    pool, model = make_pool(backend.limit), GuidedChunks(backend.limit)
    held: list[Any] = [None] * len(trace.nbytes)
    chunks: list[Any] = [None] * len(held)
    address = np.zeros((2, len(held)), dtype=np.int64)
    used, reserved = np.zeros((2, 2, trace.events_count), dtype=np.int64)
    numbers, changes = (column.tolist() for column in trace.stream)
    try:
        for event, (block, change) in enumerate(zip(numbers, changes, strict=True)):
            if change < 0:
                held[block] = None
                model.free(chunks[block])
            else:
                held[block] = take(pool, change)
                chunks[block] = _follow(model, change, held[block], event)
                address[:, block] = held[block].ptr
            used[:, event] = pool.used_bytes(), model.used
            reserved[:, event] = pool.total_bytes(), model.reserved
    finally:
        held.clear()
        pool.free_all_blocks()
    segment = np.zeros(len(held), dtype=np.int64)
    measured, predicted = (Layout(address[i], segment, used[i], reserved[i]) for i in range(2))
    return measured, predicted


def _follow(model: GuidedChunks, nbytes: int, block: Any, event: int) -> Chunk:
    """Return the model's chunk; out of memory is in order if both say so."""
    try:
        chunk = model.follow(nbytes, block.ptr if block is not None else 0)
    except PoolFull as full:
        if block is not None:
            raise LayoutError(f"event {event}: the pool has room for {nbytes:,} bytes, the model has none") from None
        raise out_of_memory(event, full.requested, full.reserved, full.limit) from None
    if block is None:  # the device itself, not the limit
        raise out_of_memory(event, nbytes, model.reserved)
    return chunk
