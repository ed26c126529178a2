"""The order of ops: as the data allow it, with the lowest peak that is found, each op once.

An order is a path through sets of ops that have run. From each set, ops that run without a new high and leave no more
than there was come first: whoever runs them later needs as much. The rest is searched best first, by the peak on the
way, which proves the least where it ends; a large graph's sets are too many, and of each length only the best are
gone on from.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any, NamedTuple

import numpy as np

from graphsim.core.graph import KEEPS, Graph
from graphsim.core.index import NOTHING
from graphsim.core.liveness import live_ranges
from graphsim.core.schedule import Schedule
from graphsim.recompute.bounds import memory_bound

SETS = 20_000
"""Sets that are gone on from in the search that proves."""
WIDTHS = (1, 8, 64)
"""Sets that are kept of each length where that did not end."""
WORK = 1_500_000
"""Ops that may be looked at in one search: some seconds."""

_RANDOM = (
    "dropout", "bernoulli", "rand", "normal_", "uniform_", "multinomial", "poisson", "exponential_", "geometric_",
    "cauchy_", "binomial", "gamma", "dirichlet", "rrelu", "attention", "::",
)  # fmt: skip
"""Parts of the kinds of ops that may draw random numbers."""


class Order(NamedTuple):
    """An order of all ops, its peak in bytes, and whether none has a lower one."""

    schedule: Schedule
    peak: int
    proved: bool


def least_peak_order(graph: Graph) -> Order:
    """Return an order with the lowest peak found; program order, where none is lower."""
    program = Schedule.of(graph)
    stored = Order(program, live_ranges(graph, program).peak, False)
    tasks, least = _tasks(graph), memory_bound(graph)
    found = _proved(tasks, least)
    paths = [found] if found is not None else [path for width in WIDTHS if (path := _beam(tasks, least, width))]
    orders = [Schedule(np.array(path, dtype=np.int64)) for path in paths]
    peaks = [live_ranges(graph, order).peak for order in orders]
    best = min([stored, *map(Order, orders, peaks, [False] * len(orders))], key=lambda one: one.peak)
    return best._replace(proved=found is not None or best.peak <= least)


@dataclass(frozen=True)
class _Tasks:
    """What an order has to respect.

    Attributes:
        before: by op, the ops that must have run.
        uses: by op, the storages that it touches, those among them that it makes first.
        made: by op, how many these are.
        sizes, readers: of each storage: its bytes; how many ops touch it, one more if it outlives the step.
        workspace: by op.
        start: bytes that live before the first op.
    """

    before: list[list[int]]
    uses: list[list[int]]
    made: list[int]
    sizes: list[int]
    readers: list[int]
    workspace: list[int]
    start: int

    @cached_property
    def after(self) -> list[list[int]]:
        """By op, the ops that wait for it."""
        after: list[list[int]] = [[] for _ in self.before]
        for op, earlier in enumerate(self.before):
            for other in earlier:
                after[other].append(op)
        return after


def _tasks(graph: Graph) -> _Tasks:
    index = graph.index
    storage, resident = index.storage.tolist(), index.resident.tolist()
    starts = [start.tolist() for start in (index.input_start, index.output_start, index.write_start)]
    columns = [column.tolist() for column in (index.input_tensor, index.output_tensor, index.write_tensor)]
    writer: dict[int, int] = {}
    since: dict[int, list[int]] = {}
    before, uses, made = [], [], []
    chained = {False: NOTHING, True: NOTHING}
    for op, node in enumerate(graph.ops):
        rows = (column[start[op] : start[op + 1]] for start, column in zip(starts, columns, strict=True))
        read, results, written = ({storage[tensor] for tensor in row} for row in rows)
        new = sorted(one for one in results if one not in writer and index.maker[one] == op)
        earlier = {writer[one] for one in read | results if one in writer}
        earlier |= {other for one in written for other in since.get(one, ())}
        earlier |= _kept_in_order(node.kind, "sent" in node.attributes, chained, op)
        before.append(sorted(earlier - {op}))
        for one in read:
            since.setdefault(one, []).append(op)
        for one in (*new, *written):
            writer[one], since[one] = op, []
        others = sorted(one for one in (read | results).difference(new) if not resident[one])
        uses.append([*new, *others])
        made.append(len(new))
    readers = np.bincount([one for row in uses for one in row], minlength=len(storage))
    readers[index.storage[index.kept]] += 1
    there = index.source & (index.storage == np.arange(index.tensors))
    constant = int(index.nbytes[there].sum())
    return _Tasks(before, uses, made, index.nbytes.tolist(), readers.tolist(), index.workspace.tolist(), constant)


def _kept_in_order(kind: str, talks: bool, last: dict[bool, int], op: int) -> set[int]:
    """Return what must come before for reasons that are no data: what is held until then, random numbers, talk."""
    if kind in KEEPS:
        return {op - 1} if op else set()
    if not talks and not any(part in kind for part in _RANDOM):
        return set()
    earlier, last[talks] = last[talks], op
    return set() if earlier == NOTHING else {earlier}


class _Set:
    """Ops that have run, and what that leaves.

    Attributes:
        ran: as bits; *count* of them.
        waiting: by op, how many it still waits for.
        left: by storage, how many ops have yet to touch it.
        ready: ops that wait for none.
        live, peak: bytes now, and at most so far.
        path: the last op, and the path before it.
    """

    __slots__ = ("count", "left", "live", "path", "peak", "ran", "ready", "waiting")

    def __init__(self, tasks: _Tasks, least: int) -> None:
        """The empty set, after which a peak below *least* does not count."""
        self.ran = self.count = 0
        self.waiting = [len(earlier) for earlier in tasks.before]
        self.left = tasks.readers.copy()
        self.ready = [op for op, number in enumerate(self.waiting) if not number]
        self.live, self.peak = tasks.start, max(tasks.start, least)
        self.path: tuple[Any, ...] = ()

    def copy(self) -> _Set:
        """Return a set of its own."""
        other: _Set = object.__new__(_Set)
        other.ran, other.count, other.live, other.peak, other.path = (
            self.ran, self.count, self.live, self.peak, self.path,
        )  # fmt: skip
        other.waiting, other.left, other.ready = self.waiting.copy(), self.left.copy(), self.ready.copy()
        return other

    def bytes_of(self, op: int, tasks: _Tasks) -> tuple[int, int]:
        """Return the bytes that live while *op* runs next, and after it."""
        sizes, left, uses = tasks.sizes, self.left, tasks.uses[op]
        live = self.live
        for storage in uses[: tasks.made[op]]:
            live += sizes[storage]
        after = live
        for storage in uses:
            if left[storage] == 1:
                after -= sizes[storage]
        return live + tasks.workspace[op], after

    def run(self, op: int, tasks: _Tasks) -> None:
        """Add *op*."""
        during, self.live = self.bytes_of(op, tasks)
        self.peak = max(self.peak, during)
        for storage in tasks.uses[op]:
            self.left[storage] -= 1
        self.ready.remove(op)
        for other in tasks.after[op]:
            self.waiting[other] -= 1
            if not self.waiting[other]:
                self.ready.append(other)
        self.ran |= 1 << op
        self.count += 1
        self.path = (op, self.path)

    def run_free(self, tasks: _Tasks) -> int:
        """Add the ops that reach no new high and leave no more; return how many were looked at."""
        looked = 0
        again = True
        while again:
            again = False
            for op in sorted(self.ready):
                looked += 1
                during, after = self.bytes_of(op, tasks)
                if during <= self.peak and after <= self.live:
                    self.run(op, tasks)
                    again = True
        return looked

    def following(self, tasks: _Tasks) -> Iterator[tuple[_Set, int]]:
        """Yield the sets with one op more, and with all that is free then; and how many ops were looked at."""
        for op in self.ready:
            other = self.copy()
            other.run(op, tasks)
            yield other, other.run_free(tasks)

    def order(self) -> list[int]:
        """Return the ops in the order in which they were added."""
        ops, path = [], self.path
        while path:
            op, path = path
            ops.append(op)
        return ops[::-1]


def _proved(tasks: _Tasks, least: int) -> list[int] | None:
    """Return an order with the lowest peak, unless there are too many sets on the way."""
    begin = _Set(tasks, least)
    begin.run_free(tasks)
    lowest = {begin.ran: begin.peak}
    heap = [(begin.peak, -begin.count, 0, begin)]
    seen = work = 0
    while heap and seen < SETS and work < WORK:
        peak, _, _, known = heapq.heappop(heap)
        if known.count == len(tasks.before):
            return known.order()
        if peak > lowest[known.ran]:
            continue
        for other, looked in known.following(tasks):
            seen, work = seen + 1, work + looked
            if other.peak < lowest.get(other.ran, inf):
                lowest[other.ran] = other.peak
                heapq.heappush(heap, (other.peak, -other.count, seen, other))
    return None


def _beam(tasks: _Tasks, least: int, width: int) -> list[int] | None:
    """Return an order by the *width* best sets of each length, unless it takes too long."""
    begin = _Set(tasks, least)
    work = begin.run_free(tasks)
    lengths: dict[int, dict[int, _Set]] = {begin.count: {begin.ran: begin}}
    for length in range(len(tasks.before)):
        best = heapq.nsmallest(width, lengths.pop(length, {}).values(), key=lambda one: (one.peak, one.live))
        for known in best:
            for other, looked in known.following(tasks):
                work += looked
                same = lengths.setdefault(other.count, {})
                if other.ran not in same or other.peak < same[other.ran].peak:
                    same[other.ran] = other
        if work > WORK:
            return None
    return next(iter(lengths[len(tasks.before)].values())).order()
