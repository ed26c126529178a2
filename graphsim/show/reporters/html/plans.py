"""Plans to compare: the peak and the overhead of every strategy that was asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from graphsim.core.graph import Graph
from graphsim.core.liveness import Policy
from graphsim.core.simulation import simulate
from graphsim.errors import GraphSimError
from graphsim.recompute.strategies import STRATEGIES


class PlanPoint(NamedTuple):
    """A strategy under a budget: what its schedule needs and costs, or why there is none."""

    strategy: str
    budget: int | None
    peak: int | None
    overhead: float | None
    feasible: bool
    seconds: float
    problem: str


def compare_plans(
    graph: Graph, strategies: Iterable[str], budgets: Iterable[int | None] = (None,), *, policy: Policy = "eager"
) -> list[PlanPoint]:
    """Return a point for each strategy under each budget (None: without), judged under *policy*.

    A strategy that cannot serve the graph or the budget is a point without a peak: the others still count.

    Raises:
        UnknownNameError: there is no such strategy.
    """
    budgets = tuple(budgets)
    return [_point(graph, name, budget, policy) for name in strategies for budget in budgets]


def _point(graph: Graph, name: str, budget: int | None, policy: Policy) -> PlanPoint:
    strategy = STRATEGIES[name]()
    try:
        plan = strategy(graph, budget=budget)
    except GraphSimError as error:
        return PlanPoint(name, budget, None, None, False, 0.0, " ".join(str(error).split()))
    peak = simulate(graph, plan.schedule, policy=policy).peak
    feasible = budget is None or peak <= budget
    return PlanPoint(name, budget, peak, plan.overhead, feasible, plan.seconds, "")
