"""Replay on the host: numpy arrays, measured through tracemalloc."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.lib import tracemalloc_domain

from graphsim.layout import Layout
from graphsim.trace import Trace


@dataclass(frozen=True, slots=True)
class Numpy:
    """Allocates each block as a numpy array and drops it at its free; one thread.

    After every event the bytes of all arrays are read from tracemalloc, which knows nothing of the
    trace; that takes time in proportion to events x live blocks.
    """

    def __call__(self, trace: Trace, /) -> Layout:
        """Return the measured layout: addresses in the process, one segment, used equal to reserved."""
        arrays: list[npt.NDArray[np.uint8] | None] = [None] * len(trace.nbytes)
        address = np.zeros(len(trace.nbytes), dtype=np.int64)
        used = np.zeros(trace.events_count, dtype=np.int64)
        was_tracing = tracemalloc.is_tracing()
        tracemalloc.start()
        try:
            before = _array_bytes()
            for number, event in enumerate(trace.events()):
                if event.kind == "malloc":
                    block = np.empty(event.nbytes, dtype=np.uint8)
                    address[event.block] = block.__array_interface__["data"][0]
                    arrays[event.block] = block
                    del block
                else:
                    arrays[event.block] = None
                used[number] = _array_bytes() - before
        finally:
            arrays.clear()
            if not was_tracing:
                tracemalloc.stop()
        return Layout(address=address, segment=np.zeros(len(address), dtype=np.int64), used=used, reserved=used.copy())


def _array_bytes() -> int:
    """Return the bytes of all numpy arrays allocated since tracing began."""
    ours = tracemalloc.DomainFilter(inclusive=True, domain=tracemalloc_domain)
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([ours]).traces)
