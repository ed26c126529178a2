"""CuPy's memory pool: chunks of device allocations, best fit, split to exactly the rounded size.

Source: cupy/cuda/memory.pyx of CuPy 14.2 (SingleDeviceMemoryPool, _Arena): one stream.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar

from graphsim.core.layout import Layout
from graphsim.core.trace import Trace
from graphsim.errors import UnknownNameError
from graphsim.memory.allocators.online import PoolFull, drive

UNIT = 512
"""Every request is rounded up to a multiple of this."""
TIES = ("oldest", "newest", "lowest", "highest")
_SHIFT = 40


@dataclass(frozen=True, slots=True)
class CupyPool:
    """The pool with its limit in bytes (None: no limit).

    `used` follows from the trace alone. `reserved` depends on which of several free chunks of one
    size is taken: CuPy takes the one whose Python object has the lowest address, which no trace tells;
    this model takes the one that *ties* names: the oldest or newest, or that of the lowest or highest
    device address.

    Raises:
        UnknownNameError: there is no such rule for ties.
    """

    caches: ClassVar[bool] = True

    limit: int | None = None
    ties: str = "oldest"

    def __post_init__(self) -> None:
        if self.ties not in TIES:
            raise UnknownNameError("rule for ties", self.ties, TIES)

    def __call__(self, trace: Trace, /) -> Layout:
        """Return the layout: `used` is used_bytes(), `reserved` total_bytes()."""
        return drive(Chunks(self.limit, self.ties), trace)


def reserved_interval(trace: Trace, limit: int | None = None) -> tuple[int, int]:
    """Return the lowest and highest peak of total_bytes() over the rules for ties: equal if none matters.

    Raises:
        OutOfMemoryError: under one of the rules the limit is passed.
    """
    peaks = [CupyPool(limit, ties)(trace).reserved_peak for ties in TIES]
    return min(peaks), max(peaks)


class Chunk:
    """A piece of one device allocation (the segment), linked to its neighbours in address order."""

    __slots__ = ("address", "before", "free", "key", "next", "segment", "size")

    def __init__(self, key: int, segment: int, address: int, size: int) -> None:
        self.key, self.segment, self.address, self.size = key, segment, address, size
        self.before: Chunk | None = None
        self.next: Chunk | None = None
        self.free = True


class Chunks:
    """The pool's state: free chunks by size, then age. `free_keys` and `free_chunks` are parallel lists."""

    def __init__(self, limit: int | None = None, ties: str = "oldest") -> None:
        self.ties = ties
        self.limit = 2**64 - 1 if limit is None else limit
        self.used = 0
        self.reserved = 0
        self.free_keys: list[int] = []
        self.free_chunks: list[Chunk] = []
        self._created = 0

    def malloc(self, nbytes: int) -> Chunk:
        """Return a chunk of exactly the rounded size."""
        size = -(-nbytes // UNIT) * UNIT
        keys = self.free_keys
        i = bisect_left(keys, size << _SHIFT)
        if i < len(keys):
            if self.ties != "oldest":
                i = self.choose(i)
            del keys[i]
            chunk = self.free_chunks.pop(i)
            if chunk.size > size:
                rest = self._new(chunk.segment, chunk.address + size, chunk.size - size)
                after = chunk.next
                rest.before, rest.next = chunk, after
                if after is not None:
                    after.before = rest
                chunk.next, chunk.size = rest, size
                self._put(rest)
        else:
            chunk = self._allocate(size)
        chunk.free = False
        self.used += size
        return chunk

    def choose(self, first: int) -> int:
        """Return the position to take, of those as large as the *first* that fits."""
        chunks = self.free_chunks
        last = bisect_left(self.free_keys, chunks[first].size + 1 << _SHIFT) - 1
        if self.ties == "newest" or first == last:
            return last
        pick = min if self.ties == "lowest" else max
        return pick(range(first, last + 1), key=lambda i: (chunks[i].segment, chunks[i].address))

    def free(self, block: Chunk) -> None:
        """Put the chunk back, merged with its free neighbours; the left one survives."""
        try:
            if block.free:
                raise KeyError(block)
        except AttributeError:
            raise KeyError(block) from None
        self.used -= block.size
        block.free = True
        after = block.next
        while after is not None and after.free:
            self._take(after)
            self._absorb(block, after)
            after = block.next
        before = block.before
        while before is not None and before.free:
            self._take(before)
            self._absorb(before, block)
            block, before = before, before.before
        self._put(block)

    def free_all_blocks(self) -> None:
        """Give back to the device every allocation that is one free chunk."""
        whole = [chunk.before is None and chunk.next is None for chunk in self.free_chunks]
        self.reserved -= sum(chunk.size for chunk, alone in zip(self.free_chunks, whole, strict=True) if alone)
        self.free_keys = [key for key, alone in zip(self.free_keys, whole, strict=True) if not alone]
        self.free_chunks = [chunk for chunk, alone in zip(self.free_chunks, whole, strict=True) if not alone]

    def _allocate(self, size: int) -> Chunk:
        if size > self.limit:
            raise PoolFull(size, self.reserved, self.limit)
        if self.reserved + size > self.limit:
            self.free_all_blocks()
            if self.reserved + size > self.limit:
                raise PoolFull(size, self.reserved, self.limit)
        self.reserved += size
        return self._new(self._created, 0, size)

    def _new(self, segment: int, address: int, size: int) -> Chunk:
        chunk = Chunk(self._created, segment, address, size)
        self._created += 1
        return chunk

    def _put(self, chunk: Chunk) -> None:
        key = chunk.size << _SHIFT | chunk.key
        i = bisect_left(self.free_keys, key)
        self.free_keys.insert(i, key)
        self.free_chunks.insert(i, chunk)

    def _take(self, chunk: Chunk) -> None:
        i = bisect_left(self.free_keys, chunk.size << _SHIFT | chunk.key)
        del self.free_keys[i], self.free_chunks[i]

    def _absorb(self, left: Chunk, right: Chunk) -> None:
        left.size += right.size
        left.next = right.next
        if right.next is not None:
            right.next.before = left
