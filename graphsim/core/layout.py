"""Layouts: where every block of a trace stands, and a validator that shares no code with allocators."""

from __future__ import annotations

from dataclasses import dataclass

from graphsim.core.index import Ints
from graphsim.core.trace import Trace
from graphsim.errors import LayoutError


@dataclass(frozen=True, eq=False)
class Layout:
    """What an allocator (or a measured device) made of a trace.

    Attributes:
        address: first byte of each block, in the address space of its segment.
        segment: segment (contiguous region obtained from the device) of each block.
        used: bytes in use after each event, as the allocator rounds them.
        reserved: bytes held from the device after each event.
    """

    address: Ints
    segment: Ints
    used: Ints
    reserved: Ints

    @property
    def peak(self) -> int:
        """The largest number of bytes in use."""
        return int(self.used.max(initial=0))

    @property
    def reserved_peak(self) -> int:
        """The largest number of bytes held from the device."""
        return int(self.reserved.max(initial=0))

    @property
    def fragmentation(self) -> float:
        """1 - used peak / reserved peak: the share of the reservation that no block ever needed."""
        return 1 - self.peak / self.reserved_peak if self.reserved_peak else 0.0


def validate(trace: Trace, layout: Layout) -> None:
    """Check that no two live blocks share bytes and the sums are possible; the naive way.

    Raises:
        LayoutError: names the two blocks, or the event where the sums are wrong.
    """
    blocks, events = len(trace.nbytes), trace.events_count
    lengths = [len(column) for column in (layout.address, layout.segment, layout.used, layout.reserved)]
    if lengths != [blocks, blocks, events, events]:
        raise LayoutError("the layout is not one of this trace: lengths differ")
    if (layout.address < 0).any():
        raise LayoutError(f"block {int(layout.address.argmin())} has no place")
    live: dict[int, list[tuple[int, int, int]]] = {}
    in_use = 0
    for number, event in enumerate(trace.events()):
        here = live.setdefault(int(layout.segment[event.block]), [])
        begin = int(layout.address[event.block])
        span = (begin, begin + event.nbytes, event.block)
        if event.kind == "free":
            here.remove(span)
            in_use -= event.nbytes
        else:
            for other_begin, other_end, other in here:
                if begin < other_end and other_begin < span[1]:
                    raise LayoutError(f"event {number}: block {event.block} overlaps live block {other}")
            here.append(span)
            in_use += event.nbytes
        if not in_use <= layout.used[number] <= layout.reserved[number]:
            raise LayoutError(
                f"event {number}: {in_use} bytes live, {layout.used[number]} used, {layout.reserved[number]} reserved"
            )
