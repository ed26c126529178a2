"""Checkmate's program over stages in sparse arrays, for its MILP and its LP relaxation.

Source: Jain et al., MLSys 2020, section 4 (frontier-advancing stages, equations 1 to 9). Stage t ends with the
first execution of op t; before it, units (see `recompute.problem`) may run again, each once, in a fixed order.

- R[t, u]: unit u runs again in stage t. S[t, v]: value v is in memory when stage t begins.
- F[t, v, k]: v is freed once slot k of stage t, a unit that reads or makes v, has run (the paper's FREE).
- U[t, k]: bytes live while slot k of stage t runs, but for workspace.

The paper states F as a product of negations, with a count of what forbids it. Here one row per reader says the same
and relaxes to a tighter LP: a slot runs at most as often as its input is there and has not been freed,
R[t, k] + sum of F[t, v, earlier slots] <= S[t, v] + R[t, unit of v]; the same for what is kept for the next stage.
Variables that no useful schedule sets are left out: R before its unit is complete or after anything can read
what it makes, S before the value exists or after its last use.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from graphsim.core.index import NOTHING, Bools, Floats, Ints
from graphsim.recompute.evaluation import evaluate
from graphsim.recompute.problem import Problem
from graphsim.recompute.solvers.windows import Windows

_COST, _BYTES = 1e3, 1e4
"""The cost of the step, and the room for bytes, are this many units: tolerances of solvers are absolute."""


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """Minimise cost @ x within bounds, rows in CSR; *integer* columns are 0 or 1."""

    cost: Floats
    lower: Floats
    upper: Floats
    row_lower: Floats
    row_upper: Floats
    start: Ints
    column: Ints
    value: Floats
    integer: Bools


def program_size(windows: Windows) -> int:
    """Return the number of variables R, S and U, and at most so many F: the size before the program is built."""
    problem = windows.problem
    run = np.maximum(0, windows.run_high - windows.run_low + 1)[windows.order]
    keep = np.maximum(0, windows.keep_high - windows.keep_low + 1)
    free = sum(
        int(run[windows.rank[unit]]) * (len(problem.reads[node]) + len(problem.makes[node]))
        for unit in windows.order
        for node in [problem.ops + unit]
    )
    return int(2 * run.sum() + keep.sum()) + free + problem.ops


class Model:
    """The program of a problem; built once, for any budget."""

    def __init__(self, problem: Problem, windows: Windows, budget: int) -> None:
        self.problem, self.windows = problem, windows
        self.bytes = _BYTES / max(1, budget - problem.constant)
        self.base = float(problem.cost[: problem.ops].sum()) or 1.0
        self._number()
        self._rows = _Rows()
        for value in np.flatnonzero(windows.keep_high >= windows.keep_low).tolist():
            self._flow(value)
        for unit in windows.order:
            self._discard(unit)
        self._account()
        self.program = self._program()

    def _number(self) -> None:
        """Number the variables: R by unit and stage, S by value and stage, F by value, slot and stage, U."""
        windows, problem = self.windows, self.problem
        order = np.array(windows.order, dtype=np.int64)
        length = (windows.run_high - windows.run_low + 1)[order]
        self.run_unit = np.repeat(order, length)
        begin = np.cumsum(length) - length
        self.run_stage = np.arange(len(self.run_unit)) - np.repeat(begin, length) + windows.run_low[self.run_unit]
        self.run_first = np.full(problem.ops, NOTHING)
        self.run_first[order] = begin
        self.runs = len(self.run_unit)
        length = np.maximum(0, windows.keep_high - windows.keep_low + 1)
        self.keep_value = np.repeat(np.arange(len(length)), length)
        self.keep_first = self.runs + np.cumsum(length) - length
        self.keep_stage = np.arange(len(self.keep_value)) - (self.keep_first - self.runs)[self.keep_value]
        self.keep_stage += windows.keep_low[self.keep_value]
        self.columns = self.runs + len(self.keep_value)
        self.freed: list[tuple[Ints, Ints, int]] = []
        """Columns of F, the columns of R whose slots free, and the bytes that they free; by value."""

    def run(self, unit: int, stages: Ints) -> Ints:
        """Return the columns of R; `NOTHING` where there is none."""
        low, high = int(self.windows.run_low[unit]), int(self.windows.run_high[unit])
        return np.where((stages >= low) & (stages <= high), self.run_first[unit] + stages - low, NOTHING)

    def keep(self, value: int, stages: Ints) -> Ints:
        """Return the columns of S; `NOTHING` where there is none."""
        low, high = int(self.windows.keep_low[value]), int(self.windows.keep_high[value])
        return np.where((stages >= low) & (stages <= high), self.keep_first[value] + stages - low, NOTHING)

    def _flow(self, value: int) -> None:
        """State where *value* comes from, for everything that reads, frees or keeps it."""
        windows, unit = self.windows, self.windows.unit_of[value]
        stages = np.arange(windows.keep_low[value], windows.keep_high[value] + 1)
        inside = stages[stages < self.problem.ops]
        here = self.keep(value, inside)
        maker = windows.rank[unit] if unit != NOTHING else NOTHING
        again = self.run(unit, inside) if unit != NOTHING else np.full(len(inside), NOTHING)
        self._rows.add(len(inside), (here, 1.0), (again, 1.0), upper=1.0)
        readers = sorted(
            {*windows.unit_reads[value], *([unit] if unit != NOTHING else [])}, key=windows.rank.__getitem__
        )
        free = np.isin(inside, windows.op_reads[value], invert=True)
        if unit == NOTHING:
            free &= inside + 1 > windows.last_read[value]
        gone: list[tuple[Ints, float]] = []
        for reader in readers:
            slot = self.run(reader, inside)
            if reader != unit:
                early = windows.rank[reader] < maker
                if early:  # only where mutations tie units into a circle: the two never share a stage
                    self._rows.add(len(inside), (slot, 1.0), (again, 1.0), upper=1.0, where=slot != NOTHING)
                made = np.full(len(inside), NOTHING) if early else again
                self._rows.add(
                    len(inside), (slot, 1.0), *gone, (here, -1.0), (made, -1.0), upper=0.0, where=slot != NOTHING
                )
            gone.append((self._free(slot, free, int(self.problem.size[value])), 1.0))
        reads = np.isin(inside, windows.op_reads[value])
        self._rows.add(len(inside), (here, -1.0), (again, -1.0), upper=-1.0, where=reads)
        later = self.keep(value, inside + 1)
        self._rows.add(len(inside), (later, 1.0), *gone, (here, -1.0), (again, -1.0), upper=0.0, where=later != NOTHING)

    def _discard(self, unit: int) -> None:
        """What *unit* makes in stages where nothing reads it any more is gone with the slot: R stands for F."""
        for value in self.problem.makes[self.problem.ops + unit]:
            low = max(int(self.windows.run_low[unit]), int(self.windows.keep_high[value]) + 1)
            slot = self.run(unit, np.arange(low, self.windows.run_high[unit] + 1))
            self.freed.append((slot, slot, int(self.problem.size[value])))

    def _free(self, slot: Ints, allowed: Bools, size: int) -> Ints:
        """Return new columns of F for the slots *slot*, a value's of *size* bytes, where *allowed*."""
        wanted = allowed & (slot != NOTHING)
        column = np.full(len(slot), NOTHING)
        column[wanted] = self.columns + np.arange(int(wanted.sum()))
        self.columns += int(wanted.sum())
        self.freed.append((column[wanted], slot[wanted], size))
        self._rows.add(len(slot), (column, 1.0), (slot, -1.0), upper=0.0, where=wanted)
        return column

    def _account(self) -> None:
        """State the bytes that are live in every slot: the units of a stage in order, then its op."""
        problem, ops, runs = self.problem, self.problem.ops, self.runs
        made = np.zeros(2 * ops)
        np.add.at(made, np.repeat(np.arange(2 * ops), np.diff(problem.make_start)), problem.size[problem.make_value])
        made *= self.bytes
        order = self._slots(np.arange(runs))
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        self.live = self.columns + place
        """Column of U for each column of R, then for each op."""
        self.columns += len(order)
        stage = np.concatenate([self.run_stage, np.arange(ops)])[order]
        follows = np.flatnonzero(np.diff(stage) == 0) + 1
        begins = np.searchsorted(stage, np.arange(ops))
        kept = np.flatnonzero(self.keep_stage < ops)
        sizes = problem.size.astype(np.float64)[self.keep_value[kept]] * self.bytes
        entries = [
            (np.arange(len(order)), self.live[order], np.ones(len(order))),
            (follows, self.live[order][follows - 1], np.full(len(follows), -1.0)),
            (place[:runs], np.arange(runs), -made[ops + self.run_unit]),
            (begins[self.keep_stage[kept]], runs + kept, -sizes),
        ]
        for column, slot, size in self.freed:
            entries.append((place[slot] + 1, column, np.full(len(column), size * self.bytes)))
        constant = np.concatenate([np.zeros(runs), made[:ops]])[order]
        self._rows.extend(len(order), entries, constant, constant)
        self._limit_workspace()

    def _limit_workspace(self) -> None:
        """What units use as scratch has room beside what is live; that of ops is taken from their bounds."""
        space: Floats = self.problem.workspace[self.problem.ops + self.run_unit].astype(np.float64) * self.bytes
        columns = np.flatnonzero(space > 0)
        first = self._rows.count
        self._rows.add(len(columns), (self.live[columns], 1.0), (columns, space[columns]), upper=_BYTES)
        self._space_rows = slice(first, first + len(columns))

    def _slots(self, runs: Ints) -> Ints:
        """Return the order of slots: the columns *runs* of R, by their place among these, and then the ops."""
        ops = self.problem.ops
        stage = np.concatenate([self.run_stage[runs], np.arange(ops)])
        rank = np.concatenate([self.windows.rank[self.run_unit[runs]], np.full(ops, len(self.windows.order))])
        return np.lexsort((rank, stage))

    def _program(self) -> Program:
        problem, windows = self.problem, self.windows
        cost, upper = np.zeros(self.columns), np.ones(self.columns)
        lower = np.zeros(self.columns)
        cost[: self.runs] = self._run_costs() * (_COST / self.base)
        keep = self.runs + np.arange(len(self.keep_value))
        fixed = np.array([unit == NOTHING for unit in windows.unit_of], bool)[self.keep_value]
        lower[keep] = (fixed & (self.keep_stage <= windows.last_read[self.keep_value])) | (
            self.keep_stage == problem.ops
        )
        upper[self.live] = _BYTES
        upper[self.live[self.runs :]] -= problem.workspace[: problem.ops] * self.bytes
        integer = np.zeros(self.columns, bool)
        integer[: self.runs + len(keep)] = True  # F follows: with R and S given, it is integral by itself
        start, column, value, row_lower, row_upper = self._rows.csr()
        return Program(cost, lower, upper, row_lower, row_upper, start, column, value, integer)

    def _run_costs(self) -> Floats:
        """Return the cost of each R: views of a unit that have not run yet are not run again."""
        problem = self.problem
        costs = np.zeros(self.runs)
        for unit in self.windows.order:
            members = np.array(problem.members[unit], dtype=np.int64)
            total = np.concatenate([[0.0], np.cumsum(problem.cost[members])])
            begin, stages = (
                int(self.run_first[unit]),
                np.arange(self.windows.run_low[unit], self.windows.run_high[unit] + 1),
            )
            costs[begin : begin + len(stages)] = total[np.searchsorted(members, stages)]
        return costs

    def within(self, budget: int) -> Program:
        """Return the program for another budget, up to the one of the model."""
        problem, room = self.problem, (budget - self.problem.constant) * self.bytes
        upper, row_upper = self.program.upper.copy(), self.program.row_upper.copy()
        upper[self.live] = room
        upper[self.live[self.runs :]] -= problem.workspace[: problem.ops] * self.bytes
        row_upper[self._space_rows] = room
        return replace(self.program, upper=upper, row_upper=row_upper)

    def cost(self, objective: float) -> float:
        """Return the cost that an objective value of the program stands for."""
        return objective * self.base / _COST

    def nodes(self, x: Floats) -> Ints:
        """Return the sequence of a solution."""
        chosen = np.flatnonzero(x[: self.runs] > 0.5)
        nodes = np.concatenate([self.problem.ops + self.run_unit[chosen], np.arange(self.problem.ops)])
        return np.asarray(nodes[self._slots(chosen)])

    def stored(self, x: Floats) -> Floats:
        """Return S (N + 1, V) of a solution."""
        matrix = np.zeros((self.problem.ops + 1, len(self.problem.size)))
        matrix[self.keep_stage, self.keep_value] = x[self.runs : self.runs + len(self.keep_value)]
        return matrix

    def solution(self, nodes: Ints) -> Floats | None:
        """Return R and S of a sequence, its units in the program's order; None if one runs twice in a stage."""
        unit, next_op = nodes - self.problem.ops, evaluate(self.problem, nodes).next_op
        x = np.zeros(self.runs + len(self.keep_value))
        for at in np.flatnonzero(unit >= 0).tolist():
            run = int(self.run(int(unit[at]), next_op[at : at + 1])[0])
            if self.windows.rank[unit[at]] == NOTHING or run == NOTHING or x[run]:
                return None
            x[run] = 1.0
        state = evaluate(self.problem, self.nodes(x))
        ends = np.flatnonzero(state.nodes < self.problem.ops)
        begins = np.concatenate([[0], ends + 1])  # of each stage, and the end
        for value, born, last in zip(state.value.tolist(), state.born.tolist(), state.last.tolist(), strict=True):
            kept = self.keep(value, np.arange(*np.searchsorted(begins, [born + 1, last + 1])))
            x[kept[kept != NOTHING]] = 1.0
        return x


class _Rows:
    """Builder of the rows."""

    def __init__(self) -> None:
        self.count = 0
        self._parts: list[tuple[Ints, Ints, Floats]] = []
        self._lower: list[Floats] = []
        self._upper: list[Floats] = []

    def add(self, count: int, *terms: tuple[Ints, float | Floats], upper: float, where: Bools | None = None) -> None:
        """Add *count* rows, or those *where*: sum of terms (column of each or `NOTHING`, coefficient) <= upper."""
        chosen = np.arange(count) if where is None else np.flatnonzero(where)
        if not len(chosen):
            return
        entries = []
        for column, coefficient in terms:
            there = np.flatnonzero(column[chosen] != NOTHING)
            values = np.broadcast_to(np.asarray(coefficient, dtype=np.float64), column.shape)
            entries.append((there, column[chosen][there], values[chosen][there]))
        self.extend(len(chosen), entries, np.full(len(chosen), -np.inf), np.full(len(chosen), upper))

    def extend(self, count: int, entries: list[tuple[Ints, Ints, Floats]], lower: Floats, upper: Floats) -> None:
        """Add *count* rows with *entries*: (row among them, column, value)."""
        self._parts += [(row + self.count, column, value) for row, column, value in entries]
        self._lower.append(lower)
        self._upper.append(upper)
        self.count += count

    def csr(self) -> tuple[Ints, Ints, Floats, Floats, Floats]:
        """Return start, column, value, lower and upper; each entry once, as HiGHS asks without checking it."""
        row, column, value = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        order = np.lexsort((column, row))
        row, column, value = row[order], column[order], value[order]
        first = np.flatnonzero(np.diff(row, prepend=-1) | np.diff(column, prepend=-1))
        start = np.searchsorted(row[first], np.arange(self.count + 1))
        total = np.add.reduceat(value, first)
        return start, column[first], total, np.concatenate(self._lower), np.concatenate(self._upper)
