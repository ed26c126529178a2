"""Where a run of DTR is, in arrays.

Executions under way are *frames* on a stack; what the topmost misses is made first, by a frame above it. What a frame
reads is locked from the time that it is there. A *class* is a set of evicted storages, as h_DTR^eq joins them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from graphsim.core.index import NOTHING, Floats, Ints
from graphsim.recompute.dtr.program import READS, REMAKER, SIZE, STORAGE, Program

POSITION, BEGUN, CREATED, LENGTH, USAGE, PEAK, EVICTIONS, DEPTH, MISSING, POOL, ARRIVALS, SEARCHES, FREE = range(13)
"""Counts: the op of program order that has its turn (after the last: what must be there in the end), whether it has
begun, ops that have run, executions since the last pause, bytes not evicted, the most of these, evictions, frames,
tensors missing, storages in the pool, arrivals in it, searches, class numbers not in use."""
DEFINED, THERE, LOCKS, BARRED, PLACE, JOINED, EVICTED, CLASS, NEXT, PREVIOUS, SEEN = range(11)
"""Rows of *tensors*: whether it can be read; and of storages, whether it is there, its locks, whether to evict it would
free nothing, its place in the pool (-1: none), its arrival there, whether it is evicted, its class and neighbours in
the ring of that, the last search that has seen it."""
COUNT, HEAD, TOLD, FREED, WAITING, FRESH, STACK = range(11, 18)
"""More of them: of each class, its members, one of these, the last search that has seen it; and lists: of class numbers
not in use, the pool, storages that an execution makes, a stack."""
NODE, TARGET, BOTTOM, MISSED = range(4)
"""Rows of *frames*: what it runs, for which tensor, and where what it misses begins in the list of all that is missed,
which is the last row: those of the topmost frame last."""
OWN, LAST, VALUE = range(3)
"""Rows of *reals*: the cost of a storage's own ops, the time of its last access; the cost of each class."""


class State(NamedTuple):
    """Where a run is: N ops, M tensors, R tensors that all nodes read.

    Attributes:
        counts: (13).
        tensors: (18, M).
        frames: (4, R + 2).
        reals: (3, M).
        order: the ops that were executed since the last pause.
        clock: one number, the cost so far; it begins at 1.
    """

    counts: Ints
    tensors: Ints
    frames: Ints
    reals: Floats
    order: Ints
    clock: Floats


def beginning(program: Program, pause: int) -> State:
    """Return the state before the first op: the sources are there.

    Args:
        program: what is to run.
        pause: executions up to the first pause, and between two.
    """
    count, ops = program.tensors.shape[1], len(program.costs)
    reads = int(program.starts[READS, 2 * ops] - program.starts[READS, 0])
    state = State(
        counts=np.zeros(FREE + 1, np.int64),
        tensors=np.zeros((STACK + 1, count), np.int64),
        frames=np.zeros((MISSED + 1, reads + 2), np.int64),
        reals=np.zeros((VALUE + 1, count)),
        order=np.empty(pause + ops, np.int64),
        clock=np.ones(1),
    )
    sources = np.flatnonzero(program.tensors[REMAKER] == NOTHING)
    owned = sources[program.tensors[STORAGE, sources] == sources]
    state.tensors[DEFINED, sources] = state.tensors[THERE, owned] = 1
    state.counts[USAGE] = program.tensors[SIZE, owned].sum()
    state.tensors[PLACE] = -1
    state.tensors[FREED], state.counts[FREE] = np.arange(count), count
    state.reals[LAST] = -np.inf
    return state
