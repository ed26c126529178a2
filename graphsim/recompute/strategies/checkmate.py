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
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from graphsim.core.graph import Graph
from graphsim.core.index import Floats, Ints
from graphsim.core.schedule import Schedule
from graphsim.errors import UsageError
from graphsim.recompute.bounds import extra_cost
from graphsim.recompute.evaluation import evaluate
from graphsim.recompute.moves.improve import prune
from graphsim.recompute.moves.repair import repair
from graphsim.recompute.plan import Plan, judge, under_names
from graphsim.recompute.problem import Problem, problem_of
from graphsim.recompute.solvers.checkmate_highs import Solution, solve
from graphsim.recompute.solvers.checkmate_model import Model, program_size
from graphsim.recompute.windows import Windows

Progress = Callable[[str], None]
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

    @under_names
    def __call__(self, graph: Graph, /, *, budget: int | None = None) -> Plan:
        """Return the plan; `time_bound` holds for schedules of the form."""
        start = time.perf_counter()
        stored = judge(graph, Schedule.of(graph), strategy="checkmate", budget=budget, seconds=0.0)
        if budget is None or stored.feasible:
            return stored
        if budget < stored.memory_bound:
            return replace(stored, time_bound=float("inf"))
        problem = problem_of(graph)
        model = model_of(problem, budget, self.variables, "checkmate")
        nodes, bound = self._solve(model, budget, start)
        return finish(graph, problem, nodes, bound, strategy="checkmate", budget=budget, start=start)

    def _solve(self, model: Model, budget: int, start: float) -> tuple[Ints, float]:
        """Return the best sequence, and a bound of the extra cost."""
        problem, until = model.problem, start + self.seconds
        best = repair(evaluate(problem, np.arange(problem.ops)), budget, until=start + _GREEDY * self.seconds)
        bound, limit = 0.0, budget
        for attempt in range(_ROUNDS):
            known = model.solution(best.nodes) if best.peak <= limit else None
            answer = self._run(model, limit, until - time.perf_counter(), known)
            bound = model.cost(answer.bound) if attempt == 0 else bound
            if answer.x is None:
                break
            found = evaluate(problem, model.nodes(answer.x))
            if found.peak <= budget:
                best = min([best, found], key=lambda state: (state.peak > budget, state.cost))
                break
            limit -= found.peak - budget
            if answer.interrupted:
                break
        if best.peak <= budget:
            best = prune(best, budget)  # recomputes that cost nothing are many, and seldom of use
        return best.nodes, bound

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


def finish(
    graph: Graph, problem: Problem, nodes: Ints, bound: float, *, strategy: str, budget: int, start: float
) -> Plan:
    """Return the plan of *nodes*, or the one that stores all if they do not fit; *bound* of the extra cost."""
    schedule = problem.schedule(nodes)
    plan = judge(graph, schedule, strategy=strategy, budget=budget, seconds=0.0)
    if not plan.feasible:
        plan = judge(graph, Schedule.of(graph), strategy=strategy, budget=budget, seconds=0.0)
    if plan.feasible:
        bound = min(bound, plan.time - plan.base_time)  # a greedy one that is not of the form may cost less
    proved = extra_cost(problem, budget)
    return replace(
        plan,
        time_bound=plan.base_time + max(bound, proved),
        proved_optimal=plan.feasible and plan.time <= (plan.base_time + proved) * (1 + 1e-9),  # *proved* needs no form
        seconds=time.perf_counter() - start,
    )
