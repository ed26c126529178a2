"""Which value to drop across a moment, and what it takes to make it again, as machine code (numba, extra `solver`)."""

from __future__ import annotations

from math import inf
from typing import Any

from graphsim.core.index import Ints
from graphsim.recompute.machine_code import compiled
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
    LONGEST,
    LOOK,
    LOOKS,
    MEMORY,
    MOST,
    NEEDED,
    NEWEST,
    PLACE,
    QUANTILE,
    READ,
    REMAKER,
    ROW,
    SIZE,
    STACK,
    STATE,
    UNIT,
    UNITS,
    UNTIL,
    USED,
    VALUE,
    WORKSPACE,
    Columns,
    Drops,
)
from graphsim.recompute.moves.walk import has_room, may_run

_EARLY = 0.15
"""Share of values that are made again earlier than their next use, where there may be room."""
_COMPARED = 12
"""Drops that save something and are compared, at most."""


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
def _latest(walked: Ints, value: int, before: int) -> int:
    row = walked[NEWEST, value]
    while walked[BORN, row] >= before:
        row = walked[EARLIER, row]
    return int(row)


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

    No units where that cannot be, or would cost *limit*. See `repair._Planner` for the rule.
    """
    op = walked[FOLLOWING, before]
    unit = problem.values[REMAKER, walked[VALUE, row]]
    small = keep * problem.values[SIZE, walked[VALUE, row]]
    left = limit - problem.cost[problem.ops + unit]
    if left <= 0 or not may_run(problem, unit, op):
        return 0, 0
    depth, units, kept, begun = 1, 0, 0, 1
    drops.plan[STACK, 0], drops.plan[PLACE, 0], drops.plan[STATE, unit] = (
        unit,
        problem.read_start[problem.ops + unit],
        2 * stamp,
    )
    while depth:
        unit, k = drops.plan[STACK, depth - 1], drops.plan[PLACE, depth - 1]
        if k == problem.read_start[problem.ops + unit + 1]:
            drops.plan[UNIT, units], drops.plan[STATE, unit] = unit, 2 * stamp + 1
            units += 1
            depth -= 1
            continue
        drops.plan[PLACE, depth - 1] = k + 1
        value = problem.read_value[k]
        maker = problem.values[REMAKER, value]
        if maker >= 0 and drops.plan[STATE, maker] == 2 * stamp + 1:
            continue
        read = _latest(walked, value, before)
        if read == row:
            return 0, 0
        last = walked[LAST, read]
        if last >= before or _is_kept(drops, kept, read):
            continue
        size = problem.values[SIZE, value]
        if maker < 0 or size <= small or has_room(walked, MEMORY, last + 1, before, budget - size):
            if kept == LONGEST:
                return 0, 0
            drops.plan[LONGER, kept], drops.plan[LAST_USE, kept] = read, last
            kept += 1
            continue
        left -= problem.cost[problem.ops + maker]
        if drops.plan[STATE, maker] == 2 * stamp or begun >= UNITS or left <= 0 or not may_run(problem, maker, op):
            return 0, 0
        drops.plan[STATE, maker] = 2 * stamp
        begun += 1
        drops.plan[STACK, depth], drops.plan[PLACE, depth] = maker, problem.read_start[problem.ops + maker]
        depth += 1
    return units, kept


@compiled
def _is_kept(drops: Drops, count: int, row: int) -> bool:
    for i in range(count):  # noqa: SIM110
        if drops.plan[LONGER, i] == row:
            return True
    return False


@compiled
def _excess_of_units(
    problem: Columns, walked: Ints, drops: Drops, nodes: Ints, budget: int, row: int, before: int, units: int, kept: int
) -> int:
    """Return by how much the units themselves pass the budget: all they make is counted as live until the use."""
    node = nodes[before]
    live = walked[MEMORY, before] - problem.nodes[WORKSPACE, node] - problem.values[SIZE, walked[VALUE, row]]
    for k in range(problem.make_start[node], problem.make_start[node + 1]):
        live -= problem.values[SIZE, problem.make_value[k]]
    for i in range(kept):
        live += problem.values[SIZE, walked[VALUE, drops.plan[LONGER, i]]]
    excess = 0
    allowed = max(budget, walked[MEMORY, before])
    for i in range(units):
        node = problem.ops + drops.plan[UNIT, i]
        for k in range(problem.make_start[node], problem.make_start[node + 1]):
            live += problem.values[SIZE, problem.make_value[k]]
        excess += max(0, live + problem.nodes[WORKSPACE, node] - allowed)
    return excess


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
                now += problem.values[SIZE, walked[VALUE, drops.plan[LONGER, i]]]
        saved += was - max(now, 0)
    return saved - _excess_of_units(problem, walked, drops, nodes, budget, row, before, units, kept)


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
