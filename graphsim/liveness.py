"""The liveness pass: from a schedule to live ranges, timeline and peak.

At execution t the outputs and the workspace of the op are allocated while its inputs are live;
then workspace and every storage whose last use was t are freed. Bytes belong to storages: a
storage dies when the last value over it dies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from graphsim.errors import ScheduleError
from graphsim.graph import Graph
from graphsim.index import NOTHING, Bools, Index, Ints, expand
from graphsim.schedule import Schedule

Policy = Literal["liveness", "eager"]
"""When a storage is released: after its last use in data, or when the framework lets go of it."""

POLICIES: tuple[Policy, ...] = ("liveness", "eager")


@dataclass(frozen=True, eq=False)
class LiveRanges:
    """When each storage is live, in executions: columns, one row per storage instance.

    Attributes:
        tensor: the tensor (number in `Graph.tensors`) that owns the storage.
        begin, end: half-open range [begin, end) of executions. A source begins at 0; what
            survives the step ends at the number of executions.
        nbytes: bytes of the storage.
        source: True where the storage exists before the first execution.
        kept: True where the storage survives the last execution.
        workspace: scratch bytes of each execution.
    """

    tensor: Ints
    begin: Ints
    end: Ints
    nbytes: Ints
    source: Bools
    kept: Bools
    workspace: Ints

    @cached_property
    def timeline(self) -> Ints:
        """Live bytes while each execution runs."""
        return self.sum_over_time(self.nbytes) + self.workspace

    @property
    def peak(self) -> int:
        """The maximum of the timeline (the bytes of the sources, if nothing is executed)."""
        return int(self.timeline.max()) if len(self.workspace) else int(self.nbytes.sum())

    @property
    def peak_execution(self) -> int:
        """The first execution at which the peak is reached."""
        return int(self.timeline.argmax()) if len(self.workspace) else 0

    def sum_over_time(self, weights: Ints) -> Ints:
        """Return, for each execution, the sum of *weights* over the storages live in it."""
        executions = len(self.workspace)
        change = np.zeros(executions + 1, dtype=np.int64)
        np.add.at(change, self.begin, weights)
        np.subtract.at(change, self.end, weights)
        return np.cumsum(change)[:executions]

    def live_at(self, execution: int) -> Ints:
        """Return the rows that are live while *execution* runs."""
        return np.flatnonzero((self.begin <= execution) & (execution < self.end))

    def live_after(self, execution: int) -> int:
        """Return the live bytes once *execution* has run and what died in it is freed."""
        alive = (self.begin <= execution) & ((self.end > execution + 1) | self.kept)
        return int(self.nbytes[alive].sum())


def live_ranges(graph: Graph, schedule: Schedule | None = None, *, policy: Policy = "eager") -> LiveRanges:
    """Return the live ranges of every storage of *graph* under *schedule* (program order if None).

    Raises:
        ScheduleError: an op is missing or runs before its inputs exist, or would read a value
            that has been mutated since (a recompute after an in-place op, a second optimizer step).
    """
    index = graph.index
    if schedule is None or np.array_equal(schedule.ops, np.arange(index.ops)):
        return ranges_in_program_order(index, policy)
    try:
        return ranges_in_any_order(index, schedule.ops, policy)
    except _InvalidError as problem:
        raise ScheduleError(problem.describe(graph)) from None


def ranges_in_program_order(index: Index, policy: Policy) -> LiveRanges:
    """The pass without repeats: one scatter. Operands stand in program order, so the last write
    to a storage's slot is its last use."""
    executions = index.ops
    begin = np.zeros(index.tensors, dtype=np.int64)
    last_use = np.full(index.tensors, NOTHING, dtype=np.int64)
    begin[index.output_tensor] = index.output_op
    last_use[index.output_tensor] = index.output_op
    reader, used = index.input_op, index.input_storage
    if policy == "liveness" and index.hold.any():
        data = ~index.hold[reader]
        reader, used = reader[data], used[data]
    last_use[used] = reader
    rows = index.storages
    kept = index.resident.copy()
    kept[index.storage[index.kept]] = True
    end = np.where(kept, executions, last_use + 1)
    return LiveRanges(
        tensor=rows,
        begin=begin[rows],
        end=end[rows],
        nbytes=index.nbytes[rows],
        source=index.source[rows],
        kept=kept[rows],
        workspace=index.workspace,
    )


def ranges_in_any_order(index: Index, order: Ints, policy: Policy) -> LiveRanges:
    """The pass for any sequence of op numbers, repeats allowed."""
    values = _Values(index, order)
    last_use = values.written.copy()
    operands = values.inputs
    if policy == "liveness":
        operands = operands[~index.hold[order[values.input_execution]]]
    np.maximum.at(last_use, values.root[values.input_value[operands]], values.input_execution[operands])
    values.check_mutations()
    roots = np.flatnonzero(values.root == np.arange(len(values.root)))
    tensor = values.tensor[roots]
    source = values.written[roots] == NOTHING
    kept = np.zeros(len(values.root), bool)
    kept[values.root[values.latest(index.kept)]] = True
    kept[roots] |= source & index.resident[tensor]
    return LiveRanges(
        tensor=tensor,
        begin=np.maximum(values.written[roots], 0),
        end=np.where(kept[roots], len(order), last_use[roots] + 1),
        nbytes=index.nbytes[tensor],
        source=source,
        kept=kept[roots],
        workspace=index.workspace[order],
    )


class _Values:
    """Every value (one tensor written by one execution) and which value each operand reads.

    Values are sorted by (tensor, execution); the initial value of a source has execution -1.
    So the latest value of a tensor before an execution is one binary search away.
    """

    def __init__(self, index: Index, order: Ints) -> None:
        self.index, self.order = index, order
        _check_complete(index, order)
        operand, execution = expand(index.output_start, order)
        sources = np.flatnonzero(index.source)
        tensor = np.concatenate([sources, index.output_tensor[operand]])
        written = np.concatenate([np.full(len(sources), NOTHING), execution])
        self._stride = len(order) + 2
        key = tensor * self._stride + written + 1
        sort = np.argsort(key, kind="stable")
        self._key, self.tensor, self.written = key[sort], tensor[sort], written[sort]
        self._read()
        parent = self._parents(operand, execution, sort, len(sources))
        while True:  # pointer doubling: views of views of a base
            grand = parent[parent]
            if np.array_equal(grand, parent):
                break
            parent = grand
        self.root = parent

    def latest(self, tensor: Ints, before: Ints | None = None) -> Ints:
        """Return the latest value of each tensor, written before execution *before* (or ever)."""
        limit = len(self.order) if before is None else before
        return np.searchsorted(self._key, tensor * self._stride + limit, side="right") - 1

    def _read(self) -> None:
        operand, self.input_execution = expand(self.index.input_start, self.order)
        self.input_tensor = self.index.input_tensor[operand]
        self.input_operand = operand
        self.input_value = self.latest(self.input_tensor, self.input_execution)
        self.inputs = np.arange(len(operand))
        missing = (self.input_value < 0) | (self.tensor[self.input_value] != self.input_tensor)
        if missing.any():
            first = int(np.flatnonzero(missing)[0])
            raise _InvalidError(int(self.input_execution[first]), self._op(first), int(self.input_tensor[first]))

    def _parents(self, operand: Ints, execution: Ints, sort: Ints, sources: int) -> Ints:
        """Return for each value the value that it is a view of; itself, if it owns its storage."""
        index = self.index
        first_input = np.cumsum(np.concatenate([[0], np.diff(index.input_start)[self.order]]))
        position = index.output_parent[operand]
        parent = np.arange(len(sort))
        place = np.empty(len(sort), dtype=np.int64)
        place[sort] = np.arange(len(sort))
        alias = np.flatnonzero(position != NOTHING)
        parent[place[sources + alias]] = self.input_value[first_input[execution[alias]] + position[alias]]
        views = np.flatnonzero(self.index.source & (index.storage != np.arange(index.tensors)))
        start = np.zeros(len(views), dtype=np.int64)
        parent[self.latest(views, start)] = self.latest(index.storage[views], start)
        return parent

    def check_mutations(self) -> None:
        """Every read must see the bytes that the same op wrote last in program order."""
        index, order = self.index, self.order
        if not len(index.write_tensor):
            return
        operand, execution = expand(index.write_start, order)
        touched = self.root[self.latest(index.write_tensor[operand], execution)]
        stride = len(order) + 2
        born = np.unique(touched)
        key = np.concatenate([born * stride + self.written[born] + 1, touched * stride + execution + 1])
        writer = np.concatenate(
            [np.where(self.written[born] < 0, NOTHING, order[self.written[born]]), order[execution]]
        )
        sort = np.argsort(key, kind="stable")
        key, writer = key[sort], writer[sort]
        root = self.root[self.input_value]
        mutated = np.zeros(len(self.root), bool)
        mutated[born] = True
        reads = np.flatnonzero(mutated[root] & ~index.hold[order[self.input_execution]])
        seen = writer[np.searchsorted(key, root[reads] * stride + self.input_execution[reads], side="right") - 1]
        stale = seen != index.input_writer[self.input_operand[reads]]
        if stale.any():
            first = int(np.flatnonzero(stale)[0])
            read = int(reads[first])
            raise _InvalidError(
                int(self.input_execution[read]),
                self._op(read),
                int(self.input_tensor[read]),
                mutated_by=int(seen[first]),
            )

    def _op(self, operand: int) -> int:
        return int(self.order[self.input_execution[operand]])


def _check_complete(index: Index, order: Ints) -> None:
    if len(order) and (order.min() < 0 or order.max() >= index.ops):
        raise ScheduleError(f"the schedule names an op outside 0 ... {index.ops - 1}")
    missing = np.bincount(order, minlength=index.ops) == 0
    if missing.any():
        raise _InvalidError(NOTHING, int(np.flatnonzero(missing)[0]), NOTHING)


class _InvalidError(Exception):
    """Why a schedule is wrong, in numbers; `describe` puts names to them."""

    def __init__(self, execution: int, op: int, tensor: int, mutated_by: int | None = None) -> None:
        super().__init__(execution, op, tensor)
        self.execution, self.op, self.tensor, self.mutated_by = execution, op, tensor, mutated_by

    def describe(self, graph: Graph) -> str:
        op = graph.ops[self.op].name
        if self.tensor == NOTHING:
            return f"the schedule never executes op '{op}'"
        tensor = list(graph.tensors)[self.tensor]
        place = f"execution {self.execution} (op '{op}') reads '{tensor}'"
        if self.mutated_by is None:
            return f"{place} before anything has written it"
        if self.mutated_by == NOTHING:
            return f"{place} before the mutation that it must see"
        return (
            f"{place} as op '{graph.ops[self.mutated_by].name}' left it, not as in program order; "
            "recompute the tensor first, or do not repeat a mutation"
        )
