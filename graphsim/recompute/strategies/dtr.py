"""DTR: evict while the step runs, whenever memory is short, and make again what is missing.

Source: Kirisame, Lyubomirsky, Haan, Brennan, He, Roesch, Chen, Tatlock, "Dynamic Tensor
Rematerialization", ICLR 2021; the heuristics are in `dtr_scores`. An online method: it knows the past
only. Storages are evicted one by one, the lowest score first; a released storage is evicted at once
(the paper's eager eviction); recompute is recursive, and what it reads is locked meanwhile.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from graphsim.core.graph import Graph
from graphsim.core.schedule import Schedule
from graphsim.errors import ScheduleError, UnknownNameError, UsageError
from graphsim.recompute.candidates import Candidate, Search
from graphsim.recompute.dtr import loop as dtr_loop
from graphsim.recompute.dtr.program import Program, program_of
from graphsim.recompute.dtr.scores import HEURISTICS
from graphsim.recompute.dtr.state import EVICTIONS, LENGTH, PEAK, as_lists, beginning
from graphsim.recompute.machine_code import compiled_functions, is_available, is_on_disk
from graphsim.recompute.plan import Plan, judge, under_names

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
    Large graphs run as machine code where a `replay` has compiled it.

    Attributes:
        heuristic: 'dtr', 'eqclass', 'local', 'lru', 'size' or 'msps'.
        most: give up when this many times the cost of the step without recompute is spent; the paper's limit is 2.
        seconds: when to give up at the latest: 'dtr' and 'msps' crawl where a large graph thrashes.

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

    @under_names
    def __call__(self, graph: Graph, /, *, budget: int | None = None) -> Plan:
        """Return the plan; it may not fit, as DTR never looks ahead."""
        start = time.perf_counter()
        schedule = Schedule.of(graph) if budget is None else self._fit(graph, budget, start + self.seconds)
        return judge(graph, schedule, strategy="dtr", budget=budget, seconds=time.perf_counter() - start)

    def _fit(self, graph: Graph, budget: int, until: float) -> Schedule:
        search = Search(graph)
        if search.stored.peak <= budget:
            return search.stored.schedule
        program, found = program_of(graph), []
        large = len(program.costs) >= _LARGE and is_available()
        machine = large and is_on_disk(compiled_functions(dtr_loop)["advance"])
        low, high, limit = budget, search.stored.peak, budget
        for _ in range(TRIALS):
            outcome = run(program, limit, self.heuristic, most=self.most, until=until, machine=machine)
            candidate = self._judged(search, outcome) if outcome.finished else None
            if candidate is None:
                low = limit
            else:
                found.append(candidate)
                if candidate.peak <= budget:
                    break
                high = limit
            limit = (low + high) // 2
        return search.pick(found, budget).schedule

    def _judged(self, search: Search, outcome: Outcome) -> Candidate | None:
        """Return the run as a schedule; None if it overwrote something before its turn in program order."""
        try:
            return search.judge(Schedule(np.array(outcome.order, dtype=np.int64)))
        except ScheduleError:
            return None


class Outcome(NamedTuple):
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


def replay(graph: Graph, budget: int, heuristic: str = "eqclass", *, most: float = 100.0) -> Outcome:
    """Run *graph* as DTR's simulator would: holds release what they name, and hold no bytes themselves.

    A log for this is loaded with ``mutations="copy"``, as DTR makes a mutation a copy. One difference is left, which
    rarely changes what is evicted: while an operator waits for its inputs, the simulator's neighbourhoods may have its
    outputs among the evicted. With numba (extra `solver`) it runs as machine code, which is compiled at the first call.

    Raises:
        UnknownNameError: there is no such heuristic.
    """
    if heuristic not in HEURISTICS:
        raise UnknownNameError("heuristic", heuristic, HEURISTICS)
    return run(program_of(graph, holds=False), budget, heuristic, most=most, machine=is_available())


def run(
    program: Program, budget: int, heuristic: str, *, most: float, until: float = math.inf, machine: bool
) -> Outcome:
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
    return Outcome(
        finished=how == dtr_loop.FINISHED,
        order=order,
        time=float(state.clock[0]) - 1.0,
        base_time=base_time,
        peak=int(state.counts[PEAK]),
        evictions=int(state.counts[EVICTIONS]),
    )
