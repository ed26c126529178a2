"""A sequence that changes by one unit at a time, and annealing over it, as machine code (numba, extra `solver`).

To insert or remove a unit takes microseconds: only the live ranges of what it reads and makes change, and memory
only where they do. `g` is the problem, `h` who reads what, `s` the sequence, `c` its counts, `x` its cost. An
*execution* of a unit is a slot of the pool (WHERE, UNIT, FOLLOWING): those of one unit form a list from FIRST.
"""

from __future__ import annotations

from math import exp, inf, log
from typing import Any, NamedTuple, cast

import numpy as np

from graphsim.core.index import Floats, Ints
from graphsim.recompute.evaluation import Evaluation
from graphsim.recompute.machine_code import compiled, inlined
from graphsim.recompute.moves.compiled import (
    BEFORE_OP,
    END,
    HOLD,
    MAKER,
    REMAKER,
    SINCE,
    SIZE,
    UNITS,
    WORKSPACE,
    Arrays,
    readers_of,
)
from graphsim.recompute.problem import Problem

NODES, MEMORY, AT, FIRST, FOLLOWING, WHERE, UNIT, FREE, LOG_TAKEN, LOG_UNIT, LOG_PLACE, STACK, NEXT, PLAN, STATE = (
    range(15)
)
"""Rows of *s*: node and bytes live of each execution; position of each op, newest slot of each unit; next slot,
position and unit of each slot, free slots; what a move has done, to undo it; scratch of moves."""
LENGTH, SLOTS, UNUSED, AGAIN, LOGGED, STAMP = range(6)
"""Of *c*: executions, slots in use or free again, free ones, executions of units, entries of the log, last plan."""
_MORE, _LESS = cast(int, np.int64(1)), cast(int, np.int64(-1))
"""Signs; numba would compile a function for every literal number that it is called with."""
_KEEP = (0.0, 0.3, 1.0, 2.0)
"""Inputs are kept longer up to one of these shares of the bytes that are dropped."""
_TRIES, _COMPARED = 24, 4
"""Reads that are looked at for a value to drop, and values that are compared."""
_EARLY = 0.3
"""Share of values that are made again earlier than their next use, where there may be room."""
_RATE = 1.0005
"""By how much the price of a byte above the budget changes with every step."""
_LOG = 4096


class Readers(NamedTuple):
    """CSR by value: ops in program order, and units that may run again, that read it."""

    op_start: Ints
    op: Ints
    unit_start: Ints
    unit: Ints
    kept: Ints


def all_readers(problem: Problem) -> Readers:
    """Return who reads each value of *problem*; `kept` says (0, 1) whether it survives the step."""
    never = np.zeros(problem.ops, bool)
    op_start, op = readers_of(problem, np.concatenate([~never, never]))
    unit_start, unit = readers_of(problem, np.concatenate([never, problem.until > 0]))
    kept = np.zeros(len(problem.size), dtype=np.int64)
    kept[problem.kept] = 1
    return Readers(op_start, op, unit_start, unit - problem.ops, kept)


def sequence_of(state: Evaluation) -> tuple[Ints, Ints, Floats]:
    """Return *s*, *c* and *x* of a sequence."""
    ops, length = state.problem.ops, len(state.nodes)
    s = np.full((15, max(3 * ops + length + 64, _LOG)), -1, dtype=np.int64)
    s[STATE] = 0
    s[NODES, :length], s[MEMORY, :length] = state.nodes, state.memory
    s[AT, :ops] = np.flatnonzero(state.nodes < ops)
    again = np.flatnonzero(state.nodes >= ops)
    for slot, position in enumerate(again.tolist()):
        unit = int(state.nodes[position]) - ops
        s[WHERE, slot], s[UNIT, slot], s[FOLLOWING, slot], s[FIRST, unit] = position, unit, s[FIRST, unit], slot
    return s, np.array([length, len(again), 0, len(again), 0, 0]), np.array([state.cost])


@compiled
def _birth(g: Arrays, s: Ints, value: int, before: int) -> int:
    """Return the last execution before *before* that makes *value*; -1 if none does."""
    maker = g.values[MAKER, value]
    born = s[AT, maker] if maker >= 0 else -1
    unit = g.values[REMAKER, value]
    if unit >= 0:
        slot = s[FIRST, unit]
        while slot >= 0:
            at = s[WHERE, slot]
            if born < at < before:
                born = at
            slot = s[FOLLOWING, slot]
    return int(born)


@compiled
def _next_birth(g: Arrays, s: Ints, value: int, after: int) -> int:
    born = END
    unit = g.values[REMAKER, value]
    if unit >= 0:
        slot = s[FIRST, unit]
        while slot >= 0:
            at = s[WHERE, slot]
            if after < at < born:
                born = at
            slot = s[FOLLOWING, slot]
    return int(born)


@compiled
def _last_use(h: Readers, s: Ints, value: int, born: int, end: int) -> int:
    """Return the last read of *value* between *born* and *end*; *born* if none; `END` for what survives the step."""
    if end == END and h.kept[value]:
        return END
    last = born
    for k in range(h.op_start[value + 1] - 1, h.op_start[value] - 1, -1):
        at = s[AT, h.op[k]]
        if at < end:
            last = max(last, at)
            break
    for k in range(h.unit_start[value], h.unit_start[value + 1]):
        slot = s[FIRST, h.unit[k]]
        while slot >= 0:
            at = s[WHERE, slot]
            if last < at < end:
                last = at
            slot = s[FOLLOWING, slot]
    return int(last)


@compiled
def _next_op(s: Ints, c: Ints, position: int) -> int:
    """Return the first op of program order at *position* or later."""
    op = position
    for slot in range(c[SLOTS]):
        if 0 <= s[WHERE, slot] < position:
            op -= 1
    return int(op)


@inlined
def _add(s: Ints, c: Ints, low: int, high: int, nbytes: int) -> None:
    for at in range(low, min(high, c[LENGTH])):
        s[MEMORY, at] += nbytes


@compiled
def _read(g: Arrays, h: Readers, s: Ints, c: Ints, node: int, at: int, sign: int) -> None:
    """Keep what *node* reads at *at* until there, beyond its other uses; or, with *sign* -1, no longer."""
    for k in range(g.read_start[node], g.read_start[node + 1]):
        value = g.read_value[k]
        last = _last_use(h, s, value, _birth(g, s, value, at), _next_birth(g, s, value, at))
        if last < at:
            _add(s, c, last + 1, at + 1, sign * g.values[SIZE, value])


@compiled
def _make(g: Arrays, h: Readers, s: Ints, c: Ints, node: int, at: int, sign: int) -> None:
    """Let what *node* makes at *at* end the version before; or, with *sign* -1, let that one go on."""
    for k in range(g.make_start[node], g.make_start[node + 1]):
        value = g.make_value[k]
        size = sign * g.values[SIZE, value]
        born = _birth(g, s, value, at)
        if _last_use(h, s, value, born, _next_birth(g, s, value, at)) > at:
            _add(s, c, _last_use(h, s, value, born, at) + 1, at, -size)
        else:
            _add(s, c, at, at + 1, size)


@compiled
def place(g: Arrays, h: Readers, s: Ints, c: Ints, x: Floats, unit: int, at: int) -> None:
    """Insert *unit* before what is execution *at* now."""
    node, old = g.ops + unit, s[NODES, at]
    live = s[MEMORY, at] - g.nodes[WORKSPACE, old]
    for k in range(g.make_start[old], g.make_start[old + 1]):
        live -= g.values[SIZE, g.make_value[k]]
    first = _next_op(s, c, at)
    for later in range(c[LENGTH], at, -1):
        s[NODES, later] = s[NODES, later - 1]
        s[MEMORY, later] = s[MEMORY, later - 1]
    for op in range(first, g.ops):
        s[AT, op] += 1
    for slot in range(c[SLOTS]):
        if s[WHERE, slot] >= at:
            s[WHERE, slot] += 1
    c[LENGTH] += 1
    s[NODES, at], s[MEMORY, at] = node, live + g.nodes[WORKSPACE, node]
    _read(g, h, s, c, node, at, _MORE)
    _make(g, h, s, c, node, at, _MORE)
    if c[UNUSED]:
        c[UNUSED] -= 1
        slot = s[FREE, c[UNUSED]]
    else:
        slot = c[SLOTS]
        c[SLOTS] += 1
    s[WHERE, slot], s[UNIT, slot], s[FOLLOWING, slot], s[FIRST, unit] = at, unit, s[FIRST, unit], slot
    c[AGAIN] += 1
    x[0] += g.cost[node]


@compiled
def take(g: Arrays, h: Readers, s: Ints, c: Ints, x: Floats, at: int) -> int:
    """Remove the unit that runs at *at*; return it."""
    node = s[NODES, at]
    unit = node - g.ops
    slot, before = s[FIRST, unit], -1
    while s[WHERE, slot] != at:
        before, slot = slot, s[FOLLOWING, slot]
    if before < 0:
        s[FIRST, unit] = s[FOLLOWING, slot]
    else:
        s[FOLLOWING, before] = s[FOLLOWING, slot]
    s[WHERE, slot] = -1
    s[FREE, c[UNUSED]] = slot
    c[UNUSED] += 1
    c[AGAIN] -= 1
    _read(g, h, s, c, node, at, _LESS)
    _make(g, h, s, c, node, at, _LESS)
    first = _next_op(s, c, at)
    c[LENGTH] -= 1
    for later in range(at, c[LENGTH]):
        s[NODES, later] = s[NODES, later + 1]
        s[MEMORY, later] = s[MEMORY, later + 1]
    for op in range(first, g.ops):
        s[AT, op] -= 1
    for slot in range(c[SLOTS]):
        if s[WHERE, slot] > at:
            s[WHERE, slot] -= 1
    x[0] -= g.cost[node]
    return int(unit)


@inlined
def excess(g: Arrays, s: Ints, c: Ints, budget: int) -> float:
    """Return the bytes above *budget*, summed over executions as `Evaluation.excess` counts them."""
    total, following = 0, 0
    for at in range(c[LENGTH] - 1, -1, -1):
        above = s[MEMORY, at] - budget
        if s[NODES, at] < g.ops:
            following = max(above, 0)
        else:
            above -= following
        total += max(above, 0)
    return float(total)


@inlined
def _do_place(g: Arrays, h: Readers, s: Ints, c: Ints, x: Floats, unit: int, at: int) -> None:
    place(g, h, s, c, x, unit, at)
    s[LOG_TAKEN, c[LOGGED]], s[LOG_UNIT, c[LOGGED]], s[LOG_PLACE, c[LOGGED]] = 0, unit, at
    c[LOGGED] += 1


@inlined
def _do_take(g: Arrays, h: Readers, s: Ints, c: Ints, x: Floats, at: int) -> None:
    s[LOG_TAKEN, c[LOGGED]], s[LOG_UNIT, c[LOGGED]], s[LOG_PLACE, c[LOGGED]] = 1, take(g, h, s, c, x, at), at
    c[LOGGED] += 1


@inlined
def undo(g: Arrays, h: Readers, s: Ints, c: Ints, x: Floats) -> None:
    """Take back all that the log holds."""
    while c[LOGGED]:
        c[LOGGED] -= 1
        if s[LOG_TAKEN, c[LOGGED]]:
            place(g, h, s, c, x, s[LOG_UNIT, c[LOGGED]], s[LOG_PLACE, c[LOGGED]])
        else:
            take(g, h, s, c, x, s[LOG_PLACE, c[LOGGED]])


@inlined
def _any(s: Ints, c: Ints, draw: Any) -> int:
    """Return where a unit runs, chosen by chance."""
    while True:
        at = s[WHERE, int(draw.random() * c[SLOTS])]
        if at >= 0:
            return int(at)


@inlined
def _is_useless(g: Arrays, h: Readers, s: Ints, at: int) -> bool:
    """Return whether nothing reads what the unit at *at* makes."""
    node = s[NODES, at]
    for k in range(g.make_start[node], g.make_start[node + 1]):
        value = g.make_value[k]
        if _last_use(h, s, value, at, _next_birth(g, s, value, at)) > at:
            return False
    return True


@inlined
def _take_alone(g: Arrays, h: Readers, s: Ints, c: Ints, x: Floats, at: int) -> None:
    """Remove the unit at *at*, and those that served nothing but it."""
    s[STACK, 0], depth = at, 1
    while depth and c[LOGGED] < _LOG:
        depth -= 1
        at = s[STACK, depth]
        node = s[NODES, at]
        _do_take(g, h, s, c, x, at)
        for i in range(depth):
            if s[STACK, i] > at:
                s[STACK, i] -= 1
        for k in range(g.read_start[node], g.read_start[node + 1]):
            born = _birth(g, s, g.read_value[k], at)
            if born < 0 or s[NODES, born] < g.ops or not _is_useless(g, h, s, born):
                continue
            known = False
            for i in range(depth):
                known = known or s[STACK, i] == born
            if not known:
                s[STACK, depth] = born
                depth += 1


@compiled
def _removed(g: Arrays, h: Readers, s: Ints, c: Ints, x: Floats, draw: Any) -> None:
    """Remove a unit, with those that served only it, or with the one after it, or alone."""
    at = _any(s, c, draw)
    kind = draw.random()
    if kind < 0.5:
        _take_alone(g, h, s, c, x, at)
        return
    _do_take(g, h, s, c, x, at)
    if kind > 0.85 and c[AGAIN]:
        following = c[LENGTH]
        for slot in range(c[SLOTS]):
            if at <= s[WHERE, slot] < following:
                following = s[WHERE, slot]
        if following < c[LENGTH]:
            _do_take(g, h, s, c, x, following)


@inlined
def _may_run(g: Arrays, unit: int, op: int) -> bool:
    return bool(g.units[SINCE, unit] < op <= g.units[BEFORE_OP, unit])


@inlined
def _has_room(s: Ints, low: int, high: int, most: int) -> bool:
    for at in range(low, high):  # noqa: SIM110
        if s[MEMORY, at] > most:
            return False
    return True


@inlined
def _drop(
    g: Arrays, h: Readers, s: Ints, c: Ints, x: Floats, budget: int, value: int, before: int, keep: float
) -> bool:
    """Make *value* again right before *before*, after what that takes; False if it cannot be. See `repair._Planner`."""
    op, unit, small = _next_op(s, c, before), g.values[REMAKER, value], keep * g.values[SIZE, value]
    if not _may_run(g, unit, op):
        return False
    c[STAMP] += 1
    begun_now, made_now = 2 * c[STAMP], 2 * c[STAMP] + 1
    s[STACK, 0], s[NEXT, 0], s[STATE, unit] = unit, g.read_start[g.ops + unit], begun_now
    depth, units, begun = 1, 0, 1
    while depth:
        unit, k = s[STACK, depth - 1], s[NEXT, depth - 1]
        if k == g.read_start[g.ops + unit + 1]:
            s[PLAN, units], s[STATE, unit] = unit, made_now
            units += 1
            depth -= 1
            continue
        s[NEXT, depth - 1] = k + 1
        needed = g.read_value[k]
        if needed == value:
            return False
        maker = g.values[REMAKER, needed]
        if maker >= 0 and s[STATE, maker] == made_now:
            continue
        born = _birth(g, s, needed, before)
        last = _last_use(h, s, needed, born, _next_birth(g, s, needed, before - 1))
        size = g.values[SIZE, needed]
        if last >= before or maker < 0 or size <= small or _has_room(s, last + 1, before, budget - size):
            continue
        if s[STATE, maker] == begun_now or begun >= UNITS or not _may_run(g, maker, op):
            return False
        s[STACK, depth], s[NEXT, depth], s[STATE, maker] = maker, g.read_start[g.ops + maker], begun_now
        begun += 1
        depth += 1
    for i in range(units):
        _do_place(g, h, s, c, x, s[PLAN, i], before + i)
    return True


@inlined
def _moment_above(g: Arrays, s: Ints, c: Ints, budget: int, draw: Any) -> int:
    """Return where an op passes the budget, chosen by chance; -1 if none does."""
    moment, seen = -1, 0
    for at in range(c[LENGTH]):
        if s[MEMORY, at] > budget and s[NODES, at] < g.ops:
            seen += 1
            if draw.random() * seen < 1:
                moment = at
    return moment


@inlined
def _dropped(g: Arrays, h: Readers, s: Ints, c: Ints, x: Floats, budget: int, draw: Any) -> bool:
    """Drop a value across a moment that is above the budget: a cheap one by byte, of some that are idle there."""
    length, moment = c[LENGTH], _moment_above(g, s, c, budget, draw)
    if moment < 0 or moment >= length - 1:
        return False
    price, dropped, before, compared = inf, -1, 0, 0
    for _ in range(_TRIES):
        at = moment + 1 + int(draw.random() * (length - moment - 1))
        value = _some_read(g, s, at, draw)
        if value < 0 or g.nodes[HOLD, s[NODES, at]] or g.values[SIZE, value] == 0:
            continue
        born = _birth(g, s, value, at)
        if born >= moment or _last_use(h, s, value, born, at) >= moment:
            continue
        look = -log(1 - draw.random()) * g.cost[g.ops + g.values[REMAKER, value]] / g.values[SIZE, value]
        if look < price:
            price, dropped, before = look, value, at
        compared += 1
        if compared == _COMPARED:
            break
    if dropped < 0:
        return False
    if draw.random() < _EARLY:
        before = moment + 1 + int(draw.random() * (before - moment - 1))
    return _drop(g, h, s, c, x, budget, dropped, before, _KEEP[int(draw.random() * len(_KEEP))])


@inlined
def _some_read(g: Arrays, s: Ints, at: int, draw: Any) -> int:
    """Return a value that is read at *at* and can be made again, chosen by chance; -1 if it met none."""
    node = s[NODES, at]
    reads = g.read_start[node + 1] - g.read_start[node]
    if reads == 0:
        return -1
    value = g.read_value[g.read_start[node] + int(draw.random() * reads)]
    return int(value) if g.values[REMAKER, value] >= 0 else -1


@inlined
def _inserted(g: Arrays, h: Readers, s: Ints, c: Ints, x: Floats, draw: Any) -> bool:
    """Insert a unit right before a read of what it makes; what it reads stays for it."""
    at = int(draw.random() * c[LENGTH])
    value = _some_read(g, s, at, draw)
    if value < 0 or not _may_run(g, g.values[REMAKER, value], _next_op(s, c, at)):
        return False
    _do_place(g, h, s, c, x, g.values[REMAKER, value], at)
    return True


@inlined
def _shifted(g: Arrays, h: Readers, s: Ints, c: Ints, x: Floats, draw: Any) -> bool:
    """Move a unit elsewhere, mostly near by."""
    at = _any(s, c, draw)
    unit = s[NODES, at] - g.ops
    _do_take(g, h, s, c, x, at)
    far = -log(1 - draw.random()) * (1 + 0.02 * c[LENGTH])
    to = at + int(far) if draw.random() < 0.5 else at - int(far)
    to = min(max(to, 0), c[LENGTH] - 1)
    if not _may_run(g, unit, _next_op(s, c, to)):
        return False
    _do_place(g, h, s, c, x, unit, to)
    return True


@inlined
def _moved(g: Arrays, h: Readers, s: Ints, c: Ints, x: Floats, budget: int, fits: bool, draw: Any) -> bool:
    """Change the sequence to a neighbour: less, more, elsewhere, or one in exchange for another; False if to none."""
    kind, some = draw.random(), c[AGAIN] > 0
    if some and (kind < 0.3 or (kind < 0.7 and fits)):
        _removed(g, h, s, c, x, draw)
        return True
    if kind > 0.92:
        return _inserted(g, h, s, c, x, draw)
    if fits or kind > 0.8:
        return some and _shifted(g, h, s, c, x, draw)
    if some and kind < 0.5:
        _removed(g, h, s, c, x, draw)
    return _dropped(g, h, s, c, x, budget, draw)


@compiled
def anneal(
    g: Arrays,
    h: Readers,
    s: Ints,
    c: Ints,
    x: Floats,
    best: Ints,
    budget: int,
    state: Floats,
    steps: int,
    temperature: float,
    price: float,
    draw: Any,
) -> float:
    """Anneal for *steps* steps; return the price of a byte above the budget that it ends with.

    Args:
        best, state: the best sequence; its length, excess and cost.
        price: it rises while the sequence does not fit, and falls while it does.
    """
    now = excess(g, s, c, budget)
    for _ in range(steps):
        c[LOGGED] = 0
        cost = x[0]
        room = c[LENGTH] + UNITS < s.shape[1] and c[SLOTS] + UNITS < s.shape[1]
        moved = room and _moved(g, h, s, c, x, budget, now == 0, draw)
        then = excess(g, s, c, budget) if moved else inf
        worse = x[0] - cost + price * (then - now)
        if worse <= 0 or draw.random() < exp(-worse / temperature):
            now = then
            if then < state[1] or (then == state[1] and x[0] < state[2] * (1 - 1e-12)):
                state[0], state[1], state[2] = c[LENGTH], then, x[0]
                for at in range(c[LENGTH]):
                    best[at] = s[NODES, at]
        else:
            undo(g, h, s, c, x)
            x[0] = cost
        price = price * _RATE if now > 0 else price / _RATE
    return price
