"""Chen's sqrt(n): keep only what passes between about sqrt(n) spans of the forward pass.

Source: Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016, section 4.
Right before backward first reads a value from inside a span, the span runs again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import isqrt

from graphsim.graph import HOLD, Graph, Phase
from graphsim.schedule import Schedule
from graphsim.strategies.plan import Plan, judge


@dataclass(frozen=True, slots=True)
class Sqrt:
    """Splits the forward pass into *spans* parts of equally many ops (None: the square root of their number).

    A graph without a backward phase has nothing to recompute for: it runs in program order.
    """

    spans: int | None = None

    def __call__(self, graph: Graph, /, *, budget: int | None = None) -> Plan:
        """Return the plan; the budget only decides whether it is feasible."""
        start = time.perf_counter()
        schedule = recompute_spans(graph, self._spans(graph))
        return judge(graph, schedule, strategy="sqrt", budget=budget, seconds=time.perf_counter() - start)

    def _spans(self, graph: Graph) -> list[range]:
        forward = _forward_end(graph)
        count = self.spans or max(1, isqrt(forward))
        cuts = _allowed_cuts(graph, forward)
        bounds = [0]
        for i in range(1, count):
            wanted = i * forward // count
            later = [cut for cut in cuts if cut >= wanted]
            if later and later[0] > bounds[-1]:
                bounds.append(later[0])
        return [range(low, high) for low, high in zip(bounds, [*bounds[1:], forward], strict=True) if high > low]


def _forward_end(graph: Graph) -> int:
    """Return the number of ops before the first backward op; 0 if there is none."""
    return next((i for i, op in enumerate(graph.ops) if op.phase is Phase.BACKWARD), 0)


def _allowed_cuts(graph: Graph, forward: int) -> list[int]:
    """Positions where a span may begin: not between a storage's first op and its last in-place one.

    An in-place op can only be repeated on a fresh copy of what it overwrites.
    """
    first: dict[str, int] = {}
    forbidden = [0] * (forward + 1)
    for position, op in enumerate(graph.ops[:forward]):
        for name in op.outputs:
            first.setdefault(graph.tensors[name].base, position)
        for name in op.mutates:
            start = first.get(graph.tensors[name].base)
            if start is not None and start < position:
                forbidden[start + 1] += 1
                forbidden[position + 1] -= 1
    allowed, depth = [], 0
    for position in range(forward):
        depth += forbidden[position]
        if not depth:
            allowed.append(position)
    return allowed


def recompute_spans(graph: Graph, spans: list[range]) -> Schedule:
    """Return the schedule that runs each span but the last again, right before backward first reads from it."""
    if len(spans) < 2:
        return Schedule.of(graph)
    producer = {name: i for i, op in enumerate(graph.ops) for name in op.outputs}
    span_of = {i: number for number, span in enumerate(spans) for i in span}
    needed: dict[int, set[int]] = {number: set() for number in range(len(spans))}
    first_read: dict[int, int] = {}
    forward = spans[-1].stop
    for position in range(forward, len(graph.ops)):
        if graph.ops[position].kind == HOLD:
            continue
        for name in graph.ops[position].inputs:
            number = span_of.get(producer.get(name, -1))
            if number is not None and number < len(spans) - 1:
                first_read.setdefault(number, position)
                needed[number].add(producer[name])
    order = list(range(forward))
    repeats = {position: number for number, position in first_read.items()}
    by_position: dict[int, list[int]] = {}
    for position, number in sorted(repeats.items()):
        by_position.setdefault(position, []).extend(_closure(graph, spans[number], needed[number], producer))
    for position in range(forward, len(graph.ops)):
        order += by_position.get(position, [])
        order.append(position)
    return Schedule.of(graph, [graph.ops[i].name for i in order])


def _closure(graph: Graph, span: range, needed: set[int], producer: dict[str, int]) -> list[int]:
    """Return the ops of *span* that must run again for *needed*: they, what they read, and what overwrites it."""
    chosen = set(needed)
    for position in reversed(span):
        op = graph.ops[position]
        bases = {graph.tensors[name].base for name in op.mutates}
        if position not in chosen and any(producer.get(base) in chosen for base in bases):
            chosen.add(position)  # a fresh copy must reach the state that readers expect
        if position in chosen:
            chosen.update(producer[name] for name in op.inputs if producer.get(name, -1) in span)
    return sorted(chosen)
