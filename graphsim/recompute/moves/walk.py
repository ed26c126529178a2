"""A sequence evaluated in one walk, as machine code (numba, extra `solver`): 20 microseconds for a thousand ops."""

from __future__ import annotations

from graphsim.core.index import Ints
from graphsim.recompute.machine_code import compiled, inlined
from graphsim.recompute.moves.columns import (
    ABOVE,
    AT,
    BEFORE,
    BEFORE_OP,
    BORN,
    EARLIER,
    FOLLOWING,
    LAST,
    MEMORY,
    NEWEST,
    SINCE,
    SIZE,
    VALUE,
    WORKSPACE,
    Columns,
)


@compiled
def walk(problem: Columns, walked: Ints, nodes: Ints, length: int, budget: int) -> tuple[int, float, int]:
    """Evaluate the sequence; return (rows, cost, bytes above the budget summed over executions)."""
    for value in range(problem.values.shape[1]):
        walked[NEWEST, value] = -1
    count = 0
    for value in problem.initial:
        walked[VALUE, count], walked[BORN, count], walked[LAST, count], walked[EARLIER, count] = value, -1, -1, -1
        walked[NEWEST, value] = count
        count += 1
    for at in range(length):
        node = nodes[at]
        for k in range(problem.make_start[node], problem.make_start[node + 1]):
            value = problem.make_value[k]
            walked[VALUE, count], walked[BORN, count], walked[LAST, count] = value, at, at
            walked[EARLIER, count] = walked[NEWEST, value]
            walked[NEWEST, value] = count
            count += 1
        for k in range(problem.read_start[node], problem.read_start[node + 1]):
            walked[LAST, walked[NEWEST, problem.read_value[k]]] = at
    for value in problem.kept:
        walked[LAST, walked[NEWEST, value]] = length
    for at in range(length + 2):
        walked[MEMORY, at] = 0
    for row in range(count):
        size = problem.values[SIZE, walked[VALUE, row]]
        walked[MEMORY, max(walked[BORN, row], 0)] += size
        walked[MEMORY, min(walked[LAST, row], length) + 1] -= size
    cost, live = 0.0, problem.constant
    for at in range(length):
        live += walked[MEMORY, at]
        walked[MEMORY, at] = live + problem.nodes[WORKSPACE, nodes[at]]
        cost += problem.cost[nodes[at]]
    return count, cost, _count_above(problem, walked, nodes, length, budget)


@compiled
def _count_above(problem: Columns, walked: Ints, nodes: Ints, length: int, budget: int) -> int:
    following, op = 0, problem.ops
    for at in range(length - 1, -1, -1):
        above = max(walked[MEMORY, at] - budget, 0)
        if nodes[at] < problem.ops:
            following, op = above, nodes[at]
            walked[AT, op] = at
        else:
            above = max(above - following, 0)
        walked[ABOVE, at] = above
        walked[FOLLOWING, at] = op
    walked[BEFORE, 0] = 0
    for at in range(length):
        walked[BEFORE, at + 1] = walked[BEFORE, at] + walked[ABOVE, at]
    return int(walked[BEFORE, length])


@inlined
def has_room(rows: Ints, memory: int, low: int, high: int, most: int) -> bool:
    """Return whether no execution in [low, high) has more than *most* bytes live, by row *memory* of *rows*."""
    for at in range(low, high):  # noqa: SIM110
        if rows[memory, at] > most:
            return False
    return True


@inlined
def may_run(problem: Columns, unit: int, op: int) -> bool:
    """Return whether *unit* may run again right before *op* of program order."""
    return bool(problem.units[SINCE, unit] < op <= problem.units[BEFORE_OP, unit])
