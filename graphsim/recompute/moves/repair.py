"""Greedy repair: while too much is live, drop one value across the worst moment and make it again before its next use.

A value that is live but not used there is a candidate. Dropping it saves its bytes between its last
use before and its next use after; its unit runs right before that use. What the unit reads and is no
longer there is kept longer, if there is room or it is small beside what is dropped, else made again too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from math import inf

import numpy as np

from graphsim.core.index import NOTHING, Ints
from graphsim.recompute.evaluation import Evaluation, evaluate

_DEEP = 12
"""Units that one drop may need to run, at most."""
_PATIENCE = 8
"""Drops in a row that may bring nothing, before the greedy way is given up."""
_KEEP = (0.0, 0.3, 1.0)
"""Inputs are kept longer up to these shares of the bytes that are dropped: each is tried."""
_SCORED = 24
"""Drops that are compared: the first that save anything, in order of cost by bytes dropped."""
_TOGETHER = 500
"""One more drop is taken at a time for every so many ops: on large graphs an evaluation for each takes too long."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Units to run before an execution, in order; the bytes above the budget that this saves, summed over time."""

    units: tuple[int, ...]
    before: int
    cost: float
    saved: float


def repair(state: Evaluation, budget: int, *, until: float = inf) -> Evaluation:
    """Return a sequence within *budget*; or the one of the lowest peak, if the greedy way does not lead there.

    It stops when the clock (time.perf_counter) shows *until*.
    """
    best, lowest, patience = state, int(state.excess(budget).sum()), _PATIENCE
    while state.peak > budget and patience and time.perf_counter() < until:
        step = _best_step(state, budget)
        if step is None:
            break
        excess = int(step.excess(budget).sum())
        patience = _PATIENCE if excess < lowest else patience - 1
        state, lowest = step, min(lowest, excess)
        best = min(best, state, key=lambda one: one.peak)
    return best


def _best_step(state: Evaluation, budget: int) -> Evaluation | None:
    """Return the state after the best drop at the worst moment, or at another one above the budget."""
    above = state.excess(budget)
    moments = np.flatnonzero(above)
    for moment in [int(above.argmax()), *moments[:: max(1, len(moments) // 4)].tolist()]:
        drops = sorted(_drops_at(state, moment, budget, above), key=lambda drop: drop.cost / drop.saved)
        if drops:
            return _apply_some(state, drops[: 1 + state.problem.ops // _TOGETHER], budget)
    return None


def _apply_some(state: Evaluation, drops: list[Drop], budget: int) -> Evaluation:
    """Return the state after those of *drops* that share no unit, or after the first if that saves more."""
    taken: list[Drop] = []
    for drop in drops:
        if not any(set(drop.units).intersection(other.units) for other in taken):
            taken.append(drop)
    first = apply(state, drops[0])
    if len(taken) == 1:
        return first
    several = apply(state, *taken)
    return several if several.excess(budget).sum() < first.excess(budget).sum() else first


def _drops_at(state: Evaluation, moment: int, budget: int, excess: Ints) -> list[Drop]:
    """Return the drops of values that are live at *moment* and not used by it, that save anything."""
    idle = idle_at(state, moment)
    plans = (
        plan_drop(state, budget, excess, row, last, before, keep)
        for row, last, before in zip(*(column.tolist() for column in idle), strict=True)
        for keep in _KEEP
    )
    return list(islice((drop for drop in plans if drop is not None and drop.saved > 0), _SCORED))


def idle_at(state: Evaluation, moment: int) -> tuple[Ints, Ints, Ints]:
    """Return (row, last use before, next use after) of what is live at *moment*, not used by it, and can be made again.

    In order of what it costs to make, by byte.
    """
    problem = state.problem
    idle = (state.born < moment) & (state.last > moment)
    used_before = state.born.copy()
    split = int(np.searchsorted(state.read_at, moment, side="right"))
    used_before[state.read_row[:split]] = state.read_at[:split]
    used_next = np.full(len(state.born), NOTHING)
    later = slice(None, split - 1 if split else None, -1)
    used_next[state.read_row[later]] = state.read_at[later]
    unit = problem.value_unit[state.value]
    rows = np.flatnonzero(idle & (used_before < moment) & (used_next != NOTHING) & (unit != NOTHING))
    rows = rows[~problem.hold[state.nodes[used_next[rows]]]]
    rows = rows[np.argsort(problem.value_ratio[state.value[rows]], kind="stable")]
    return rows, used_before[rows], used_next[rows]


def plan_drop(
    state: Evaluation, budget: int, excess: Ints, row: int, last: int, before: int, keep: float
) -> Drop | None:
    """Return what it takes to drop *row* between two of its uses; None if it cannot be."""
    return _Planner(state, budget, excess, keep).drop(row, last, before)


def apply(state: Evaluation, *drops: Drop) -> Evaluation:
    """Return the sequence with the units of *drops*."""
    places = np.array([drop.before for drop in drops for _ in drop.units], dtype=np.int64)
    units = np.array([unit for drop in drops for unit in drop.units], dtype=np.int64)
    return evaluate(state.problem, np.insert(state.nodes, places, units))


class _Planner:
    """Works out one drop: which units it takes, what must be kept longer, what that does to memory."""

    def __init__(self, state: Evaluation, budget: int, excess: Ints, keep: float) -> None:
        self.state, self.budget, self.excess, self.keep = state, budget, excess, keep
        self.problem = state.problem
        self.units: list[int] = []
        self.begun: set[int] = set()
        self.made: set[int] = set()
        self.longer: dict[int, int] = {}

    def drop(self, row: int, last: int, before: int) -> Drop | None:
        """Return the drop of *row* after execution *last* until execution *before*; None if it cannot be."""
        state, problem = self.state, self.problem
        value = int(state.value[row])
        size = int(problem.size[value])
        self.dropped, self.small = row, int(self.keep * size)
        if not self._add(problem.unit_of[value], before, int(state.next_op[before])):
            return None
        start = min([last, *self.longer.values()]) + 1
        change = np.zeros(before - start, dtype=np.int64)
        change[last + 1 - start :] -= size
        for kept, until in self.longer.items():
            change[until + 1 - start :] += problem.size[state.value[kept]]
        # Executions of units count only beyond what their next op has anyway: see Evaluation.excess.
        counts = (state.nodes[start:before] < problem.ops) | (self.excess[start:before] > 0)
        after = np.maximum(state.memory[start:before] + change - self.budget, 0)
        saved = int(self.excess[start:before].sum()) - int(after[counts].sum())
        saved -= self._excess_of_units(before, size)
        return Drop(tuple(self.units), before, float(problem.cost[self.units].sum()), saved)

    def _add(self, unit: int, before: int, next_op: int) -> bool:
        """Plan to run *unit* before execution *before*, after what it needs; False if that cannot be."""
        state, problem = self.state, self.problem
        node = problem.ops + unit
        if unit in self.begun or len(self.begun) >= _DEEP or not problem.may_run(unit, next_op):
            return False
        self.begun.add(unit)
        for value in problem.reads[node]:
            if value in self.made:
                continue
            row = state.latest_row(value, before)
            if row == self.dropped:
                return False
            last = state.lasts[row]
            if last >= before or row in self.longer:
                continue
            if problem.unit_of[value] == NOTHING or self._keeps(value, last, before):
                self.longer[row] = last
            elif not self._add(problem.unit_of[value], before, next_op):
                return False
        self.units.append(node)
        self.made.update(problem.makes[node])
        return True

    def _keeps(self, value: int, last: int, before: int) -> bool:
        """Whether *value* stays until *before*: it is small, or there is room."""
        size = int(self.problem.size[value])
        return size <= self.small or int(self.state.memory[last + 1 : before].max(initial=0)) + size <= self.budget

    def _excess_of_units(self, before: int, size: int) -> int:
        """Return by how much the units themselves pass the budget: all they make is counted as live until the use."""
        state, problem = self.state, self.problem
        live = int(state.through[before]) - size
        live += sum(int(problem.size[state.value[row]]) for row in self.longer)
        allowed = max(self.budget, int(state.memory[before]))
        excess = 0
        for node in self.units:
            live += sum(int(problem.size[value]) for value in problem.makes[node])
            excess += max(0, live + int(problem.workspace[node]) - allowed)
        return excess
