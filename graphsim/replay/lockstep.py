"""CuPy's pool and its model side by side: what differs then is an error of the model, not a tie.

Of several free chunks of one size the pool takes the one whose Python object has the lowest address.
The model cannot know it; here it is told where the pool's block came to stand.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphsim.allocators.cupy import Chunks
from graphsim.allocators.online import PoolFull
from graphsim.backends import Backend
from graphsim.backends.cupy import Cupy, make_pool, take
from graphsim.errors import LayoutError, UsageError, out_of_memory
from graphsim.layout import Layout
from graphsim.trace import Trace


class GuidedChunks(Chunks):
    """The model, choosing among equal free chunks the one at the address `pointer`."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__(limit)
        self.pointer = 0
        self.bases: dict[int, int] = {}

    def follow(self, nbytes: int, pointer: int) -> int:
        """Allocate as the pool did, which returned *pointer*; return the handle.

        Raises:
            LayoutError: the pool took a chunk that is none of the best fits.
        """
        self.pointer = pointer
        handle = self.malloc(nbytes)
        memory, offset = self.place(handle)
        if self.bases.setdefault(memory, pointer - offset) + offset != pointer:
            raise LayoutError(f"the pool took a chunk at {pointer:#x} that is no best fit for {nbytes:,} bytes")
        return handle

    def choose(self, first: int) -> int:
        """Return the position of the chunk that the pool took, of those as large as the *first*."""
        keys = self.free_keys
        for i in range(first, len(keys)):
            if self.key_size(keys[i]) != self.key_size(keys[first]):
                break
            memory, offset = self.place(self.key_number(keys[i]))
            if self.bases[memory] + offset == self.pointer:
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
    handles, address = [0] * len(held), np.zeros((2, len(held)), dtype=np.int64)
    used, reserved = np.zeros((2, 2, trace.events_count), dtype=np.int64)
    numbers, changes = (column.tolist() for column in trace.stream)
    try:
        for event, (block, change) in enumerate(zip(numbers, changes, strict=True)):
            if change < 0:
                held[block] = None
                model.free(handles[block])
            else:
                held[block] = take(pool, change)
                handles[block] = _follow(model, change, held[block], event)
                address[:, block] = held[block].ptr, model.place(handles[block])[1]
            used[:, event] = pool.used_bytes(), model.used
            reserved[:, event] = pool.total_bytes(), model.reserved
    finally:
        held.clear()
        pool.free_all_blocks()
    segment = np.zeros(len(handles), dtype=np.int64)
    measured, predicted = (Layout(address[i], segment, used[i], reserved[i]) for i in range(2))
    return measured, predicted


def _follow(model: GuidedChunks, nbytes: int, block: Any, event: int) -> int:
    """Return the model's handle; out of memory is in order if both say so."""
    try:
        handle = model.follow(nbytes, block.ptr if block is not None else 0)
    except PoolFull as full:
        if block is not None:
            raise LayoutError(f"event {event}: the pool has room for {nbytes:,} bytes, the model has none") from None
        raise out_of_memory(event, full.requested, full.reserved, full.limit) from None
    if block is None:  # the device itself, not the limit
        raise out_of_memory(event, nbytes, model.reserved)
    return handle
