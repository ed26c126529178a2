"""Greedy planners: one block after the other goes into a gap between those placed before.

Sources: XLA, heap_simulator.cc (GlobalDecreasingSizeBestFitHeap: decreasing size, ties by longer live
range, best fit); TensorFlow Lite Micro, GreedyMemoryPlanner (decreasing size, first fit); TVM, usmp
(greedy by size, by conflicts).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from graphsim.core.index import Ints
from graphsim.memory.packing.instance import Instance, Packing, packing

_NO_END = np.iinfo(np.int64).max


def orders(instance: Instance) -> Iterator[Ints]:
    """Yield the orders of the family: by size, by area, by duration, by conflicts, by time."""
    size, duration = instance.size, instance.upper - instance.lower
    yield np.lexsort((instance.lower, -duration, -size))
    yield np.lexsort((instance.lower, -(size * duration.astype(np.float64))))
    yield np.lexsort((instance.lower, -size, -duration))
    yield np.lexsort((instance.lower, -size, -_conflicts(instance)))
    yield np.lexsort((-size, instance.lower))


def best_greedy(instance: Instance) -> Packing:
    """Return the lowest packing of the family: each order, with first fit and with best fit."""
    packings = (
        packing(instance, place(instance, order, best_fit=best_fit))
        for order in orders(instance)
        for best_fit in (False, True)
    )
    return min(packings, key=lambda candidate: candidate.height)


def place(instance: Instance, order: Ints, *, best_fit: bool = False) -> Ints:
    """Return offsets: each block of *order* in the lowest gap that holds it, or in the smallest one."""
    count = len(order)
    offset = np.zeros(count, dtype=np.int64)
    placed = np.zeros((4, count), dtype=np.int64)  # lower, upper, begin, end of the placed, by begin
    for number, block in enumerate(order.tolist()):
        low, up, size = instance.lower[block], instance.upper[block], instance.size[block]
        lower, upper, begin, end = placed[:, :number]
        beside = np.flatnonzero((lower < up) & (upper > low))
        floor = np.zeros(len(beside) + 1, dtype=np.int64)
        np.maximum.accumulate(end[beside], out=floor[1:])
        room = np.append(begin[beside], _NO_END) - floor
        fits = room >= size
        gap = np.where(fits, room, _NO_END).argmin() if best_fit and fits[:-1].any() else fits.argmax()
        offset[block] = at = floor[gap]
        row = int(np.searchsorted(begin, at))
        placed[:, row + 1 : number + 1] = placed[:, row:number].copy()
        placed[:, row] = low, up, at, at + size
    return offset


def _conflicts(instance: Instance) -> Ints:
    """Return, for each block, the number of blocks that are live at some time together with it."""
    ended = np.searchsorted(np.sort(instance.upper), instance.lower, side="right")
    begun = np.searchsorted(np.sort(instance.lower), instance.upper, side="left")
    return begun - ended
