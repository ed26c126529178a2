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

from graphsim.errors import ScheduleError, UnknownNameError, UsageError
from graphsim.graph import Graph
from graphsim.schedule import Schedule
from graphsim.simulation import op_costs
from graphsim.strategies.dtr_program import Program
from graphsim.strategies.dtr_scores import HEURISTICS, Local
from graphsim.strategies.plan import Plan, judge
from graphsim.strategies.search import Candidate, Search

TRIALS = 2
"""Internal budgets that are tried: the one asked for, and a larger one if DTR thrashes within that."""


@dataclass(frozen=True, slots=True)
class Dtr:
    """Runs the step online within the budget; without a budget, nothing is evicted.

    DTR counts what it has not evicted, the schedule only what is read again: so where it runs out of
    memory within the budget, it is given more, and the plan with the lowest true peak is returned.

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

    def __call__(self, graph: Graph, /, *, budget: int | None = None) -> Plan:
        """Return the plan; it may not fit, as DTR never looks ahead."""
        start = time.perf_counter()
        schedule = Schedule.of(graph) if budget is None else self._fit(graph, budget, start + self.seconds)
        return judge(graph, schedule, strategy="dtr", budget=budget, seconds=time.perf_counter() - start)

    def _fit(self, graph: Graph, budget: int, until: float) -> Schedule:
        search = Search(graph)
        if search.stored.peak <= budget:
            return search.stored.schedule
        program, found = Program(graph), []
        low, high, limit = budget, search.stored.peak, budget
        for _ in range(TRIALS):
            outcome = run(program, limit, self.heuristic, most=self.most, until=until)
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

    A log for this is loaded with ``mutations="copy"``, as DTR makes a mutation a copy.

    Raises:
        UnknownNameError: there is no such heuristic.
    """
    if heuristic not in HEURISTICS:
        raise UnknownNameError("heuristic", heuristic, HEURISTICS)
    return run(Program(graph, holds=False), budget, heuristic, most=most)


def run(program: Program, budget: int, heuristic: str, *, most: float, until: float = math.inf) -> Outcome:
    """Run *program* within *budget* bytes, up to the time *until* of `time.perf_counter`."""
    runtime = _Runtime(program, budget, HEURISTICS[heuristic](program.size), most, until)
    try:
        runtime.run()
    except _StuckError:
        return runtime.outcome(finished=False)
    return runtime.outcome(finished=True)


class _StuckError(Exception):
    """Nothing is left to evict, too much has been recomputed, or time is up."""


class _Frame:
    """One execution under way: its ops, what they read from elsewhere, for which tensor, and what is missing."""

    __slots__ = ("again", "missing", "ops", "parents", "target")

    def __init__(self, ops: list[int], parents: list[int], target: int, *, again: bool) -> None:
        self.ops, self.parents, self.target, self.again = ops, parents, target, again
        self.missing: list[int] = []


class _Runtime:
    def __init__(self, program: Program, budget: int, scores: Local, most: float, until: float) -> None:
        self.program, self.budget, self.scores, self.until = program, budget, scores, until
        costs = op_costs(program.graph)
        self.costs: list[float] = costs.tolist()
        self.base_time = float(costs.sum())
        self.clock, self.limit = 1.0, 1.0 + most * self.base_time
        self.longest = int(most * (len(self.costs) + 1))
        self.now = -1
        count = len(program.size)
        self.there = [False] * count
        self.defined = [False] * len(program.storage)
        self.locks = [0] * count
        self.blocked = [False] * count
        self.pool = bytearray(count)
        self.in_pool = np.frombuffer(self.pool, dtype=bool)
        self.joined = [0] * count
        self.arrivals = 0
        self.order: list[int] = []
        self.usage, self.peak, self.evictions = 0, 0, 0
        for tensor in program.sources:
            self.defined[tensor] = True
            if program.storage[tensor] == tensor:
                self.there[tensor] = True
                self.usage += program.size[tensor]

    def outcome(self, *, finished: bool) -> Outcome:
        return Outcome(finished, self.order, self.clock - 1.0, self.base_time, self.peak, self.evictions)

    def run(self) -> None:
        program = self.program
        for position, hold in enumerate(program.hold):
            self.now = position
            if hold:
                self._hold(position)
            elif not self._run_at_once(position):
                target = program.outputs[position][0] if program.outputs[position] else -1
                self._execute(_Frame([position], program.inputs[position], target, again=False))
            for storage in program.blocked[position]:
                self.blocked[storage] = True
                self.pool[storage] = False
            for storage in program.released[position]:
                if self.there[storage] and not program.constant[storage] and not self.locks[storage]:
                    self._drop(storage)
        for tensor in program.kept:  # all of them must be there in the end: each stays once it is
            if not self.defined[tensor]:
                self._execute(self._again(tensor))
            self._lock(tensor)

    def _hold(self, position: int) -> None:
        self.order.append(position)
        for storage in self.program.touched[position]:
            self.blocked[storage] = False
            self._offer(storage)

    def _run_at_once(self, op: int) -> bool:
        """Run *op* for the first time, if nothing is missing and nothing must go for it; return whether it has run.

        What `_execute` does in general, without the locks.
        """
        program, defined, last = self.program, self.defined, self.scores.last
        need = self.usage + program.needs[op]
        if need > self.budget:
            return False
        for tensor in program.inputs[op]:
            if not defined[tensor]:
                return False
        for storage in program.parents[op]:
            last[storage] = self.clock
            self.pool[storage] = False
        self.clock += self.costs[op]
        if need > self.peak:
            self.peak = need
        self.order.append(op)
        self.usage += program.allocates[op]
        for tensor in program.outputs[op]:
            defined[tensor] = True
        self._create(op)
        for storage in program.fresh[op]:
            self.there[storage] = True
            self._offer(storage)
        for storage in program.parents[op]:
            self._offer(storage)
        for tensor in program.outputs[op]:
            last[program.storage[tensor]] = self.clock
        return True

    def _again(self, tensor: int) -> _Frame:
        program = self.program
        ops = program.unit[program.producer[tensor]]
        if len(ops) == 1:
            return _Frame(ops, program.inputs[ops[0]], tensor, again=True)
        made = {t for op in ops for t in program.outputs[op]}
        parents = [t for op in ops for t in program.inputs[op] if t not in made]
        return _Frame(ops, parents, tensor, again=True)

    def _execute(self, frame: _Frame) -> None:
        """Run *frame*, and first, on a stack of frames, what it needs and is missing."""
        stack = [frame]
        self._begin(frame)
        while stack:
            top = stack[-1]
            while top.missing:
                tensor = top.missing[-1]
                if not self.defined[tensor]:
                    below = self._again(tensor)
                    self._begin(below)
                    stack.append(below)
                    if len(stack) > len(self.costs):  # what is missing would need itself
                        raise _StuckError
                    break
                self._lock(tensor)
                top.missing.pop()
            else:
                self._compute(stack.pop())

    def _begin(self, frame: _Frame) -> None:
        storage, defined, last = self.program.storage, self.defined, self.scores.last
        for tensor in frame.parents:
            last[storage[tensor]] = self.clock
            if defined[tensor]:
                self._lock(tensor)
            else:
                frame.missing.append(tensor)
        frame.missing.reverse()

    def _lock(self, tensor: int) -> None:
        storage = self.program.storage[tensor]
        self.locks[storage] += 1
        self.pool[storage] = False

    def _compute(self, frame: _Frame) -> None:
        program = self.program
        need = sum([program.allocates[op] for op in frame.ops]) + max([program.workspace[op] for op in frame.ops])
        while self.usage + need > self.budget:
            self._evict()
        self.peak = max(self.peak, self.usage + need)
        fresh: list[int] = []
        for op in frame.ops:
            self.clock += self.costs[op]
            self.order.append(op)
            for tensor in program.outputs[op]:
                self.defined[tensor] = True
                if program.storage[tensor] == tensor and not self.there[tensor]:
                    self.there[tensor] = True
                    self.usage += program.size[tensor]
                    fresh.append(tensor)
            if not frame.again:
                self._create(op)
        self._arrive(fresh, frame)
        for tensor in frame.parents:
            storage = program.storage[tensor]
            self.locks[storage] -= 1
            self._offer(storage)
        if self.clock > self.limit or len(self.order) > self.longest or time.perf_counter() > self.until:
            raise _StuckError

    def _arrive(self, fresh: list[int], frame: _Frame) -> None:
        program = self.program
        fresh.sort(key=frame.target.__eq__)  # what was asked for joins the pool last
        for storage in fresh:
            if frame.again:
                if program.evictable[storage]:
                    self.scores.restore(storage)
                elif program.last_use[storage] <= self.now:  # made by the way, and of no use
                    self.there[storage] = False
                    self.usage -= program.size[storage]
            self._offer(storage)
        if not frame.again:
            for tensor in program.outputs[frame.ops[0]]:
                self.scores.last[program.storage[tensor]] = self.clock

    def _create(self, op: int) -> None:
        program, cost = self.program, self.costs[op]
        for storage in program.made[op]:
            self.scores.create(storage, cost, program.makers[op])

    def _offer(self, storage: int) -> None:
        """Let *storage* join those that may be evicted, if it is one."""
        program = self.program
        if (
            program.evictable[storage]
            and not self.pool[storage]
            and not self.locks[storage]
            and not self.blocked[storage]
            and self.there[storage]
            and self.now >= program.complete[storage]
        ):
            self.pool[storage] = True
            self.arrivals += 1
            self.joined[storage] = self.arrivals

    def _evict(self) -> None:
        """Evict the storage of the lowest score; among equals, the one that was used last."""
        candidates = self.in_pool.nonzero()[0]
        if not len(candidates):
            raise _StuckError
        scores = self.scores.scores(candidates, self.clock)
        at = scores.argmin()
        lowest = scores[at]
        ties = candidates[scores == lowest].tolist()
        self.evictions += 1
        if len(ties) > 1:
            self._drop((min if lowest == 0 else max)(ties, key=self.joined.__getitem__))
        else:
            self._drop(ties[0])

    def _drop(self, storage: int) -> None:
        self.there[storage] = False
        self.pool[storage] = False
        self.usage -= self.program.size[storage]
        for tensor in self.program.tensors[storage]:
            self.defined[tensor] = False
        if self.program.evictable[storage]:
            self.scores.evict(storage)
