"""The rule of a drop: which units make a value again at a place, and what stays for them. One source for all searches.

The units run right before that place. What one of them reads and is no longer there is kept longer, if there is room,
if it is small beside what is dropped, or if nothing makes it again; else it is made again too.

These are plain functions over lists or arrays: `repair` has them interpreted, `drops` and `incremental` compile them.
What a search knows of its sequence it passes on as *there*, with two functions that read it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from graphsim.core.index import Ints
from graphsim.recompute.moves.columns import (
    BEFORE_OP,
    LAST_USE,
    LONGER,
    LONGEST,
    PLACE,
    REMAKER,
    SINCE,
    SIZE,
    STACK,
    STATE,
    UNIT,
    UNITS,
    WORKSPACE,
    Columns,
)

There = TypeVar("There")


def units_of_drop(
    problem: Columns,
    plan: Ints,
    there: There,
    last_use_at: Callable[[There, int, int], int],
    has_room: Callable[[There, int, int, int], bool],
    budget: int,
    dropped: int,
    before: int,
    op: int,
    keep: float,
    limit: float,
    stamp: int,
) -> tuple[int, int]:
    """Fill the units that make value *dropped* again, and what stays for them; return how many of each.

    No units where that cannot be, or would cost *limit*.

    Args:
        plan: rows UNIT to STATE of `Drops.plan`.
        last_use_at: of a value, the last use of the version that an execution inserted at a place reads.
        has_room: whether no execution in [low, high) has more than so many bytes live.
        before, op: the execution before which they run, and the op of program order that it is or precedes.
        keep: what is kept longer may have this share of the bytes that are dropped, room or not.
        stamp: a number, above 0, that no plan has had before in *plan*.
    """
    units, longer, last_uses = plan[UNIT], plan[LONGER], plan[LAST_USE]
    stack, place, state = plan[STACK], plan[PLACE], plan[STATE]
    sizes, remakers, first_reads = problem.values[SIZE], problem.values[REMAKER], problem.read_start
    since, until = problem.units[SINCE], problem.units[BEFORE_OP]
    begun_now, made_now = 2 * stamp, 2 * stamp + 1
    unit, small = remakers[dropped], keep * sizes[dropped]
    left = limit - problem.cost[problem.ops + unit]
    if left <= 0 or not since[unit] < op <= until[unit]:
        return 0, 0
    depth, made, kept, begun = 1, 0, 0, 1
    stack[0], place[0], state[unit] = unit, first_reads[problem.ops + unit], begun_now
    while depth:
        unit, at = stack[depth - 1], place[depth - 1]
        if at == first_reads[problem.ops + unit + 1]:
            units[made], state[unit] = unit, made_now
            made += 1
            depth -= 1
            continue
        place[depth - 1] = at + 1
        value = problem.read_value[at]
        if value == dropped or kept == LONGEST:
            return 0, 0
        maker = remakers[value]
        if maker >= 0 and state[maker] == made_now:
            continue
        last = last_use_at(there, value, before)
        known = last >= before
        for i in range(kept):
            known = known or longer[i] == value
        if known:
            continue
        size = sizes[value]
        if maker < 0 or size <= small or has_room(there, last + 1, before, budget - size):
            longer[kept], last_uses[kept] = value, last
            kept += 1
            continue
        left -= problem.cost[problem.ops + maker]
        allowed = left > 0 and since[maker] < op <= until[maker]
        if state[maker] == begun_now or begun >= UNITS or not allowed:
            return 0, 0
        begun += 1
        stack[depth], place[depth], state[maker] = maker, first_reads[problem.ops + maker], begun_now
        depth += 1
    return made, kept


def excess_of_units(problem: Columns, plan: Ints, units: int, kept: int, live: int, allowed: int) -> int:
    """Return by how much the planned units pass *allowed* bytes: all they make is counted as live until the use.

    Args:
        units, kept: of the plan, as `units_of_drop` counts them.
        live: bytes live across the place where they run, without the value that is dropped.
    """
    sizes = problem.values[SIZE]
    for i in range(kept):
        live += sizes[plan[LONGER][i]]
    excess = 0
    for i in range(units):
        node = problem.ops + plan[UNIT][i]
        for at in range(problem.make_start[node], problem.make_start[node + 1]):
            live += sizes[problem.make_value[at]]
        excess += max(0, live + problem.nodes[WORKSPACE][node] - allowed)
    return excess
