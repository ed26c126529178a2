"""Checkmate's LP relaxation with two-phase deterministic rounding.

Source: Jain et al., MLSys 2020, section 5, algorithm 2: R and S are allowed fractions (polynomial time); S is
rounded at one half; then R is the least that the rounded S needs. Such a schedule may pass the budget: the paper
solves within (1 - epsilon) of it and hopes. Here epsilon is searched, with several thresholds for each: every
schedule is judged, and among those that fit the cheapest is the plan, without the recomputes that it can do
without. If nothing fits, a greedy repair drops values until it does, or the plan says that it does not.

The relaxation's optimum within the whole budget is a bound for all schedules of Checkmate's form.
HiGHS solves the LPs (extra `solver`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from graphsim.core.index import NOTHING, Bools, Ints
from graphsim.errors import UsageError
from graphsim.recompute.case import Case
from graphsim.recompute.evaluation import evaluate
from graphsim.recompute.incumbent import Incumbent
from graphsim.recompute.moves.repair import repair
from graphsim.recompute.problem import Problem
from graphsim.recompute.solvers.checkmate_highs import solve
from graphsim.recompute.solvers.checkmate_model import Model
from graphsim.recompute.solvers.windows import Windows
from graphsim.recompute.strategies import Progress, Proposal
from graphsim.recompute.strategies.checkmate import VARIABLES, model_of

TRIALS = 6
"""Halvings of the range of epsilon."""
THRESHOLDS = (0.5, 0.1, 0.3, 0.7, 0.9)


@dataclass(frozen=True, slots=True)
class CheckmateLp:
    """Rounds relaxations; without a budget, or where nothing fits, it stores all.

    Attributes:
        seconds: for the solver and the repair; Ctrl-C stops it with the best so far.
        variables: of the largest program that it takes.

    Raises:
        MissingExtraError: highspy is not installed.
        UsageError: the program of the graph is too large.
    """

    seconds: float = 20.0
    variables: int = VARIABLES

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise UsageError(f"seconds must be at least 0, not {self.seconds}")

    def __call__(self, case: Case, budget: int | None = None, /) -> Proposal:
        """Return the schedule, and a bound for those of Checkmate's form."""
        until = time.perf_counter() + self.seconds
        if budget is None or case.stored.peak <= budget or budget < case.memory_bound:
            return Proposal(case.stored.schedule)
        model = model_of(case.problem, budget, self.variables, "checkmate_lp")
        best = Incumbent(case, budget)
        with best.until_interrupted():
            _search(model, best, until)
            best.offer(repair(best.state, budget, until=until))
        return best.proposal()

    def with_limits(self, *, seconds: float | None = None, progress: Progress | None = None) -> CheckmateLp:
        """Return the strategy with so many *seconds*, unless None; it tells of no progress."""
        return self if seconds is None else replace(self, seconds=seconds)


def _search(model: Model, best: Incumbent, until: float) -> None:
    """Offer rounded schedules over budgets of the LP, of which the first gives the bound."""
    problem, budget = model.problem, best.budget
    low, high, limit = best.case.memory_bound, budget, budget
    for trial in range(TRIALS):
        answer = solve(model.within(limit), integer=False, seconds=until - time.perf_counter())
        best.bound = model.cost(answer.bound) if trial == 0 else best.bound
        if answer.x is None:
            low = limit
        else:
            stored = model.stored(answer.x)
            rounded = [evaluate(problem, round_stored(problem, model.windows, stored > at)) for at in THRESHOLDS]
            best.offer(*rounded)
            if rounded[0].peak <= budget:
                low = limit
            else:
                high = limit
        limit = (low + high) // 2
        best.interrupted = answer.interrupted
        if low >= high - 1 or answer.interrupted or time.perf_counter() > until:
            break


def round_stored(problem: Problem, windows: Windows, keep: Bools) -> Ints:
    """Return the sequence that stores what *keep* (N + 1, V) says, and runs again what that misses.

    From the last stage to the first: what a stage has to read or to pass on and neither finds in memory nor makes
    is run again in it; where it may not be, it is stored after all.
    """
    stages: list[list[int]] = []
    needed = {int(value) for value in problem.kept if problem.size[value]}
    for stage in range(problem.ops - 1, -1, -1):
        made = {*problem.makes[stage]}
        missing = [value for value in needed - made if not keep[stage, value]]
        missing += [value for value in problem.reads[stage] if not keep[stage, value] and problem.size[value]]
        again, held = _closure(problem, windows, stage, missing, keep[stage].tolist())
        stages.append([problem.ops + unit for unit in sorted(again, key=windows.rank.__getitem__)] + [stage])
        remade = {value for unit in again for value in problem.makes[problem.ops + unit]}
        read = {value for node in stages[-1] for value in problem.reads[node] if problem.size[value]}
        needed = ((needed | read) - made - remade) | held
    return np.array([node for stage in reversed(stages) for node in stage], dtype=np.int64)


def _closure(
    problem: Problem, windows: Windows, stage: int, missing: list[int], there: list[bool]
) -> tuple[set[int], set[int]]:
    """Return the units that make *missing* in *stage*, with what they read, and values that must be stored instead."""
    again: set[int] = set()
    held: set[int] = set()
    while missing:
        value = missing.pop()
        unit = windows.unit_of[value]
        if unit == NOTHING or not windows.run_low[unit] <= stage <= windows.run_high[unit]:
            held.add(value)
        elif unit not in again:
            again.add(unit)
            reads = problem.reads[problem.ops + unit]
            missing += [source for source in reads if problem.size[source] and not there[source]]
    return again, held
