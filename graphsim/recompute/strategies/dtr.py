"""DTR: evict while the step runs, whenever memory is short, and make again what is missing.

Source: Kirisame, Lyubomirsky, Haan, Brennan, He, Roesch, Chen, Tatlock, "Dynamic Tensor
Rematerialization", ICLR 2021; the heuristics are in `dtr.scores`. An online method: it knows the past
only. Storages are evicted one by one, the lowest score first; a released storage is evicted at once
(the paper's eager eviction); recompute is recursive, and what it reads is locked meanwhile.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from graphsim.core.graph import Graph
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import op_costs
from graphsim.errors import ScheduleError, UnknownNameError, UsageError
from graphsim.recompute.candidates import pick
from graphsim.recompute.case import Candidate, Case
from graphsim.recompute.dtr import loop as dtr_loop
from graphsim.recompute.dtr.program import Program, program_of
from graphsim.recompute.dtr.scores import HEURISTICS
from graphsim.recompute.dtr.state import EVICTIONS, LENGTH, PEAK, beginning
from graphsim.recompute.machine_code import as_lists, compiled_functions, is_available, is_on_disk
from graphsim.recompute.strategies import Progress, Proposal

TRIALS = 2
"""Internal budgets that are tried: the one asked for, and a larger one if DTR thrashes within that."""
_LARGE = 1000
"""Ops for which machine code is worth loading; to compile it takes longer than to interpret one run of any graph."""
_LONGEST = 100
"""Executions for every op after which it is given up, in case they cost nothing."""
_PAUSE_INTERPRETED, _PAUSE = 16, 256
"""Executions between looks at the clock, interpreted and as machine code."""


@dataclass(frozen=True, slots=True)
class Dtr:
    """Runs the step online within the budget; without a budget, nothing is evicted.

    DTR counts what it has not evicted, the schedule only what is read again: so where it runs out of
    memory within the budget, it is given more, and the plan with the lowest true peak is returned.
    Large graphs run as machine code where a `simulate_log` has compiled it.

    Attributes:
        heuristic: 'dtr', 'eqclass', 'local', 'lru', 'size' or 'msps'.
        most: give up when this many times the cost of the step without recompute is spent; the paper's limit is 2.
        seconds: when to give up at the latest: 'dtr' and 'msps' crawl where a large graph thrashes. Ctrl-C stops it,
            too, with the best so far.

    Raises:
        UnknownNameError: there is no such heuristic.
        UsageError: *most* is not above 1, or *seconds* not above 0.
    """

    heuristic: str = "eqclass"
    most: float = 2.0
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.heuristic not in HEURISTICS:
            raise UnknownNameError("heuristic", self.heuristic, HEURISTICS)
        if not self.most > 1:
            raise UsageError(f"most must be above 1, not {self.most}")
        if not self.seconds > 0:
            raise UsageError(f"seconds must be above 0, not {self.seconds}")

    def __call__(self, case: Case, budget: int | None = None, /) -> Proposal:
        """Return the schedule; it may not fit, as DTR never looks ahead."""
        if budget is None or case.stored.peak <= budget:
            return Proposal(case.stored.schedule)
        found: list[Candidate] = []
        interrupted = False
        try:
            for candidate in self._runs(case, budget, time.perf_counter() + self.seconds):
                found.append(candidate)  # noqa: PERF402 - those before Ctrl-C count
        except KeyboardInterrupt:
            interrupted = True
        return Proposal(pick(case, found, budget).schedule, interrupted=interrupted)

    def with_limits(self, *, seconds: float | None = None, progress: Progress | None = None) -> Dtr:
        """Return the strategy with so many *seconds*, unless None; it tells of no progress."""
        return self if seconds is None else replace(self, seconds=seconds)

    def _runs(self, case: Case, budget: int, until: float) -> Iterator[Candidate]:
        """Yield what runs within several internal budgets lead to, until one fits."""
        program = case.program
        large = len(program.costs) >= _LARGE and is_available()
        machine = large and is_on_disk(compiled_functions(dtr_loop)["advance"])
        low, high, limit = budget, case.stored.peak, budget
        for _ in range(TRIALS):
            outcome = run(program, limit, self.heuristic, most=self.most, until=until, machine=machine)
            candidate = self._judged(case, outcome) if outcome.finished else None
            if candidate is None:
                low = limit
            else:
                yield candidate
                if candidate.peak <= budget:
                    return
                high = limit
            limit = (low + high) // 2

    def _judged(self, case: Case, outcome: OnlineRun) -> Candidate | None:
        """Return the run as a schedule; None if it overwrote something before its turn in program order."""
        try:
            return case.candidate(Schedule(np.array(outcome.order, dtype=np.int64)))
        except ScheduleError:
            return None


class OnlineRun(NamedTuple):
    """What a run of DTR did.

    Attributes:
        finished: the step came to its end; else it ran out of memory, or thrashed.
        order: the ops that it executed.
        time: their cost.
        base_time: the cost of the step without recompute.
        peak: the most bytes that were not evicted.
        evictions: storages evicted to make room.
    """

    finished: bool
    order: list[int]
    time: float
    base_time: float
    peak: int
    evictions: int

    @property
    def overhead(self) -> float:
        """Extra cost over the step without recompute."""
        return self.time / self.base_time - 1 if self.base_time else 0.0


def simulate_log(graph: Graph, budget: int, heuristic: str = "eqclass", *, most: float = 100.0) -> OnlineRun:
    """Run *graph* as DTR's simulator would: holds release what they name, and hold no bytes themselves.

    A log for this is loaded with ``mutations="copy"``, as DTR makes a mutation a copy. One difference is left, which
    rarely changes what is evicted: while an operator waits for its inputs, the simulator's neighbourhoods may have its
    outputs among the evicted. With numba (extra `solver`) it runs as machine code, which is compiled at the first call.

    Raises:
        UnknownNameError: there is no such heuristic.
    """
    if heuristic not in HEURISTICS:
        raise UnknownNameError("heuristic", heuristic, HEURISTICS)
    return run(program_of(graph, op_costs(graph), holds=False), budget, heuristic, most=most, machine=is_available())


def run(
    program: Program, budget: int, heuristic: str, *, most: float, until: float = math.inf, machine: bool
) -> OnlineRun:
    """Run *program* within *budget* bytes, up to the time *until* of `time.perf_counter`.

    Args:
        machine: whether as machine code (extra `solver`), or interpreted.
    """
    base_time = float(program.costs.sum())
    limit, longest = 1.0 + most * base_time, max(most, _LONGEST) * (len(program.costs) + 1)
    pause = _PAUSE if machine else _PAUSE_INTERPRETED
    state, advance = beginning(program, pause), dtr_loop.advance
    if machine:
        advance = compiled_functions(dtr_loop)["advance"]
    else:
        program, state = as_lists(program), as_lists(state)
    order: list[int] = []
    how = dtr_loop.RUNNING
    while how == dtr_loop.RUNNING and time.perf_counter() < until:
        how = advance(program, state, HEURISTICS[heuristic], budget, limit, longest - len(order), pause)
        order += np.asarray(state.order[: state.counts[LENGTH]], dtype=np.int64).tolist()
    return OnlineRun(
        finished=how == dtr_loop.FINISHED,
        order=order,
        time=float(state.clock[0]) - 1.0,
        base_time=base_time,
        peak=int(state.counts[PEAK]),
        evictions=int(state.counts[EVICTIONS]),
    )
