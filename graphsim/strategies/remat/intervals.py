"""Retention intervals in CP-SAT: when each value is kept, first from its op, then from one recompute at most.

Source: Bartan, Li, Teague, Lott, Dilkina, "Moccasin: Efficient Tensor Rematerialization for Neural
Networks", ICML 2023: one interval per execution, a staged order (before op j runs, earlier ops may run
again, in program order), one cumulative constraint for memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphsim.errors import MissingExtraError
from graphsim.index import NOTHING, Ints
from graphsim.strategies.remat.problem import Problem

if TYPE_CHECKING:
    from ortools.sat.python.cp_model import CpModel

WORKERS = 8
_SCALE = 10**6
"""Costs are counted in so many parts of the cost of the step."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the solver found.

    Attributes:
        nodes: the sequence; None if none was found.
        bound: lower bound of the extra cost of any sequence of this form; infinity if none fits.
    """

    nodes: Ints | None
    bound: float


def solve(
    problem: Problem, budget: int, *, seconds: float, seed: int = 0, hint: Ints | None = None, workers: int = WORKERS
) -> Answer:
    """Return the cheapest sequence within *budget* in which every unit runs again at most once.

    Args:
        hint: a sequence to start from.

    Raises:
        MissingExtraError: OR-Tools is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise MissingExtraError("OR-Tools", "solver") from None
    model = cp_model.CpModel()
    variables = _Variables(model, problem, budget)
    variables.constrain()
    if hint is not None:
        variables.hint(hint)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(0.01, seconds)
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = seed
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return Answer(None, float("inf"))
    bound = solver.best_objective_bound / variables.scale
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Answer(None, max(0.0, bound))
    return Answer(variables.nodes(solver), bound)


class _Variables:
    """Positions: stage j holds a slot for each earlier unit and, at its end, op j."""

    def __init__(self, model: CpModel, problem: Problem, budget: int) -> None:
        self.model, self.problem = model, problem
        self.room = budget - problem.constant
        self.width = problem.ops + 1
        self.end = problem.ops * self.width
        self.scale = _SCALE / max(1e-300, float(problem.cost[: problem.ops].sum()))
        units = [u for u in range(problem.ops) if problem.unit[u] == u and problem.until[u] > problem.since[u] + 1]
        self.active = {u: model.new_bool_var("") for u in units}
        self.stage = {u: self._stage(u) for u in units}
        self.start = {u: self.stage[u] * self.width + u for u in units}
        self.first_end = [model.new_int_var(self._born(v), self.end, "") for v in range(len(problem.size))]
        self.second_end = {
            value: model.new_int_var(0, self.end, "") for unit in units for value in problem.makes[problem.ops + unit]
        }

    def _stage(self, unit: int) -> Any:
        low, high = int(self.problem.since[unit]) + 1, int(self.problem.until[unit])
        return self.model.new_int_var(low, min(high, self.problem.ops - 1), "")

    def _at(self, op: int) -> int:
        """Return the position of *op* of program order: behind all slots of its stage."""
        return op * self.width + self.width - 1

    def _born(self, value: int) -> int:
        maker = int(self.problem.maker[value])
        return 0 if maker == NOTHING else self._at(maker)

    def constrain(self) -> None:
        """State what must be live when, what fits, and what it costs."""
        model, problem = self.model, self.problem
        for op in range(problem.ops):
            for value in problem.reads[op]:
                self._is_live(value, self._at(op), None)
        for unit, active in self.active.items():
            for value in problem.reads[problem.ops + unit]:
                self._is_live(value, self.start[unit], active)
        for value in problem.kept.tolist():
            self._is_live(value, self.end, None)
        self._fit()
        model.minimize(
            sum(round(float(problem.cost[problem.ops + u]) * self.scale) * active for u, active in self.active.items())
        )

    def _is_live(self, value: int, position: Any, when: Any) -> None:
        """An interval of *value* covers *position* (if *when* holds)."""
        model = self.model
        unit = self.problem.unit_of[value]
        conditions = [] if when is None else [when]
        if unit == NOTHING or unit not in self.active:
            model.add(self.first_end[value] >= position).only_enforce_if(conditions)
            return
        from_second = model.new_bool_var("")
        model.add_implication(from_second, self.active[unit])
        model.add(self.first_end[value] >= position).only_enforce_if([*conditions, ~from_second])
        model.add(self.start[unit] + 1 <= position).only_enforce_if([*conditions, from_second])
        model.add(self.second_end[value] >= position).only_enforce_if([*conditions, from_second])

    def _fit(self) -> None:
        model, problem = self.model, self.problem
        intervals, demands = [], []

        def occupy(interval: Any, nbytes: int) -> None:
            if nbytes:
                intervals.append(interval)
                demands.append(nbytes)

        for value, size in enumerate(problem.size.tolist()):
            born, last = self._born(value), self.first_end[value]
            occupy(model.new_interval_var(born, last + 1 - born, last + 1, ""), size)
        for unit, active in self.active.items():
            start = self.start[unit]
            for value in problem.makes[problem.ops + unit]:
                length = model.new_int_var(0, self.end + 1, "")
                stop = self.second_end[value] + 1
                model.add(self.second_end[value] >= start).only_enforce_if(active)
                occupy(model.new_optional_interval_var(start, length, stop, active, ""), int(problem.size[value]))
            space = int(problem.workspace[problem.ops + unit])
            occupy(model.new_optional_fixed_size_interval_var(start, 1, active, ""), space)
        for op in range(problem.ops):
            occupy(model.new_fixed_size_interval_var(self._at(op), 1, ""), int(problem.workspace[op]))
        unit_bytes = int(np.gcd.reduce(np.array([*demands, 0])))
        scale = max(1, unit_bytes)
        model.add_cumulative(intervals, [demand // scale for demand in demands], max(0, self.room // scale))

    def hint(self, nodes: Ints) -> None:
        """Suggest *nodes*: the first repeat of each unit in it."""
        ops, seen, stage = self.problem.ops, set[int](), 0
        following = np.minimum.accumulate(np.where(nodes < ops, nodes, ops)[::-1])[::-1]
        for node, stage in zip(nodes.tolist(), following.tolist(), strict=True):
            unit = node - ops
            if unit in self.active and unit not in seen:
                seen.add(unit)
                self.model.add_hint(self.active[unit], True)
                self.model.add_hint(self.stage[unit], stage)
        for unit in self.active.keys() - seen:
            self.model.add_hint(self.active[unit], False)

    def nodes(self, solver: Any) -> Ints:
        """Return the sequence of a solution."""
        ops = self.problem.ops
        chosen = [(solver.value(self.start[u]), ops + u) for u, active in self.active.items() if solver.value(active)]
        order = sorted([*chosen, *((self._at(op), op) for op in range(ops))])
        return np.array([node for _, node in order], dtype=np.int64)
