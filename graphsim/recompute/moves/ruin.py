"""Ruin and recreate as machine code (numba, extra `solver`): the loops of `rebuild`."""

from __future__ import annotations

from math import inf, log
from typing import Any

import numpy as np

from graphsim.core.index import Bools, Floats, Ints
from graphsim.recompute.machine_code import compiled
from graphsim.recompute.moves.columns import (
    ABOVE,
    BORN,
    EARLIER,
    LAST,
    MEMORY,
    NEWEST,
    SERVES,
    SIZE,
    UNITS,
    VALUE,
    Columns,
    Drops,
)
from graphsim.recompute.moves.drops import best_drop, find_drops, find_rereads
from graphsim.recompute.moves.walk import walk


@compiled
def _choose_moment(walked: Ints, length: int, draw: np.random.Generator) -> int:
    """Return the worst execution above the budget, or any."""
    if draw.random() < 0.5:
        worst = 0
        for at in range(length):
            if walked[ABOVE, at] > walked[ABOVE, worst]:
                worst = at
        return worst
    seen = 0
    for at in range(length):
        seen += walked[ABOVE, at] > 0
    chosen, at = int(draw.random() * seen), -1
    while chosen >= 0:
        at += 1
        chosen -= walked[ABOVE, at] > 0
    return at


@compiled
def _gap_begins(problem: Columns, walked: Ints, nodes: Ints, length: int, rows: int, begins: Ints) -> int:
    """Fill where the gap that each recompute ends began: the last use of the version before; return how many there are.

    Of other executions: *length*.
    """
    count = 0
    for at in range(length):
        begins[at] = length
        if nodes[at] >= problem.ops:
            begins[at] = at
            count += 1
    for row in range(rows):
        born = walked[BORN, row]
        if born >= 0 and nodes[born] >= problem.ops and walked[EARLIER, row] >= 0:
            begins[born] = max(min(begins[born], walked[LAST, walked[EARLIER, row]]), 0)
    return count


@compiled
def _ruin(
    problem: Columns,
    walked: Ints,
    nodes: Ints,
    length: int,
    rows: int,
    ruined: float,
    begins: Ints,
    found: Ints,
    gone: Bools,
    draw: Any,
) -> None:
    """Mark some recomputes, whose gaps share a moment of one chosen by chance, as *gone*."""
    for at in range(length):
        gone[at] = False
    count = _gap_begins(problem, walked, nodes, length, rows, begins)
    if count == 0:
        return
    chosen = int(draw.random() * count)
    at = 0
    while chosen >= 0:
        if nodes[at] >= problem.ops:
            chosen -= 1
        at += 1
    at -= 1
    moment = begins[at] + int(draw.random() * (at - begins[at] + 1))
    across = 0
    for other in range(moment, length):
        if begins[other] <= moment:
            found[across] = other
            across += 1
    number = min(across, 1 + int(log(1 - draw.random()) / log(1 - 1 / ruined)))
    for i in range(number):
        j = i + int(draw.random() * (across - i))
        found[i], found[j] = found[j], found[i]
        gone[found[i]] = True
    if draw.random() < 0.5:
        _drop_useless(problem, walked, nodes, length, rows, gone)


@compiled
def _drop_useless(problem: Columns, walked: Ints, nodes: Ints, length: int, rows: int, gone: Bools) -> None:
    """Mark as *gone* too the recomputes that then serve nothing; `newest` stands at the end of the sequence."""
    for row in range(rows):
        walked[SERVES, row] = 0
    for at in range(length - 1, -1, -1):
        node = nodes[at]
        serves = node < problem.ops
        for k in range(problem.make_start[node + 1] - 1, problem.make_start[node] - 1, -1):
            row = walked[NEWEST, problem.make_value[k]]
            serves = serves or walked[SERVES, row] > 0 or walked[LAST, row] >= length
            walked[NEWEST, problem.make_value[k]] = walked[EARLIER, row]
        if not serves:
            gone[at] = True
        if not gone[at]:
            for k in range(problem.read_start[node], problem.read_start[node + 1]):
                walked[SERVES, walked[NEWEST, problem.read_value[k]]] = 1


@compiled
def _recreate(
    problem: Columns,
    walked: Ints,
    drops: Drops,
    nodes: Ints,
    length: int,
    budget: int,
    limit: float,
    stamp: int,
    best: Ints,
    draw: Any,
) -> tuple[int, float, int, int]:
    """Add drops until the sequence fits, none helps, or the cost is *limit*; return (length, cost, excess, stamp)."""
    while True:
        rows, cost, excess = walk(problem, walked, nodes, length, budget)
        if excess == 0 or cost >= limit or length + UNITS + 2 > len(nodes):
            return length, cost, excess, stamp
        moment = _choose_moment(walked, length, draw)
        find_rereads(problem, walked, nodes, length, moment)
        count = find_drops(problem, walked, drops, nodes, moment, rows, limit - cost, draw)
        units, place = best_drop(problem, walked, drops, nodes, budget, count, limit - cost, stamp, best, draw)
        stamp += count
        if units == 0:
            return length, cost, excess, stamp
        for at in range(length - 1, place - 1, -1):
            nodes[at + units] = nodes[at]
        for i in range(units):
            nodes[place + i] = problem.ops + best[i]
        length += units


@compiled
def is_needed(problem: Columns, walked: Ints, nodes: Ints, rows: int, at: int, budget: int) -> bool:
    """Return whether it is plain that there is no room to keep what the unit at *at* makes again."""
    node, freed = nodes[at], 0
    for k in range(problem.read_start[node], problem.read_start[node + 1]):
        freed += problem.values[SIZE, problem.read_value[k]]
    for row in range(rows):
        if walked[BORN, row] == at and walked[LAST, row] > at and walked[EARLIER, row] >= 0:
            most = budget + freed - problem.values[SIZE, walked[VALUE, row]]
            for between in range(walked[LAST, walked[EARLIER, row]] + 1, at):
                if walked[MEMORY, between] > most and nodes[between] < problem.ops:
                    return True
    return False


@compiled
def _without_needless(problem: Columns, walked: Ints, nodes: Ints, length: int, budget: int, tried: Ints) -> int:
    """Remove one execution, if it can do without, of each unit with a positive number in *tried*; return the length."""
    rows, _, _ = walk(problem, walked, nodes, length, budget)
    at = 0
    while at < length:
        node = nodes[at]
        if node >= problem.ops and tried[node - problem.ops] > 0:
            tried[node - problem.ops] = 0
            if is_needed(problem, walked, nodes, rows, at, budget):
                at += 1
                continue
            for later in range(at, length - 1):
                nodes[later] = nodes[later + 1]
            rows, _, excess = walk(problem, walked, nodes, length - 1, budget)
            if excess == 0:
                length -= 1
                continue
            for later in range(length - 1, at, -1):
                nodes[later] = nodes[later - 1]
            nodes[at] = node
            rows, _, _ = walk(problem, walked, nodes, length, budget)
        at += 1
    return length


@compiled
def _count_new(problem: Columns, work: Ints, made: int, current: Ints, length: int) -> Ints:
    """Return how much more often *work* runs each unit than *current* does."""
    more = np.zeros(problem.ops, np.int64)
    for at in range(made):
        if work[at] >= problem.ops:
            more[work[at] - problem.ops] += 1
    for at in range(length):
        if current[at] >= problem.ops:
            more[current[at] - problem.ops] -= 1
    return more


@compiled
def _cross(problem: Columns, work: Ints, current: Ints, other: Ints, draw: Any) -> int:
    """Take from *other* what it runs again in a stretch of program order, else from *current*; return the length."""
    low = int(draw.random() * problem.ops)
    high = low + int(draw.random() ** 2 * 0.5 * problem.ops)
    made, at, behind = 0, 0, 0
    for op in range(problem.ops):
        inside = low <= op < high
        while current[at] != op:
            if not inside:
                work[made] = current[at]
                made += 1
            at += 1
        while other[behind] != op:
            if inside:
                work[made] = other[behind]
                made += 1
            behind += 1
        work[made] = op
        made, at, behind = made + 1, at + 1, behind + 1
    return made


@compiled
def _copy(target: Ints, source: Ints, count: int) -> None:
    for i in range(count):  # a slice takes numba seconds to compile
        target[i] = source[i]


@compiled
def _copy_rest(target: Ints, source: Ints, count: int, gone: Bools) -> int:
    left = 0
    for i in range(count):
        if not gone[i]:
            target[left] = source[i]
            left += 1
    return left


@compiled
def search(
    problem: Columns,
    walked: Ints,
    drops: Drops,
    current: Ints,
    best: Ints,
    other: Ints,
    budget: int,
    state: Floats,
    record: Floats,
    steps: int,
    temperature: float,
    ruined: float,
    crossed: float,
    stamp: int,
    draw: Any,
) -> int:
    """Ruin and recreate *steps* times from *current*; return the next stamp.

    Args:
        current, best: sequences, both with room at their end.
        other: a sequence that stretches are taken from.
        state, record: length, excess and cost of *current*, and of *best*.
        temperature: how much dearer a sequence may become, on average.
        ruined: recomputes that are taken away at once, on average.
        crossed: share of steps that take a stretch from *other* instead.
        stamp: number that no plan has had before, in *drops*.
    """
    work, begins, found = np.empty_like(current), np.empty_like(current), np.empty_like(current)
    gone, units = np.zeros(len(current), np.bool_), np.empty(UNITS + 1, np.int64)
    for _ in range(steps):
        length, now = int(state[0]), state[1]
        limit = inf if now else state[2] - temperature * log(1 - draw.random())
        if draw.random() < crossed:
            shorter = _cross(problem, work, current, other, draw)
        else:
            rows, _, _ = walk(problem, walked, current, length, budget)
            _ruin(problem, walked, current, length, rows, ruined, begins, found, gone, draw)
            shorter = _copy_rest(work, current, length, gone)
        made, cost, excess, stamp = _recreate(problem, walked, drops, work, shorter, budget, limit, stamp, units, draw)
        if excess > now or (excess == 0 and cost >= limit):
            continue
        if excess == 0:
            more = _count_new(problem, work, made, current, length)
            made = _without_needless(problem, walked, work, made, budget, more)
        _copy(current, work, made)
        _, cost, excess = walk(problem, walked, current, made, budget)
        if excess < record[1] or (excess == record[1] and cost < record[2] * (1 - 1e-12)):
            _copy(best, current, made)
            record[0], record[1], record[2] = made, excess, cost
        state[0], state[1], state[2] = made, excess, cost
    return stamp
