"""Replay on the host: numpy arrays, measured through tracemalloc."""

from __future__ import annotations

import ctypes
import tracemalloc
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from operator import call, itemgetter
from typing import Any, ClassVar, TypeAlias

import numpy as np

from graphsim.core.collector import uncollected
from graphsim.core.index import Ints
from graphsim.core.layout import Layout
from graphsim.core.trace import Trace
from graphsim.errors import UsageError, out_of_memory

_LARGEST_ITEM = 2**31 - 1
_NEVER = -1
_PROBES = 8
"""Arrays of one byte that are made and dropped before the first event: the first ones fill Python's free lists."""

_Event: TypeAlias = "tuple[int, np.dtype[np.void] | None]"
"""A block, and its dtype or None for a free."""


@dataclass(frozen=True, slots=True)
class Numpy:
    """Allocates each block as a numpy array and drops it at its free; other threads wait meanwhile.

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
        arrays: list[Any] = [None] * (len(trace.nbytes) + 1)
        events = [*_PROBES * [(-1, np.dtype("V1")), (-1, None)], *_events(trace)]
        traced: Ints = np.full(len(events), _NEVER, dtype=np.int64)
        loop = _loop(events, arrays, traced)
        with _tracing():
            try:
                deque(loop, maxlen=0)
            except MemoryError:
                arrays.clear()
                done = int((traced != _NEVER).sum())
                in_use = int(traced[done - 1] - traced[2 * _PROBES - 1])
                dtype = events[done][1]
                raise out_of_memory(done - 2 * _PROBES, dtype.itemsize if dtype else 0, in_use) from None
            finally:
                arrays.clear()
        probes, counts = np.split(traced, [2 * _PROBES])
        object_bytes = int((probes[::2] - probes[1::2]).min()) - 1
        return counts, int(probes[-1]), object_bytes

    def _locate(self, trace: Trace) -> Ints:
        """Return the address of each block, in a second run: asking for it makes objects too, as touching does."""
        arrays: list[Any] = [None] * len(trace.nbytes)
        address = np.zeros(len(arrays), dtype=np.int64)
        for row, dtype in _events(trace):
            arrays[row] = None if dtype is None else np.empty((), dtype)
            if dtype is not None:
                address[row] = arrays[row].ctypes.data
                if self.touch:
                    ctypes.memset(int(address[row]), 1, dtype.itemsize)
        return address


def _events(trace: Trace) -> list[_Event]:
    block, change = trace.stream
    dtypes = {size: _dtype(size) for size in np.unique(trace.nbytes).tolist()}
    return [*zip(block.tolist(), [dtypes.get(size) for size in change.tolist()], strict=True)]


def _loop(events: list[_Event], arrays: list[Any], traced: Ints) -> Iterator[object]:
    """Return an iterator that carries out one event at each step and notes what Python holds then.

    No step runs any Python code, so the interpreter gives no other thread a turn while the iterator is consumed by C
    code: what others allocate is not counted. Every object of the loop exists before it: nothing but the arrays
    changes what is traced.
    """
    makers = {dtype: partial(np.empty, (), dtype) if dtype else type(None) for dtype in {dtype for _, dtype in events}}
    made = map(call, [makers[dtype] for _, dtype in events])
    held = map(itemgetter(0), map(call, repeat(tracemalloc.get_traced_memory)))
    store = map(arrays.__setitem__, [row for row, _ in events], made)
    return zip(store, map(traced.__setitem__, list(range(len(events))), held), strict=False)


@contextmanager
def _tracing() -> Iterator[None]:
    """Trace what Python allocates, without the garbage collector: what it frees is not ours."""
    was_tracing = tracemalloc.is_tracing()
    with uncollected():
        tracemalloc.start()
        try:
            yield
        finally:
            if not was_tracing:
                tracemalloc.stop()


def _dtype(nbytes: int) -> np.dtype[np.void]:
    if nbytes > _LARGEST_ITEM:
        raise UsageError(f"a block of {nbytes:,} bytes: numpy replays blocks of less than 2 GiB")
    return np.dtype((np.void, nbytes))
