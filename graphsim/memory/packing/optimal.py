"""Exact packing with OR-Tools CP-SAT: rectangles of known place in time must not overlap.

The climb comes first: it often meets the bound, and its packing is the answer where the solver finds none.
"""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from graphsim.core.cpsat import minimise, new_model
from graphsim.memory.packing.climbing import climb
from graphsim.memory.packing.instance import Instance, Packing

if TYPE_CHECKING:
    from ortools.sat.python.cp_model import CpModel

WORKERS = 8
"""CP-SAT's strategies run side by side; fewer than 8 leave out some that solve hard instances, even on 2 cores."""


def solve(instance: Instance, *, capacity: int | None = None, seconds: float = 60.0, seed: int = 0) -> Packing:
    """Return a packing within *capacity* bytes, by default within the lower bound; else the lowest found.

    A packing of the height of its `lower_bound` is optimal. Where the solver proves that no packing fits
    the capacity, the bound rises above it.

    Raises:
        MissingExtraError: OR-Tools is not installed.
    """
    model, start = new_model(), time.monotonic()
    goal = max(capacity or 0, instance.lower_bound)
    best = climb(instance, seconds=min(5.0, seconds / 6), seed=seed, goal=goal)
    if best.height <= goal:
        return best
    unit = int(np.gcd.reduce(instance.size))
    offsets = _constrain(model, instance, goal // unit, unit)
    left = seconds - (time.monotonic() - start)
    outcome = minimise(model, seconds=left, seed=seed, workers=WORKERS)
    if outcome.value is not None:
        offset = np.array([outcome.value(variable) for variable in offsets], dtype=np.int64) * unit
        return Packing(offset, int((offset + instance.size).max()), best.lower_bound)
    if outcome.bound == inf:
        return Packing(best.offset, best.height, (goal // unit + 1) * unit)
    return best


def _constrain(model: CpModel, instance: Instance, height: int, unit: int) -> list[Any]:
    """Let the solutions of *model* be the packings of at most *height* units; return its offsets."""
    first, end, _ = instance.moments
    sizes = (instance.size // unit).tolist()
    offsets = [model.new_int_var(0, height - size, "") for size in sizes]
    model.add_no_overlap_2d(
        [
            model.new_fixed_size_interval_var(begin, stop - begin, "")
            for begin, stop in zip(first.tolist(), end.tolist(), strict=True)
        ],
        [model.new_fixed_size_interval_var(offset, size, "") for offset, size in zip(offsets, sizes, strict=True)],
    )
    return offsets
