"""Replay on the host: numpy arrays, measured through tracemalloc."""

from __future__ import annotations

import ctypes
import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphsim.core.index import Ints
from graphsim.core.layout import Layout
from graphsim.core.trace import Trace
from graphsim.errors import UsageError, out_of_memory

_LARGEST_ITEM = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Numpy:
    """Allocates each block as a numpy array and drops it at its free; one thread.

    After every event tracemalloc, which knows nothing of the trace, says how many bytes Python holds.
    The arrays are scalars of one large item, since those cost one Python object of constant size and
    nothing else; that size is measured first and taken off for each array that lives.

    Attributes:
        touch: write to every page, so that the host really provides the memory.
    """

    touch: bool = False
    model: ClassVar[str] = "exact"
    """The allocator that predicts it."""
    arrays: ClassVar[str | None] = "numpy"

    @property
    def device(self) -> str:
        """What is measured."""
        return "host memory"

    def __call__(self, trace: Trace, /) -> Layout:
        """Return the measured layout: addresses in the process, one segment, used equal to reserved.

        Raises:
            UsageError: a block has 2 GiB or more, which no item of a numpy array can.
            OutOfMemoryError: the host has no memory left; everything is freed.
        """
        _, change = trace.stream
        live: Ints = np.cumsum(np.sign(change), dtype=np.int64)
        traced, before, object_bytes = self._count(trace)
        used: Ints = traced - before - live * object_bytes
        address = self._locate(trace)
        return Layout(address=address, segment=np.zeros(len(address), dtype=np.int64), used=used, reserved=used.copy())

    def _count(self, trace: Trace) -> tuple[Ints, int, int]:
        """Return the bytes that Python holds after each event, and before all, and what an array adds to its data."""
        arrays: list[Any] = [None] * len(trace.nbytes)
        traced, (before,) = np.zeros(trace.events_count, dtype=np.int64), np.zeros((1, 1), dtype=np.int64)
        # Every object of the loop exists before it: nothing but the arrays changes what is traced.
        events = iter(_events(trace))
        with _tracing():
            object_bytes = min(_object_bytes() for _ in range(8))  # the first ones fill Python's free lists
            before[0] = _traced()
            try:
                for number, row, dtype in events:
                    arrays[row] = None if dtype is None else np.empty((), dtype)
                    traced[number] = _traced()
            except MemoryError:
                arrays.clear()
                in_use = int(traced[number - 1] - before[0]) if number else 0
                raise out_of_memory(number, dtype.itemsize if dtype else 0, in_use) from None
            finally:
                arrays.clear()
        return traced, int(before[0]), object_bytes

    def _locate(self, trace: Trace) -> Ints:
        """Return the address of each block, in a second run: asking for it makes objects too, as touching does."""
        arrays: list[Any] = [None] * len(trace.nbytes)
        address = np.zeros(len(arrays), dtype=np.int64)
        for _, row, dtype in _events(trace):
            arrays[row] = None if dtype is None else np.empty((), dtype)
            if dtype is not None:
                address[row] = arrays[row].ctypes.data
                if self.touch:
                    ctypes.memset(int(address[row]), 1, dtype.itemsize)
        return address


def _events(trace: Trace) -> list[tuple[int, int, np.dtype[np.void] | None]]:
    """Return (number, block, its dtype or None for a free) of every event."""
    block, change = trace.stream
    dtypes = {size: _dtype(size) for size in np.unique(trace.nbytes).tolist()}
    return [*zip(range(len(block)), block.tolist(), [dtypes.get(size) for size in change.tolist()], strict=True)]


@contextmanager
def _tracing() -> Iterator[None]:
    """Trace what Python allocates, without the garbage collector: what it frees is not ours."""
    was_tracing, collecting = tracemalloc.is_tracing(), gc.isenabled()
    gc.disable()
    tracemalloc.start()
    try:
        yield
    finally:
        if not was_tracing:
            tracemalloc.stop()
        if collecting:
            gc.enable()


def _traced() -> int:
    return tracemalloc.get_traced_memory()[0]


def _object_bytes() -> int:
    """Return what an array takes beside its data."""
    item, traced = np.dtype("V1"), np.zeros(2, dtype=np.int64)
    traced[0] = _traced()
    array = np.empty((), item)
    traced[1] = _traced()
    return int(traced[1] - traced[0]) - array.nbytes


def _dtype(nbytes: int) -> np.dtype[np.void]:
    if nbytes > _LARGEST_ITEM:
        raise UsageError(f"a block of {nbytes:,} bytes: numpy replays blocks of less than 2 GiB")
    return np.dtype((np.void, nbytes))
