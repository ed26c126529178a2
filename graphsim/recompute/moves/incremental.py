"""Annealing over a sequence that changes by one unit at a time, as machine code (numba, extra `solver`)."""

from __future__ import annotations

from math import exp, inf, log
from typing import Any

from graphsim.core.index import Floats, Ints
from graphsim.recompute.machine_code import compiled, inlined
from graphsim.recompute.moves.columns import (
    HOLD,
    KEEP,
    REMAKER,
    SIZE,
    STACK,
    UNIT,
    UNITS,
    Columns,
)
from graphsim.recompute.moves.rule import units_of_drop
from graphsim.recompute.moves.sequence import (
    AGAIN,
    LENGTH,
    LOG,
    LOG_PLACE,
    LOG_TAKEN,
    LOG_UNIT,
    LOGGED,
    MEMORY,
    NODES,
    SLOTS,
    STAMP,
    WHERE,
    Readers,
    Sequence,
    birth,
    excess,
    last_use,
    next_birth,
    next_op,
    place,
    take,
)
from graphsim.recompute.moves.walk import has_room, may_run

_TRIES, _COMPARED = 24, 4
"""Reads that are looked at for a value to drop, and values that are compared."""
_EARLY = 0.3
"""Share of values that are made again earlier than their next use, where there may be room."""
_RATE = 1.0005
"""By how much the price of a byte above the budget changes with every step."""
_units_of_drop = inlined(units_of_drop)


@inlined
def _note(sequence: Sequence, taken: int, unit: int, at: int) -> None:
    """Note what has been done, to undo it."""
    entry = sequence.counts[LOGGED]
    sequence.rows[LOG_TAKEN, entry], sequence.rows[LOG_UNIT, entry], sequence.rows[LOG_PLACE, entry] = taken, unit, at
    sequence.counts[LOGGED] += 1


@inlined
def _do_place(problem: Columns, readers: Readers, sequence: Sequence, unit: int, at: int) -> None:
    place(problem, readers, sequence, unit, at)
    _note(sequence, 0, unit, at)


@inlined
def _do_take(problem: Columns, readers: Readers, sequence: Sequence, at: int) -> None:
    _note(sequence, 1, take(problem, readers, sequence, at), at)


@inlined
def undo(problem: Columns, readers: Readers, sequence: Sequence) -> None:
    """Take back all that the log holds."""
    while sequence.counts[LOGGED]:
        sequence.counts[LOGGED] -= 1
        entry = sequence.counts[LOGGED]
        if sequence.rows[LOG_TAKEN, entry]:
            place(problem, readers, sequence, sequence.rows[LOG_UNIT, entry], sequence.rows[LOG_PLACE, entry])
        else:
            take(problem, readers, sequence, sequence.rows[LOG_PLACE, entry])


@inlined
def _any(sequence: Sequence, draw: Any) -> int:
    """Return where a unit runs, chosen by chance."""
    while True:
        at = sequence.rows[WHERE, int(draw.random() * sequence.counts[SLOTS])]
        if at >= 0:
            return int(at)


@inlined
def _is_useless(problem: Columns, readers: Readers, sequence: Sequence, at: int) -> bool:
    """Return whether nothing reads what the unit at *at* makes."""
    node = sequence.rows[NODES, at]
    for k in range(problem.make_start[node], problem.make_start[node + 1]):
        value = problem.make_value[k]
        if last_use(readers, sequence, value, at, next_birth(problem, sequence, value, at)) > at:
            return False
    return True


@inlined
def _take_alone(problem: Columns, readers: Readers, sequence: Sequence, at: int) -> None:
    """Remove the unit at *at*, and those that served nothing but it."""
    sequence.rows[STACK, 0], depth = at, 1
    while depth and sequence.counts[LOGGED] < LOG:
        depth -= 1
        at = sequence.rows[STACK, depth]
        node = sequence.rows[NODES, at]
        _do_take(problem, readers, sequence, at)
        for i in range(depth):
            if sequence.rows[STACK, i] > at:
                sequence.rows[STACK, i] -= 1
        for k in range(problem.read_start[node], problem.read_start[node + 1]):
            born = birth(problem, sequence, problem.read_value[k], at)
            if (
                born < 0
                or sequence.rows[NODES, born] < problem.ops
                or not _is_useless(problem, readers, sequence, born)
            ):
                continue
            known = False
            for i in range(depth):
                known = known or sequence.rows[STACK, i] == born
            if not known:
                sequence.rows[STACK, depth] = born
                depth += 1


@compiled
def _removed(problem: Columns, readers: Readers, sequence: Sequence, draw: Any) -> None:
    """Remove a unit, with those that served only it, or with the one after it, or alone."""
    at = _any(sequence, draw)
    kind = draw.random()
    if kind < 0.5:
        _take_alone(problem, readers, sequence, at)
        return
    _do_take(problem, readers, sequence, at)
    if kind > 0.85 and sequence.counts[AGAIN]:
        following = sequence.counts[LENGTH]
        for slot in range(sequence.counts[SLOTS]):
            if at <= sequence.rows[WHERE, slot] < following:
                following = sequence.rows[WHERE, slot]
        if following < sequence.counts[LENGTH]:
            _do_take(problem, readers, sequence, following)


@inlined
def _last_use_at(there: tuple[Columns, Readers, Sequence], value: int, before: int) -> int:
    """Return the last use of the version of *value* that an execution inserted at *before* reads."""
    problem, readers, sequence = there
    born = birth(problem, sequence, value, before)
    return last_use(readers, sequence, value, born, next_birth(problem, sequence, value, before - 1))


@inlined
def _has_room(there: tuple[Columns, Readers, Sequence], low: int, high: int, most: int) -> bool:
    return has_room(there[2].rows, MEMORY, low, high, most)


@inlined
def _drop(
    problem: Columns, readers: Readers, sequence: Sequence, budget: int, value: int, before: int, keep: float
) -> bool:
    """Make *value* again right before *before*, after what that takes; False if it cannot be."""
    op, there = next_op(sequence, before), (problem, readers, sequence)
    sequence.counts[STAMP] += 1
    stamp, plan = sequence.counts[STAMP], sequence.rows
    units, _ = _units_of_drop(
        problem, plan, there, _last_use_at, _has_room, budget, value, before, op, keep, inf, stamp
    )
    for i in range(units):
        _do_place(problem, readers, sequence, plan[UNIT, i], before + i)
    return units > 0


@inlined
def _moment_above(problem: Columns, sequence: Sequence, budget: int, draw: Any) -> int:
    """Return where an op passes the budget, chosen by chance; -1 if none does."""
    moment, seen = -1, 0
    for at in range(sequence.counts[LENGTH]):
        if sequence.rows[MEMORY, at] > budget and sequence.rows[NODES, at] < problem.ops:
            seen += 1
            if draw.random() * seen < 1:
                moment = at
    return moment


@inlined
def _dropped(problem: Columns, readers: Readers, sequence: Sequence, budget: int, draw: Any) -> bool:
    """Drop a value across a moment that is above the budget: a cheap one by byte, of some that are idle there."""
    length, moment = sequence.counts[LENGTH], _moment_above(problem, sequence, budget, draw)
    if moment < 0 or moment >= length - 1:
        return False
    price, dropped, before, compared = inf, -1, 0, 0
    for _ in range(_TRIES):
        at = moment + 1 + int(draw.random() * (length - moment - 1))
        value = _some_read(problem, sequence, at, draw)
        if value < 0 or problem.nodes[HOLD, sequence.rows[NODES, at]] or problem.values[SIZE, value] == 0:
            continue
        born = birth(problem, sequence, value, at)
        if born >= moment or last_use(readers, sequence, value, born, at) >= moment:
            continue
        look = (
            -log(1 - draw.random())
            * problem.cost[problem.ops + problem.values[REMAKER, value]]
            / problem.values[SIZE, value]
        )
        if look < price:
            price, dropped, before = look, value, at
        compared += 1
        if compared == _COMPARED:
            break
    if dropped < 0:
        return False
    if draw.random() < _EARLY:
        before = moment + 1 + int(draw.random() * (before - moment - 1))
    return _drop(problem, readers, sequence, budget, dropped, before, KEEP[int(draw.random() * len(KEEP))])


@inlined
def _some_read(problem: Columns, sequence: Sequence, at: int, draw: Any) -> int:
    """Return a value that is read at *at* and can be made again, chosen by chance; -1 if it met none."""
    node = sequence.rows[NODES, at]
    reads = problem.read_start[node + 1] - problem.read_start[node]
    if reads == 0:
        return -1
    value = problem.read_value[problem.read_start[node] + int(draw.random() * reads)]
    return int(value) if problem.values[REMAKER, value] >= 0 else -1


@inlined
def _inserted(problem: Columns, readers: Readers, sequence: Sequence, draw: Any) -> bool:
    """Insert a unit right before a read of what it makes; what it reads stays for it."""
    at = int(draw.random() * sequence.counts[LENGTH])
    value = _some_read(problem, sequence, at, draw)
    if value < 0 or not may_run(problem, problem.values[REMAKER, value], next_op(sequence, at)):
        return False
    _do_place(problem, readers, sequence, problem.values[REMAKER, value], at)
    return True


@inlined
def _shifted(problem: Columns, readers: Readers, sequence: Sequence, draw: Any) -> bool:
    """Move a unit elsewhere, mostly near by."""
    at = _any(sequence, draw)
    unit = sequence.rows[NODES, at] - problem.ops
    _do_take(problem, readers, sequence, at)
    far = -log(1 - draw.random()) * (1 + 0.02 * sequence.counts[LENGTH])
    to = at + int(far) if draw.random() < 0.5 else at - int(far)
    to = min(max(to, 0), sequence.counts[LENGTH] - 1)
    if not may_run(problem, unit, next_op(sequence, to)):
        return False
    _do_place(problem, readers, sequence, unit, to)
    return True


@inlined
def _moved(problem: Columns, readers: Readers, sequence: Sequence, budget: int, fits: bool, draw: Any) -> bool:
    """Change the sequence to a neighbour: less, more, elsewhere, or one in exchange for another; False if to none."""
    kind, some = draw.random(), sequence.counts[AGAIN] > 0
    if some and (kind < 0.3 or (kind < 0.7 and fits)):
        _removed(problem, readers, sequence, draw)
        return True
    if kind > 0.92:
        return _inserted(problem, readers, sequence, draw)
    if fits or kind > 0.8:
        return some and _shifted(problem, readers, sequence, draw)
    if some and kind < 0.5:
        _removed(problem, readers, sequence, draw)
    return _dropped(problem, readers, sequence, budget, draw)


@compiled
def anneal(
    problem: Columns,
    readers: Readers,
    sequence: Sequence,
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
    now = excess(problem, sequence, budget)
    for _ in range(steps):
        sequence.counts[LOGGED] = 0
        cost = sequence.cost[0]
        room = max(sequence.counts[LENGTH], sequence.counts[SLOTS]) + UNITS < sequence.rows.shape[1]
        moved = room and _moved(problem, readers, sequence, budget, now == 0, draw)
        then = excess(problem, sequence, budget) if moved else inf
        worse = sequence.cost[0] - cost + price * (then - now)
        if worse <= 0 or draw.random() < exp(-worse / temperature):
            now = then
            if then < state[1] or (then == state[1] and sequence.cost[0] < state[2] * (1 - 1e-12)):
                state[0], state[1], state[2] = sequence.counts[LENGTH], then, sequence.cost[0]
                for at in range(sequence.counts[LENGTH]):
                    best[at] = sequence.rows[NODES, at]
        else:
            undo(problem, readers, sequence)
            sequence.cost[0] = cost
        price = price * _RATE if now > 0 else price / _RATE
    return price
