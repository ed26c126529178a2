"""The largest size for which something fits, with as few looks as can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from graphsim.core.trace import Trace
from graphsim.memory.allocators.torch import ROUND_LARGE

_LARGEST = 2**24


def farthest(
    held: Callable[[int], int], by_known: Callable[[int], int], found: int, simulations: int, room: int
) -> tuple[int, int]:
    """Return what `largest` did, or better: what was planned for one size may fit a larger one, for which nothing was.

    Args:
        held: bytes that are held with what is planned for a size.
        by_known: with what has been planned before.
    """
    while True:
        size, more = largest(by_known, start=found, room=room)
        simulations += more
        if size <= found:
            return found, simulations
        found = size
        simulations += 1
        if held(found + 1) <= room:
            found += 1


def largest(held: Callable[[int], int], *, start: int, room: int) -> tuple[int, int]:
    """Return (the largest size that fits, calls): what is *held* for it fits *room*, for the next larger one not.

    Bytes grow almost linearly with the size: a line through the ends of the bracket tells where they pass
    the room, and looking a little beyond it closes the bracket from the other side. Sizes beyond
    `_LARGEST` are not tried.
    """
    seen: dict[int, int] = {}
    low, high = 0, _LARGEST + 1  # nothing always fits
    guess = max(1, start)
    while high - low > 1:
        seen[guess] = held(guess)
        if seen[guess] <= room:
            low = guess
        else:
            high = guess
        guess = _next_guess(seen, low, high, room)
    return low, len(seen)


def _next_guess(seen: Mapping[int, int], low: int, high: int, room: int) -> int:
    """Return a size inside the bracket: by the line through its ends, a little to either side, or the middle."""
    if low == 0 or high > _LARGEST:
        return max(low + 1, min(high - 1, _beyond(seen, low, high, room)))
    rise = seen[high] - seen[low]
    border = low + (high - low) * (room - seen[low]) // rise
    grain = 1 + (high - low) * ROUND_LARGE // rise  # sizes that one step of the allocator's rounding covers
    if len(seen) > 8 or high - low <= 2 * grain:
        border = (low + high) // 2
    elif border - low < high - border:  # near the lower end: look above it, so that the bracket closes there
        border += grain
    else:
        border -= grain
    return max(low + 1, min(high - 1, border))


def _beyond(seen: Mapping[int, int], low: int, high: int, room: int) -> int:
    """Return where one end of the bracket may be, while only the other is known."""
    known = low or high
    if len(seen) == 1:
        return known * room // max(1, seen[known])
    near = sorted(seen, key=lambda size: abs(seen[size] - room))[:2]
    slope = (seen[near[1]] - seen[near[0]]) / (near[1] - near[0])
    border = int(near[0] + (room - seen[near[0]]) / slope) if slope > 0 else 2 * known if low else known // 2
    reach = max(1, known >> 7) << max(0, len(seen) - 3)
    return max(border, low + reach) if low else min(border, high - reach)


def interpolated(low: tuple[int, Trace], high: tuple[int, Trace]) -> Callable[[int], Trace] | None:
    """Return the trace of any size as the line through those of two sizes says; None if they differ in more than bytes.

    A guess, to be looked at: a kernel may choose other scratch for another size.
    """
    (a, trace), (b, other) = low, high
    columns = ("tensor", "malloc", "free", "execution")
    if len(trace.nbytes) != len(other.nbytes) or a == b:
        return None
    if not all(np.array_equal(getattr(trace, name), getattr(other, name)) for name in columns):
        return None
    slope = (other.nbytes - trace.nbytes) / (b - a)

    def at(size: int) -> Trace:
        nbytes = np.rint(trace.nbytes + slope * (size - a)).astype(np.int64)
        return replace(trace, nbytes=np.maximum(nbytes, 1))

    return at
