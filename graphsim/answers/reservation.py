"""What an allocator holds for a training: step 1, and any later step, which finds what step 1 left in its cache.

The one place where this is worked out: `peak`, `fit`, `sweep` and the page all ask here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from graphsim.core.layout import Layout
from graphsim.core.simulation import Simulation, in_succession
from graphsim.core.trace import Joined, Trace, join
from graphsim.errors import OutOfMemoryError, UsageError
from graphsim.memory.allocators import ALLOCATORS, Allocator
from graphsim.options import configure

BEFORE = "in what ran before"
"""Where memory runs out, if not in the step."""

HISTORY = "what ran before in the process moves this by about 4 % (torch-preflight's rows on a T4)"
"""A fresh pool is assumed. The script of those rows measured several models in one process: gpt2's reservation is equal
to the byte with the same before it, and 3.9 % off without."""


@dataclass(frozen=True, slots=True)
class Held:
    """What an allocator has in use and holds at most, in bytes; None, if there is none or it runs out of memory.

    Attributes:
        allocated: in use at most, in whole blocks (PyTorch: ``max_memory_allocated``).
        reserved: held from the device at most (``max_memory_reserved``).
        out_of_memory: the op at which it passes its limit: that which asks; 'before the step' if what is there
            before does not fit, 'in step 1' or 'in what ran before' if that does not; empty if all fits.
        short: bytes that this op asks for beyond the limit.
    """

    allocated: int | None = None
    reserved: int | None = None
    out_of_memory: str = ""
    short: int | None = None

    @property
    def fragmentation(self) -> float | None:
        """Share of what is held that no block ever needed."""
        if self.allocated is None or self.reserved is None:
            return None
        return 1 - self.allocated / self.reserved if self.reserved else 0.0


def chosen_allocator(name: str, options: str = "") -> Allocator | None:
    """Return the allocator *name* with *options*, see `options.configure`; None if the name is empty.

    Raises:
        UnknownNameError, UsageError: there is no such allocator or option.
    """
    if options and not name:
        raise UsageError("allocator options need an allocator: --allocator NAME")
    return configure(ALLOCATORS[name], options) if name else None


@dataclass(frozen=True, eq=False)
class Stretch:
    """A step as an allocator sees it: a part of a stream of events, from event *begin* on, and where that ended."""

    run: Simulation
    stream: Joined
    layout: Layout | None
    begin: int = 0
    out_of_memory: str = ""
    short: int | None = None

    @property
    def out_of_memory_before(self) -> str:
        """Where a later step runs out of memory if the events up to its begin do."""
        return BEFORE if self.out_of_memory == BEFORE else "in step 1"

    @property
    def held(self) -> Held:
        """What is held in this step at most."""
        if self.layout is None:
            return Held(out_of_memory=self.out_of_memory, short=self.short)
        used, reserved = self.layout.used[self.begin :], self.layout.reserved[self.begin :]
        return Held(int(used.max(initial=0)), int(reserved.max(initial=0)))


class History(NamedTuple):
    """What an allocator has served before, in the same process: events, and the executions that made them."""

    trace: Trace
    executions: int


def history_of(trainings: Iterable[tuple[Simulation, Simulation]]) -> History | None:
    """Return the stream of *trainings*, each step 1 and a later one, whose tensors are all gone when the next begins.

    Also workspaces of libraries go, and are asked for again: a process keeps them, so they may lie elsewhere.
    """
    history: History | None = None
    for first, later in trainings:
        trace = first.trace if later is first else in_succession(first, later).trace
        executions = len(first.schedule) + (0 if later is first else len(later.schedule))
        if history is not None:
            trace = join(history.trace, trace, {}, history.executions).trace
            executions += history.executions
        history = History(trace, executions)
    return history


def placed(
    first: Simulation, later: Simulation, allocator: Allocator, before: History | None = None
) -> tuple[Stretch, Stretch]:
    """Return step 1 and a *later* step (which may be the same) as *allocator* places them, one after the other.

    Args:
        before: what the allocator, if it caches, has served before.
    """
    before = before if allocator.caches else None
    alone = _alone(first, allocator, before)
    if later is first:
        return alone, alone
    if not allocator.caches:
        return alone, _alone(later, allocator)
    executions = before.executions if before else 0
    stream, begin = in_succession(first, later, alone.stream, executions), alone.stream.trace.events_count
    try:
        return alone, Stretch(later, stream, allocator(stream.trace), begin)
    except OutOfMemoryError as error:
        if error.event < begin:
            return alone, Stretch(later, stream, None, begin, alone.out_of_memory_before, _short(error))
        execution = stream.trace.execution_of(error.event) - len(first.schedule) - executions
        where = later.op_at(execution).name if execution >= 0 else "before the step"
        return alone, Stretch(later, stream, None, begin, where, _short(error))


def reservations(
    first: Simulation, later: Simulation, allocator: Allocator | None, before: History | None = None
) -> tuple[Held, Held]:
    """Return what *allocator* holds in step 1 and in a *later* step, which may be the same, after what ran *before*."""
    if allocator is None:
        return Held(), Held()
    stretches = placed(first, later, allocator, before)
    return stretches[0].held, stretches[1].held


def _alone(run: Simulation, allocator: Allocator, before: History | None = None) -> Stretch:
    if before is None:
        stream = Joined(run.trace, np.arange(len(run.trace.nbytes)), 0, np.empty(0, dtype=np.int64))
    else:
        stream = join(before.trace, run.trace, {}, before.executions)
    try:
        return Stretch(run, stream, allocator(stream.trace), stream.begin)
    except OutOfMemoryError as error:
        return Stretch(run, stream, None, stream.begin, _place(run, stream, before, error), _short(error))


def _place(run: Simulation, stream: Joined, before: History | None, error: OutOfMemoryError) -> str:
    if error.event < stream.begin:
        return BEFORE
    execution = stream.trace.execution_of(error.event) - (before.executions if before else 0)
    return run.op_at(execution).name if execution >= 0 else "before the step"


def _short(error: OutOfMemoryError) -> int | None:
    return None if error.limit is None else error.reserved + error.requested - error.limit
