"""Search over one knob of a strategy: every candidate is a real schedule, judged by its true peak."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from graphsim.core.graph import Graph
from graphsim.core.liveness import live_ranges
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import op_costs
from graphsim.recompute.spans import ChainPlan, ForwardPass, forward_passes, schedule_passes

Knob = TypeVar("Knob")


class Candidate(NamedTuple):
    """A schedule with its peak and cost."""

    schedule: Schedule
    peak: int
    time: float


class Search:
    """Evaluates chain plans of one graph; nothing of the graph is worked out twice."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.passes = forward_passes(graph)
        self.costs = op_costs(graph)
        self.stored = self.judge(Schedule.of(graph))

    @property
    def one_more_forward(self) -> float:
        """The cost of the schedule that stores all, and of every forward pass once more."""
        return self.stored.time + sum(float(self.costs[list(p.ops)].sum()) for p in self.passes)

    def judge(self, schedule: Schedule) -> Candidate:
        """Return *schedule* with its peak and cost."""
        peak = live_ranges(self.graph, schedule).peak
        return Candidate(schedule, peak, float(self.costs[schedule.ops].sum()))

    def evaluate(self, choose: Callable[[ForwardPass], ChainPlan]) -> Candidate:
        """Return what *choose* leads to."""
        return self.judge(schedule_passes(self.passes, choose, len(self.graph.ops)))

    def pick(self, candidates: Iterable[Candidate], budget: int | None) -> Candidate:
        """Return the cheapest that fits, else the lowest peak.

        Without a budget: the lowest peak that costs at most one more forward pass.
        """
        everyone = [self.stored, *candidates]
        if budget is None:
            most = self.one_more_forward * (1 + 1e-12)
            return min((c for c in everyone if c.time <= most), key=lambda c: (c.peak, c.time))
        fitting = [c for c in everyone if c.peak <= budget]
        if fitting:
            return min(fitting, key=lambda c: (c.time, c.peak))
        return min(everyone, key=lambda c: (c.peak, c.time))

    def bisect(self, candidate: Callable[[int], Candidate], low: int, high: int, budget: int | None) -> Candidate:
        """Return the pick of the candidates that a bisection of [low, high] visits; larger knobs store more.

        With a budget it looks for the largest knob that fits, without one for the smallest that costs
        at most one more forward pass. A knob is not always monotone: what it visits is what it picks from.
        """
        seen: list[Candidate] = []
        while low <= high:
            middle = (low + high) // 2
            seen.append(candidate(middle))
            enough = seen[-1].peak > budget if budget is not None else seen[-1].time <= self.one_more_forward
            low, high = (low, middle - 1) if enough else (middle + 1, high)
        return self.pick(seen, budget)
