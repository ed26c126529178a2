"""Traces: the malloc/free stream that follows from live ranges, as allocators and devices see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from graphsim.core.index import NOTHING, Ints
from graphsim.core.liveness import LiveRanges


class Event(NamedTuple):
    """One malloc or free of block *block* (a row of the trace)."""

    kind: Literal["malloc", "free"]
    block: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class Trace:
    """Blocks and when each is allocated and freed, in event numbers; columns, one row per block.

    Blocks of zero bytes do not appear, as no allocator hands out memory for them, nor sources without a use.

    Attributes:
        tensor: tensor that owns the block's bytes; `NOTHING` for the workspace of an op.
        nbytes: requested bytes.
        malloc: event number of the allocation.
        free: event number of the release; `NOTHING` for what survives the step.
        execution: execution that allocates the block; `NOTHING` for what exists before.
    """

    tensor: Ints
    nbytes: Ints
    malloc: Ints
    free: Ints
    execution: Ints

    @property
    def events_count(self) -> int:
        """Number of mallocs and frees."""
        return len(self.malloc) + int((self.free != NOTHING).sum())

    @property
    def stream(self) -> tuple[Ints, Ints]:
        """(block, signed bytes) of every event in order: positive for malloc, negative for free."""
        block = np.empty(self.events_count, dtype=np.int64)
        signed = np.empty(self.events_count, dtype=np.int64)
        rows = np.arange(len(self.malloc))
        block[self.malloc], signed[self.malloc] = rows, self.nbytes
        freed = np.flatnonzero(self.free != NOTHING)
        block[self.free[freed]], signed[self.free[freed]] = freed, -self.nbytes[freed]
        return block, signed

    def execution_of(self, event: int) -> int:
        """Return the execution in which *event* allocates or frees; `NOTHING` before the first one."""
        allocated = np.flatnonzero(self.malloc <= event)
        return int(self.execution[allocated[self.malloc[allocated].argmax()]])

    def events(self) -> Iterator[Event]:
        """Yield the events in order."""
        for block, signed in zip(*(column.tolist() for column in self.stream), strict=True):
            yield Event("malloc" if signed > 0 else "free", block, abs(signed))


def trace(ranges: LiveRanges) -> Trace:
    """Return the malloc/free stream of *ranges*.

    Order: first what exists before the step; then per execution its outputs, its workspace, the
    free of the workspace, and the frees of what died, oldest first.
    """
    scratch = np.flatnonzero(ranges.workspace)
    survives = np.concatenate([ranges.kept, np.zeros(len(scratch), bool)])
    nbytes = np.concatenate([ranges.nbytes, ranges.workspace[scratch]])
    tensor = np.concatenate([ranges.tensor, np.full(len(scratch), NOTHING)])
    begin = np.concatenate([np.where(ranges.source, NOTHING, ranges.begin), scratch])
    last = np.concatenate([ranges.end - 1, scratch])
    is_scratch = tensor == NOTHING
    # A source that nothing reads and nothing keeps is not live while any op runs: it is in no peak, and not here.
    rows = np.flatnonzero((nbytes > 0) & (survives | (last >= np.maximum(begin, 0))))
    nbytes, tensor, begin, last, survives, is_scratch = (
        column[rows] for column in (nbytes, tensor, begin, last, survives, is_scratch)
    )
    block = np.arange(len(rows))
    freed = np.flatnonzero(~survives)
    # Sort keys: execution, then malloc before free, outputs before workspace and its free first, then age.
    execution = np.concatenate([begin, last[freed]])
    step = np.concatenate([np.where(is_scratch, 1, 0), np.where(is_scratch[freed], 2, 3)])
    born = begin
    age = np.concatenate([block, born[freed] * (len(rows) + 1) + freed])
    order = np.lexsort((age, step, execution))
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(len(order))
    free = np.full(len(rows), NOTHING, dtype=np.int64)
    free[freed] = number[len(rows) :]
    return Trace(tensor=tensor, nbytes=nbytes, malloc=number[: len(rows)], free=free, execution=begin)


class Joined(NamedTuple):
    """Two traces, one after the other, as one allocator sees them.

    Attributes:
        rows: the row of each block of the later trace.
        begin: events before the first of the later trace.
        dropped: events of the later trace that are none here, ascending: its blocks are there already.
    """

    trace: Trace
    rows: Ints
    begin: int
    dropped: Ints

    def events(self, numbers: Ints) -> Ints:
        """Return for each event of the later trace the last event here that is no later."""
        return self.begin + numbers - np.searchsorted(self.dropped, numbers, side="right")


def join(first: Trace, later: Trace, same: Mapping[int, int], executions: int) -> Joined:
    """Return *first*, the trace of a step of so many *executions*, and then *later*.

    *same* maps blocks of *later* that exist before it to the blocks of *first* that they are. Between the
    two, what else *first* leaves behind is freed, and what else *later* starts with is allocated. Tensors
    and executions of *later* are numbered on from those of *first*.
    """
    own = np.array([row for row in range(len(later.nbytes)) if row not in same], dtype=np.int64)
    rows = np.empty(len(later.nbytes), dtype=np.int64)
    rows[own] = len(first.nbytes) + np.arange(len(own))
    for row, block in same.items():
        rows[row] = block
    left = np.setdiff1d(np.flatnonzero(first.free == NOTHING), list(same.values()))
    begin = first.events_count + len(left)
    # The mallocs of blocks that are there already drop out of the later stream.
    dropped = np.sort(later.malloc[list(same)]) if same else np.empty(0, dtype=np.int64)

    def shifted(events: Ints) -> Ints:
        return begin + events - np.searchsorted(dropped, events)

    tensors = first.tensor.max(initial=NOTHING) + 1
    free = np.concatenate([first.free, np.full(len(own), NOTHING)])
    free[left] = first.events_count + np.arange(len(left))
    freed = np.flatnonzero(later.free != NOTHING)
    free[rows[freed]] = shifted(later.free[freed])
    trace = Trace(
        tensor=np.concatenate([first.tensor, _moved(later.tensor[own], tensors)]),
        nbytes=np.concatenate([first.nbytes, later.nbytes[own]]),
        malloc=np.concatenate([first.malloc, shifted(later.malloc[own])]),
        free=free,
        execution=np.concatenate([first.execution, later.execution[own] + executions]),
    )
    return Joined(trace, rows, begin, dropped)


def _moved(numbers: Ints, by: int) -> Ints:
    return np.where(numbers == NOTHING, NOTHING, numbers + by)
