"""What every schedule in program order must respect at some of its moments, as a program over integers.

A *moment* is the first execution of an op. Whatever runs between two moments, how often and in which order, these hold:

- P[k, v]: value v is in memory at moment k. What the op of the moment reads is; all that is, with what it makes and its
  workspace, fits the budget.
- R[k, m]: op m, which makes values, runs again at least once between moments k - 1 and k.
- A value is in memory only if it was at the moment before, has been made first since, or was made again since. So for
  what ops in between read, and for what ops that run again read.
- What is in memory at two moments in a row, without having been made again in between, is also there while ops run
  again between them: it fits the budget beside what they read and make. (Stated where no other op is in between.)

So the least cost of R bounds the cost of every schedule in program order from below, whichever moments are chosen; with
all moments, little is missing from the truth. Checkmate's program (`checkmate_model`) knows one run of a unit in a
stage, in a fixed order; this one does not ask, and is much smaller where few moments decide. What it takes to make a
value again is counted low where several ops only together do: the one that allocates it, and what that reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from graphsim.core.index import NOTHING, Bools, Floats, Ints
from graphsim.recompute.evaluation import Evaluation
from graphsim.recompute.problem import Problem
from graphsim.recompute.solvers.checkmate_model import Program

_COST, _BYTES = 1e3, 1e4
"""The cost of the step, and the room for bytes, are this many units: tolerances of solvers are absolute."""
_ABSENT, _PRESENT = -1, -2
"""Instead of a column: always 0, always 1."""

Term = tuple[float, int]
"""A coefficient, and a column or one of these."""


_SLACK = 1 + 1e-9
"""Sums of costs are rounded."""


class Repeats:
    """When ops may usefully run again: anywhere between first executions, even behind the last.

    Attributes:
        makers: ops that may run again.
        maker: of each value, if it may; else `NOTHING`.
        until: the op before which each op may run again at the latest; 0 for the others.
        last_read: the last op of program order that reads each value; their number for what survives.
        last_use: the same, and recomputes count.
        readers: ops of program order that read each value.
    """

    def __init__(self, problem: Problem, most: float = inf) -> None:
        """Work it out for sequences of an extra cost of *most*: dearer ops do not run again."""
        self.problem, ops = problem, problem.ops
        self.readers: list[set[int]] = [set() for _ in problem.size]
        for op in range(ops):
            for value in problem.reads[op]:
                self.readers[value].add(op)
        self.last_read = [max(readers, default=NOTHING) for readers in self.readers]
        for value in problem.kept.tolist():
            self.last_read[value] = ops
        self.last_use = list(self.last_read)
        self.until = [0] * ops
        for op in range(ops):
            if problem.makes[op] and problem.cost[op] <= most * _SLACK:
                self.until[op] = problem.latest[op]
        for op in reversed(range(ops)):  # what an op reads was made before it
            uses = [self.last_use[value] for value in problem.makes[op] if problem.size[value]]
            self.until[op] = min(self.until[op], max(uses, default=NOTHING))
            if self.until[op] > op:
                for value in problem.reads[op]:
                    self.last_use[value] = max(self.last_use[value], self.until[op])
        self.makers = [op for op in range(ops) if self.until[op] > op]
        again = {*self.makers}
        self.maker = [op if op in again else NOTHING for op in problem.maker.tolist()]


@dataclass(frozen=True, slots=True, eq=False)
class Relaxation:
    """The program, and where its variables stand.

    Attributes:
        moments: ops, ascending.
        present, run, through: the columns of P and R, by moment (their number: the end) and value or op, and of what
            is there all the time between.
        unit: of the objective, as a cost.
    """

    program: Program
    moments: tuple[int, ...]
    present: dict[tuple[int, int], int]
    run: dict[tuple[int, int], int]
    through: dict[tuple[int, int], int]
    unit: float

    def point(self, known: Evaluation) -> Floats:
        """Return the values of the variables in a sequence that is known."""
        ops = known.problem.ops
        at = np.append(np.flatnonzero(known.nodes < ops)[list(self.moments)], len(known.nodes))
        began = np.concatenate([[-1], at[:-1]])
        x = np.zeros(len(self.program.cost))
        for k, value in self.present:
            rows = slice(int(known.first_row[value]), int(known.first_row[value] + known.rows[value]))
            x[self.present[k, value]] = ((known.born[rows] <= at[k]) & (at[k] <= known.last[rows])).any()
        runs: dict[int, list[int]] = {}
        for place in np.flatnonzero(known.nodes >= ops).tolist():
            runs.setdefault(int(known.nodes[place]) - ops, []).append(place)
        for k, op in self.run:
            places = runs.get(int(known.problem.unit[op]), ())
            x[self.run[k, op]] = any(began[k] < place < at[k] for place in places)
        for k, value in self.through:
            rows = slice(int(known.first_row[value]), int(known.first_row[value] + known.rows[value]))
            x[self.through[k, value]] = ((known.born[rows] <= began[k]) & (at[k] <= known.last[rows])).any()
        return x

    def nodes(self, x: Floats, problem: Problem) -> Ints | None:
        """Return a sequence with a solution's contents of memory at the moments; None where it must not be run."""
        kept = {key for key, column in self.present.items() if x[column] > 0.5}
        return _Walk(problem, self.moments, self.present, kept).nodes()


def relax(repeats: Repeats, budget: int, moments: Iterable[int]) -> Relaxation:
    """Return the program of *moments*, a set of ops, for schedules within *budget* bytes."""
    return _Builder(repeats, budget, sorted(moments)).relaxation()


class _Builder:
    def __init__(self, repeats: Repeats, budget: int, moments: Sequence[int]) -> None:
        self.repeats, self.problem, self.moments = repeats, repeats.problem, moments
        ops = self.problem.ops
        self.room = budget - self.problem.constant
        self.bytes = _BYTES / max(1, self.room)
        self.unit = (float(self.problem.cost[:ops].sum()) or 1.0) / _COST
        self.size: list[int] = self.problem.size.tolist()
        self.maker: list[int] = self.problem.maker.tolist()
        self.kept = {*self.problem.kept.tolist()}
        self.began, self.ends = [NOTHING, *moments], [*moments, ops]
        self.cost: list[float] = []
        self.rows = _Rows()
        self.present: dict[tuple[int, int], int] = {}
        self.run: dict[tuple[int, int], int] = {}
        self.through: dict[tuple[int, int], int] = {}

    def relaxation(self) -> Relaxation:
        for k in range(len(self.ends)):
            self._carry(k)
            self._feed(k)
            if k < len(self.moments):
                self._fit(k)
            if self.ends[k] - self.began[k] == 1:
                self._fit_runs(k)
        columns = len(self.cost)
        start, column, value, upper = self.rows.csr()
        integer: Bools = np.zeros(columns, bool)
        integer[[*self.present.values(), *self.run.values()]] = True
        ends = np.full(len(upper), -inf)
        cost = np.array(self.cost)
        program = Program(cost, np.zeros(columns), np.ones(columns), ends, upper, start, column, value, integer)
        return Relaxation(program, tuple(self.moments), self.present, self.run, self.through, self.unit)

    def _column(self, among: dict[tuple[int, int], int], key: tuple[int, int], cost: float = 0.0) -> int:
        column = among.get(key)
        if column is None:
            column = among[key] = len(self.cost)
            self.cost.append(cost)
        return column

    def _in_memory(self, k: int, value: int) -> int:
        """Return the column of P: of what can only be there, or not be there, the constant."""
        op, repeats = self.ends[k], self.repeats
        if k < 0:
            return _PRESENT if self.maker[value] == NOTHING else _ABSENT
        if op <= self.maker[value]:
            return _PRESENT if op == self.maker[value] else _ABSENT
        if op == self.problem.ops:
            return _PRESENT if value in self.kept else _ABSENT
        if repeats.maker[value] == NOTHING and op <= repeats.last_read[value]:
            return _PRESENT
        if op > repeats.last_use[value]:
            return _ABSENT
        return _PRESENT if op in repeats.readers[value] else self._column(self.present, (k, value))

    def _again(self, k: int, op: int) -> int:
        """Return the column of R."""
        if op == NOTHING or op >= self.ends[k] or self.repeats.until[op] <= self.began[k]:
            return _ABSENT
        return self._column(self.run, (k, op), float(self.problem.cost[op]) / self.unit)

    def _there(self, k: int, value: int) -> list[Term]:
        """Return less than -1 if *value*, made by moment k - 1, is there some time until k."""
        return [(-1.0, self._in_memory(k - 1, value)), (-1.0, self._again(k, self.repeats.maker[value]))]

    def _carry(self, k: int) -> None:
        """State where what is in memory at moment k, and what ops before it read, comes from."""
        low, high = self.began[k], self.ends[k]
        for value, size in enumerate(self.size):
            if not size or self.maker[value] >= low:
                continue
            now = self._in_memory(k, value)
            if now != _ABSENT:
                self.rows.add([(1.0, now), *self._there(k, value)], 0.0)
            if any(low < op < high for op in self.repeats.readers[value]):
                self.rows.add(self._there(k, value), -1.0)

    def _feed(self, k: int) -> None:
        """State that what ops read is there when they run again."""
        for op in self.repeats.makers:
            run = self._again(k, op)
            if run == _ABSENT:
                continue
            for value in self.problem.reads[op]:
                if self.size[value] and self.maker[value] < self.began[k]:
                    self.rows.add([(1.0, run), *self._there(k, value)], 0.0)

    def _fit(self, k: int) -> None:
        """State that what is in memory at moment k fits the budget."""
        op = self.moments[k]
        terms = [
            (size * self.bytes, self._in_memory(k, value))
            for value, size in enumerate(self.size)
            if size and self.maker[value] <= op
        ]
        self.rows.add(terms, (self.room - int(self.problem.workspace[op])) * self.bytes)

    def _fit_runs(self, k: int) -> None:
        """State that ops that run again right before moment k have room beside what stays."""
        runs = [(op, run) for op in self.repeats.makers if (run := self._again(k, op)) != _ABSENT]
        if not runs:
            return
        stays = {value: column for value in range(len(self.size)) if (column := self._stays(k, value)) != _ABSENT}
        total, room = len(self.cost), self.room * self.bytes
        self.cost.append(0.0)
        # `total` is a share of the room, as columns lie between 0 and 1.
        terms = [(self.size[value] * self.bytes, column) for value, column in stays.items()]
        self.rows.add([*terms, (-room, total)], 0.0)
        for op, run in runs:
            touched = {*self.problem.reads[op], *self.problem.makes[op]}
            needs = sum(self.size[value] for value in touched) + int(self.problem.workspace[op])
            own = [(-self.size[value] * self.bytes, stays[value]) for value in touched if value in stays]
            self.rows.add([(room, total), (needs * self.bytes, run), *own], room)

    def _stays(self, k: int, value: int) -> int:
        """Return the column of what is there all the time from moment k - 1 to k."""
        if not self.size[value] or self.maker[value] >= self.ends[k]:
            return _ABSENT
        before, now = self._in_memory(k - 1, value), self._in_memory(k, value)
        again = self._again(k, self.repeats.maker[value])
        if _ABSENT in (before, now):
            return _ABSENT
        if again == _ABSENT and _PRESENT in (before, now):
            return now if before == _PRESENT else before
        stays = self._column(self.through, (k, value))
        self.rows.add([(1.0, before), (1.0, now), (-1.0, again), (-1.0, stays)], 1.0)
        return stays


class _Rows:
    """Rows of terms, each at most a number."""

    def __init__(self) -> None:
        self._rows: list[dict[int, float]] = []
        self._upper: list[float] = []

    def add(self, terms: Sequence[Term], upper: float) -> None:
        row: dict[int, float] = {}
        for coefficient, column in terms:
            if column == _PRESENT:
                upper -= coefficient
            elif column != _ABSENT:
                row[column] = row.get(column, 0.0) + coefficient
        if row or upper < 0:
            self._rows.append(row)
            self._upper.append(upper)

    def csr(self) -> tuple[Ints, Ints, Floats, Floats]:
        """Return start, column, value and upper."""
        start = np.concatenate([[0], np.cumsum([len(row) for row in self._rows])]).astype(np.int64)
        column = np.array([c for row in self._rows for c in sorted(row)], dtype=np.int64)
        value = np.array([row[c] for row in self._rows for c in sorted(row)], dtype=np.float64)
        return start, column, value, np.array(self._upper, dtype=np.float64)


class _Walk:
    """Program order, in which what is missing is made again: as late as it can be."""

    def __init__(
        self,
        problem: Problem,
        moments: Sequence[int],
        free: dict[tuple[int, int], int],
        kept: set[tuple[int, int]],
    ) -> None:
        self.problem, self.moments = problem, moments
        self.free, self.kept = free, kept
        self.order: list[int] = []
        self.there: set[int] = {*self.problem.initial.tolist()}

    def nodes(self) -> Ints | None:
        """Return the sequence; None where something must not run again when it is missing."""
        k, ops = 0, self.problem.ops
        for op in range(ops):
            wanted = list(self.problem.reads[op])
            at_moment = k < len(self.moments) and self.moments[k] == op
            if at_moment:
                wanted += [value for moment, value in self.kept if moment == k]
            if not all(self._make(value, op) for value in wanted):
                return None
            self.order.append(op)
            self.there.update(self.problem.makes[op])
            if at_moment:
                self.there -= {value for moment, value in self.free if moment == k and (k, value) not in self.kept}
                k += 1
        if not all(self._make(value, ops) for value in self.problem.kept.tolist()):
            return None
        return np.array(self.order, dtype=np.int64)

    def _make(self, value: int, before: int) -> bool:
        """Make *value* again, if it is missing, and what that needs; whether it can be."""
        if value in self.there:
            return True
        pending = [value]
        while pending:
            unit = self.problem.unit_of[pending[-1]]
            if pending[-1] in self.there:
                pending.pop()
                continue
            if unit == NOTHING or not self.problem.may_run(unit, before) or len(pending) > self.problem.ops:
                return False
            node = self.problem.ops + unit
            missing = [needed for needed in self.problem.reads[node] if needed not in self.there]
            if missing:
                pending += missing
                continue
            self.order.append(node)
            self.there.update(self.problem.makes[node])
            pending.pop()
        return True
