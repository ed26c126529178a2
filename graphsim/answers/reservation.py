"""What an allocator holds for a training: step 1, and any later step, which finds what step 1 left in its cache.

The one place where this is worked out: `peak`, `fit`, `sweep` and the page all ask here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphsim.core.index import NOTHING
from graphsim.core.layout import Layout
from graphsim.core.simulation import Simulation, in_succession
from graphsim.core.trace import Joined
from graphsim.errors import OutOfMemoryError, UsageError
from graphsim.memory.allocators import ALLOCATORS, Allocator
from graphsim.options import configure


@dataclass(frozen=True, slots=True)
class Held:
    """What an allocator has in use and holds at most, in bytes; None, if there is none or it runs out of memory.

    Attributes:
        allocated: in use at most, in whole blocks (PyTorch: ``max_memory_allocated``).
        reserved: held from the device at most (``max_memory_reserved``).
        out_of_memory: the op at which it passes its limit: that which asks; 'before the step' if what is there
            before does not fit, 'in step 1' if that does not; empty if all fits.
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
    def held(self) -> Held:
        """What is held in this step at most."""
        if self.layout is None:
            return Held(out_of_memory=self.out_of_memory, short=self.short)
        used, reserved = self.layout.used[self.begin :], self.layout.reserved[self.begin :]
        return Held(int(used.max(initial=0)), int(reserved.max(initial=0)))


def placed(first: Simulation, later: Simulation, allocator: Allocator) -> tuple[Stretch, Stretch]:
    """Return step 1 and a *later* step (which may be the same) as *allocator* places them, one after the other."""
    alone = _alone(first, allocator)
    if later is first:
        return alone, alone
    if not allocator.caches:
        return alone, _alone(later, allocator)
    stream, begin = in_succession(first, later), first.trace.events_count
    try:
        return alone, Stretch(later, stream, allocator(stream.trace), begin)
    except OutOfMemoryError as error:
        if error.event < begin:
            return alone, Stretch(later, stream, None, begin, "in step 1", _short(error))
        execution = stream.trace.execution_of(error.event) - len(first.schedule)
        where = later.op_at(execution).name if execution >= 0 else "before the step"
        return alone, Stretch(later, stream, None, begin, where, _short(error))


def reservations(first: Simulation, later: Simulation, allocator: Allocator | None) -> tuple[Held, Held]:
    """Return what *allocator* holds in step 1 and in a *later* step, which may be the same."""
    if allocator is None:
        return Held(), Held()
    stretches = placed(first, later, allocator)
    return stretches[0].held, stretches[1].held


def _alone(run: Simulation, allocator: Allocator) -> Stretch:
    stream = Joined(run.trace, np.arange(len(run.trace.nbytes)), 0, np.empty(0, dtype=np.int64))
    try:
        return Stretch(run, stream, allocator(run.trace))
    except OutOfMemoryError as error:
        execution = run.trace.execution_of(error.event)
        where = "before the step" if execution == NOTHING else run.op_at(execution).name
        return Stretch(run, stream, None, 0, where, _short(error))


def _short(error: OutOfMemoryError) -> int | None:
    return None if error.limit is None else error.reserved + error.requested - error.limit
