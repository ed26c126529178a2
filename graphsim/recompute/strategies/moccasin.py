"""Moccasin: retention intervals in a constraint program, several recomputes of each op.

Source: Bartan et al., ICML 2023; see `solvers.moccasin_cpsat`. CP-SAT (extra `solver`) starts from what a greedy repair
finds, and solves with one recompute of each unit, then with two, then with more.

The form of its schedules is that of Checkmate: before the first execution of an op of program order, every unit
may run again once, in order. With as many recomputes as can help, the optimum of that form is found.

The seed decides the plan where one worker solves to the end: on up to `moccasin_cpsat.ALONE` ops, if the time suffices.
Larger graphs have several workers. Which of them is first is chance, as is how far they get in time: only the cost
of an optimum is the same every time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import inf

from graphsim.errors import UsageError
from graphsim.recompute.case import Case
from graphsim.recompute.evaluation import Evaluation, evaluate
from graphsim.recompute.incumbent import Incumbent
from graphsim.recompute.moves.repair import repair
from graphsim.recompute.solvers.moccasin_cpsat import Answer, solve
from graphsim.recompute.solvers.windows import Windows
from graphsim.recompute.strategies import Progress, Proposal

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

    def __call__(self, case: Case, budget: int | None = None, /) -> Proposal:
        """Return the schedule, and a bound for those of the form, whatever the number of recomputes."""
        start = time.perf_counter()
        if budget is None or case.stored.peak <= budget or budget < case.memory_bound:
            return Proposal(case.stored.schedule)
        if len(case.graph.ops) > MOST_OPS:
            raise UsageError(f"moccasin takes graphs of up to {MOST_OPS:,} ops, not {len(case.graph.ops):,}")
        best = Incumbent(case, budget)
        with best.until_interrupted():
            _Deepening(self, best, start).run()
        return best.proposal()

    def with_limits(self, *, seconds: float | None = None, progress: Progress | None = None) -> Moccasin:
        """Return the strategy with so many *seconds*, unless None, and who is told of *progress*."""
        return replace(self, seconds=self.seconds if seconds is None else seconds, progress=progress)


class _Deepening:
    """The search with more and more recomputes of each unit."""

    def __init__(self, options: Moccasin, best: Incumbent, start: float) -> None:
        self.options, self.best, self.start = options, best, start
        self.problem, self.budget, self.base = best.case.problem, best.budget, best.case.base_time

    def run(self) -> None:
        """Solve until more recomputes do not help, the time is up or Ctrl-C is heard."""
        best, options = self.best, self.options
        self._offer(repair(best.state, self.budget, until=self.start + _GREEDY * options.seconds))
        for recomputes in self._rounds():
            if self.base + best.extra <= best.case.least_time(self.budget) * (1 + 1e-9):
                return
            answer = self._solve(recomputes)
            if answer.nodes is not None:
                self._offer(evaluate(self.problem, answer.nodes))
            best.bound, best.interrupted = answer.bound, answer.interrupted
            if answer.enough or not answer.solved or answer.interrupted:
                return

    def _rounds(self) -> Iterator[int]:
        """Yield how often units may run again: few at first, whose optimum limits what more can be of use."""
        limit = self.options.recomputes
        most = self.problem.ops if limit is None else limit
        yield from range(1, min(_FEW, most) + 1)
        if most > _FEW and (limit or Windows(self.problem, self.best.extra).enough(self.best.extra).sum() <= _SMALL):
            yield most

    def _solve(self, recomputes: int) -> Answer:
        return solve(
            self.problem,
            self.budget,
            seconds=self.start + self.options.seconds - time.perf_counter(),
            seed=self.options.seed,
            hint=self.best.state.nodes if self.best.fits else None,
            recomputes=recomputes,
            watch=None if self.options.progress is None else self._watch(self.options.progress, recomputes),
        )

    def _watch(self, progress: Progress, recomputes: int) -> Callable[[float, float], None]:
        number = "1 recompute" if recomputes == 1 else f"{recomputes} recomputes"
        limit = f" with {number} of each op" if recomputes < self.problem.ops else ""
        base = self.base or 1.0

        def watch(extra: float, bound: float) -> None:
            least = min(self.best.extra, extra)
            reached = f"{least / base:+.3%} compute" if least < inf else "no schedule yet"
            progress(f"moccasin: {reached}; at least {bound / base:+.3%}{limit}")

        return watch

    def _offer(self, state: Evaluation) -> None:
        self.best.offer(state)
        self.best.prune()
