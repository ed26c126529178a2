"""Hill climbing over the order in which first fit places the blocks.

The idea is that of TVM's usmp hill climb (reorder near a block at the top, place again, keep what is
not worse); here a block at the top, or one that stands beside it, moves to an earlier place.
"""

from __future__ import annotations

import random
import time

import numpy as np

from graphsim.memory.packing.greedy import best_greedy, orders, place
from graphsim.memory.packing.instance import Instance, Packing, packing

UNITS = 2**14
"""The search counts sizes in units: the greatest common divisor, or coarser, so that the peak is not
more than so many; the result is placed with exact sizes."""


def climb(instance: Instance, *, seconds: float = 5.0, seed: int = 0, goal: int = 0) -> Packing:
    """Return the lowest packing found in *seconds*, at least as low as the greedy ones.

    It ends early at the lower bound, or at a height of *goal* bytes. The sequence of packings depends
    on *seed* alone; how much of it is seen, on the time.
    """
    stop_at = time.monotonic() + seconds
    best = best_greedy(instance)
    enough = max(goal, instance.lower_bound)
    if best.height <= enough:
        return best
    blocks = _Blocks(instance)
    generator = random.Random(seed)
    order = min((candidate.tolist() for candidate in orders(instance)), key=lambda o: blocks.place(o)[0])
    height, offset = blocks.place(order)
    lowest = height
    while time.monotonic() < stop_at and best.height > enough:
        changed = blocks.neighbour(order, height, offset, generator)
        new_height, new_offset = blocks.place(changed)
        if new_height <= height:
            order, height, offset = changed, new_height, new_offset
            if height[0] < lowest[0]:
                lowest = height
                exact = packing(instance, place(instance, np.array(order)))
                best = min(best, exact, key=lambda candidate: candidate.height)
    return best


class _Blocks:
    """The blocks in units, for first fit on bit masks: one integer per moment, a bit per unit."""

    def __init__(self, instance: Instance) -> None:
        first, end, self.moments = instance.moments
        divisor = max(int(np.gcd.reduce(instance.size)), -(-instance.lower_bound // UNITS))
        self.size: list[int] = (-(-instance.size // divisor)).tolist()
        self.first, self.end = first.tolist(), end.tolist()

    def place(self, order: list[int]) -> tuple[tuple[int, int], list[int]]:
        """Return ((height, blocks that reach it), offsets), in units."""
        taken, offset = [0] * self.moments, [0] * len(order)
        for block in order:
            first, end, size = self.first[block], self.end[block], self.size[block]
            beside = 0
            for mask in taken[first:end]:
                beside |= mask
            offset[block] = at = _first_run(~beside, size)
            mask = ((1 << size) - 1) << at
            for moment in range(first, end):
                taken[moment] |= mask
        tops = [at + size for at, size in zip(offset, self.size, strict=True)]
        height = max(tops)
        return (height, tops.count(height)), offset

    def neighbour(
        self, order: list[int], height: tuple[int, int], offset: list[int], generator: random.Random
    ) -> list[int]:
        """Return *order* with one block elsewhere: mostly one at the top, to an earlier place."""
        tops = [block for block in order if offset[block] + self.size[block] == height[0]]
        block = generator.choice(tops)
        if generator.random() < 0.5:
            block = generator.choice(self._beside(block))
        changed = order.copy()
        here = changed.index(block)
        kind = generator.random()
        if kind < 0.3:
            there = generator.randrange(len(order))
            changed[here], changed[there] = changed[there], changed[here]
            return changed
        earliest = 0 if kind < 0.8 else max(0, here - 30)
        del changed[here]
        changed.insert(generator.randint(earliest, here), block)
        return changed

    def _beside(self, block: int) -> list[int]:
        first, end = self.first[block], self.end[block]
        return [other for other, begin in enumerate(self.first) if begin < end and self.end[other] > first]


def _first_run(free: int, size: int) -> int:
    """Return the lowest bit at which *size* ones begin in *free*, which has ones without end.

    The length of the runs that are known doubles in each step.
    """
    known = 1
    while known < size:
        step = min(known, size - known)
        free &= free >> step
        known += step
    return (free & -free).bit_length() - 1
