"""Exact packing with OR-Tools CP-SAT: rectangles of known place in time must not overlap.

The climb comes first: it often meets the bound, and its packing is the answer where the solver finds none.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import numpy as np

from graphsim.errors import MissingExtraError
from graphsim.packing.climbing import climb
from graphsim.packing.instance import Instance, Packing

if TYPE_CHECKING:
    from ortools.sat.python.cp_model import CpModel, CpSolver

WORKERS = 8
"""CP-SAT's strategies run side by side; fewer than 8 leave out some that solve hard instances, even on 2 cores."""
_EVERY = 0.1
"""Seconds between looks at the solver."""


def solve(instance: Instance, *, capacity: int | None = None, seconds: float = 60.0, seed: int = 0) -> Packing:
    """Return a packing within *capacity* bytes, by default within the lower bound; else the lowest found.

    A packing of the height of its `lower_bound` is optimal. Where the solver proves that no packing fits
    the capacity, the bound rises above it.

    Raises:
        MissingExtraError: OR-Tools is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise MissingExtraError("OR-Tools", "solver") from None
    start = time.monotonic()
    goal = max(capacity or 0, instance.lower_bound)
    best = climb(instance, seconds=min(5.0, seconds / 6), seed=seed, goal=goal)
    if best.height <= goal:
        return best
    unit = int(np.gcd.reduce(instance.size))
    model, offsets = _model(instance, goal // unit, unit)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(0.0, seconds - (time.monotonic() - start))
    solver.parameters.num_workers = WORKERS
    solver.parameters.random_seed = seed
    status = _solved(solver, model)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        offset = np.array([solver.value(variable) for variable in offsets], dtype=np.int64) * unit
        return Packing(offset, int((offset + instance.size).max()), best.lower_bound)
    if status == cp_model.INFEASIBLE:
        return Packing(best.offset, best.height, (goal // unit + 1) * unit)
    return best


def _solved(solver: CpSolver, model: CpModel) -> Any:
    """Solve, up to Ctrl-C, and return the status.

    OR-Tools would take the signal, and leave the process without its handler: the next Ctrl-C would kill it.
    """
    solver.parameters.catch_sigint_signal = False
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(solver.solve, model)
        try:
            while not future.done():
                wait([future], _EVERY)
        except KeyboardInterrupt:
            pass
        finally:
            while not future.done():  # once is not enough: before it has begun, the solver hears nothing
                solver.stop_search()
                wait([future], _EVERY)
    return future.result()


def _model(instance: Instance, height: int, unit: int) -> tuple[CpModel, list[Any]]:
    """Return the model whose solutions are the packings of at most *height* units, and its offsets."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
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
    return model, offsets
