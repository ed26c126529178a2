"""HiGHS on a program of Checkmate's: progress, Ctrl-C, a start and a bound.

Huangfu and Hall, "Parallelizing the dual revised simplex method", 2018; https://highs.dev.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from graphsim.core.index import Floats
from graphsim.errors import MissingExtraError
from graphsim.recompute.solvers.checkmate_model import Program

Progress = Callable[[float, float], None]
"""Told of the best objective (infinity for none) and the bound."""

_EVERY = 0.5
"""Seconds between two reports."""
_TOLERANCE = 1e-7


@dataclass(frozen=True, slots=True)
class Solution:
    """What the solver found.

    Attributes:
        x: the best point; None if there is none.
        bound: lower bound of the objective; infinity if no point satisfies the rows.
        interrupted: by Ctrl-C.
    """

    x: Floats | None
    bound: float
    interrupted: bool = False


def solve(
    program: Program,
    *,
    integer: bool,
    seconds: float,
    gap: float = 0.0,
    seed: int = 0,
    start: Floats | None = None,
    progress: Progress | None = None,
) -> Solution:
    """Return the cheapest point of *program* that is found in time.

    Args:
        program: to minimise.
        integer: columns marked so are integers; else the relaxation is solved.
        seconds: time limit.
        gap: relative gap at which to stop.
        seed: of the solver.
        start: values of the first columns of a point to start from.
        progress: told of the objective and its bound, about twice a second.

    Raises:
        MissingExtraError: highspy is not installed.
    """
    try:
        import highspy
    except ImportError:
        raise MissingExtraError("highspy", "solver") from None
    solver: Any = highspy.Highs()
    solver.silent()
    options = {"time_limit": max(0.01, seconds), "mip_rel_gap": gap, "random_seed": seed}
    options |= {"primal_feasibility_tolerance": _TOLERANCE, "mip_feasibility_tolerance": _TOLERANCE}
    for name, value in options.items():
        solver.setOptionValue(name, value)
    _load(solver, program, integer)
    if start is not None and integer:
        solver.setSolution(len(start), np.arange(len(start), dtype=np.int32), start)
    if progress is not None and integer:
        solver.cbMipInterrupt += _Watch(progress)
    interrupted = _run(solver)
    return _solution(solver, highspy.HighsModelStatus, integer, interrupted)


def _load(solver: Any, program: Program, integer: bool) -> None:
    columns, rows = len(program.cost), len(program.row_lower)
    solver.passModel(
        columns,
        rows,
        len(program.value),
        2,  # rows are given
        1,  # minimise
        0.0,
        program.cost,
        program.lower,
        program.upper,
        program.row_lower,
        program.row_upper,
        program.start[:-1].astype(np.int32),
        program.column.astype(np.int32),
        program.value,
        (program.integer & integer).astype(np.int32),
    )


def _run(solver: Any) -> bool:
    """Run in a thread, so that Ctrl-C is heard; return whether it was."""
    solver.HandleUserInterrupt = True
    solver.startSolve()
    interrupted, finished = False, False
    while not finished:
        try:
            finished = solver.wait(0.1)[0]
        except KeyboardInterrupt:
            interrupted = True
            solver.cancelSolve()
    return interrupted


def _solution(solver: Any, statuses: Any, integer: bool, interrupted: bool) -> Solution:
    status, info = solver.getModelStatus(), solver.getInfo()
    if status == statuses.kInfeasible:
        return Solution(None, float("inf"), interrupted)
    if integer:
        bound = info.mip_dual_bound if isfinite(info.mip_dual_bound) else 0.0
    else:
        bound = info.objective_function_value if status == statuses.kOptimal else 0.0
    found = info.primal_solution_status == 2  # feasible
    x = np.array(solver.getSolution().col_value) if found else None
    return Solution(x, max(0.0, bound), interrupted)


class _Watch:
    """Reports progress from the solver's callback."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.last = progress, time.perf_counter()

    def __call__(self, event: Any) -> None:
        now = time.perf_counter()
        if now - self.last >= _EVERY:
            self.last = now
            self.progress(event.data_out.mip_primal_bound, max(0.0, event.data_out.mip_dual_bound))
