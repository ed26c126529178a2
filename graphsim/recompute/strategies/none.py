"""No recompute: every op runs once, in program order."""

from __future__ import annotations

from dataclasses import dataclass

from graphsim.core.graph import Graph
from graphsim.core.schedule import Schedule
from graphsim.recompute.plan import Plan, judge


@dataclass(frozen=True, slots=True)
class StoreAll:
    """Stores everything that backward reads, and all that names keep; the baseline."""

    def __call__(self, graph: Graph, /, *, budget: int | None = None) -> Plan:
        """Return program order as a plan; the budget only decides whether it is feasible."""
        return judge(graph, Schedule.of(graph), strategy="none", budget=budget, seconds=0.0)
