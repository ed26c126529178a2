"""Best fit with coalescing, the allocator of TensorFlow and of XLA's GPU clients (JAX).

Source: xla/tsl/framework/bfc_allocator.cc: chunks of regions, 21 bins by power of two, sizes in
multiples of 256 bytes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import ClassVar

from graphsim.core.layout import Layout
from graphsim.core.trace import Trace
from graphsim.errors import UsageError
from graphsim.memory.allocators.online import PoolFull, drive

MIN_ALLOCATION = 256
FIRST_REGION = 2 * 2**20
MAX_INTERNAL_FRAGMENTATION = 128 * 2**20
"""A chunk is split if the rest would be at least so large, or as large as the request."""
_SHIFT = 62
_NO_LIMIT = 2**61


@dataclass(frozen=True, slots=True)
class Bfc:
    """The allocator with its options.

    Attributes:
        limit: bytes of device memory that it may take (None: no limit).
        allow_growth: take regions as they are needed, each at least twice the last; False takes the
            whole limit at once, as the default of JAX and TensorFlow does with the memory of the GPU.

    Raises:
        UsageError: all memory shall be taken at once and no limit says how much that is.
    """

    caches: ClassVar[bool] = True

    limit: int | None = None
    allow_growth: bool = True

    def __post_init__(self) -> None:
        if self.limit is None and not self.allow_growth:
            raise UsageError("allow_growth=False takes the whole limit at once: give a limit")

    def __call__(self, trace: Trace, /) -> Layout:
        """Return the layout: `used` is bytes_in_use, `reserved` the sum of all regions."""
        return drive(BfcPool(self), trace)


class _Chunk:
    """A piece of a region, linked to its neighbours in address order."""

    __slots__ = ("address", "before", "free", "next", "segment", "size")

    def __init__(self, segment: int, address: int, size: int) -> None:
        self.segment, self.address, self.size = segment, address, size
        self.before: _Chunk | None = None
        self.next: _Chunk | None = None
        self.free = True


class BfcPool:
    """The allocator's state. A sorted index of (size, address) stands for the bins: they are read in this order."""

    def __init__(self, options: Bfc) -> None:
        self.used = 0
        self.reserved = 0
        self._limit = _NO_LIMIT if options.limit is None else options.limit // MIN_ALLOCATION * MIN_ALLOCATION
        self._next_region = min(FIRST_REGION, self._limit) if options.allow_growth else self._limit
        self._free: list[int] = []
        self._chunks: dict[int, _Chunk] = {}
        self._device_address = MIN_ALLOCATION

    def malloc(self, nbytes: int) -> _Chunk:
        """Return a chunk: the smallest that fits, or of a new region."""
        size = -(-nbytes // MIN_ALLOCATION) * MIN_ALLOCATION
        i = bisect_left(self._free, size << _SHIFT)
        if i == len(self._free):
            self._extend(size)
            i = bisect_left(self._free, size << _SHIFT)
        chunk = self._chunks[self._free.pop(i) & (1 << _SHIFT) - 1]
        if chunk.size >= 2 * size or chunk.size - size >= MAX_INTERNAL_FRAGMENTATION:
            self._split(chunk, size)
        chunk.free = False
        self.used += chunk.size
        return chunk

    def free(self, block: _Chunk) -> None:
        """Take the chunk back, merged with its free neighbours: the next, then the one before."""
        chunk = self._chunks.get(getattr(block, "address", -1))
        if chunk is not block or chunk.free:
            raise KeyError(block)
        self.used -= chunk.size
        if chunk.next is not None and chunk.next.free:
            self._remove(chunk.next)
            self._absorb(chunk, chunk.next)
        if chunk.before is not None and chunk.before.free:
            self._remove(chunk.before)
            chunk = self._absorb(chunk.before, chunk)
        self._insert(chunk)

    def _extend(self, size: int) -> None:
        """Take a region of the device: as planned, or doubled until *size* fits, or what is left."""
        available = self._limit - self.reserved
        if size > available:
            raise PoolFull(size, self.reserved, self._limit)
        doubled = False
        while size > self._next_region:
            self._next_region *= 2
            doubled = True
        region = min(self._next_region, available)
        if self._device_address + region >= 1 << _SHIFT:
            raise PoolFull(size, self.reserved, self._limit)
        if not doubled:
            self._next_region *= 2
        chunk = self._chunks[self._device_address] = _Chunk(self._device_address, self._device_address, region)
        self._device_address += region + MIN_ALLOCATION  # regions of the device do not touch
        self.reserved += region
        self._insert(chunk)

    def _split(self, chunk: _Chunk, size: int) -> None:
        rest = _Chunk(chunk.segment, chunk.address + size, chunk.size - size)
        rest.before, rest.next = chunk, chunk.next
        if chunk.next is not None:
            chunk.next.before = rest
        chunk.next, chunk.size = rest, size
        self._chunks[rest.address] = rest
        self._insert(rest)

    def _absorb(self, left: _Chunk, right: _Chunk) -> _Chunk:
        left.size += right.size
        left.next = right.next
        if right.next is not None:
            right.next.before = left
        del self._chunks[right.address]
        return left

    def _insert(self, chunk: _Chunk) -> None:
        chunk.free = True
        insort(self._free, chunk.size << _SHIFT | chunk.address)

    def _remove(self, chunk: _Chunk) -> None:
        del self._free[bisect_left(self._free, chunk.size << _SHIFT | chunk.address)]
