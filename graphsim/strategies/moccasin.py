"""Moccasin: retention intervals in a constraint program, each unit again at most once.

Source: Bartan et al., ICML 2023; see `remat.intervals`. Needs the extra `solver`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from graphsim.errors import UsageError
from graphsim.graph import Graph
from graphsim.schedule import Schedule
from graphsim.strategies.plan import Plan, judge
from graphsim.strategies.remat.intervals import solve
from graphsim.strategies.remat.problem import problem_of

MOST_OPS = 1500
"""Larger graphs make models that the solver does not even load in reasonable time."""


@dataclass(frozen=True, slots=True)
class Moccasin:
    """Solves for the cheapest schedule; without a budget, or where it finds none, it stores all.

    Attributes:
        seconds: for the solver.
        seed: of the solver.

    Raises:
        MissingExtraError: OR-Tools is not installed.
        UsageError: the graph has too many ops.
    """

    seconds: float = 20.0
    seed: int = 0

    def __call__(self, graph: Graph, /, *, budget: int | None = None) -> Plan:
        """Return the plan; `time_bound` holds for schedules of the form."""
        start = time.perf_counter()
        stored = judge(graph, Schedule.of(graph), strategy="moccasin", budget=budget, seconds=0.0)
        if budget is None or stored.feasible:
            return stored
        if len(graph.ops) > MOST_OPS:
            raise UsageError(f"moccasin takes graphs of up to {MOST_OPS:,} ops, not {len(graph.ops):,}")
        problem = problem_of(graph)
        answer = solve(problem, budget, seconds=self.seconds, seed=self.seed)
        schedule = Schedule.of(graph) if answer.nodes is None else problem.schedule(answer.nodes)
        plan = judge(graph, schedule, strategy="moccasin", budget=budget, seconds=time.perf_counter() - start)
        return replace(plan, time_bound=plan.base_time + answer.bound)
