"""Checkmate: the cheapest schedule of stages, by mixed-integer linear programming.

Source: Jain, Jain, Nrusimha, Gholami, Abbeel, Keutzer, Stoica, Gonzalez, "Checkmate: breaking the memory wall with
optimal tensor rematerialization", MLSys 2020, section 4; the program is in `checkmate_model`. HiGHS solves it
(extra `solver`) from what a greedy repair finds.

Optimal among the schedules of its form: stage t ends with the first execution of op t of program order, and
before that every op may run again once, in program order. Where an optimum needs one twice between two first
executions, or ops in another order, it is missed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from graphsim.core.index import Floats
from graphsim.errors import UsageError
from graphsim.recompute.case import Case
from graphsim.recompute.evaluation import evaluate
from graphsim.recompute.incumbent import Incumbent
from graphsim.recompute.moves.repair import repair
from graphsim.recompute.problem import Problem
from graphsim.recompute.solvers.checkmate_highs import Solution, solve
from graphsim.recompute.solvers.checkmate_model import Model, program_size
from graphsim.recompute.solvers.windows import Windows
from graphsim.recompute.strategies import Progress, Proposal

VARIABLES = 50_000
"""Of the largest program that is solved unless asked: about 130 ops."""
_GREEDY = 0.1
"""Share of the time for the greedy repair."""
_ROUNDS = 3
"""Programs solved at most: where rounding errors of the solver let a schedule pass the budget, it is tightened."""


@dataclass(frozen=True, slots=True)
class Checkmate:
    """Solves for the cheapest schedule; without a budget, or where none is found, it stores all.

    Attributes:
        seconds: for the solver; Ctrl-C stops it with the best so far.
        gap: extra cost over the bound at which it stops, as a share of the extra cost.
        variables: of the largest program that it takes.
        seed: of the solver.
        progress: told of the best and the bound, in words.

    Raises:
        MissingExtraError: highspy is not installed.
        UsageError: the program of the graph is too large.
    """

    seconds: float = 30.0
    gap: float = 1e-4
    variables: int = VARIABLES
    seed: int = 0
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if not (self.seconds >= 0 and self.gap >= 0):
            raise UsageError(f"seconds and gap must be at least 0, not {self.seconds} and {self.gap}")

    def __call__(self, case: Case, budget: int | None = None, /) -> Proposal:
        """Return the schedule, and a bound for those of the form."""
        start = time.perf_counter()
        if budget is None or case.stored.peak <= budget or budget < case.memory_bound:
            return Proposal(case.stored.schedule)
        model = model_of(case.problem, budget, self.variables, "checkmate")
        best = Incumbent(case, budget)
        with best.until_interrupted():
            best.offer(repair(best.state, budget, until=start + _GREEDY * self.seconds))
            self._solve(model, best, start + self.seconds)
        return best.proposal()

    def with_limits(self, *, seconds: float | None = None, progress: Progress | None = None) -> Checkmate:
        """Return the strategy with so many *seconds*, unless None, and who is told of *progress*."""
        return replace(self, seconds=self.seconds if seconds is None else seconds, progress=progress)

    def _solve(self, model: Model, best: Incumbent, until: float) -> None:
        """Offer what the solver finds, with a bound."""
        limit = best.budget
        for attempt in range(_ROUNDS):
            known = model.solution(best.state.nodes) if best.state.peak <= limit else None
            answer = self._run(model, limit, until - time.perf_counter(), known)
            best.bound = model.cost(answer.bound) if attempt == 0 else best.bound
            best.interrupted = answer.interrupted
            if answer.x is None:
                break
            found = evaluate(model.problem, model.nodes(answer.x))
            best.offer(found)
            if found.peak <= best.budget or answer.interrupted:
                break
            limit -= found.peak - best.budget

    def _run(self, model: Model, limit: int, seconds: float, known: Floats | None) -> Solution:
        progress = None
        if self.progress is not None:
            report = self.progress

            def progress(best: float, bound: float) -> None:
                base = model.base
                reached = f"{model.cost(best) / base:+.3%} compute" if best < 1e29 else "no schedule yet"
                report(f"checkmate: {reached}; at least {model.cost(bound) / base:+.3%}")

        return solve(
            model.within(limit),
            integer=True,
            seconds=seconds,
            gap=self.gap,
            seed=self.seed,
            start=known,
            progress=progress,
        )


def model_of(problem: Problem, budget: int, variables: int, strategy: str) -> Model:
    """Return the program of *problem*.

    Raises:
        UsageError: it has more than *variables*.
    """
    windows = Windows(problem)
    size = program_size(windows)
    if size > variables:
        raise UsageError(
            f"{strategy}: the program of this graph of {problem.ops:,} ops has about {size:,} variables, "
            f"more than {variables:,}; use auto or moccasin, or allow it with option variables={size}"
        )
    return Model(problem, windows, budget)
