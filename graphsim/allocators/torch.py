"""PyTorch's caching allocator for CUDA: segments of the device, blocks of segments.

Source: c10/cuda/CUDACachingAllocator.cpp and AllocatorConfig.h of PyTorch 2.13: one stream, no graph
capture, no expandable segments.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

from graphsim.allocators.online import PoolFull, drive
from graphsim.layout import Layout
from graphsim.trace import Trace

MIN_BLOCK = 512
SMALL_SIZE = 2**20
"""Largest request of the pool of small blocks."""
SMALL_SEGMENT = 2 * 2**20
LARGE_SEGMENT = 20 * 2**20
MIN_LARGE_SEGMENT = 10 * 2**20
"""Larger requests get a segment of their own size, rounded up to `ROUND_LARGE`."""
ROUND_LARGE = 2 * 2**20
_SHIFT = 48


@dataclass(frozen=True, slots=True)
class TorchCaching:
    """The allocator with the options of PYTORCH_ALLOC_CONF that change what is reserved.

    Attributes:
        limit: bytes that may be reserved (None: no limit).
        max_split_size: blocks of at least so many bytes are neither split nor given to smaller requests.
        roundup_power2_divisions: requests are rounded up to the next of so many steps between powers of 2.
    """

    limit: int | None = None
    max_split_size: int | None = None
    roundup_power2_divisions: int = 0

    def __call__(self, trace: Trace, /) -> Layout:
        """Return the layout: `used` is PyTorch's allocated_bytes, `reserved` its reserved_bytes."""
        return drive(TorchPool(self), trace)


class _Block:
    """A piece of a segment, linked to its neighbours in address order."""

    __slots__ = ("address", "before", "free", "next", "segment", "size", "small")

    def __init__(self, segment: int, address: int, size: int, small: bool) -> None:
        self.segment, self.address, self.size, self.small = segment, address, size, small
        self.before: _Block | None = None
        self.next: _Block | None = None
        self.free = True


class TorchPool:
    """The allocator's state: two indices of free blocks, by size and then address."""

    def __init__(self, options: TorchCaching) -> None:
        self.options = options
        self.used = 0
        self.reserved = 0
        self._max_split = options.max_split_size or 2**62
        self._free: tuple[list[int], list[int]] = ([], [])
        self._by_address: dict[int, _Block] = {}
        self._device_address = ROUND_LARGE

    def malloc(self, nbytes: int) -> int:
        """Return the device address of a block: best fit in its pool, else a new segment."""
        size = self._round(nbytes)
        small = size <= SMALL_SIZE
        block = self._best_fit(size, small) or self._new_segment(size, small)
        remaining = block.size - size
        if remaining >= MIN_BLOCK if small else size < self._max_split and remaining > SMALL_SIZE:
            self._split(block, size)
        block.free = False
        self.used += block.size
        return block.address

    def free(self, handle: int) -> None:
        """Return the block to its pool, merged with free neighbours."""
        block = self._by_address[handle]
        if block.free:
            raise KeyError(handle)
        self.used -= block.size
        for neighbour in (block.before, block.next):
            if neighbour is not None and neighbour.free:
                self._remove(neighbour)
                block = self._merge(block, neighbour)
        block.free = True
        insort(self._free[block.small], block.size << _SHIFT | block.address)

    def place(self, handle: int) -> tuple[int, int]:
        """Return (segment, offset); segments are named by their device address."""
        segment = self._by_address[handle].segment
        return segment, handle - segment

    def block_size(self, handle: int) -> int:
        """Return the bytes of the block behind *handle*."""
        return self._by_address[handle].size

    def _round(self, nbytes: int) -> int:
        divisions = self.options.roundup_power2_divisions
        if nbytes < MIN_BLOCK:
            return MIN_BLOCK
        if divisions > 1 and nbytes > MIN_BLOCK * divisions:
            floor = 1 << nbytes.bit_length() - 1
            step = max(1, floor // divisions)
            return nbytes if nbytes == floor else -(-nbytes // step) * step
        return -(-nbytes // MIN_BLOCK) * MIN_BLOCK

    def _best_fit(self, size: int, small: bool) -> _Block | None:
        index = self._free[small]
        i = bisect_left(index, size << _SHIFT)
        if i == len(index):
            return None
        block = self._by_address[index[i] & (1 << _SHIFT) - 1]
        if size < self._max_split <= block.size:
            return None
        if size >= self._max_split and block.size >= size + LARGE_SEGMENT:
            return None
        del index[i]
        return block

    def _new_segment(self, size: int, small: bool) -> _Block:
        if small:
            segment_size = SMALL_SEGMENT
        elif size < MIN_LARGE_SEGMENT:
            segment_size = LARGE_SEGMENT
        else:
            segment_size = -(-size // ROUND_LARGE) * ROUND_LARGE
        limit = self.options.limit
        if limit is not None and self.reserved + segment_size > limit:
            self._release_cached()
            if self.reserved + segment_size > limit:
                raise PoolFull(segment_size, self.reserved, limit)
        address = self._device_address
        self._device_address += -(-segment_size // ROUND_LARGE) * ROUND_LARGE
        self.reserved += segment_size
        block = self._by_address[address] = _Block(address, address, segment_size, small)
        return block

    def _release_cached(self) -> None:
        """Give back to the device every segment that is one free block."""
        for index in self._free:
            for key in list(index):
                block = self._by_address[key & (1 << _SHIFT) - 1]
                if block.before is None and block.next is None:
                    index.remove(key)
                    del self._by_address[block.address]
                    self.reserved -= block.size

    def _split(self, block: _Block, size: int) -> None:
        rest = _Block(block.segment, block.address + size, block.size - size, block.small)
        rest.before, rest.next = block, block.next
        if block.next is not None:
            block.next.before = rest
        block.next, block.size = rest, size
        self._by_address[rest.address] = rest
        insort(self._free[rest.small], rest.size << _SHIFT | rest.address)

    def _merge(self, block: _Block, neighbour: _Block) -> _Block:
        low, high = (neighbour, block) if neighbour.address < block.address else (block, neighbour)
        low.size += high.size
        low.next = high.next
        if high.next is not None:
            high.next.before = low
        del self._by_address[high.address]
        return low

    def _remove(self, block: _Block) -> None:
        index = self._free[block.small]
        del index[bisect_left(index, block.size << _SHIFT | block.address)]
