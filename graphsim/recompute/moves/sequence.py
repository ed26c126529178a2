"""A sequence that changes by one unit at a time, as machine code (numba, extra `solver`).

To insert or remove a unit takes microseconds: only the live ranges of what it reads and makes change, and memory
only where they do. An *execution* of a unit is a slot of a pool: those of one unit form a list.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np

from graphsim.core.index import Floats, Ints
from graphsim.recompute.evaluation import Evaluation
from graphsim.recompute.machine_code import compiled, inlined
from graphsim.recompute.moves.columns import (
    END,
    MAKER,
    REMAKER,
    SIZE,
    STATE,
    WORKSPACE,
    Columns,
    readers_of,
)
from graphsim.recompute.problem import Problem

NODES, MEMORY, AT, FIRST, FOLLOWING, WHERE, FREE, LOG_TAKEN, LOG_UNIT, LOG_PLACE = range(STATE + 1, STATE + 11)
"""Rows of a sequence, behind those of the plan of a drop: node and bytes live of each execution; position of each op,
newest slot of each unit; next slot and position (-1: free) of each slot, free slots; what a move has done, to undo
it."""
LENGTH, SLOTS, UNUSED, AGAIN, LOGGED, STAMP = range(6)
"""Of *counts*: executions, slots in use or free again, free ones, those of units, entries of the log, last drop."""
LOG = 4096
"""Changes that one move may make."""
_MORE, _LESS = cast(int, np.int64(1)), cast(int, np.int64(-1))
"""Signs; numba would compile a function for every literal number that it is called with."""


class Readers(NamedTuple):
    """CSR by value: ops in program order, and units that may run again, that read it; whether it survives the step."""

    op_start: Ints
    op: Ints
    unit_start: Ints
    unit: Ints
    kept: Ints


class Sequence(NamedTuple):
    """A sequence that changes: *rows* as above, six *counts*, and its *cost*, one number."""

    rows: Ints
    counts: Ints
    cost: Floats


def all_readers(problem: Problem) -> Readers:
    """Return who reads each value of *problem*."""
    never = np.zeros(problem.ops, bool)
    op_start, op = readers_of(problem, np.concatenate([~never, never]))
    unit_start, unit = readers_of(problem, np.concatenate([never, problem.until > 0]))
    kept = np.zeros(len(problem.size), dtype=np.int64)
    kept[problem.kept] = 1
    return Readers(op_start, op, unit_start, unit - problem.ops, kept)


def sequence_of(state: Evaluation) -> Sequence:
    """Return an evaluated sequence as one that changes."""
    ops, length = state.problem.ops, len(state.nodes)
    again = np.flatnonzero(state.nodes >= ops)
    rows = np.full((LOG_PLACE + 1, max(3 * ops + length + 64, LOG)), -1, dtype=np.int64)
    rows[STATE] = 0
    rows[NODES, :length], rows[MEMORY, :length] = state.nodes, state.memory
    rows[AT, :ops] = np.flatnonzero(state.nodes < ops)
    for slot, position in enumerate(again.tolist()):
        unit = int(state.nodes[position]) - ops
        rows[WHERE, slot] = position
        rows[FOLLOWING, slot], rows[FIRST, unit] = rows[FIRST, unit], slot
    return Sequence(rows, np.array([length, len(again), 0, len(again), 0, 0]), np.array([state.cost]))


@compiled
def birth(problem: Columns, sequence: Sequence, value: int, before: int) -> int:
    """Return the last execution before *before* that makes *value*; -1 if none does."""
    maker = problem.values[MAKER, value]
    born = sequence.rows[AT, maker] if maker >= 0 else -1
    unit = problem.values[REMAKER, value]
    if unit >= 0:
        slot = sequence.rows[FIRST, unit]
        while slot >= 0:
            at = sequence.rows[WHERE, slot]
            if born < at < before:
                born = at
            slot = sequence.rows[FOLLOWING, slot]
    return int(born)


@compiled
def next_birth(problem: Columns, sequence: Sequence, value: int, after: int) -> int:
    """Return the first execution after *after* that makes *value*; `END` if none does."""
    born = END
    unit = problem.values[REMAKER, value]
    if unit >= 0:
        slot = sequence.rows[FIRST, unit]
        while slot >= 0:
            at = sequence.rows[WHERE, slot]
            if after < at < born:
                born = at
            slot = sequence.rows[FOLLOWING, slot]
    return int(born)


@compiled
def last_use(readers: Readers, sequence: Sequence, value: int, born: int, end: int) -> int:
    """Return the last read of *value* between *born* and *end*; *born* if none; `END` for what survives the step."""
    if end == END and readers.kept[value]:
        return END
    last = born
    for k in range(readers.op_start[value + 1] - 1, readers.op_start[value] - 1, -1):
        at = sequence.rows[AT, readers.op[k]]
        if at < end:
            last = max(last, at)
            break
    for k in range(readers.unit_start[value], readers.unit_start[value + 1]):
        slot = sequence.rows[FIRST, readers.unit[k]]
        while slot >= 0:
            at = sequence.rows[WHERE, slot]
            if last < at < end:
                last = at
            slot = sequence.rows[FOLLOWING, slot]
    return int(last)


@compiled
def next_op(sequence: Sequence, position: int) -> int:
    """Return the first op of program order at *position* or later."""
    op = position
    for slot in range(sequence.counts[SLOTS]):
        if 0 <= sequence.rows[WHERE, slot] < position:
            op -= 1
    return int(op)


@inlined
def _add(sequence: Sequence, low: int, high: int, nbytes: int) -> None:
    for at in range(low, min(high, sequence.counts[LENGTH])):
        sequence.rows[MEMORY, at] += nbytes


@compiled
def _read(problem: Columns, readers: Readers, sequence: Sequence, node: int, at: int, sign: int) -> None:
    """Keep what *node* reads at *at* until there, beyond its other uses; or, with *sign* -1, no longer."""
    for k in range(problem.read_start[node], problem.read_start[node + 1]):
        value = problem.read_value[k]
        born, end = birth(problem, sequence, value, at), next_birth(problem, sequence, value, at)
        last = last_use(readers, sequence, value, born, end)
        if last < at:
            _add(sequence, last + 1, at + 1, sign * problem.values[SIZE, value])


@compiled
def _make(problem: Columns, readers: Readers, sequence: Sequence, node: int, at: int, sign: int) -> None:
    """Let what *node* makes at *at* end the version before; or, with *sign* -1, let that one go on."""
    for k in range(problem.make_start[node], problem.make_start[node + 1]):
        value = problem.make_value[k]
        size = sign * problem.values[SIZE, value]
        born = birth(problem, sequence, value, at)
        if last_use(readers, sequence, value, born, next_birth(problem, sequence, value, at)) > at:
            _add(sequence, last_use(readers, sequence, value, born, at) + 1, at, -size)
        else:
            _add(sequence, at, at + 1, size)


@compiled
def place(problem: Columns, readers: Readers, sequence: Sequence, unit: int, at: int) -> None:
    """Insert *unit* before what is execution *at* now."""
    node, old = problem.ops + unit, sequence.rows[NODES, at]
    live = sequence.rows[MEMORY, at] - problem.nodes[WORKSPACE, old]
    for k in range(problem.make_start[old], problem.make_start[old + 1]):
        live -= problem.values[SIZE, problem.make_value[k]]
    first = next_op(sequence, at)
    for later in range(sequence.counts[LENGTH], at, -1):
        sequence.rows[NODES, later] = sequence.rows[NODES, later - 1]
        sequence.rows[MEMORY, later] = sequence.rows[MEMORY, later - 1]
    for op in range(first, problem.ops):
        sequence.rows[AT, op] += 1
    for slot in range(sequence.counts[SLOTS]):
        if sequence.rows[WHERE, slot] >= at:
            sequence.rows[WHERE, slot] += 1
    sequence.counts[LENGTH] += 1
    sequence.rows[NODES, at], sequence.rows[MEMORY, at] = node, live + problem.nodes[WORKSPACE, node]
    _read(problem, readers, sequence, node, at, _MORE)
    _make(problem, readers, sequence, node, at, _MORE)
    if sequence.counts[UNUSED]:
        sequence.counts[UNUSED] -= 1
        slot = sequence.rows[FREE, sequence.counts[UNUSED]]
    else:
        slot = sequence.counts[SLOTS]
        sequence.counts[SLOTS] += 1
    sequence.rows[WHERE, slot] = at
    sequence.rows[FOLLOWING, slot], sequence.rows[FIRST, unit] = sequence.rows[FIRST, unit], slot
    sequence.counts[AGAIN] += 1
    sequence.cost[0] += problem.cost[node]


@compiled
def take(problem: Columns, readers: Readers, sequence: Sequence, at: int) -> int:
    """Remove the unit that runs at *at*; return it."""
    node = sequence.rows[NODES, at]
    unit = node - problem.ops
    slot, before = sequence.rows[FIRST, unit], -1
    while sequence.rows[WHERE, slot] != at:
        before, slot = slot, sequence.rows[FOLLOWING, slot]
    if before < 0:
        sequence.rows[FIRST, unit] = sequence.rows[FOLLOWING, slot]
    else:
        sequence.rows[FOLLOWING, before] = sequence.rows[FOLLOWING, slot]
    sequence.rows[WHERE, slot] = -1
    sequence.rows[FREE, sequence.counts[UNUSED]] = slot
    sequence.counts[UNUSED] += 1
    sequence.counts[AGAIN] -= 1
    _read(problem, readers, sequence, node, at, _LESS)
    _make(problem, readers, sequence, node, at, _LESS)
    first = next_op(sequence, at)
    sequence.counts[LENGTH] -= 1
    for later in range(at, sequence.counts[LENGTH]):
        sequence.rows[NODES, later] = sequence.rows[NODES, later + 1]
        sequence.rows[MEMORY, later] = sequence.rows[MEMORY, later + 1]
    for op in range(first, problem.ops):
        sequence.rows[AT, op] -= 1
    for slot in range(sequence.counts[SLOTS]):
        if sequence.rows[WHERE, slot] > at:
            sequence.rows[WHERE, slot] -= 1
    sequence.cost[0] -= problem.cost[node]
    return int(unit)


@inlined
def excess(problem: Columns, sequence: Sequence, budget: int) -> float:
    """Return the bytes above *budget*, summed over executions as `Evaluation.excess` counts them."""
    total, following = 0, 0
    for at in range(sequence.counts[LENGTH] - 1, -1, -1):
        above = sequence.rows[MEMORY, at] - budget
        if sequence.rows[NODES, at] < problem.ops:
            following = max(above, 0)
        else:
            above -= following
        total += max(above, 0)
    return float(total)
