"""What the loops of machine code read and write, in arrays by name: a problem, an evaluation of a sequence, a drop."""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from graphsim.core.index import Bools, Floats, Ints
from graphsim.recompute.problem import Problem

END = 1 << 60
"""Behind every execution."""
UNITS = 12
"""Units that one drop may need to run, at most."""
LONGEST = 256
"""Values that one drop may keep longer, at most."""
KEEP = (0.0, 0.3, 1.0, 2.0)
"""Inputs are kept longer up to one of these shares of the bytes that are dropped."""
NOISE, LOOKS = 0.6, 1024
"""Standard deviation of the logarithm of the factor by which a drop looks dearer or cheaper than it is; quantiles of it
that are drawn from."""


WORKSPACE, HOLD = 0, 1
SINCE, BEFORE_OP = 0, 1
SIZE, REMAKER, MAKER = 0, 1, 2
"""Rows of `Columns`: an array counts as seven arguments of every function, so there are few, with named rows."""
VALUE, BORN, LAST, EARLIER, USED, SERVES, MEMORY, ABOVE, BEFORE, FOLLOWING, NEWEST, READ, NEEDED, AT = range(14)
"""Rows of a sequence that was *walked*: of each version of a value (its value, birth, last use, version before it, last
use up to a moment, whether anything needs it), of each execution (bytes live, those above the budget as
`Evaluation.excess` counts them, the sum of these up to it, the op of program order that it is or precedes), of each
value (its last version, the last recompute up to a moment that reads it, the first one after that), of each op its
execution."""
UNIT, LONGER, LAST_USE, STACK, PLACE, STATE, ROW, UNTIL = range(8)
LOOK, LEAST, MOST, QUANTILE = range(4)
"""Rows of `Drops`."""


class Columns(NamedTuple):
    """What the loops read of a `Problem`.

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


class Drops(NamedTuple):
    """Candidates for a drop, and the plan of one.

    Attributes:
        plan: rows UNIT (units to run), LONGER, LAST_USE (values kept longer, and the last use that they had), and
            STACK, PLACE, STATE of the walk that makes it; ROW, UNTIL (of candidates: row, execution before which it
            is made again).
        looks: rows LOOK (of candidates, the factor by which one looks dearer), LEAST (the least it may look like by
            byte), MOST (the most it saves); QUANTILE of that factor.
    """

    plan: Ints
    looks: Floats


def columns_of(problem: Problem) -> Columns:
    """Return the arrays of *problem*."""
    p = problem
    use_start, use_op = readers_of(p, np.arange(2 * p.ops) < p.ops)
    return Columns(
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


def scratch(problem: Problem, room: int) -> tuple[Ints, Drops]:
    """Return room for sequences of up to *room* executions that are walked, and for their drops."""
    makes, ops = np.diff(problem.make_start), problem.ops
    again = int(makes[ops:][problem.until > 0].max(initial=0))
    rows = len(problem.initial) + int(makes[:ops].sum()) + (room - ops) * again
    most = max(rows, len(problem.size), ops, room + 2, LONGEST, LOOKS)
    drops = Drops(np.zeros((UNTIL + 1, most), np.int64), np.zeros((QUANTILE + 1, most)))
    normal = NormalDist(0, NOISE)
    drops.looks[QUANTILE, :LOOKS] = np.exp([normal.inv_cdf((i + 0.5) / LOOKS) for i in range(LOOKS)])
    return np.zeros((AT + 1, most), np.int64), drops
