"""The slow twin of `graphsim.core.liveness`: one op at a time, dicts and reference counts, no arrays.

It shares no code with the fast pass. Contents of storages are numbered by what made them: the op, and
the contents that it read. So a recompute is right if and only if every op reads the contents that it
reads in program order, and the step leaves the same contents behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from graphsim.core.graph import Graph, Op, Role

RESIDENT_ROLES = (Role.PARAMETER, Role.OPTIMIZER_STATE, Role.INPUT, Role.BUFFER, Role.LIBRARY)


class InvalidScheduleError(Exception):
    """The schedule does not do what program order does."""


@dataclass(eq=False)
class Storage:
    """Bytes that live together: one for each execution that allocates them."""

    nbytes: int
    content: int
    kept: bool = False
    references: int = 0


@dataclass
class Execution:
    """What one execution found, allocated and read."""

    op: Op
    inputs: list[Storage]
    allocated: list[Storage]
    read: list[int]


@dataclass
class Outcome:
    """Live bytes during each execution (with workspace), and after it."""

    during: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)


def interpret(graph: Graph, order: Sequence[int], policy: str) -> Outcome:
    """Execute the ops numbered *order*: first to see who reads what, then again to count bytes.

    Raises:
        InvalidScheduleError: an op is missing that is no mere release, an input is not there yet, or an op reads, or
            the step leaves, other contents than in program order.
    """
    program = range(len(graph.ops))
    needed = {position for position in program if not (is_hold(op := graph.ops[position]) and op.kind == "release")}
    if not needed <= set(order) <= set(program):
        raise InvalidScheduleError("not every op is executed, or one that does not exist")
    numbers: dict[object, int] = {}
    expected, run = Run(graph, numbers), Run(graph, numbers)
    for position in program:
        expected.execute(graph.ops[position])
    for position in order:
        run.execute(graph.ops[position])
    _compare_contents(graph, expected, run)
    return _count_bytes(graph, run, policy)


class Run:
    """Which storage each name refers to after the ops executed so far."""

    def __init__(self, graph: Graph, numbers: dict[object, int]) -> None:
        self.graph, self.numbers = graph, numbers
        self.executions: list[Execution] = []
        written = {name for op in graph.ops for name in op.outputs}
        sources = [t for t in graph.tensors.values() if t.name not in written]
        self.sources = {
            t.name: Storage(t.nbytes, self.number(t.name), t.role in RESIDENT_ROLES) for t in sources if not t.storage
        }
        self.values = {t.name: self.sources[t.base] for t in sources}

    def number(self, key: object) -> int:
        """Equal keys, equal contents."""
        return self.numbers.setdefault(key, len(self.numbers))

    def execute(self, op: Op) -> None:
        for name in op.inputs:
            if name not in self.values:
                raise InvalidScheduleError(f"{op.name} reads {name} before it is written")
        inputs = [self.values[name] for name in op.inputs]
        read = [storage.content for storage in inputs]
        overwritten = [name for name in op.inputs if name in op.mutates]
        allocated, bound = [], {}
        for name in op.outputs:
            base = self.graph.tensors[name].base
            if base == name:
                bound[name] = Storage(self.graph.tensors[name].nbytes, self.number((op.name, name, *read)))
                allocated.append(bound[name])
            else:  # over what the op overwrites there, or else over the first thing that it reads there
                over = next(n for n in (*overwritten, *op.inputs) if self.graph.tensors[n].base == base)
                bound[name] = self.values[over]
        for name in overwritten:
            self.values[name].content = self.number((op.name, self.graph.tensors[name].base, *read))
        self.values.update(bound)
        self.executions.append(Execution(op, inputs, allocated, read))


def is_hold(op: Op) -> bool:
    """A hold keeps what it names alive, under the eager policy; it reads nothing."""
    return op.kind in ("hold", "release") and not op.outputs and not op.mutates


def _compare_contents(graph: Graph, expected: Run, run: Run) -> None:
    read = {execution.op.name: execution.read for execution in expected.executions}
    for execution in run.executions:
        if not is_hold(execution.op) and execution.read != read[execution.op.name]:
            raise InvalidScheduleError(f"{execution.op.name} reads other contents than in program order")
    for name in graph.outputs:
        if run.values[name].content != expected.values[name].content:
            raise InvalidScheduleError(f"output {name} ends with other contents than in program order")
    for name, storage in run.sources.items():
        if storage.kept and storage.content != expected.sources[name].content:
            raise InvalidScheduleError(f"{name} ends with other contents than in program order")


def _count_bytes(graph: Graph, run: Run, policy: str) -> Outcome:
    for name in graph.outputs:
        run.values[name].kept = True
    for execution in run.executions:
        if is_hold(execution.op) and policy == "liveness":
            execution.inputs = []
        for storage in execution.inputs:
            storage.references += 1
    live = {storage for storage in run.sources.values() if storage.kept or storage.references}
    outcome = Outcome()
    for execution in run.executions:
        live.update(execution.allocated)
        outcome.during.append(sum(storage.nbytes for storage in live) + execution.op.workspace)
        for storage in execution.inputs:
            storage.references -= 1
        for storage in (*execution.inputs, *execution.allocated):
            if not storage.references and not storage.kept:
                live.discard(storage)
        outcome.after.append(sum(storage.nbytes for storage in live))
    return outcome
