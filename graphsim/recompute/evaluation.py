"""What a sequence of nodes keeps alive: vectorised, a fraction of a millisecond for a thousand ops."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from graphsim.core.index import Ints, expand
from graphsim.recompute.problem import Problem


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The live ranges of a sequence. A *row* is one version of a value, live in [born, last].

    Attributes:
        value, born, last: of each row; what survives has last = number of executions.
        first_row, rows: of each value: its first row and how many there are; rows of one value are in order.
        read_row, read_at: row that each read reads, and the execution that reads; in order of executions.
        memory: bytes live while each execution runs.
        cost: of the sequence.
    """

    problem: Problem
    nodes: Ints
    value: Ints
    born: Ints
    last: Ints
    first_row: Ints
    rows: Ints
    read_row: Ints
    read_at: Ints
    memory: Ints
    cost: float

    @property
    def peak(self) -> int:
        """Peak live bytes."""
        return int(self.memory.max(initial=0))

    @cached_property
    def through(self) -> Ints:
        """Bytes live across the start of each execution: before it allocates anything."""
        made, row = expand(self.problem.make_start, self.nodes)
        allocated = np.zeros(len(self.nodes), dtype=np.int64)
        np.add.at(allocated, row, self.problem.size[self.problem.make_value[made]])
        return self.memory - allocated - self.problem.workspace[self.nodes]

    @cached_property
    def next_op(self) -> Ints:
        """The op of program order that each execution is, or that follows the unit that it is."""
        ops = self.problem.ops
        op = np.where(self.nodes < ops, self.nodes, ops)
        return np.minimum.accumulate(op[::-1])[::-1]

    def excess(self, budget: int) -> Ints:
        """Return the bytes above *budget* while each execution runs; of a unit, those above its next op's.

        So a unit that runs where too much is live anyway does not count against a sequence.
        """
        above = np.maximum(self.memory - budget, 0)
        unit = self.nodes >= self.problem.ops
        position = np.where(unit, len(self.nodes) - 1, np.arange(len(self.nodes)))
        following = np.minimum.accumulate(position[::-1])[::-1]
        return np.where(unit, np.maximum(above - above[following], 0), above)

    @cached_property
    def lasts(self) -> list[int]:
        """`last` as a list."""
        return list(self.last.tolist())

    def latest_row(self, value: int, before: int) -> int:
        """Return the row of *value* that an execution inserted at *before* reads."""
        first_row, rows, born = self._rows
        row = first_row[value]
        end = row + rows[value] - 1
        while row < end and born[row + 1] < before:
            row += 1
        return row

    @cached_property
    def _rows(self) -> tuple[list[int], list[int], list[int]]:
        return self.first_row.tolist(), self.rows.tolist(), self.born.tolist()


def evaluate(problem: Problem, nodes: Ints) -> Evaluation:
    """Return the evaluation of *nodes*; every value must be made before it is read."""
    length = len(nodes)
    made, made_at = expand(problem.make_start, nodes)
    value = np.concatenate([problem.initial, problem.make_value[made]])
    born = np.concatenate([np.full(len(problem.initial), -1, dtype=np.int64), made_at])
    order = np.argsort(value, kind="stable")
    value, born = value[order], born[order]
    rows = np.bincount(value, minlength=len(problem.size))
    first_row = np.cumsum(rows) - rows
    read, read_at = expand(problem.read_start, nodes)
    wanted = problem.read_value[read]
    read_row = first_row[wanted]
    several = np.flatnonzero(rows[wanted] > 1)
    if len(several):
        stride = length + 2
        keys = value * stride + born + 1
        read_row[several] = np.searchsorted(keys, wanted[several] * stride + read_at[several], side="right") - 1
    last = born.copy()
    last[read_row] = read_at  # in order of executions: the last one stays
    kept_rows = first_row[problem.kept] + rows[problem.kept] - 1
    last[kept_rows] = length
    change = np.zeros(length + 2, dtype=np.int64)
    size = problem.size[value]
    np.add.at(change, np.maximum(born, 0), size)
    np.subtract.at(change, np.minimum(last, length) + 1, size)
    memory = np.cumsum(change)[:length] + problem.workspace[nodes] + problem.constant
    return Evaluation(
        problem=problem,
        nodes=nodes,
        value=value,
        born=born,
        last=last,
        first_row=first_row,
        rows=rows,
        read_row=read_row,
        read_at=read_at,
        memory=memory,
        cost=float(problem.cost[nodes].sum()),
    )
