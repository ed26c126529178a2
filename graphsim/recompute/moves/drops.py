"""Which value to drop across a moment, and what it takes to make it again, as machine code (numba, extra `solver`)."""

from __future__ import annotations

from math import inf
from typing import Any

from graphsim.core.index import Ints
from graphsim.recompute.machine_code import compiled, inlined
from graphsim.recompute.moves.columns import (
    ABOVE,
    AT,
    BEFORE,
    BORN,
    EARLIER,
    END,
    FOLLOWING,
    HOLD,
    KEEP,
    LAST,
    LAST_USE,
    LEAST,
    LONGER,
    LOOK,
    LOOKS,
    MEMORY,
    MOST,
    NEEDED,
    NEWEST,
    QUANTILE,
    READ,
    REMAKER,
    ROW,
    SIZE,
    UNIT,
    UNTIL,
    USED,
    VALUE,
    WORKSPACE,
    Columns,
    Drops,
)
from graphsim.recompute.moves.rule import excess_of_units, units_of_drop
from graphsim.recompute.moves.walk import has_room

_EARLY = 0.15
"""Share of values that are made again earlier than their next use, where there may be room."""
_COMPARED = 12
"""Drops that save something and are compared, at most."""
_units_of_drop, _excess_of_units = inlined(units_of_drop), compiled(excess_of_units)


@compiled
def find_rereads(problem: Columns, walked: Ints, nodes: Ints, length: int, moment: int) -> None:
    """Fill which recomputes read each value around *moment*."""
    for value in range(problem.values.shape[1]):
        walked[READ, value] = -1
        walked[NEEDED, value] = END
    for at in range(length):
        node = nodes[at]
        if node < problem.ops:
            continue
        for k in range(problem.read_start[node], problem.read_start[node + 1]):
            value = problem.read_value[k]
            if at <= moment:
                walked[READ, value] = at
            elif walked[NEEDED, value] == END:
                walked[NEEDED, value] = at


@compiled
def find_drops(
    problem: Columns, walked: Ints, drops: Drops, nodes: Ints, moment: int, rows: int, limit: float, draw: Any
) -> int:
    """Fill the candidates: what is live at *moment*, not used by it, and can be made again for less than *limit*."""
    count = 0
    for row in range(rows):
        if walked[BORN, row] >= moment:
            break
        value = walked[VALUE, row]
        unit = problem.values[REMAKER, value]
        if walked[LAST, row] <= moment or unit < 0 or problem.values[SIZE, value] == 0:
            continue
        cost = problem.cost[problem.ops + unit]
        if cost >= limit:
            continue
        used, again = max(walked[BORN, row], walked[READ, value]), walked[NEEDED, value]
        for k in range(problem.use_start[value], problem.use_start[value + 1]):
            at = walked[AT, problem.use_op[k]]
            if at > moment:
                again = min(again, at)
                break
            used = max(used, at)
        if used >= moment or again == END or problem.nodes[HOLD, nodes[again]]:
            continue
        if draw.random() < _EARLY:
            again = moment + 1 + int(draw.random() * (again - moment - 1))
        most = (
            min(walked[BEFORE, again] - walked[BEFORE, used + 1], problem.values[SIZE, value] * (again - used - 1))
            + 1e-9
        )
        look = drops.looks[QUANTILE, int(draw.random() * LOOKS)]
        walked[USED, row] = used
        drops.plan[ROW, count], drops.plan[UNTIL, count] = row, again
        drops.looks[LOOK, count], drops.looks[LEAST, count], drops.looks[MOST, count] = look, look * cost / most, most
        count += 1
    return count


@compiled
def _last_use_at(walked: Ints, value: int, before: int) -> int:
    """Return the last use of the version of *value* that an execution inserted at *before* reads."""
    row = walked[NEWEST, value]
    while walked[BORN, row] >= before:
        row = walked[EARLIER, row]
    return int(walked[LAST, row])


@inlined
def _has_room(walked: Ints, low: int, high: int, most: int) -> bool:
    return has_room(walked, MEMORY, low, high, most)


@compiled
def plan_drop(
    problem: Columns,
    walked: Ints,
    drops: Drops,
    budget: int,
    row: int,
    before: int,
    keep: float,
    limit: float,
    stamp: int,
) -> tuple[int, int]:
    """Fill the units that make *row* again right before *before*, and what stays for them; return how many of each.

    No units where that cannot be, or would cost *limit*.
    """
    value, op = walked[VALUE, row], walked[FOLLOWING, before]
    return _units_of_drop(
        problem, drops.plan, walked, _last_use_at, _has_room, budget, value, before, op, keep, limit, stamp
    )


@compiled
def bytes_saved(
    problem: Columns, walked: Ints, drops: Drops, nodes: Ints, budget: int, row: int, before: int, units: int, kept: int
) -> float:
    """Return the bytes above the budget, summed over executions, that the planned drop saves."""
    size, start = problem.values[SIZE, walked[VALUE, row]], walked[USED, row]
    for i in range(kept):
        start = min(start, drops.plan[LAST_USE, i])
    saved = 0.0
    for at in range(start + 1, before):
        was = walked[ABOVE, at]
        if was == 0 and nodes[at] >= problem.ops:
            continue
        now = walked[MEMORY, at] - budget
        if at > walked[USED, row]:
            now -= size
        for i in range(kept):
            if at > drops.plan[LAST_USE, i]:
                now += problem.values[SIZE, drops.plan[LONGER, i]]
        saved += was - max(now, 0)
    node = nodes[before]
    live = walked[MEMORY, before] - problem.nodes[WORKSPACE, node] - size
    for k in range(problem.make_start[node], problem.make_start[node + 1]):
        live -= problem.values[SIZE, problem.make_value[k]]
    allowed = max(budget, walked[MEMORY, before])
    return saved - _excess_of_units(problem, drops.plan, units, kept, live, allowed)


@compiled
def _least(drops: Drops, count: int) -> int:
    least = 0
    for i in range(1, count):
        if drops.looks[LEAST, i] < drops.looks[LEAST, least]:
            least = i
    return least


@compiled
def best_drop(
    problem: Columns,
    walked: Ints,
    drops: Drops,
    nodes: Ints,
    budget: int,
    count: int,
    limit: float,
    stamp: int,
    best: Ints,
    draw: Any,
) -> tuple[int, int]:
    """Return (units, execution before which they run) of the drop that looks cheapest by byte; the units in *best*.

    Drops are planned in order of the least that they can look like, until no other can look cheaper.
    """
    price, units, place, compared = inf, 0, 0, 0
    while count and compared < _COMPARED:
        i = _least(drops, count)
        if drops.looks[LEAST, i] >= price:
            break
        drops.looks[LEAST, i] = inf
        stamp += 1
        row, before = drops.plan[ROW, i], drops.plan[UNTIL, i]
        keep = KEEP[int(draw.random() * len(KEEP))]
        most = min(limit, price * drops.looks[MOST, i] / drops.looks[LOOK, i])
        planned, kept = plan_drop(problem, walked, drops, budget, row, before, keep, most, stamp)
        if planned == 0:
            continue
        saved = bytes_saved(problem, walked, drops, nodes, budget, row, before, planned, kept)
        if saved <= 0:
            continue
        compared += 1
        cost = 0.0
        for j in range(planned):
            cost += problem.cost[problem.ops + drops.plan[UNIT, j]]
        if drops.looks[LOOK, i] * cost / saved < price:
            price, units, place = drops.looks[LOOK, i] * cost / saved, planned, before
            for j in range(planned):
                best[j] = drops.plan[UNIT, j]
    return units, place
