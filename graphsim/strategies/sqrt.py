"""Chen's sqrt(n): keep only what passes between about sqrt(n) spans of the forward pass.

Source: Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016, section 4.
Right before backward first reads a value from inside a span, the span runs again.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isqrt

import numpy as np

from graphsim.errors import UsageError
from graphsim.graph import Graph, Phase
from graphsim.schedule import Schedule
from graphsim.strategies.plan import Plan, judge


@dataclass(frozen=True, slots=True)
class Sqrt:
    """Splits each forward pass into *spans* parts of equally many ops (None: the square root of their number).

    A graph without a backward phase has nothing to recompute for: it runs in program order.

    Raises:
        UsageError: fewer than one span is asked for.
    """

    spans: int | None = None

    def __post_init__(self) -> None:
        if self.spans is not None and self.spans < 1:
            raise UsageError(f"spans must be at least 1, not {self.spans}")

    def __call__(self, graph: Graph, /, *, budget: int | None = None) -> Plan:
        """Return the plan; the budget only decides whether it is feasible."""
        start = time.perf_counter()
        schedule = self._schedule(graph)
        return judge(graph, schedule, strategy="sqrt", budget=budget, seconds=time.perf_counter() - start)

    def _schedule(self, graph: Graph) -> Schedule:
        writes = _Writes(graph)
        repeats: dict[int, list[int]] = {}
        for start, turn, stop in _passes(graph):
            forward = _ForwardPass(graph, writes, start, turn, stop)
            for span in forward.split(self.spans or isqrt(turn - start))[:-1]:
                position, ops = forward.recompute(span)
                repeats.setdefault(position, []).extend(ops)
        order: list[int] = []
        for position in range(len(graph.ops)):
            order += [*repeats.get(position, ()), position]
        return Schedule(np.array(order, dtype=np.int64))


def _passes(graph: Graph) -> Iterator[tuple[int, int, int]]:
    """Yield, for each micro-batch, where forward starts, where it turns to backward, and where that stops."""
    start, turn, stop = 0, 0, 0
    for position, op in enumerate(graph.ops):
        if op.phase is Phase.FORWARD and turn > start:
            yield start, turn, stop
            start = position
        elif op.phase is Phase.BACKWARD:
            turn = turn if turn > start else position
            stop = position + 1
    if turn > start:
        yield start, turn, stop


class _Writes:
    """Which op makes each tensor, and which ops overwrite each storage."""

    def __init__(self, graph: Graph) -> None:
        self.producer = {name: i for i, op in enumerate(graph.ops) for name in op.outputs}
        self.mutators: dict[str, list[int]] = {}
        for position, op in enumerate(graph.ops):
            for name in op.mutates:
                self.mutators.setdefault(graph.tensors[name].base, []).append(position)

    def group(self, base: str) -> list[int]:
        """Return the ops that only together give *base* its bytes: none, if no op overwrites it."""
        mutators = self.mutators.get(base)
        return [self.producer.get(base, -1), *mutators] if mutators else []


class _ForwardPass:
    """Ops [start, turn), of which some run again during the backward pass, ops [turn, stop)."""

    def __init__(self, graph: Graph, writes: _Writes, start: int, turn: int, stop: int) -> None:
        self.graph, self.writes = graph, writes
        self.ops, self.backward = range(start, turn), range(turn, stop)
        self.fixed = self._find_fixed()

    def split(self, count: int) -> list[range]:
        """Return *count* spans of about equally many ops, or fewer where groups forbid a cut."""
        start, cuts, bounds = self.ops.start, self._allowed_cuts(), [self.ops.start]
        for i in range(1, count):
            wanted = max(start + i * len(self.ops) // count, bounds[-1] + 1)
            bounds += cuts[bisect_left(cuts, wanted) :][:1]
        return [range(low, high) for low, high in zip(bounds, [*bounds[1:], self.ops.stop], strict=True)]

    def recompute(self, span: range) -> tuple[int, list[int]]:
        """Return before which op of backward to run which ops of *span* again: what is read and not stored."""
        graph = self.graph
        stored = set(self._bases(graph.outputs))
        for position in range(span.stop, self.ops.stop):
            stored.update(self._bases(graph.ops[position].inputs))
        first, needed = self.backward.stop, set()
        for position in self.backward:
            if graph.index.hold[position]:
                continue
            made = {op for name in graph.ops[position].inputs if (op := self._maker(name, span, stored)) is not None}
            if made:
                first = min(first, position)
                needed |= made
        return first, self._closure(needed, span, stored)

    def _closure(self, needed: set[int], span: range, stored: set[str]) -> list[int]:
        """Return *needed* and the ops whose values they read again, in program order."""
        chosen: set[int] = set()
        stack = list(needed)
        while stack:
            position = stack.pop()
            if position in chosen:
                continue
            chosen.add(position)
            op = self.graph.ops[position]
            for base in self._bases((*op.outputs, *op.mutates)):
                stack += self.writes.group(base)
            for name in op.inputs:
                if self._changes(self.graph.tensors[name].base, position):
                    stack.append(self.writes.producer[name])
                elif (maker := self._maker(name, span, stored)) is not None:
                    stack.append(maker)
        return sorted(chosen)

    def _maker(self, name: str, span: range, stored: set[str]) -> int | None:
        """Return the op of *span* that makes *name* again; None if its bytes are there anyway."""
        producer = self.writes.producer.get(name, -1)
        again = producer in span and producer not in self.fixed and self.graph.tensors[name].base not in stored
        return producer if again else None

    def _changes(self, base: str, position: int) -> bool:
        """Whether *position* or a later op, up to the end of backward, overwrites *base*."""
        return any(position <= mutator < self.backward.stop for mutator in self.writes.mutators.get(base, ()))

    def _find_fixed(self) -> set[int]:
        """Return the ops that must not run again, as a recompute could not restore what they read or wrote.

        They overwrite what exists before the pass (running statistics, say) or read what is overwritten
        later; unless all who write it can run again on a fresh copy.
        """
        fixed = {position for position in self.ops if self.graph.ops[position].phase is not Phase.FORWARD}
        while True:
            before = len(fixed)
            for position in self.ops:
                op = self.graph.ops[position]
                read = (base for base in self._bases(op.inputs) if self._changes(base, position))
                for base in {*read, *self._bases(op.outputs)}:
                    together = {*self.writes.group(base), position}
                    if not together.isdisjoint(fixed) or any(member not in self.ops for member in together):
                        fixed.update(member for member in together if member in self.ops)
            if len(fixed) == before:
                return fixed

    def _allowed_cuts(self) -> list[int]:
        """Positions where a span may begin: not inside a group."""
        inside = [0] * (self.ops.stop + 1)
        for base in self.writes.mutators:
            group = [member for member in self.writes.group(base) if member in self.ops]
            if group:
                inside[min(group) + 1] += 1
                inside[max(group) + 1] -= 1
        depth = np.cumsum(inside)
        return [position for position in self.ops if not depth[position]]

    def _bases(self, names: Iterable[str]) -> list[str]:
        return [self.graph.tensors[name].base for name in names]
