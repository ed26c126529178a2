"""Moccasin: retention intervals in a constraint program, several recomputes of each op.

Source: Bartan et al., ICML 2023; see `solvers.intervals`. CP-SAT (extra `solver`) starts from what a greedy repair
finds, and solves with one recompute of each unit, then with two, then with more.

The form of its schedules is that of Checkmate: before the first execution of an op of program order, every unit
may run again once, in order. With as many recomputes as can help, the optimum of that form is found.

The seed decides the plan where one worker solves to the end: on up to `intervals.ALONE` ops, if the time suffices.
Larger graphs have several workers. Which of them is first is chance, as is how far they get in time: only the cost
of an optimum is the same every time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from graphsim.core.graph import Graph
from graphsim.core.schedule import Schedule
from graphsim.errors import UsageError
from graphsim.recompute.bounds import extra_cost
from graphsim.recompute.evaluation import Evaluation, evaluate
from graphsim.recompute.moves.improve import prune
from graphsim.recompute.moves.repair import repair
from graphsim.recompute.plan import Plan, judge, under_names
from graphsim.recompute.problem import Problem, problem_of
from graphsim.recompute.solvers.intervals import Answer, solve
from graphsim.recompute.strategies.checkmate import finish
from graphsim.recompute.windows import Windows

Progress = Callable[[str], None]
MOST_OPS = 1500
"""Larger graphs make models that the solver does not even load in reasonable time."""
_GREEDY = 0.1
"""Share of the time for the greedy repair."""
_FEW, _SMALL = 2, 150
"""Recomputes of each unit; and of all together, up to which as many as can help are solved within a second or two."""


@dataclass(frozen=True, slots=True)
class Moccasin:
    """Solves for the cheapest schedule; without a budget, or where it finds none, it stores all.

    Attributes:
        seconds: for the solver; Ctrl-C stops it with the best so far.
        recomputes: of each unit at most, but for those that the greedy start has; C - 1 of the paper. None for as many
            as can help on small graphs, and two on others.
        seed: of the solver.
        progress: told of the best and the bound, in words.

    Raises:
        MissingExtraError: OR-Tools is not installed, and the greedy start is not proved optimal without it.
        UsageError: the graph has too many ops, *seconds* is negative or *recomputes* not positive.
    """

    seconds: float = 20.0
    recomputes: int | None = None
    seed: int = 0
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise UsageError(f"seconds must be at least 0, not {self.seconds}")
        if self.recomputes is not None and self.recomputes < 1:
            raise UsageError(f"recomputes must be at least 1, not {self.recomputes}")

    @under_names
    def __call__(self, graph: Graph, /, *, budget: int | None = None) -> Plan:
        """Return the plan; `time_bound` holds for schedules of the form, whatever the number of recomputes."""
        start = time.perf_counter()
        stored = judge(graph, Schedule.of(graph), strategy="moccasin", budget=budget, seconds=0.0)
        if budget is None or stored.feasible:
            return stored
        if budget < stored.memory_bound:
            return replace(stored, time_bound=inf)
        if len(graph.ops) > MOST_OPS:
            raise UsageError(f"moccasin takes graphs of up to {MOST_OPS:,} ops, not {len(graph.ops):,}")
        problem = problem_of(graph)
        search = _Search(self, problem, budget, start)
        search.run()
        return finish(graph, problem, search.best.nodes, search.bound, strategy="moccasin", budget=budget, start=start)


class _Search:
    """The best sequence so far, and the bound of the extra cost of the form."""

    def __init__(self, options: Moccasin, problem: Problem, budget: int, start: float) -> None:
        self.options, self.problem, self.budget, self.start = options, problem, budget, start
        self.base = float(problem.cost[: problem.ops].sum())
        self.best = evaluate(problem, np.arange(problem.ops))
        self.bound = 0.0

    def run(self) -> None:
        """Solve with more and more recomputes, until more do not help, the time is up or Ctrl-C is heard."""
        try:
            self._offer(repair(self.best, self.budget, until=self.start + _GREEDY * self.options.seconds))
            proved = self.base + extra_cost(self.problem, self.budget)
            for recomputes in self._rounds():
                if self.base + self.extra <= proved * (1 + 1e-9):
                    return
                answer = self._solve(recomputes)
                if answer.nodes is not None:
                    self._offer(evaluate(self.problem, answer.nodes))
                self.bound = answer.bound
                if answer.enough or not answer.solved or answer.interrupted:
                    return
        except KeyboardInterrupt:
            pass

    @property
    def extra(self) -> float:
        """Extra cost of the best; infinity if it does not fit."""
        return self.best.cost - self.base if self.best.peak <= self.budget else inf

    def _rounds(self) -> Iterator[int]:
        """Yield how often units may run again: few at first, whose optimum limits what more can be of use."""
        limit = self.options.recomputes
        most = self.problem.ops if limit is None else limit
        yield from range(1, min(_FEW, most) + 1)
        if most > _FEW and (limit or Windows(self.problem, self.extra).enough(self.extra).sum() <= _SMALL):
            yield most

    def _solve(self, recomputes: int) -> Answer:
        return solve(
            self.problem,
            self.budget,
            seconds=self.start + self.options.seconds - time.perf_counter(),
            seed=self.options.seed,
            hint=self.best.nodes if self.best.peak <= self.budget else None,
            recomputes=recomputes,
            watch=None if self.options.progress is None else self._watch(self.options.progress, recomputes),
        )

    def _watch(self, progress: Progress, recomputes: int) -> Callable[[float, float], None]:
        number = "1 recompute" if recomputes == 1 else f"{recomputes} recomputes"
        limit = f" with {number} of each op" if recomputes < self.problem.ops else ""
        base = self.base or 1.0

        def watch(extra: float, bound: float) -> None:
            best = min(self.extra, extra)
            reached = f"{best / base:+.3%} compute" if best < inf else "no schedule yet"
            progress(f"moccasin: {reached}; at least {bound / base:+.3%}{limit}")

        return watch

    def _offer(self, state: Evaluation) -> None:
        """Take *state* if it is better, without the recomputes that cost nothing and are of no use."""
        if state.peak <= self.budget and state.cost - self.base < self.extra:
            self.best = prune(state, self.budget)
