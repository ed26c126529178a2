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

from graphsim.errors import UsageError, out_of_memory
from graphsim.index import Ints
from graphsim.layout import Layout
from graphsim.trace import Trace

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
        block, change = trace.stream
        arrays: list[Any] = [None] * len(trace.nbytes)
        address = np.zeros(len(trace.nbytes), dtype=np.int64)
        traced = np.zeros(len(block), dtype=np.int64)
        object_bytes, before = np.zeros((2, 1), dtype=np.int64)
        dtypes = {size: _dtype(size) for size in np.unique(trace.nbytes).tolist()}
        # Every object of the loop exists before it: nothing but the arrays changes what is traced.
        events = iter([*zip(range(len(block)), block.tolist(), [dtypes.get(c) for c in change.tolist()], strict=True)])
        with _tracing():
            object_bytes[0] = _object_bytes()
            before[0] = _traced()
            try:
                for number, row, dtype in events:
                    if dtype is None:
                        arrays[row] = None
                    else:
                        arrays[row] = np.empty((), dtype)
                        address[row] = arrays[row].__array_interface__["data"][0]
                        if self.touch:
                            ctypes.memset(int(address[row]), 1, dtype.itemsize)
                    traced[number] = _traced()
            except MemoryError:
                arrays.clear()
                in_use = int(traced[number - 1] - before[0]) if number else 0
                raise out_of_memory(number, int(change[number]), in_use) from None
            finally:
                arrays.clear()
        live: Ints = np.cumsum(np.sign(change), dtype=np.int64)
        used: Ints = traced - before - live * object_bytes
        return Layout(address=address, segment=np.zeros(len(address), dtype=np.int64), used=used, reserved=used.copy())


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
