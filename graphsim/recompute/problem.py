"""The rematerialization problem of a graph in arrays: what each execution reads, makes and costs.

Bytes belong to storages, here called *values*. What can run again is a *unit*: the op that makes a
value, with the ops that overwrite it in place, those that read it before it is complete, and the views
of it, so that whoever reads it later finds the fresh copy in the state that program order has. A node
is an op in program order (0 ... N-1) or a unit: N + its first op.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from graphsim.core.graph import Graph, Phase
from graphsim.core.index import NOTHING, Bools, Floats, Ints, rows
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import op_costs
from graphsim.recompute.units import first_of_units


@dataclass(frozen=True, eq=False)
class Problem:
    """Columns over nodes (2N) and values (V).

    Attributes:
        ops: number of ops, N.
        read_start, read_value: CSR, values that each node reads, each once.
        make_start, make_value: CSR, values that each node makes.
        cost: (2N) time of each node; the unit's is the sum of its ops'.
        workspace: (2N) scratch bytes.
        hold: (2N, bool) nodes that only keep what they read alive.
        unit: (N) first op of the unit that each op belongs to.
        since, until: (N) a unit may run again after op `since` and before op `until`, where something
            it reads is overwritten; `until` is 0 for ops that may not run again.
        size: (V) bytes.
        maker: (V) op that makes the value; `NOTHING` for what exists before.
        initial: values that exist before the first execution and die within the step.
        kept: values that survive the step.
        constant: bytes of what lives throughout.
        members: ops of each unit, in program order.
    """

    ops: int
    read_start: Ints
    read_value: Ints
    make_start: Ints
    make_value: Ints
    cost: Floats
    workspace: Ints
    hold: Bools
    unit: Ints
    since: Ints
    until: Ints
    size: Ints
    maker: Ints
    initial: Ints
    kept: Ints
    constant: int
    members: tuple[tuple[int, ...], ...]

    @cached_property
    def reads(self) -> list[list[int]]:
        """Values that each node reads, as lists."""
        return rows(self.read_start, self.read_value)

    @cached_property
    def makes(self) -> list[list[int]]:
        """Values that each node makes, as lists."""
        return rows(self.make_start, self.make_value)

    @cached_property
    def value_unit(self) -> Ints:
        """(V) the unit that makes each value again; `NOTHING` where none may."""
        made = self.maker != NOTHING
        unit = np.full(len(self.maker), NOTHING)
        unit[made] = self.unit[self.maker[made]]
        unit[made] = np.where(self.until[unit[made]] > 0, unit[made], NOTHING)
        return unit

    @cached_property
    def unit_of(self) -> list[int]:
        """`value_unit` as a list."""
        return list(self.value_unit.tolist())

    @cached_property
    def value_ratio(self) -> Floats:
        """(V) cost of the unit that makes each value, by byte; 0 where none may."""
        made = self.value_unit != NOTHING
        ratio = np.zeros(len(made))
        ratio[made] = self.cost[self.ops + self.value_unit[made]] / np.maximum(1, self.size[made])
        return ratio

    @cached_property
    def latest(self) -> list[int]:
        """(N) the op before which each op may run again at the latest, for bounds; 0: never.

        Of an op that is no unit by itself, but for views, nothing is known: alone, it may run when its unit must not.
        """
        ops = range(self.ops)
        alone = [self.members[op] == (op,) or (self.since[op] == op and self.until[op] > 0) for op in ops]
        return [int(self.until[op]) if alone[op] and self.unit[op] == op else self.ops for op in ops]

    def schedule(self, nodes: Ints) -> Schedule:
        """Return the executions of *nodes*: of a unit, the ops that have run before."""
        order: list[int] = []
        done = -1
        for node in nodes.tolist():
            if node < self.ops:
                order.append(node)
                done = node
            else:
                order += [op for op in self.members[node - self.ops] if op <= done]
        return Schedule(np.array(order, dtype=np.int64))

    def lengths(self, nodes: Ints) -> Ints:
        """Return the number of executions that each of *nodes* is in `schedule`."""
        done = np.maximum.accumulate(np.where(nodes < self.ops, nodes, NOTHING))
        length = np.ones(len(nodes), dtype=np.int64)
        for at in np.flatnonzero(nodes >= self.ops).tolist():
            length[at] = sum(op <= done[at] for op in self.members[nodes[at] - self.ops])
        return length

    def nodes(self, schedule: Schedule) -> Ints:
        """Return a schedule that runs every op first in program order as nodes: repeats as the units that allow it."""
        nodes: list[int] = []
        done, fresh = -1, set[int]()
        for op, again in zip(schedule.ops.tolist(), schedule.repeats.tolist(), strict=True):
            unit = int(self.unit[op])
            if not again:
                nodes.append(op)
                done, fresh = op, set()
            elif unit not in fresh and self.may_run(unit, done + 1):
                nodes.append(self.ops + unit)
                fresh.add(unit)
        return np.array(nodes, dtype=np.int64)

    def may_run(self, unit: int, before: int) -> bool:
        """Whether *unit* may run again right before op *before* of program order."""
        return bool(self.since[unit] < before <= self.until[unit])


def problem_of(graph: Graph, costs: Floats | None = None) -> Problem:
    """Return the problem of *graph* under the eager policy; *costs* of its ops are `op_costs` unless given."""
    units = _Units(graph)
    index, count = graph.index, len(graph.ops)
    lives_throughout = index.resident
    values = [s for s in index.storages.tolist() if not lives_throughout[s]]
    number = {storage: i for i, storage in enumerate(values)}
    ops = range(count)
    reads = [sorted({number[s] for s in units.reads[op] if s in number}) for op in ops]
    makes = [[number[s] for s in units.made[op]] for op in ops]
    unit_reads = [sorted({number[s] for s in units.unit_reads(op) if s in number}) for op in ops]
    unit_makes = [[number[s] for s in units.unit_made(op)] for op in ops]
    costs = op_costs(graph) if costs is None else costs
    unit_cost = np.array([costs[units.members[op]].sum() for op in ops], dtype=np.float64)
    unit_space = [max((int(index.workspace[member]) for member in units.members[op]), default=0) for op in ops]
    read_start, read_value = _csr(reads + unit_reads)
    make_start, make_value = _csr(makes + unit_makes)
    storage = np.array(values, dtype=np.int64)
    kept = {number[s] for s in index.storage[index.kept].tolist() if s in number}
    own = index.resident & (index.storage == np.arange(index.tensors))
    return Problem(
        ops=count,
        read_start=read_start,
        read_value=read_value,
        make_start=make_start,
        make_value=make_value,
        cost=np.concatenate([costs, unit_cost]),
        workspace=np.concatenate([index.workspace, np.array(unit_space, dtype=np.int64)]),
        hold=np.concatenate([index.hold, np.zeros(count, bool)]),
        unit=np.array(units.unit, dtype=np.int64),
        since=np.array([units.since(op) for op in ops], dtype=np.int64),
        until=np.array([units.until(op) for op in ops], dtype=np.int64),
        size=index.nbytes[storage],
        maker=index.maker[storage],
        initial=np.flatnonzero(index.source[storage]),
        kept=np.array(sorted(kept), dtype=np.int64),
        constant=int(index.nbytes[own].sum()),
        members=tuple(tuple(members) for members in units.members),
    )


class _Units:
    """Which ops must run together when a value is made again, and whether they may."""

    def __init__(self, graph: Graph) -> None:
        index = graph.index
        self.graph = graph
        storage = index.storage.tolist()
        starts = (index.input_start.tolist(), index.output_start.tolist(), index.write_start.tolist())
        columns = (index.input_tensor.tolist(), index.output_tensor.tolist(), index.write_tensor.tolist())
        self.reads: list[set[int]] = []
        self.made: list[list[int]] = []
        self.views: list[set[int]] = []
        self.writes: list[set[int]] = []
        for op in range(len(graph.ops)):
            inputs, outputs, written = (
                column[start[op] : start[op + 1]] for start, column in zip(starts, columns, strict=True)
            )
            self.made.append([tensor for tensor in outputs if storage[tensor] == tensor])
            self.views.append({storage[tensor] for tensor in outputs if storage[tensor] != tensor})
            self.writes.append({storage[tensor] for tensor in written})
            self.reads.append({storage[tensor] for tensor in inputs})
        self.mutators = _by_storage(self.writes)
        self.viewers = _by_storage(self.views)
        self.unit: list[int] = first_of_units(index).tolist()
        self.members: list[list[int]] = [[] for _ in self.reads]
        for op, unit in enumerate(self.unit):
            self.members[unit].append(op)
        for unit in {*self.unit}:
            views = {op for value in self.unit_made(unit) for op in self.viewers.get(value, ())}
            self.members[unit] = sorted(views.union(self.members[unit]))

    def unit_made(self, unit: int) -> list[int]:
        """Return the storages that a unit makes."""
        return [value for member in self.members[unit] for value in self.made[member]]

    def unit_reads(self, unit: int) -> set[int]:
        """Return the storages that a unit reads and does not make."""
        return {value for member in self.members[unit] for value in self.reads[member]} - {*self.unit_made(unit)}

    def since(self, unit: int) -> int:
        """Return the last op of the unit that is more than a view of what the unit makes."""
        own, members = set(self.unit_made(unit)), self.members[unit]
        return max((op for op in members if self.made[op] or self.writes[op] or not self.reads[op] <= own), default=0)

    def until(self, unit: int) -> int:
        """Return the op before which the unit can run again and leave every byte as program order has it, or 0."""
        own, members = set(self.unit_made(unit)), self.members[unit]
        if not own or any(self.graph.ops[op].phase is Phase.OPTIMIZER for op in members):
            return 0
        if any(not self.writes[op] <= own for op in members):
            return 0
        if any(
            self.unit[op] != unit and self.made[op] for op in members
        ):  # a view that also makes another unit's values
            return 0
        changes = [
            mutators[at]
            for member in members
            for value in self.reads[member] - own
            if (at := bisect_left(mutators := self.mutators.get(value, []), member)) < len(mutators)
        ]
        return min(changes, default=len(self.made))


def _by_storage(rows: Iterable[set[int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for op, values in enumerate(rows):
        for value in values:
            found.setdefault(value, []).append(op)
    return found


def _csr(rows: list[list[int]]) -> tuple[Ints, Ints]:
    start = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return start, np.array([value for row in rows for value in row], dtype=np.int64)
