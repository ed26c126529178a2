"""The liveness pass: from a schedule to live ranges, timeline and peak.

At execution t the outputs and the workspace of the op are allocated while its inputs are live;
then workspace and every storage whose last use was t are freed. Bytes belong to storages: a
storage dies when the last value over it dies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from graphsim.core.graph import Graph
from graphsim.core.index import NOTHING, Bools, Index, Ints, expand
from graphsim.core.offload import Copies, InvalidOffload, Pieces, Uses, copies_of, on_device, on_host
from graphsim.core.schedule import Schedule
from graphsim.errors import ScheduleError
from graphsim.options import parse_choice

Policy = Literal["liveness", "eager"]
"""When a storage is released: after its last use in data, or when the framework lets go of it."""

POLICIES: tuple[Policy, ...] = ("liveness", "eager")


def parse_policy(text: str) -> Policy:
    """Return the policy that *text* names.

    Raises:
        UnknownNameError: there is none.
    """
    return parse_choice("policy", text, POLICIES)


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
        """Return the live bytes once *execution* has run and what died in it is freed; -1 is before the first."""
        alive = (self.source | (self.begin <= execution)) & ((self.end > execution + 1) | self.kept)
        return int(self.nbytes[alive].sum())


class Places(NamedTuple):
    """What lives where under a schedule that offloads.

    Attributes:
        device, host: live ranges there; of a storage that comes back, one row for each time that it is on the device.
        copies: what is copied when.
    """

    device: LiveRanges
    host: LiveRanges
    copies: Copies


def live_ranges(graph: Graph, schedule: Schedule | None = None, *, policy: Policy = "eager") -> LiveRanges:
    """Return the live ranges of every storage of *graph* under *schedule* (program order if None), on the device.

    Raises:
        ScheduleError: an op is missing or runs before its inputs exist, or would read a value
            that has been mutated since (a recompute after an in-place op, a second optimizer step); or an offload
            cannot be, see `Offloads`.
    """
    if schedule is not None and schedule.offloads:
        return places(graph, schedule, policy=policy).device
    index = graph.index
    if schedule is None or np.array_equal(schedule.ops, np.arange(index.ops)):
        return ranges_in_program_order(index, policy)
    try:
        return ranges_in_any_order(index, schedule.ops, policy)
    except _InvalidError as problem:
        raise ScheduleError(problem.describe(graph)) from None


def places(graph: Graph, schedule: Schedule, *, policy: Policy = "eager") -> Places:
    """Return what lives on the device and on the host under *schedule*, which offloads.

    Raises:
        ScheduleError: as `live_ranges`.
    """
    assert schedule.offloads is not None, "live_ranges is for schedules without"
    try:
        ranges, uses = _ranges_and_uses(graph.index, schedule.ops, policy)
        born = np.where(ranges.source, NOTHING, ranges.begin)
        copies = copies_of(schedule.offloads, ranges.tensor, born, ranges.end, ranges.nbytes, uses)
    except _InvalidError as problem:
        raise ScheduleError(problem.describe(graph)) from None
    except InvalidOffload as problem:
        tensor = int(schedule.offloads.tensor[problem.number])
        name = list(graph.tensors)[tensor] if 0 <= tensor < len(graph.tensors) else f"tensor {tensor}"
        raise ScheduleError(f"the schedule offloads '{name}', which {problem.reason}") from None
    device, host = on_device(copies, ranges.begin, ranges.end), on_host(copies, len(schedule))
    kept = ranges.kept[device.row] & (device.end == ranges.end[device.row])
    source = ranges.source[device.row] & (np.arange(len(device.row)) < len(ranges.tensor))
    there = _pieces(ranges, device, kept, source, ranges.workspace)
    nowhere = np.zeros(len(host.row), bool)
    return Places(there, _pieces(ranges, host, nowhere, nowhere, np.zeros_like(ranges.workspace)), copies)


def _pieces(ranges: LiveRanges, pieces: Pieces, kept: Bools, source: Bools, workspace: Ints) -> LiveRanges:
    """Return *pieces* of *ranges* as live ranges."""
    row = pieces.row
    return LiveRanges(ranges.tensor[row], pieces.begin, pieces.end, ranges.nbytes[row], source, kept, workspace)


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
    """The pass for any sequence of op numbers, repeats allowed.

    Raises:
        ScheduleError: as `live_ranges`, with numbers in place of names.
    """
    _check_complete(index, order)
    values = _Values(index, order)
    values.check_mutations()
    return _ranges_of(values, policy)


def _ranges_and_uses(index: Index, order: Ints, policy: Policy) -> tuple[LiveRanges, Uses]:
    """The pass for any sequence, and who touches each row of it."""
    _check_complete(index, order)
    values = _Values(index, order)
    values.check_mutations()
    ranges = _ranges_of(values, policy)
    used, reader = values.read_roots(policy)
    written, writer = values.written_roots()
    roots = np.flatnonzero(values.root == np.arange(len(values.root)))
    made = roots[values.written[roots] != NOTHING]
    root = np.concatenate([made, written, used])
    at = np.concatenate([values.written[made], writer, reader])
    changes = np.arange(len(root)) < len(made) + len(written)
    sort = np.lexsort((at, root))
    return ranges, Uses(np.searchsorted(roots, root[sort]), at[sort], changes[sort])


def _ranges_of(values: _Values, policy: Policy) -> LiveRanges:
    index, order = values.index, values.order
    last_use = values.written.copy()
    used, reader = values.read_roots(policy)
    last_use[used] = reader
    roots = np.flatnonzero(values.root == np.arange(len(values.root)))
    tensor = values.tensor[roots]
    source = values.written[roots] == NOTHING
    kept = np.zeros(len(values.root), bool)
    kept[values.root[values.latest(index.kept, len(order))]] = True
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

    Values are sorted by (tensor, execution); the initial value of a source has execution -1. Where
    a tensor has one value, that is the one; else a binary search finds the latest.
    """

    def __init__(self, index: Index, order: Ints) -> None:
        self.index, self.order = index, order
        operand, execution = expand(index.output_start, order)
        sources = np.flatnonzero(index.source)
        tensor = np.concatenate([sources, index.output_tensor[operand]])
        written = np.concatenate([np.full(len(sources), NOTHING), execution])
        self._stride = len(order) + 2
        key = tensor * self._stride + written + 1
        sort = np.argsort(key, kind="stable")
        self._key, self.tensor, self.written = key[sort], tensor[sort], written[sort]
        self._only = np.cumsum(np.concatenate([[0], np.bincount(tensor, minlength=index.tensors)]))
        self._read()
        self.root = self._roots(operand, execution, sort, len(sources))

    def latest(self, tensor: Ints, before: Ints | int) -> Ints:
        """Return the latest value of each tensor that was written before execution *before*.

        Where there is none, it is a value of another tensor, or one written later.
        """
        value = self._only[tensor]
        several = np.flatnonzero(self._only[tensor + 1] - value > 1)
        if len(several):
            limit = before if isinstance(before, int) else before[several]
            key = tensor[several] * self._stride + limit
            value[several] = np.searchsorted(self._key, key, side="right") - 1
        return value

    def read_roots(self, policy: Policy) -> tuple[Ints, Ints]:
        """Return the owner of what each operand reads, and the execution that reads: in order of executions."""
        used, reader = self.root[self.input_value], self.input_execution
        if policy == "liveness" and self.index.hold.any():
            data = ~self.index.hold[self.order[reader]]
            return used[data], reader[data]
        return used, reader

    def written_roots(self) -> tuple[Ints, Ints]:
        """Return the owner of what each operand overwrites, and the execution that does."""
        operand, execution = expand(self.index.write_start, self.order)
        return self.root[self.latest(self.index.write_tensor[operand], execution)], execution

    def _read(self) -> None:
        self.input_operand, self.input_execution = expand(self.index.input_start, self.order)
        self.input_tensor = self.index.input_tensor[self.input_operand]
        value = self.latest(self.input_tensor, self.input_execution)
        missing = (self.tensor[value] != self.input_tensor) | (self.written[value] >= self.input_execution)
        if missing.any():
            first = int(np.argmax(missing))
            raise _InvalidError(int(self.input_execution[first]), self._op(first), int(self.input_tensor[first]))
        self.input_value = value

    def _roots(self, operand: Ints, execution: Ints, sort: Ints, sources: int) -> Ints:
        """Return for each value the one that owns its storage: itself, or what it is a view of a view of."""
        index = self.index
        parent = np.arange(len(sort))
        views = np.flatnonzero(index.source & (index.storage != np.arange(index.tensors)))
        parent[self.latest(views, 0)] = self.latest(index.storage[views], 0)
        position = index.output_parent[operand]
        alias = np.flatnonzero(position != NOTHING)
        if len(alias):
            place = np.empty(len(sort), dtype=np.int64)
            place[sort] = np.arange(len(sort))
            first_input = np.cumsum(np.concatenate([[0], np.diff(index.input_start)[self.order]]))
            parent[place[sources + alias]] = self.input_value[first_input[execution[alias]] + position[alias]]
        while not np.array_equal(grand := parent[parent], parent):  # pointer doubling
            parent = grand
        return parent

    def check_mutations(self) -> None:
        """Every read, and the end of the step, must see bytes that the same op wrote last as in program order."""
        index, order = self.index, self.order
        if not len(index.write_tensor):
            return
        mutable = np.zeros(index.tensors, bool)
        mutable[index.storage[index.write_tensor]] = True
        self._collect_writes(mutable)
        reads = np.flatnonzero(
            mutable[index.input_storage[self.input_operand]] & ~index.hold[order[self.input_execution]]
        )
        seen = self._writer(self.input_value[reads], self.input_execution[reads])
        expected = index.input_writer[self.input_operand[reads]]
        stale = seen != expected
        if stale.any():
            first = int(np.argmax(stale))
            read = int(reads[first])
            raise _InvalidError(
                int(self.input_execution[read]),
                self._op(read),
                int(self.input_tensor[read]),
                (int(seen[first]), int(expected[first])),
            )
        kept = index.kept[mutable[index.storage[index.kept]]]
        seen = self._writer(self.latest(kept, len(order)), np.full(len(kept), len(order)))
        expected = index.last_writer[index.storage[kept]]
        stale = seen != expected
        if stale.any():
            first = int(np.argmax(stale))
            raise _InvalidError(NOTHING, NOTHING, int(kept[first]), (int(seen[first]), int(expected[first])))

    def _collect_writes(self, mutable: Bools) -> None:
        """Sort by (storage, execution) what wrote the storages that any op overwrites."""
        touched, execution = self.written_roots()
        born = np.flatnonzero(mutable[self.tensor] & (self.root == np.arange(len(self.root))))
        storage = np.concatenate([born, touched])
        when = np.concatenate([self.written[born], execution])
        key = storage * self._stride + when + 1
        sort = np.argsort(key, kind="stable")
        self._write_key = key[sort]
        self._write_op = np.where(when < 0, NOTHING, self.order[when])[sort]

    def _writer(self, value: Ints, before: Ints) -> Ints:
        """Return the op that wrote the storage of each value last, before execution *before*."""
        key = self.root[value] * self._stride + before
        return self._write_op[np.searchsorted(self._write_key, key, side="right") - 1]

    def _op(self, operand: int) -> int:
        return int(self.order[self.input_execution[operand]])


def _check_complete(index: Index, order: Ints) -> None:
    if len(order) and (order.min() < 0 or order.max() >= index.ops):
        raise ScheduleError(f"the schedule names an op outside 0 ... {index.ops - 1}")
    missing = (np.bincount(order, minlength=index.ops) == 0) & ~index.release
    if missing.any():
        raise _InvalidError(NOTHING, int(np.argmax(missing)), NOTHING)


class _InvalidError(ScheduleError):
    """Why a schedule is wrong, in numbers; `describe` puts names to them.

    Execution *execution* runs *op*, which reads *tensor*: nothing has written it, or its bytes are
    those that ``writers[0]`` left where program order has those of ``writers[1]``. Without an op,
    the end of the step; without a tensor, the op never runs.
    """

    def __init__(self, execution: int, op: int, tensor: int, writers: tuple[int, int] | None = None) -> None:
        self.execution, self.op, self.tensor, self.writers = execution, op, tensor, writers
        super().__init__(f"execution {execution}, op {op}, tensor {tensor}, written by {writers}")

    def describe(self, graph: Graph) -> str:
        if self.tensor == NOTHING:
            return f"the schedule never executes op '{graph.ops[self.op].name}'"
        tensor = list(graph.tensors)[self.tensor]
        place = f"execution {self.execution} (op '{graph.ops[self.op].name}') reads '{tensor}'"
        if self.op == NOTHING:
            place = f"the schedule leaves output '{tensor}'"
        if self.writers is None:
            return f"{place} before anything has written it"
        seen, expected = (
            "nobody" if writer == NOTHING else f"op '{graph.ops[writer].name}'" for writer in self.writers
        )
        if self.writers[0] == NOTHING:
            return f"{place} before the mutation by {expected}"
        return (
            f"{place} as {seen} left it, but in program order {expected} wrote it last; "
            "recompute the tensor first, or do not repeat a mutation"
        )
