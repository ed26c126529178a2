"""Ruin and recreate as machine code (numba, extra `solver`): the loops of `rebuild`.

An evaluation here is one walk over the sequence, 20 microseconds for a thousand ops. A *row* is one version of a
value, as in `evaluation.Evaluation`; rows stand in order of birth. `g` is the problem, `r`, `d` and `f` are scratch.
"""

from __future__ import annotations

from math import inf, log
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from graphsim.core.index import Bools, Floats, Ints
from graphsim.recompute.machine_code import compiled
from graphsim.recompute.problem import Problem

UNITS = 12
"""Units that one drop may need to run, at most."""
_KEEP = (0.0, 0.3, 1.0, 2.0)
"""Inputs are kept longer up to one of these shares of the bytes that are dropped."""
_NOISE, _LOOKS = 0.6, 1024
"""Standard deviation of the logarithm of the factor by which a drop looks dearer or cheaper than it is; quantiles of it
that are drawn from."""
_EARLY = 0.15
"""Share of values that are made again earlier than their next use, where there may be room."""
_COMPARED = 12
"""Drops that save something and are compared, at most."""
LONGEST = 256
"""Values that one drop may keep longer, at most."""


class Arrays(NamedTuple):
    """What the loops read of a `Problem`; few arrays, as each is seven arguments of every function.

    Attributes:
        nodes: rows WORKSPACE, HOLD of each node.
        units: rows SINCE, BEFORE_OP (`until`) of each unit.
        values: rows SIZE, REMAKER (`value_unit`), MAKER of each value.
        use_start, use_op: CSR by value, ops of program order that read it.
    """

    ops: int
    constant: int
    read_start: Ints
    read_value: Ints
    make_start: Ints
    make_value: Ints
    cost: Floats
    nodes: Ints
    units: Ints
    values: Ints
    initial: Ints
    kept: Ints
    use_start: Ints
    use_op: Ints


WORKSPACE, HOLD = 0, 1
SINCE, BEFORE_OP = 0, 1
SIZE, REMAKER, MAKER = 0, 1, 2
VALUE, BORN, LAST, EARLIER, USED, SERVES, MEMORY, ABOVE, BEFORE, FOLLOWING, NEWEST, READ, NEEDED, AT = range(14)
"""Rows of scratch *r*: of each version of a value (its value, birth, last use, version before it, last use up to a
moment, whether anything needs it), of each execution (bytes live, those above the budget as `Evaluation.excess` counts
them, the sum of these up to it, the op of program order that it is or precedes), of each value (its last version, the
last recompute up to a moment that reads it, the first one after that), of each op its execution."""
END = 1 << 60
"""Behind every execution."""
ROW, UNTIL, UNIT, LONGER, LAST_USE, STACK, PLACE, STATE = range(8)
"""Rows of scratch *d*: of candidates for a drop (row, execution before which it is made again), of the plan of one
(units to run; rows kept longer, and the last use they had), of the walk that makes it."""
LOOK, LEAST, MOST, QUANTILE = range(4)
"""Rows of scratch *f*: of candidates, the factor by which one looks dearer, the least it may look like by byte, the
most it saves; quantiles of that factor."""


def arrays_of(problem: Problem) -> Arrays:
    """Return the arrays of *problem*."""
    p = problem
    use_start, use_op = readers_of(p, np.arange(2 * p.ops) < p.ops)
    return Arrays(
        ops=p.ops,
        constant=p.constant,
        read_start=p.read_start,
        read_value=p.read_value,
        make_start=p.make_start,
        make_value=p.make_value,
        cost=p.cost,
        nodes=np.stack([p.workspace, p.hold.astype(np.int64)]),
        units=np.stack([p.since, p.until]),
        values=np.stack([p.size, p.value_unit, p.maker]),
        initial=p.initial,
        kept=p.kept,
        use_start=use_start,
        use_op=use_op,
    )


def readers_of(problem: Problem, chosen: Bools) -> tuple[Ints, Ints]:
    """Return who of the *chosen* nodes reads each value, CSR by value, in order of the nodes."""
    node, value = np.repeat(np.arange(2 * problem.ops), np.diff(problem.read_start)), problem.read_value
    node, value = node[chosen[node]], value[chosen[node]]
    lengths = np.bincount(value, minlength=len(problem.size))
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), node[np.argsort(value, kind="stable")]


def scratch(problem: Problem, room: int) -> tuple[Ints, Ints, Floats]:
    """Return *r*, *d* and *f* for sequences of up to *room* executions."""
    makes, ops = np.diff(problem.make_start), problem.ops
    again = int(makes[ops:][problem.until > 0].max(initial=0))
    rows = len(problem.initial) + int(makes[:ops].sum()) + (room - ops) * again
    most = max(rows, len(problem.size), ops, room + 2, LONGEST, _LOOKS)
    candidates = np.zeros((4, most))
    looks = NormalDist(0, _NOISE)
    candidates[QUANTILE, :_LOOKS] = np.exp([looks.inv_cdf((i + 0.5) / _LOOKS) for i in range(_LOOKS)])
    return np.zeros((14, most), np.int64), np.zeros((8, most), np.int64), candidates


@compiled
def walk(g: Arrays, r: Ints, nodes: Ints, length: int, budget: int) -> tuple[int, float, int]:
    """Evaluate the sequence; return (rows, cost, bytes above the budget summed over executions)."""
    for value in range(g.values.shape[1]):
        r[NEWEST, value] = -1
    count = 0
    for value in g.initial:
        r[VALUE, count], r[BORN, count], r[LAST, count], r[EARLIER, count] = value, -1, -1, -1
        r[NEWEST, value] = count
        count += 1
    for at in range(length):
        node = nodes[at]
        for k in range(g.make_start[node], g.make_start[node + 1]):
            value = g.make_value[k]
            r[VALUE, count], r[BORN, count], r[LAST, count], r[EARLIER, count] = value, at, at, r[NEWEST, value]
            r[NEWEST, value] = count
            count += 1
        for k in range(g.read_start[node], g.read_start[node + 1]):
            r[LAST, r[NEWEST, g.read_value[k]]] = at
    for value in g.kept:
        r[LAST, r[NEWEST, value]] = length
    for at in range(length + 2):
        r[MEMORY, at] = 0
    for row in range(count):
        size = g.values[SIZE, r[VALUE, row]]
        r[MEMORY, max(r[BORN, row], 0)] += size
        r[MEMORY, min(r[LAST, row], length) + 1] -= size
    cost, live = 0.0, g.constant
    for at in range(length):
        live += r[MEMORY, at]
        r[MEMORY, at] = live + g.nodes[WORKSPACE, nodes[at]]
        cost += g.cost[nodes[at]]
    return count, cost, _count_above(g, r, nodes, length, budget)


@compiled
def _count_above(g: Arrays, r: Ints, nodes: Ints, length: int, budget: int) -> int:
    following, op = 0, g.ops
    for at in range(length - 1, -1, -1):
        above = max(r[MEMORY, at] - budget, 0)
        if nodes[at] < g.ops:
            following, op = above, nodes[at]
            r[AT, op] = at
        else:
            above = max(above - following, 0)
        r[ABOVE, at] = above
        r[FOLLOWING, at] = op
    r[BEFORE, 0] = 0
    for at in range(length):
        r[BEFORE, at + 1] = r[BEFORE, at] + r[ABOVE, at]
    return int(r[BEFORE, length])


def evaluated(problem: Problem, nodes: Ints, budget: int) -> tuple[float, Ints, Ints]:
    """Return what the loops make of *nodes*: cost, memory and the bytes above *budget* of each execution."""
    r, _, _ = scratch(problem, len(nodes))
    _, cost, _ = walk(arrays_of(problem), r, nodes, len(nodes), budget)
    return cost, r[MEMORY, : len(nodes)], r[ABOVE, : len(nodes)]


@compiled
def _find_rereads(g: Arrays, r: Ints, nodes: Ints, length: int, moment: int) -> None:
    """Fill which recomputes read each value around *moment*."""
    for value in range(g.values.shape[1]):
        r[READ, value] = -1
        r[NEEDED, value] = END
    for at in range(length):
        node = nodes[at]
        if node < g.ops:
            continue
        for k in range(g.read_start[node], g.read_start[node + 1]):
            value = g.read_value[k]
            if at <= moment:
                r[READ, value] = at
            elif r[NEEDED, value] == END:
                r[NEEDED, value] = at


@compiled
def _choose_moment(r: Ints, length: int, draw: np.random.Generator) -> int:
    """Return the worst execution above the budget, or any."""
    if draw.random() < 0.5:
        worst = 0
        for at in range(length):
            if r[ABOVE, at] > r[ABOVE, worst]:
                worst = at
        return worst
    seen = 0
    for at in range(length):
        seen += r[ABOVE, at] > 0
    chosen, at = int(draw.random() * seen), -1
    while chosen >= 0:
        at += 1
        chosen -= r[ABOVE, at] > 0
    return at


@compiled
def _find_drops(
    g: Arrays, r: Ints, d: Ints, f: Floats, nodes: Ints, moment: int, rows: int, limit: float, draw: Any
) -> int:
    """Fill the candidates: what is live at *moment*, not used by it, and can be made again for less than *limit*."""
    count = 0
    for row in range(rows):
        if r[BORN, row] >= moment:
            break
        value = r[VALUE, row]
        unit = g.values[REMAKER, value]
        if r[LAST, row] <= moment or unit < 0 or g.values[SIZE, value] == 0 or g.cost[g.ops + unit] >= limit:
            continue
        used, again = max(r[BORN, row], r[READ, value]), r[NEEDED, value]
        for k in range(g.use_start[value], g.use_start[value + 1]):
            at = r[AT, g.use_op[k]]
            if at > moment:
                again = min(again, at)
                break
            used = max(used, at)
        if used >= moment or again == END or g.nodes[HOLD, nodes[again]]:
            continue
        if draw.random() < _EARLY:
            again = moment + 1 + int(draw.random() * (again - moment - 1))
        most = min(r[BEFORE, again] - r[BEFORE, used + 1], g.values[SIZE, value] * (again - used - 1)) + 1e-9
        look = f[QUANTILE, int(draw.random() * _LOOKS)]
        r[USED, row], d[ROW, count], d[UNTIL, count], f[MOST, count], f[LOOK, count] = used, row, again, most, look
        f[LEAST, count] = f[LOOK, count] * g.cost[g.ops + unit] / most
        count += 1
    return count


@compiled
def _latest(r: Ints, value: int, before: int) -> int:
    row = r[NEWEST, value]
    while r[BORN, row] >= before:
        row = r[EARLIER, row]
    return int(row)


@compiled
def _has_room(r: Ints, low: int, high: int, most: int) -> bool:
    for at in range(low, high):  # noqa: SIM110
        if r[MEMORY, at] > most:
            return False
    return True


@compiled
def _plan(
    g: Arrays, r: Ints, d: Ints, budget: int, row: int, before: int, keep: float, limit: float, stamp: int
) -> tuple[int, int]:
    """Fill the units that make *row* again right before *before*, and what stays for them; return how many of each.

    No units where that cannot be, or would cost *limit*. See `repair._Planner` for the rule.
    """
    op = r[FOLLOWING, before]
    unit = g.values[REMAKER, r[VALUE, row]]
    small = keep * g.values[SIZE, r[VALUE, row]]
    left = limit - g.cost[g.ops + unit]
    if left <= 0 or not g.units[SINCE, unit] < op <= g.units[BEFORE_OP, unit]:
        return 0, 0
    depth, units, kept, begun = 1, 0, 0, 1
    d[STACK, 0], d[PLACE, 0], d[STATE, unit] = unit, g.read_start[g.ops + unit], 2 * stamp
    while depth:
        unit, k = d[STACK, depth - 1], d[PLACE, depth - 1]
        if k == g.read_start[g.ops + unit + 1]:
            d[UNIT, units], d[STATE, unit] = unit, 2 * stamp + 1
            units += 1
            depth -= 1
            continue
        d[PLACE, depth - 1] = k + 1
        value = g.read_value[k]
        maker = g.values[REMAKER, value]
        if maker >= 0 and d[STATE, maker] == 2 * stamp + 1:
            continue
        read = _latest(r, value, before)
        if read == row:
            return 0, 0
        last = r[LAST, read]
        if last >= before or _is_kept(d, kept, read):
            continue
        size = g.values[SIZE, value]
        if maker < 0 or size <= small or _has_room(r, last + 1, before, budget - size):
            if kept == LONGEST:
                return 0, 0
            d[LONGER, kept], d[LAST_USE, kept] = read, last
            kept += 1
            continue
        left -= g.cost[g.ops + maker]
        may_run = g.units[SINCE, maker] < op <= g.units[BEFORE_OP, maker]
        if d[STATE, maker] == 2 * stamp or begun >= UNITS or left <= 0 or not may_run:
            return 0, 0
        d[STATE, maker] = 2 * stamp
        begun += 1
        d[STACK, depth], d[PLACE, depth] = maker, g.read_start[g.ops + maker]
        depth += 1
    return units, kept


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
def _least(f: Floats, count: int) -> int:
    least = 0
    for i in range(1, count):
        if f[LEAST, i] < f[LEAST, least]:
            least = i
    return least


@compiled
def _is_kept(d: Ints, count: int, row: int) -> bool:
    for i in range(count):  # noqa: SIM110
        if d[LONGER, i] == row:
            return True
    return False


@compiled
def _excess_of_units(
    g: Arrays, r: Ints, d: Ints, nodes: Ints, budget: int, row: int, before: int, units: int, kept: int
) -> int:
    """Return by how much the units themselves pass the budget: all they make is counted as live until the use."""
    node = nodes[before]
    live = r[MEMORY, before] - g.nodes[WORKSPACE, node] - g.values[SIZE, r[VALUE, row]]
    for k in range(g.make_start[node], g.make_start[node + 1]):
        live -= g.values[SIZE, g.make_value[k]]
    for i in range(kept):
        live += g.values[SIZE, r[VALUE, d[LONGER, i]]]
    excess = 0
    allowed = max(budget, r[MEMORY, before])
    for i in range(units):
        node = g.ops + d[UNIT, i]
        for k in range(g.make_start[node], g.make_start[node + 1]):
            live += g.values[SIZE, g.make_value[k]]
        excess += max(0, live + g.nodes[WORKSPACE, node] - allowed)
    return excess


@compiled
def _saved(
    g: Arrays, r: Ints, d: Ints, nodes: Ints, budget: int, row: int, before: int, units: int, kept: int
) -> float:
    """Return the bytes above the budget, summed over executions, that the planned drop saves."""
    size, start = g.values[SIZE, r[VALUE, row]], r[USED, row]
    for i in range(kept):
        start = min(start, d[LAST_USE, i])
    saved = 0.0
    for at in range(start + 1, before):
        was = r[ABOVE, at]
        if was == 0 and nodes[at] >= g.ops:
            continue
        now = r[MEMORY, at] - budget
        if at > r[USED, row]:
            now -= size
        for i in range(kept):
            if at > d[LAST_USE, i]:
                now += g.values[SIZE, r[VALUE, d[LONGER, i]]]
        saved += was - max(now, 0)
    return saved - _excess_of_units(g, r, d, nodes, budget, row, before, units, kept)


@compiled
def _best_drop(
    g: Arrays,
    r: Ints,
    d: Ints,
    f: Floats,
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
        i = _least(f, count)
        if f[LEAST, i] >= price:
            break
        f[LEAST, i] = inf
        stamp += 1
        row, before = d[ROW, i], d[UNTIL, i]
        keep = _KEEP[int(draw.random() * len(_KEEP))]
        most = min(limit, price * f[MOST, i] / f[LOOK, i])
        planned, kept = _plan(g, r, d, budget, row, before, keep, most, stamp)
        if planned == 0:
            continue
        saved = _saved(g, r, d, nodes, budget, row, before, planned, kept)
        if saved <= 0:
            continue
        compared += 1
        cost = 0.0
        for j in range(planned):
            cost += g.cost[g.ops + d[UNIT, j]]
        if f[LOOK, i] * cost / saved < price:
            price, units, place = f[LOOK, i] * cost / saved, planned, before
            for j in range(planned):
                best[j] = d[UNIT, j]
    return units, place


@compiled
def _gap_begins(g: Arrays, r: Ints, nodes: Ints, length: int, rows: int, begins: Ints) -> int:
    """Fill where the gap that each recompute ends began: the last use of the version before; return how many there are.

    Of other executions: *length*.
    """
    count = 0
    for at in range(length):
        begins[at] = length
        if nodes[at] >= g.ops:
            begins[at] = at
            count += 1
    for row in range(rows):
        born = r[BORN, row]
        if born >= 0 and nodes[born] >= g.ops and r[EARLIER, row] >= 0:
            begins[born] = max(min(begins[born], r[LAST, r[EARLIER, row]]), 0)
    return count


@compiled
def _ruin(
    g: Arrays,
    r: Ints,
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
    count = _gap_begins(g, r, nodes, length, rows, begins)
    if count == 0:
        return
    chosen = int(draw.random() * count)
    at = 0
    while chosen >= 0:
        if nodes[at] >= g.ops:
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
        _drop_useless(g, r, nodes, length, rows, gone)


@compiled
def _drop_useless(g: Arrays, r: Ints, nodes: Ints, length: int, rows: int, gone: Bools) -> None:
    """Mark as *gone* too the recomputes that then serve nothing; `newest` stands at the end of the sequence."""
    for row in range(rows):
        r[SERVES, row] = 0
    for at in range(length - 1, -1, -1):
        node = nodes[at]
        serves = node < g.ops
        for k in range(g.make_start[node + 1] - 1, g.make_start[node] - 1, -1):
            row = r[NEWEST, g.make_value[k]]
            serves = serves or r[SERVES, row] > 0 or r[LAST, row] >= length
            r[NEWEST, g.make_value[k]] = r[EARLIER, row]
        if not serves:
            gone[at] = True
        if not gone[at]:
            for k in range(g.read_start[node], g.read_start[node + 1]):
                r[SERVES, r[NEWEST, g.read_value[k]]] = 1


@compiled
def _recreate(
    g: Arrays,
    r: Ints,
    d: Ints,
    f: Floats,
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
        rows, cost, excess = walk(g, r, nodes, length, budget)
        if excess == 0 or cost >= limit or length + UNITS + 2 > len(nodes):
            return length, cost, excess, stamp
        moment = _choose_moment(r, length, draw)
        _find_rereads(g, r, nodes, length, moment)
        count = _find_drops(g, r, d, f, nodes, moment, rows, limit - cost, draw)
        units, place = _best_drop(g, r, d, f, nodes, budget, count, limit - cost, stamp, best, draw)
        stamp += count
        if units == 0:
            return length, cost, excess, stamp
        for at in range(length - 1, place - 1, -1):
            nodes[at + units] = nodes[at]
        for i in range(units):
            nodes[place + i] = g.ops + best[i]
        length += units


@compiled
def is_needed(g: Arrays, r: Ints, nodes: Ints, rows: int, at: int, budget: int) -> bool:
    """Return whether it is plain that there is no room to keep what the unit at *at* makes again."""
    node, freed = nodes[at], 0
    for k in range(g.read_start[node], g.read_start[node + 1]):
        freed += g.values[SIZE, g.read_value[k]]
    for row in range(rows):
        if r[BORN, row] == at and r[LAST, row] > at and r[EARLIER, row] >= 0:
            most = budget + freed - g.values[SIZE, r[VALUE, row]]
            for between in range(r[LAST, r[EARLIER, row]] + 1, at):
                if r[MEMORY, between] > most and nodes[between] < g.ops:
                    return True
    return False


@compiled
def _without_needless(g: Arrays, r: Ints, nodes: Ints, length: int, budget: int, tried: Ints) -> int:
    """Remove one execution, if it can do without, of each unit with a positive number in *tried*; return the length."""
    rows, _, _ = walk(g, r, nodes, length, budget)
    at = 0
    while at < length:
        node = nodes[at]
        if node >= g.ops and tried[node - g.ops] > 0:
            tried[node - g.ops] = 0
            if is_needed(g, r, nodes, rows, at, budget):
                at += 1
                continue
            for later in range(at, length - 1):
                nodes[later] = nodes[later + 1]
            rows, _, excess = walk(g, r, nodes, length - 1, budget)
            if excess == 0:
                length -= 1
                continue
            for later in range(length - 1, at, -1):
                nodes[later] = nodes[later - 1]
            nodes[at] = node
            rows, _, _ = walk(g, r, nodes, length, budget)
        at += 1
    return length


@compiled
def _count_new(g: Arrays, work: Ints, made: int, current: Ints, length: int) -> Ints:
    """Return how much more often *work* runs each unit than *current* does."""
    more = np.zeros(g.ops, np.int64)
    for at in range(made):
        if work[at] >= g.ops:
            more[work[at] - g.ops] += 1
    for at in range(length):
        if current[at] >= g.ops:
            more[current[at] - g.ops] -= 1
    return more


@compiled
def _cross(g: Arrays, work: Ints, current: Ints, other: Ints, draw: Any) -> int:
    """Take from *other* what it runs again in a stretch of program order, else from *current*; return the length."""
    low = int(draw.random() * g.ops)
    high = low + int(draw.random() ** 2 * 0.5 * g.ops)
    made, at, behind = 0, 0, 0
    for op in range(g.ops):
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
def search(
    g: Arrays,
    r: Ints,
    d: Ints,
    f: Floats,
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
        stamp: number that no plan has had before, in *d*.
    """
    work, begins, found = np.empty_like(current), np.empty_like(current), np.empty_like(current)
    gone, units = np.zeros(len(current), np.bool_), np.empty(UNITS + 1, np.int64)
    for _ in range(steps):
        length, now = int(state[0]), state[1]
        limit = inf if now else state[2] - temperature * log(1 - draw.random())
        if draw.random() < crossed:
            shorter = _cross(g, work, current, other, draw)
        else:
            rows, _, _ = walk(g, r, current, length, budget)
            _ruin(g, r, current, length, rows, ruined, begins, found, gone, draw)
            shorter = _copy_rest(work, current, length, gone)
        made, cost, excess, stamp = _recreate(g, r, d, f, work, shorter, budget, limit, stamp, units, draw)
        if excess > now or (excess == 0 and cost >= limit):
            continue
        if excess == 0:
            made = _without_needless(g, r, work, made, budget, _count_new(g, work, made, current, length))
        _copy(current, work, made)
        _, cost, excess = walk(g, r, current, made, budget)
        if excess < record[1] or (excess == record[1] and cost < record[2] * (1 - 1e-12)):
            _copy(best, current, made)
            record[0], record[1], record[2] = made, excess, cost
        state[0], state[1], state[2] = made, excess, cost
    return stamp
