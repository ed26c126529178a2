"""PyTorch's caching allocator for CUDA: segments of the device, blocks of segments.

Source: c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h of PyTorch 2.13: one stream,
no graph capture. Names of options are those of PYTORCH_ALLOC_CONF.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from graphsim.core.layout import Layout
from graphsim.core.trace import Trace
from graphsim.errors import UsageError
from graphsim.memory.allocators.online import PoolFull, drive
from graphsim.memory.allocators.rounding import INTERVALS, divisions_of

MIB = 2**20
MIN_BLOCK = 512
SMALL_SIZE = MIB
"""Largest request of the pool of small blocks."""
SMALL_SEGMENT = 2 * MIB
MIN_LARGE_SEGMENT = 10 * MIB
"""Larger requests get a segment of their own size, rounded up to `ROUND_LARGE`."""
ROUND_LARGE = 2 * MIB
_SHIFT = 62
_ADDRESS = (1 << _SHIFT) - 1
"""Addresses, as many as a graph may have bytes."""
_EXPANDABLE = 1 << 44
"""Addresses of an expandable segment, where no request is larger; PyTorch takes 9/8 of the device's memory."""


@dataclass(frozen=True, slots=True)
class TorchCaching:
    """The allocator with the options that change what is reserved.

    Attributes:
        limit: bytes of the device that there are (None: no limit).
        per_process_memory_fraction: share of the limit that may be reserved.
        max_split_size_mb: blocks of at least so many MiB are neither split nor given to smaller requests.
        max_non_split_rounding_mb: how much larger than a request of that size its block may be.
        roundup_power2_divisions: requests are rounded up to the next of so many steps between powers of
            2; a number, or a list by size in MiB: ``[256:1,512:2,>:8]``.
        garbage_collection_threshold: share of what may be reserved beyond which unused segments are
            given back before a new one is taken.
        expandable_segments: one segment per pool that grows by pages.
        large_segment_size_mb: segment for requests between 1 and 10 MiB, and page of the large pool.

    Raises:
        UsageError: an option has a value that PyTorch refuses.
    """

    caches: ClassVar[bool] = True

    limit: int | None = None
    per_process_memory_fraction: float = 1.0
    max_split_size_mb: int | None = None
    max_non_split_rounding_mb: int = 20
    roundup_power2_divisions: str = "0"
    garbage_collection_threshold: float = 0.0
    expandable_segments: bool = False
    large_segment_size_mb: int = 20

    def __post_init__(self) -> None:
        divisions_of(self.roundup_power2_divisions)
        _require(
            self.max_split_size_mb is None or self.max_split_size_mb >= 20, "max_split_size_mb must be at least 20"
        )
        _require(self.max_non_split_rounding_mb >= 20, "max_non_split_rounding_mb must be at least 20")
        _require(2 <= self.large_segment_size_mb <= 2**20, "large_segment_size_mb must be at least 2")
        _require(0 <= self.garbage_collection_threshold < 1, "garbage_collection_threshold must be between 0 and 1")
        _require(0 < self.per_process_memory_fraction <= 1, "per_process_memory_fraction must be between 0 and 1")

    def __call__(self, trace: Trace, /) -> Layout:
        """Return the layout: `used` is PyTorch's allocated_bytes, `reserved` its reserved_bytes."""
        return drive(TorchPool(self), trace)


def memory_stats(trace: Trace, options: TorchCaching | None = None) -> dict[str, int]:
    """Return what torch.cuda.memory_stats() would say after *trace*, in its keys.

    Bytes requested, allocated, active, reserved and inactive in split segments: current and peak, of
    all blocks and of either pool.

    Raises:
        OutOfMemoryError: a request does not fit.
    """
    pool = TorchPool(options or TorchCaching())
    peaks: dict[str, int] = {}
    requested = [0, 0]
    blocks, changes = (column.tolist() for column in trace.stream)
    live: dict[int, Block] = {}
    current = pool.statistics(requested)
    for block, change in zip(blocks, changes, strict=True):
        small = pool.rounded(abs(change)) <= SMALL_SIZE
        if change > 0:
            live[block] = pool.malloc(change)
        else:
            pool.free(live.pop(block))
        requested[small] += change
        current = pool.statistics(requested)
        for name, value in current.items():
            peaks[name] = max(peaks.get(name, 0), value)
    return {f"{n}.current": v for n, v in current.items()} | {f"{n}.peak": peaks.get(n, 0) for n in current}


class Block:
    """A piece of a segment, linked to its neighbours in address order."""

    __slots__ = ("address", "before", "born", "free", "mapped", "next", "segment", "size", "small")

    def __init__(self, segment: int, address: int, size: int, small: bool) -> None:
        self.segment, self.address, self.size, self.small = segment, address, size, small
        self.before: Block | None = None
        self.next: Block | None = None
        self.free = self.mapped = True
        self.born = 0  # calls of best fit in its pool when the block was last put there

    @property
    def split(self) -> bool:
        """Whether its segment holds other blocks."""
        return self.before is not None or self.next is not None


class TorchPool:
    """The allocator's state: two indices of free blocks (large, small), by size and then address."""

    def __init__(self, options: TorchCaching) -> None:
        self.used = 0
        self.reserved = 0
        self.blocks: dict[int, Block] = {}
        self.by_pool = {"allocated": [0, 0], "reserved": [0, 0], "inactive_split": [0, 0]}
        self.history: list[tuple[str, int, int]] = []
        """(action, address, bytes) of what was taken from the device and given back, as in a memory snapshot."""
        self._divisions = divisions_of(options.roundup_power2_divisions)
        self._max_split = 2**62 if options.max_split_size_mb is None else options.max_split_size_mb * MIB
        self._rounding = options.max_non_split_rounding_mb * MIB
        self._large_segment = options.large_segment_size_mb * MIB
        self._expandable = options.expandable_segments
        self._allowed = 2**62 if options.limit is None else int(options.limit * options.per_process_memory_fraction)
        self._collect_beyond = int(self._allowed * options.garbage_collection_threshold)
        self._free: tuple[list[int], list[int]] = ([], [])
        self._unmapped: tuple[list[int], list[int]] = ([], [])
        self._searches = [0, 0]
        self._device_address = ROUND_LARGE

    def malloc(self, nbytes: int) -> Block:
        """Return a block: best fit in its pool, else more of the device."""
        size = self.rounded(nbytes)
        small = size <= SMALL_SIZE
        block = self._best_fit(size, small) or self._more(size, small)
        if block.split and not self._expandable:
            self.by_pool["inactive_split"][small] -= block.size
        remaining = block.size - size
        if remaining >= MIN_BLOCK if small or self._expandable else size < self._max_split and remaining > SMALL_SIZE:
            self._split(block, size)
        block.free = False
        self.used += block.size
        self.by_pool["allocated"][small] += block.size
        return block

    def free(self, block: Block) -> None:
        """Return the block to its pool, merged with free neighbours."""
        if self.blocks.get(getattr(block, "address", -1)) is not block or block.free:
            raise KeyError(block)
        self.used -= block.size
        self.by_pool["allocated"][block.small] -= block.size
        block = self._merge_neighbours(block)
        self._insert(block)
        if block.split and not self._expandable:
            self.by_pool["inactive_split"][block.small] += block.size

    def rounded(self, nbytes: int) -> int:
        """Return the size of the block that a request of *nbytes* asks for."""
        if nbytes < MIN_BLOCK:
            return MIN_BLOCK
        divisions = self._divisions[min(max(nbytes.bit_length() - 21, 0), INTERVALS - 1)]
        if divisions > 1 and nbytes > MIN_BLOCK * divisions:
            floor = 1 << nbytes.bit_length() - 1
            step = max(1, floor // divisions)
            return nbytes if nbytes == floor else -(-nbytes // step) * step
        return -(-nbytes // MIN_BLOCK) * MIN_BLOCK

    def asked_of_device(self, nbytes: int) -> int:
        """Return what a request of *nbytes* takes from the device if no block is left, as errors of PyTorch say."""
        size = self.rounded(nbytes)
        return self._segment_size(size, size <= SMALL_SIZE)

    def statistics(self, requested: list[int]) -> dict[str, int]:
        """Return the current statistics; *requested* are the bytes asked for in the large and small pool."""
        columns = {"requested_bytes": requested, **{f"{name}_bytes": pair for name, pair in self.by_pool.items()}}
        columns["active_bytes"] = columns["allocated_bytes"]  # one stream: nothing waits for another
        stats: dict[str, int] = {}
        for name, (large, small) in columns.items():
            stats |= {f"{name}.all": large + small, f"{name}.large_pool": large, f"{name}.small_pool": small}
        return stats

    def free_blocks(self, small: bool) -> Iterator[Block]:
        """Yield the free blocks of a pool by size and then address; they may be taken out meanwhile."""
        for key in list(self._free[small]):
            yield self.blocks[key & _ADDRESS]

    # -- a block from what is held ---------------------------------------------------------------------

    def _best_fit(self, size: int, small: bool) -> Block | None:
        index = self._free[small]
        self._searches[small] += 1
        i = bisect_left(index, size << _SHIFT)
        if i == len(index):
            return None
        if self._expandable:
            while i + 1 < len(index) and self._room(index[i + 1]) < self._room(index[i]):
                i += 1
        block = self.blocks[index[i] & _ADDRESS]
        if size < self._max_split <= block.size:
            return None
        if size >= self._max_split and block.size >= size + self._rounding:
            return None
        del index[i]
        return block

    def _room(self, key: int) -> int:
        """Return the size to which a block can grow: what is not mapped yet behind it counts."""
        block = self.blocks[key & _ADDRESS]
        return block.size + (block.next.size if block.next is not None and not block.next.mapped else 0)

    # -- more of the device, and back -------------------------------------------------------------------

    def _more(self, size: int, small: bool) -> Block:
        """Return a block of the device's memory, after giving back as much as that takes."""
        segment = self._segment_size(size, small)
        if self._collect_beyond:
            self._collect_garbage()
        if self.reserved + segment > self._allowed:
            self._release_oversize(size, small)
        if self.reserved + segment > self._allowed:
            self._release_all()
        if self.reserved + segment > self._allowed:
            raise PoolFull(segment, self.reserved, self._allowed)
        if self._expandable:
            return self._expand(size, small)
        block = self._new(self._addresses(segment), segment, small)
        self._reserve("segment_alloc", block.address, segment, small)
        return block

    def _addresses(self, nbytes: int) -> int:
        """Return the first of *nbytes* addresses that no segment has had."""
        first = self._device_address
        if first + nbytes > _ADDRESS:
            raise PoolFull(nbytes, self.reserved, self._allowed)
        self._device_address += -(-nbytes // ROUND_LARGE) * ROUND_LARGE
        return first

    def _segment_size(self, size: int, small: bool) -> int:
        if small:
            return SMALL_SEGMENT
        return self._large_segment if size < MIN_LARGE_SEGMENT else -(-size // ROUND_LARGE) * ROUND_LARGE

    def _reserve(self, action: str, address: int, nbytes: int, small: bool) -> None:
        self.history.append((action, address, abs(nbytes)))
        self.reserved += nbytes
        self.by_pool["reserved"][small] += nbytes

    def _release(self, block: Block) -> None:
        self._remove(block)
        del self.blocks[block.address]
        self._reserve("segment_free", block.address, -block.size, block.small)

    def _release_oversize(self, size: int, small: bool) -> None:
        """Give back one block that is large enough, or the largest oversize ones that together are."""
        if self._max_split == 2**62 or self._expandable:
            return
        wanted = max(size, self._max_split)
        index = self._free[small]
        i = bisect_left(index, wanted << _SHIFT)
        if i < len(index):
            self._release(self.blocks[index[i] & _ADDRESS])
            return
        released = 0
        while index and released < wanted and (block := self.blocks[index[-1] & _ADDRESS]).size >= self._max_split:
            released += block.size
            self._release(block)

    def _release_all(self) -> None:
        """Give back every segment that is one free block, and every page of expandable ones that is free."""
        for small in (False, True):
            for block in self.free_blocks(small):
                if self._expandable:
                    self._unmap(block)
                elif not block.split:
                    self._release(block)

    def _collect_garbage(self) -> None:
        """Give back unused segments of the large pool, those first that waited longer than the average."""
        excess = self.reserved - self._collect_beyond
        unused = [block for block in self.free_blocks(False) if not block.split]
        while excess > 0 and unused:
            ages = [self._searches[False] - block.born for block in unused]
            average = sum(ages) / len(ages)
            for block, age in zip(unused, ages, strict=True):
                if age >= average:
                    excess -= block.size
                    self._release(block)
            unused = [block for block, age in zip(unused, ages, strict=True) if age < average]

    # -- expandable segments ------------------------------------------------------------------------------

    def _expand(self, size: int, small: bool) -> Block:
        """Map pages at the lowest address that has *size* bytes free or not mapped."""
        block = self._find_room(size, small)
        if not block.mapped:
            block = self._map(block, min(block.size, size))
        while block.size < size:
            assert block.next is not None, "find_room counted it"
            block = self._map(block.next, min(block.next.size, size - block.size))
        self._remove(block)
        return block

    def _find_room(self, size: int, small: bool) -> Block:
        for address in self._unmapped[small]:
            first = self.blocks[address]
            if first.before is not None and first.before.free:
                first = first.before
            room = 0
            block: Block | None = first
            while block is not None and block.free and room < size:
                room, block = room + block.size, block.next
            if room >= size:
                return first
        page = self._page(small)
        room = -(-max(size, _EXPANDABLE) // page) * page
        fresh = self._new(self._addresses(room), room, small)
        fresh.mapped = False
        insort(self._unmapped[small], fresh.address)
        return fresh

    def _page(self, small: bool) -> int:
        return SMALL_SEGMENT if small else self._large_segment

    def _map(self, block: Block, nbytes: int) -> Block:
        """Map whole pages of at least *nbytes* at the start of *block*; return it merged with what is free beside."""
        size = -(-nbytes // self._page(block.small)) * self._page(block.small)
        self._unmapped[block.small].remove(block.address)
        block.mapped = True
        if size < block.size:
            self._cut(block, size).mapped = False
            assert block.next is not None, "it was cut"
            insort(self._unmapped[block.small], block.next.address)
        self._reserve("segment_map", block.address, size, block.small)
        block = self._merge_neighbours(block)
        self._insert(block)
        return block

    def _unmap(self, block: Block) -> None:
        """Give back the pages that lie wholly within a free *block*."""
        page = self._page(block.small)
        first = -(-(block.address - block.segment) // page) * page + block.segment
        end = (block.address + block.size - block.segment) // page * page + block.segment
        if first >= end:
            return
        self._remove(block)
        if first > block.address:
            front, block = block, self._cut(block, first - block.address)
            self._insert(front)
        if block.size > end - first:
            self._insert(self._cut(block, end - first))
        block.mapped = False
        self._reserve("segment_unmap", first, first - end, block.small)
        block = self._merge_neighbours(block)
        insort(self._unmapped[block.small], block.address)

    # -- blocks --------------------------------------------------------------------------------------------

    def _new(self, address: int, size: int, small: bool) -> Block:
        block = self.blocks[address] = Block(address, address, size, small)
        return block

    def _insert(self, block: Block) -> None:
        block.free, block.born = True, self._searches[block.small]
        insort(self._free[block.small], block.size << _SHIFT | block.address)

    def _remove(self, block: Block) -> None:
        index = self._free[block.small]
        del index[bisect_left(index, block.size << _SHIFT | block.address)]

    def _split(self, block: Block, size: int) -> None:
        rest = self._cut(block, size)
        self._insert(rest)
        if not self._expandable:
            self.by_pool["inactive_split"][rest.small] += rest.size

    def _cut(self, block: Block, size: int) -> Block:
        """Shorten *block* to *size* bytes; return the rest as a block behind it."""
        rest = Block(block.segment, block.address + size, block.size - size, block.small)
        rest.before, rest.next, rest.mapped = block, block.next, block.mapped
        if block.next is not None:
            block.next.before = rest
        block.next, block.size = rest, size
        self.blocks[rest.address] = rest
        return rest

    def _merge_neighbours(self, block: Block) -> Block:
        """Merge *block* with its neighbours that are free and mapped, or not mapped, as it is."""
        for neighbour in (block.before, block.next):
            if neighbour is None or not neighbour.free or neighbour.mapped is not block.mapped:
                continue
            if neighbour.mapped:
                self._remove(neighbour)
                if not self._expandable:
                    self.by_pool["inactive_split"][block.small] -= neighbour.size
            else:
                self._unmapped[block.small].remove(neighbour.address)
            block = self._merge(block, neighbour)
        return block

    def _merge(self, block: Block, neighbour: Block) -> Block:
        low, high = (neighbour, block) if neighbour.address < block.address else (block, neighbour)
        low.size += high.size
        low.next = high.next
        if high.next is not None:
            high.next.before = low
        del self.blocks[high.address]
        return low


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)
