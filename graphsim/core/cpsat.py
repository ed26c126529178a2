"""CP-SAT in a thread of its own, so that progress and Ctrl-C are heard while it works.

Source: Perron and Didier, CP-SAT (OR-Tools), https://developers.google.com/optimization/cp/cp_solver.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from graphsim.errors import MissingExtraError

if TYPE_CHECKING:
    from ortools.sat.python.cp_model import CpModel, CpSolver

Watch = Callable[[float, float], None]
"""Told of the best objective (infinity for none) and the bound."""

_EVERY = 0.05
"""Seconds between two looks at what the solver has."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the solver found.

    Attributes:
        value: gives that of a variable or an expression in the best solution; None if there is no solution.
        bound: lower bound of the objective; infinity if nothing satisfies the model.
        solved: no solution is better, or there is none at all.
        interrupted: by Ctrl-C.
    """

    value: Callable[[Any], int] | None
    bound: float
    solved: bool
    interrupted: bool


def new_model() -> CpModel:
    """Return an empty model.

    Raises:
        MissingExtraError: OR-Tools is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise MissingExtraError("OR-Tools", "solver") from None
    return cp_model.CpModel()


def minimise(model: CpModel, *, seconds: float, seed: int, workers: int, watch: Watch | None = None) -> Outcome:
    """Solve *model*, whose objective is at least 0, if any; *watch* hears, in this thread, of all that is better."""
    from ortools.sat.python import cp_model

    class Best(cp_model.CpSolverSolutionCallback):
        def on_solution_callback(self) -> None:
            reached[0] = self.objective_value

    def bounded(bound: float) -> None:
        reached[1] = bound

    reached = [inf, 0.0]
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(0.01, seconds)
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = seed
    # It is answered here; OR-Tools would leave the process without a handler, and the next Ctrl-C would kill it.
    solver.parameters.catch_sigint_signal = False
    solver.best_bound_callback = bounded
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(solver.solve, model, Best())
        interrupted = _wait(solver, future, reached, watch)
    status = future.result()
    if status == cp_model.INFEASIBLE:
        return Outcome(None, inf, True, interrupted)
    found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    bound = max(0.0, solver.best_objective_bound)
    return Outcome(solver.value if found else None, bound, status == cp_model.OPTIMAL, interrupted)


def _wait(solver: CpSolver, future: Future[Any], reached: list[float], watch: Watch | None) -> bool:
    """Wait for the solver; return whether Ctrl-C stopped it."""
    told = list[float]()
    try:
        while not future.done():
            wait([future], _EVERY)
            if watch is not None and told != reached:
                told = reached.copy()
                watch(*told)
    except KeyboardInterrupt:
        return True
    finally:
        while not future.done():  # once is not enough: before it has begun, the solver hears nothing
            solver.stop_search()
            wait([future], _EVERY)
    return False
