"""Replay on a GPU through a memory pool of CuPy's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphsim.core.collector import uncollected
from graphsim.core.layout import Layout
from graphsim.core.trace import Trace
from graphsim.errors import MissingExtraError, UsageError, out_of_memory


@dataclass(frozen=True, slots=True)
class Cupy:
    """Allocates each block from a pool of its own and drops it at its free; one thread, one stream.

    The pool is private: kernels and libraries allocate from CuPy's default pool.

    Attributes:
        limit: bytes that the pool may hold (None: what the device has).
    """

    limit: int | None = None
    model: ClassVar[str] = "cupy"
    """The allocator that predicts it."""
    arrays: ClassVar[str | None] = "cupy"

    @property
    def device(self) -> str:
        """Name of the current GPU."""
        cupy = _cupy()
        return str(cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode())

    @uncollected()
    def __call__(self, trace: Trace, /) -> Layout:
        """Return the measured layout: device addresses; `used` is used_bytes(), `reserved` total_bytes().

        Raises:
            MissingExtraError: CuPy is not installed.
            UsageError: there is no GPU.
            OutOfMemoryError: the limit or the device is exhausted; everything is freed.
        """
        pool = make_pool(self.limit)
        blocks: list[Any] = [None] * len(trace.nbytes)
        address = np.zeros(len(trace.nbytes), dtype=np.int64)
        used, reserved = np.zeros((2, trace.events_count), dtype=np.int64)
        numbers, changes = (column.tolist() for column in trace.stream)
        try:
            for event, (block, change) in enumerate(zip(numbers, changes, strict=True)):
                if change < 0:
                    blocks[block] = None
                elif (taken := take(pool, change)) is None:
                    raise out_of_memory(event, change, pool.used_bytes(), self.limit)
                else:
                    blocks[block], address[block] = taken, taken.ptr
                    del taken
                used[event], reserved[event] = pool.used_bytes(), pool.total_bytes()
        finally:
            blocks.clear()
            pool.free_all_blocks()
        return Layout(address=address, segment=np.zeros(len(address), dtype=np.int64), used=used, reserved=reserved)


def make_pool(limit: int | None = None) -> Any:
    """Return a new cupy.cuda.memory.SingleDeviceMemoryPool on the current GPU.

    Raises:
        MissingExtraError: CuPy is not installed.
        UsageError: there is no GPU.
    """
    pool = _cupy().cuda.memory.SingleDeviceMemoryPool()
    pool.set_limit(size=limit or 0)
    return pool


def take(pool: Any, nbytes: int) -> Any:
    """Return a MemoryPointer to *nbytes* bytes of *pool*, or None if it is out of memory."""
    from cupy.cuda.memory import OutOfMemoryError

    try:
        return pool.malloc(nbytes)
    except OutOfMemoryError:
        return None


def _cupy() -> Any:
    try:
        import cupy
    except ImportError:
        raise MissingExtraError("CuPy", "gpu") from None
    if not cupy.is_available():
        raise UsageError("CuPy finds no CUDA device here; --backend numpy replays on the host")
    return cupy
