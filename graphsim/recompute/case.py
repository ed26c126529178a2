"""A case: one graph on which plans are made, and what every strategy, bound and judgement asks of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import NamedTuple

import numpy as np

from graphsim.core.graph import Graph
from graphsim.core.index import Floats, Ints
from graphsim.core.liveness import LiveRanges, live_ranges
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import cost_unit, op_costs, time_of
from graphsim.recompute.bounds import extra_cost, extra_cost_in_any_order, memory_bound
from graphsim.recompute.dtr.program import Program, program_of
from graphsim.recompute.evaluation import Evaluation, evaluate
from graphsim.recompute.problem import Problem, problem_of
from graphsim.recompute.spans import ForwardPass, forward_passes


class Candidate(NamedTuple):
    """A schedule with its peak in bytes and its time."""

    schedule: Schedule
    peak: int
    time: float


@dataclass(frozen=True, eq=False)
class Case:
    """One graph on which plans are made; what follows from it is worked out once, when it is first asked for.

    Plans may evict what only names keep: they are made on the graph without its ops of kind `release`.

    Attributes:
        given: the graph as its owner knows it, releases and all.
    """

    given: Graph

    @cached_property
    def _left(self) -> tuple[Graph, Ints]:
        return without_releases(self.given)

    @property
    def graph(self) -> Graph:
        """The graph without its releases: schedules are of its ops."""
        return self._left[0]

    def of_given(self, schedule: Schedule) -> Schedule:
        """Return a schedule of `graph` as one of the graph as given."""
        return schedule if self.graph is self.given else replace(schedule, ops=self._left[1][schedule.ops])

    @cached_property
    def given_costs(self) -> Floats:
        """The cost of each op of the graph as given, see `simulation.op_costs`."""
        return op_costs(self.given)

    @cached_property
    def costs(self) -> Floats:
        """The cost of each op of `graph`."""
        costs: Floats = self.given_costs[self._left[1]]
        return costs

    @cached_property
    def cost_unit(self) -> str:
        """What costs count, see `simulation.cost_unit`."""
        return cost_unit(self.given)

    @cached_property
    def base_time(self) -> float:
        """The cost of executing every op once."""
        return float(self.costs.sum())

    @cached_property
    def live_ranges(self) -> LiveRanges:
        """When each storage is live if every op runs once, in program order."""
        return live_ranges(self.graph, Schedule.of(self.graph))

    @cached_property
    def stored(self) -> Candidate:
        """The schedule that stores all: program order."""
        return Candidate(Schedule.of(self.graph), self.live_ranges.peak, self.base_time)

    @cached_property
    def passes(self) -> list[ForwardPass]:
        """The forward pass of each micro-batch."""
        return forward_passes(self.graph)

    @cached_property
    def one_more_forward(self) -> float:
        """The cost of executing every op once, and every forward pass once more."""
        return self.base_time + sum(float(self.costs[list(forward.ops)].sum()) for forward in self.passes)

    @cached_property
    def problem(self) -> Problem:
        """The graph as the searches see it."""
        return problem_of(self.graph, self.costs)

    @cached_property
    def program_order(self) -> Evaluation:
        """Program order as the searches see it."""
        return evaluate(self.problem, np.arange(self.problem.ops))

    @cached_property
    def program(self) -> Program:
        """The graph as DTR runs it."""
        return program_of(self.graph, self.costs)

    @cached_property
    def memory_bound(self) -> int:
        """Bytes that no schedule can do without."""
        return memory_bound(self.graph)

    def least_time(self, budget: int | None) -> float:
        """Return what any schedule within *budget* costs that first runs the ops in program order.

        Infinity if none fits; without a budget, the cost of executing every op once.
        """
        return self._least(budget, self._least_times, extra_cost)

    def least_time_in_any_order(self, budget: int | None) -> float:
        """Return what any schedule within *budget* costs at least, whatever the order in which its ops first run."""
        return self._least(budget, self._least_times_in_any_order, extra_cost_in_any_order)

    def _least(
        self, budget: int | None, known: dict[int, float], extra_cost: Callable[[Evaluation, int], float]
    ) -> float:
        if budget is None or not self.graph.ops:
            return self.base_time
        if budget not in known:
            extra = inf if budget < self.memory_bound else extra_cost(self.program_order, budget)
            known[budget] = self.base_time + extra
        return known[budget]

    def note_least_time(self, budget: int, least: float) -> None:
        """Have `least_time` say *least* where that is more: for who has proved it."""
        self._least_times[budget] = max(self.least_time(budget), least)

    @cached_property
    def _least_times(self) -> dict[int, float]:
        return {}

    @cached_property
    def _least_times_in_any_order(self) -> dict[int, float]:
        return {}

    def candidate(self, schedule: Schedule) -> Candidate:
        """Return *schedule* with its peak and cost.

        Raises:
            ScheduleError: it does not respect the graph.
        """
        peak = live_ranges(self.graph, schedule).peak
        return Candidate(schedule, peak, time_of(self.graph, schedule, self.costs))


def case_of(graph: Graph | Case) -> Case:
    """Return the case of *graph*, or *graph* itself if it is one."""
    return graph if isinstance(graph, Case) else Case(graph)


def without_releases(graph: Graph) -> tuple[Graph, Ints]:
    """Return *graph* without its ops of kind `release`, and which of its ops are left; itself if there are none."""
    ops = np.flatnonzero(~graph.index.release)
    if len(ops) == len(graph.ops):
        return graph, ops
    left = [graph.ops[op] for op in ops.tolist()]
    return Graph(left, graph.tensors.values(), outputs=graph.outputs, name=graph.name, attributes=graph.attributes), ops
