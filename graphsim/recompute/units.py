"""Who must run again together: the ops that only as a whole give a storage the bytes that program order has.

A storage that is overwritten is made again by its maker and all ops that overwrite it, with those that read it before
it is complete; an op that has a part in several storages ties them into one unit.
"""

from __future__ import annotations

import numpy as np

from graphsim.core.index import NOTHING, Index, Ints


def first_of_units(index: Index) -> Ints:
    """Return, for each op, the first op of its unit: itself, where it runs again alone."""
    written = index.storage[index.write_tensor]
    complete = np.full(index.tensors, NOTHING)
    np.maximum.at(complete, written, index.write_op)
    early = (index.input_op < complete[index.input_storage]) & ~index.hold[index.input_op]
    makers = index.maker[np.concatenate([written, index.input_storage[early]])]
    others = np.concatenate([index.write_op, index.input_op[early]])
    tied = makers != NOTHING
    unit = list(range(index.ops))

    def find(op: int) -> int:
        while unit[op] != op:
            unit[op] = op = unit[unit[op]]
        return op

    for maker, other in zip(makers[tied].tolist(), others[tied].tolist(), strict=True):
        first, second = sorted((find(maker), find(other)))
        unit[second] = first
    return np.array([find(op) for op in range(index.ops)], dtype=np.int64)


def members_of_units(first: Ints) -> list[list[int]]:
    """Return the ops of every unit of several, in program order."""
    order = np.argsort(first, kind="stable")
    units = np.split(order, np.flatnonzero(np.diff(first[order])) + 1)
    return [unit.tolist() for unit in units if len(unit) > 1]
