"""Ours: the cheap strategies first, then a search over any recompute of any unit, until it stops to pay.

Starts are the cheapest plan of the span strategies that fits, a greedy repair of program order, and what DTR
makes of it with each of its heuristics. Rounds of simulated annealing follow, by turns from the repair and from
the best so far, until they bring nothing or what is left to gain is not worth the time. On a graph that CP-SAT
can take (extra `solver`), retention intervals start from the best of that. The cost is bounded from below by a
knapsack at every op (see `remat.bound`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from graphsim.errors import MissingExtraError, UsageError
from graphsim.graph import Graph
from graphsim.schedule import Schedule
from graphsim.strategies.blocks import Blocks
from graphsim.strategies.dtr import Dtr
from graphsim.strategies.dtr_scores import HEURISTICS
from graphsim.strategies.greedy import Greedy
from graphsim.strategies.plan import Plan, judge
from graphsim.strategies.remat.bound import extra_cost
from graphsim.strategies.remat.evaluation import Evaluation, evaluate
from graphsim.strategies.remat.improve import improve
from graphsim.strategies.remat.intervals import solve
from graphsim.strategies.remat.problem import Problem, problem_of
from graphsim.strategies.remat.repair import repair
from graphsim.strategies.rotor import Rotor
from graphsim.strategies.sqrt import Sqrt

Progress = Callable[[str], None]
_ROUND, _ROUND_PER_OP = 1.25, 0.008
"""Seconds of a round: at least, and for every op. Longer ones settle no better than several of these do."""
_IDLE, _IDLE_PER_OP = 2.4, 0.025
"""Seconds that bring nothing, before the search gives up: at least, and for every op."""
_WORTH = 0.0005
"""A gain that is worth a round's time, in parts of the cost of the step."""
_DTR_SHARE = 0.02
"""Of the time, what each heuristic of DTR may take."""
_SOLVED, _SOLVER_SECONDS = 600, 2.0
"""Ops up to which the solver has its turn, and for how long."""


@dataclass(frozen=True, slots=True)
class Auto:
    """Searches for the cheapest schedule within the budget; without a budget, the lowest peak of the cheap strategies.

    Attributes:
        seconds: when to stop at the latest; Ctrl-C stops it with the best so far.
        seed: of the search.
        progress: told of every better plan, in words.

    Raises:
        UsageError: *seconds* is negative.
    """

    seconds: float = 45.0
    seed: int = 0
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise UsageError(f"seconds must be at least 0, not {self.seconds}")

    def __call__(self, graph: Graph, /, *, budget: int | None = None) -> Plan:
        """Return the plan; `time_bound` holds for all that first run the ops in program order."""
        start = time.perf_counter()
        stored = judge(graph, Schedule.of(graph), strategy="auto", budget=budget, seconds=0.0)
        if budget is not None and stored.feasible:
            return replace(stored, seconds=time.perf_counter() - start)
        cheap = [stored, *(strategy(graph, budget=budget) for strategy in (Blocks(), Sqrt(), Greedy(), Rotor()))]
        if budget is None:
            best = min(cheap, key=lambda plan: (plan.peak_bytes, plan.time))
            return replace(best, strategy="auto", seconds=time.perf_counter() - start)
        best, bound = self._search(graph, budget, cheap, start)
        optimal = best.feasible and best.time <= best.base_time + bound * (1 + 1e-9)
        return replace(
            best,
            strategy="auto",
            time_bound=best.base_time + bound,
            proved_optimal=optimal,
            seconds=time.perf_counter() - start,
        )

    def _search(self, graph: Graph, budget: int, cheap: list[Plan], start: float) -> tuple[Plan, float]:
        """Return the best plan, and the bound of the extra cost."""
        problem = problem_of(graph)
        base = float(problem.cost[: problem.ops].sum())
        bound = extra_cost(problem, budget)
        plans = cheap.copy()

        def known() -> Iterator[Schedule]:
            yield min(cheap, key=_preference).schedule
            for heuristic in HEURISTICS if self.seconds else ():
                plans.append(Dtr(heuristic, seconds=_DTR_SHARE * self.seconds)(graph, budget=budget))
                if plans[-1].feasible:
                    yield plans[-1].schedule

        search = _Rounds(problem, budget, base + bound, start + self.seconds, self.seed)
        try:
            for state in chain(search.run(known()), search.solve()):
                if self.progress:
                    fits = "" if state.peak <= budget else ", does not fit yet"
                    extra = (state.cost / base - 1) if base else 0.0
                    self.progress(f"auto: {extra:+.3%} compute{fits}; at least {bound / base if base else 0:+.3%}")
        except KeyboardInterrupt:
            pass
        if search.best is not None:
            found = judge(graph, problem.schedule(search.best.nodes), strategy="auto", budget=budget, seconds=0.0)
            plans.append(found)
        return min(plans, key=_preference), bound


def _preference(plan: Plan) -> tuple[bool, float, int]:
    return (not plan.feasible, plan.time if plan.feasible else plan.peak_bytes, plan.peak_bytes)


class _Rounds:
    """Rounds of annealing until they bring nothing, the bound is near or the time is up."""

    def __init__(self, problem: Problem, budget: int, bound: float, until: float, seed: int) -> None:
        self.problem, self.budget, self.bound, self.until, self.seed = problem, budget, bound, until, seed
        self.best: Evaluation | None = None
        self._worth = _WORTH * float(problem.cost[: problem.ops].sum())

    def run(self, known: Iterable[Schedule]) -> Iterator[Evaluation]:
        """Yield the best sequence whenever it changes, of the *known* ones too."""
        now = time.perf_counter()
        limit = now + 0.4 * max(0.0, self.until - now)
        start = repair(evaluate(self.problem, np.arange(self.problem.ops)), self.budget, until=limit)
        yield from self._offer(start)
        for schedule in known:
            yield from self._offer(evaluate(self.problem, self.problem.nodes(schedule)))
        length = max(_ROUND, _ROUND_PER_OP * self.problem.ops)
        patience = max(_IDLE, _IDLE_PER_OP * self.problem.ops)
        number, idle = 0, 0.0
        while time.perf_counter() < self.until and idle < patience and not (number and self._is_near()):
            assert self.best is not None, "it was offered two"
            origin = start if number % 2 == 0 else self.best
            until = min(self.until, time.perf_counter() + length)
            before = self._rank(self.best)
            found = improve(origin, self.budget, until=until, seed=self.seed + number, bound=self.bound)
            yield from self._offer(found)
            idle = 0.0 if self._is_worth(before) else idle + length
            number += 1

    def solve(self) -> Iterator[Evaluation]:
        """Yield what CP-SAT makes of the best sequence, if it is installed and the graph is small."""
        seconds = min(_SOLVER_SECONDS, self.until - time.perf_counter())
        if self.best is None or self._is_near() or self.problem.ops > _SOLVED or seconds < 0.5:
            return
        try:
            hint = self.best.nodes if self.best.peak <= self.budget else None
            answer = solve(self.problem, self.budget, seconds=seconds, seed=self.seed, hint=hint)
        except MissingExtraError:
            return
        if answer.nodes is not None:
            yield from self._offer(evaluate(self.problem, answer.nodes))

    def _offer(self, state: Evaluation) -> Iterator[Evaluation]:
        if self.best is None or self._rank(state) < self._rank(self.best):
            self.best = state
            yield state

    def _rank(self, state: Evaluation) -> tuple[bool, float]:
        fits = state.peak <= self.budget
        return (not fits, state.cost * (1 + 1e-9) if fits else state.peak)

    def _is_worth(self, before: tuple[bool, float]) -> bool:
        """Whether the best is so much better than the one of rank *before* that searching on is worth the time."""
        assert self.best is not None, "there was one before"
        too_much, number = self._rank(self.best)
        return too_much != before[0] or number < before[1] - (0.0 if too_much else self._worth)

    def _is_near(self) -> bool:
        """Whether the best fits, and no sequence could be much cheaper."""
        if self.best is None or self.best.peak > self.budget:
            return False
        return self.best.cost <= self.bound * (1 + 1e-9) + self._worth
