"""The liveness pass once more, slow and readable: one op at a time, dicts and counts, no arrays.

It shares no code with `graphsim.liveness` and states the contract of memory in the plainest way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from graphsim.graph import Graph, Op, Role

RESIDENT_ROLES = (Role.PARAMETER, Role.OPTIMIZER_STATE, Role.INPUT, Role.BUFFER)
NOBODY = "nobody"


class Invalid(Exception):  # noqa: N818
    """The schedule does not respect the graph."""


@dataclass
class Outcome:
    """Live bytes during each execution (with workspace), and after it."""

    during: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)


def interpret(graph: Graph, order: Sequence[int], policy: str) -> Outcome:
    """Execute the ops numbered *order*; first only to count reads, then again to count bytes.

    Raises:
        Invalid: an op is missing, an input is not there yet, or its bytes are not those that the op
            reads in program order.
    """
    if set(order) != set(range(len(graph.ops))):
        raise Invalid("not every op is executed")
    reads, pinned = _count_reads(graph, order, policy)
    return _count_bytes(graph, order, reads, pinned, policy)


def is_hold(op: Op) -> bool:
    return op.kind == "hold" and not op.outputs and not op.mutates


def ignored(op: Op, policy: str) -> bool:
    """A hold keeps what it reads under the eager policy only."""
    return is_hold(op) and policy == "liveness"


def _writers_in_program_order(graph: Graph) -> dict[tuple[str, str], str]:
    """Return who wrote the bytes of each input last, by (op, input), if every op runs once in order.

    The end of the step reads the kept outputs.
    """
    writer = dict.fromkeys(graph.tensors, NOBODY)
    seen = {}
    for op in graph.ops:
        for name in op.inputs:
            seen[op.name, name] = writer[graph.tensors[name].base]
        for name in op.mutates:
            writer[graph.tensors[name].base] = op.name
        for name in op.outputs:
            if graph.tensors[name].base == name:
                writer[name] = op.name
    for name in graph.outputs:
        seen["end", name] = writer[graph.tensors[name].base]
    return seen


def _sources(graph: Graph) -> list[str]:
    written = {name for op in graph.ops for name in op.outputs}
    return [name for name in graph.tensors if name not in written]


def _start(graph: Graph) -> dict[str, int]:
    """Return the values that exist before the step: storage numbers by tensor name."""
    sources = _sources(graph)
    number = {name: i for i, name in enumerate(n for n in sources if graph.tensors[n].base == n)}
    return {name: number[graph.tensors[name].base] for name in sources}


def _produce(graph: Graph, op: Op, values: dict[str, int], storages: list[int]) -> None:
    """Bind the outputs of *op*: to a new storage, or to that of the input that they are a view of."""
    bound = {}
    in_place = [name for name in op.inputs if name in op.mutates]
    for name in op.outputs:
        base = graph.tensors[name].base
        if base == name:
            storages.append(len(storages))
            bound[name] = storages[-1]
        else:
            over = next(i for i in [*in_place, *op.inputs] if graph.tensors[i].base == base)
            bound[name] = values[over]
    values.update(bound)


def _count_reads(graph: Graph, order: Sequence[int], policy: str) -> tuple[dict[int, int], set[int]]:
    """Return how often each storage is touched, and which ones live to the end."""
    expected = _writers_in_program_order(graph)
    values = _start(graph)
    storages = sorted(set(values.values()))
    pinned = {
        values[name]
        for name in values
        if graph.tensors[name].base == name and graph.tensors[name].role in RESIDENT_ROLES
    }
    writer = dict.fromkeys(storages, NOBODY)
    reads: dict[int, int] = {}
    for position in order:
        op = graph.ops[position]
        for name in op.inputs:
            if name not in values:
                raise Invalid(f"{op.name} reads {name} before it is written")
            if not is_hold(op) and writer[values[name]] != expected[op.name, name]:
                raise Invalid(f"{op.name} reads {name} as {writer[values[name]]} left it")
            if not ignored(op, policy):
                reads[values[name]] = reads.get(values[name], 0) + 1
        for name in op.mutates:
            writer[values[name]] = op.name
        before = len(storages)
        _produce(graph, op, values, storages)
        for storage in storages[before:]:
            writer[storage] = op.name
    for name in graph.outputs:
        if writer[values[name]] != expected["end", name]:
            raise Invalid(f"output {name} ends as {writer[values[name]]} left it")
    pinned |= {values[name] for name in graph.outputs}
    return reads, pinned


def _count_bytes(graph: Graph, order: Sequence[int], reads: dict[int, int], pinned: set[int], policy: str) -> Outcome:
    values = _start(graph)
    storages = sorted(set(values.values()))
    size = {values[name]: graph.tensors[name].nbytes for name in values if graph.tensors[name].base == name}
    left = dict(reads)
    live = {s: size[s] for s in storages if left.get(s) or s in pinned}
    outcome = Outcome()
    for position in order:
        op = graph.ops[position]
        touched = [] if ignored(op, policy) else [values[name] for name in op.inputs]
        before = len(storages)
        _produce(graph, op, values, storages)
        fresh = [name for name in op.outputs if graph.tensors[name].base == name]
        for storage, name in zip(storages[before:], fresh, strict=True):
            live[storage] = graph.tensors[name].nbytes
        outcome.during.append(sum(live.values()) + op.workspace)
        for storage in touched:
            if left.get(storage):
                left[storage] -= 1
        for storage in [*touched, *storages[before:]]:
            if not left.get(storage) and storage not in pinned:
                live.pop(storage, None)
        outcome.after.append(sum(live.values()))
    return outcome
