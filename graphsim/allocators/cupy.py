"""CuPy's memory pool: chunks of device allocations, best fit, split to exactly the rounded size.

Source: cupy/cuda/memory.pyx of CuPy 14.2 (SingleDeviceMemoryPool, _Arena): one stream.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

from graphsim.allocators.online import PoolFull, drive
from graphsim.errors import UnknownNameError
from graphsim.layout import Layout
from graphsim.trace import Trace

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


class _Chunk:
    """A piece of one device allocation, linked to its neighbours in address order."""

    __slots__ = ("before", "free", "memory", "next", "number", "offset", "size")

    def __init__(self, number: int, memory: int, offset: int, size: int) -> None:
        self.number, self.memory, self.offset, self.size = number, memory, offset, size
        self.before: _Chunk | None = None
        self.next: _Chunk | None = None
        self.free = False


class Chunks:
    """The pool's state: free chunks by size, then age."""

    def __init__(self, limit: int | None = None, ties: str = "oldest") -> None:
        self.ties = ties
        self.limit = 2**64 - 1 if limit is None else limit
        self.used = 0
        self.reserved = 0
        self.free_keys: list[int] = []
        self._chunks: dict[int, _Chunk] = {}
        self._created = 0

    def malloc(self, nbytes: int) -> int:
        """Return the number of a chunk of exactly the rounded size."""
        size = -(-nbytes // UNIT) * UNIT
        keys = self.free_keys
        i = bisect_left(keys, size << _SHIFT)
        if i < len(keys):
            chunk = self._chunks[keys.pop(self.choose(i)) & (1 << _SHIFT) - 1]
            chunk.free = False
            if chunk.size > size:
                self._split(chunk, size)
        else:
            chunk = self._allocate(size)
        self.used += size
        return chunk.number

    def choose(self, first: int) -> int:
        """Return the position in `free_keys` to take, of those with the size of the *first* that fits."""
        if self.ties == "oldest":
            return first
        keys = self.free_keys
        last = bisect_left(keys, (keys[first] >> _SHIFT) + 1 << _SHIFT) - 1
        if self.ties == "newest" or first == last:
            return last
        pick = min if self.ties == "lowest" else max
        return pick(range(first, last + 1), key=lambda i: self.place(keys[i] & (1 << _SHIFT) - 1))

    def free(self, handle: int) -> None:
        """Put the chunk back, merged with its free neighbours; the left one survives."""
        chunk = self._chunks[handle]
        if chunk.free:
            raise KeyError(handle)
        self.used -= chunk.size
        while chunk.next is not None and chunk.next.free:
            self._take(chunk.next)
            self._absorb(chunk, chunk.next)
        while chunk.before is not None and chunk.before.free:
            left = chunk.before
            self._take(left)
            self._absorb(left, chunk)
            chunk = left
        chunk.free = True
        insort(self.free_keys, chunk.size << _SHIFT | chunk.number)

    def place(self, handle: int) -> tuple[int, int]:
        """Return (device allocation, offset within it)."""
        chunk = self._chunks[handle]
        return chunk.memory, chunk.offset

    def free_all_blocks(self) -> None:
        """Give back to the device every allocation that is one free chunk."""
        kept = []
        for key in self.free_keys:
            chunk = self._chunks[key & (1 << _SHIFT) - 1]
            if chunk.before is None and chunk.next is None:
                self.reserved -= chunk.size
                del self._chunks[chunk.number]
            else:
                kept.append(key)
        self.free_keys = kept

    @staticmethod
    def key_size(key: int) -> int:
        """Return the size of the free chunk behind a key of `free_keys`."""
        return key >> _SHIFT

    @staticmethod
    def key_number(key: int) -> int:
        """Return the number (handle) of the free chunk behind a key of `free_keys`."""
        return key & (1 << _SHIFT) - 1

    def _allocate(self, size: int) -> _Chunk:
        if size > self.limit:
            raise PoolFull(size, self.reserved, self.limit)
        if self.reserved + size > self.limit:
            self.free_all_blocks()
            if self.reserved + size > self.limit:
                raise PoolFull(size, self.reserved, self.limit)
        self.reserved += size
        return self._new(self._created, 0, size)

    def _new(self, memory: int, offset: int, size: int) -> _Chunk:
        chunk = self._chunks[self._created] = _Chunk(self._created, memory, offset, size)
        self._created += 1
        return chunk

    def _split(self, chunk: _Chunk, size: int) -> None:
        rest = self._new(chunk.memory, chunk.offset + size, chunk.size - size)
        rest.before, rest.next, rest.free = chunk, chunk.next, True
        if chunk.next is not None:
            chunk.next.before = rest
        chunk.next, chunk.size = rest, size
        insort(self.free_keys, rest.size << _SHIFT | rest.number)

    def _absorb(self, left: _Chunk, right: _Chunk) -> None:
        left.size += right.size
        left.next = right.next
        if right.next is not None:
            right.next.before = left
        del self._chunks[right.number]

    def _take(self, chunk: _Chunk) -> None:
        del self.free_keys[bisect_left(self.free_keys, chunk.size << _SHIFT | chunk.number)]
