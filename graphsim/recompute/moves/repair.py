"""Greedy repair: while too much is live, drop one value across the worst moment and make it again before its next use.

A value that is live but not used there is a candidate. Dropping it saves its bytes between its last
use before and its next use after; its unit runs right before that use (see `rule` for what that takes).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from math import inf
from typing import Any

import numpy as np

from graphsim.core.index import NOTHING, Ints
from graphsim.recompute.evaluation import Evaluation, evaluate
from graphsim.recompute.machine_code import as_lists
from graphsim.recompute.moves.columns import LAST_USE, LONGER, LONGEST, UNIT, UNITS, Columns, columns_of
from graphsim.recompute.moves.rule import excess_of_units, units_of_drop
from graphsim.recompute.problem import Problem

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
    problem, columns, plan = state.problem, _columns(state.problem), _empty_plan(state.problem.ops)
    op, value = int(state.next_op[before]), int(state.value[row])
    units, kept = units_of_drop(columns, plan, state, _last_use_at, _has_room, budget, value, before, op, keep, inf, 1)
    if not units:
        return None
    nodes = [problem.ops + unit for unit in plan[UNIT][:units]]
    longer = dict(zip(plan[LONGER][:kept], plan[LAST_USE][:kept], strict=True))
    size = int(problem.size[value])
    live, allowed = int(state.through[before]) - size, max(budget, int(state.memory[before]))
    saved = _bytes_saved(state, budget, excess, last, before, size, longer)
    saved -= excess_of_units(columns, plan, units, kept, live, allowed)
    return Drop(tuple(nodes), before, float(problem.cost[nodes].sum()), saved)


@lru_cache(maxsize=1)
def _columns(problem: Problem) -> Columns:
    """Return the columns of *problem* as lists."""
    return as_lists(columns_of(problem))


def _empty_plan(ops: int) -> Any:
    """Return rows UNIT to STATE of a plan, as lists."""
    return [[0] * length for length in (UNITS, LONGEST, LONGEST, UNITS, UNITS, ops)]


def _last_use_at(state: Evaluation, value: int, before: int) -> int:
    return state.lasts[state.latest_row(value, before)]


def _has_room(state: Evaluation, low: int, high: int, most: int) -> bool:
    return not (state.memory[low:high] > most).any()


def _bytes_saved(
    state: Evaluation, budget: int, excess: Ints, last: int, before: int, size: int, longer: Mapping[int, int]
) -> int:
    """Return the bytes above the budget that it saves to drop *size* bytes and to keep the values *longer*."""
    start = min([last, *longer.values()]) + 1
    change = np.zeros(before - start, dtype=np.int64)
    change[last + 1 - start :] -= size
    for value, until in longer.items():
        change[until + 1 - start :] += state.problem.size[value]
    # Executions of units count only beyond what their next op has anyway: see Evaluation.excess.
    counts = (state.nodes[start:before] < state.problem.ops) | (excess[start:before] > 0)
    after = np.maximum(state.memory[start:before] + change - budget, 0)
    return int(excess[start:before].sum()) - int(after[counts].sum())


def apply(state: Evaluation, *drops: Drop) -> Evaluation:
    """Return the sequence with the units of *drops*."""
    places = np.array([drop.before for drop in drops for _ in drop.units], dtype=np.int64)
    units = np.array([unit for drop in drops for unit in drop.units], dtype=np.int64)
    return evaluate(state.problem, np.insert(state.nodes, places, units))
