"""Retention intervals in CP-SAT: how long each value is kept, from its op and from every recompute of it.

Source: Bartan, Li, Teague, Lott, Dilkina, "Moccasin: Efficient Tensor Rematerialization for Neural
Networks", ICML 2023: one interval per execution, a staged order (before op j runs, units may run again,
each once, in order), one cumulative constraint for memory. The paper's C counts executions, of which
C - 1 are recomputes; its experiments have C = 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import floor, inf
from typing import TYPE_CHECKING, Any

import numpy as np

from graphsim.core.cpsat import Watch, minimise, new_model
from graphsim.core.index import NOTHING, Floats, Ints
from graphsim.recompute.evaluation import evaluate
from graphsim.recompute.problem import Problem
from graphsim.recompute.solvers.windows import Windows

if TYPE_CHECKING:
    from ortools.sat.python.cp_model import CpModel

_PARTS = 10**9
"""Of the cost of all nodes: what costs are rounded down to, where they are not small whole numbers."""
ALONE, _WORKERS = 150, 8
"""Ops up to which one worker is the fastest to prove an optimum, and the workers that search larger graphs."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the solver found.

    Attributes:
        nodes: the sequence; None if none was found.
        bound: what any sequence of stages costs extra, however often its units run again; infinity if none fits.
        solved: no sequence with so few recomputes is cheaper, or none fits.
        enough: nor is one with more.
        interrupted: by Ctrl-C.
    """

    nodes: Ints | None
    bound: float
    solved: bool
    enough: bool
    interrupted: bool


def solve(
    problem: Problem,
    budget: int,
    *,
    seconds: float,
    seed: int = 0,
    hint: Ints | None = None,
    recomputes: int = 1,
    watch: Watch | None = None,
) -> Answer:
    """Return the cheapest sequence of stages within *budget* whose units run again *recomputes* times each at most.

    Args:
        problem: what may run.
        budget: bytes.
        seconds: time limit.
        seed: of the solver.
        hint: a sequence to start from; what it runs more often may run so often, and if it fits, it is to be beaten.
        recomputes: of each unit.
        watch: told of the extra cost of the best, and of a bound for sequences with so few recomputes.

    Raises:
        MissingExtraError: OR-Tools is not installed.
    """
    empty = new_model()
    most = inf if hint is None else _extra_cost(problem, hint, budget)
    windows = Windows(problem, most)
    useful = windows.enough(most)
    often = np.zeros(2 * problem.ops, dtype=np.int64) if hint is None else np.bincount(hint, minlength=2 * problem.ops)
    counts = np.minimum(useful, np.maximum(recomputes, often[problem.ops :]))
    model = _Model(empty, windows, counts, budget)
    if hint is not None:
        model.hint(hint)

    def tell(best: float, bound: float) -> None:
        if watch is not None:
            watch(best * model.unit, bound * model.unit)

    workers = 1 if problem.ops <= ALONE else _WORKERS
    outcome = minimise(model.model, seconds=seconds, seed=seed, workers=workers, watch=tell)
    enough = bool((counts == useful).all())
    return Answer(
        nodes=None if outcome.value is None else model.nodes(outcome.value),
        bound=min(most, outcome.bound * model.unit) if enough else 0.0,
        solved=outcome.solved,
        enough=enough,
        interrupted=outcome.interrupted,
    )


def _extra_cost(problem: Problem, nodes: Ints, budget: int) -> float:
    """Return the cost of the recomputes of *nodes*; infinity if they do not fit."""
    state = evaluate(problem, nodes)
    return float(problem.cost[nodes[nodes >= problem.ops]].sum()) if state.peak <= budget else inf


def _unit(cost: Floats) -> float:
    """Return what the solver, which takes integers only, counts costs in."""
    total = float(cost.sum())
    whole = bool((cost == np.floor(cost)).all()) and total < 2.0**53
    common = int(np.gcd.reduce(cost.astype(np.int64))) if whole else 0
    return (float(common) if total <= _PARTS * common else total / _PARTS) or 1.0


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """A recompute of a unit, if it is active: its stage, its position, the range of that, and who reads its copies."""

    active: Any
    stage: Any
    start: Any
    low: int
    high: int
    reads: list[Any] = field(default_factory=list)


_Copies = dict[_Run | None, Any]
"""Something of each copy of a value: of the first one (None), and of those that recomputes make."""


class _Model:
    """Positions: stage j holds a slot for each unit, in order, and at its end op j."""

    def __init__(self, model: CpModel, windows: Windows, counts: Ints, budget: int) -> None:
        """Build it; each unit runs again up to *counts* times."""
        self.model, self.windows, self.problem = model, windows, windows.problem
        self.room = budget - self.problem.constant
        self.width = len(windows.order) + 1
        self.end = self.problem.ops * self.width
        self.unit = _unit(self.problem.cost)
        self.runs = {unit: self._runs(unit, int(counts[unit])) for unit in windows.order}
        self.ends = [self._ends(value) for value in range(len(self.problem.size))]
        """Last position at which each copy of a value is there."""
        self.choices: list[tuple[int, int | _Run, _Copies]] = []
        """Value, position or recompute that reads it, and whether it reads each copy."""
        self._order()
        self._keep()
        self._fit()
        model.minimize(sum(self._costs()))

    def _runs(self, unit: int, count: int) -> list[_Run]:
        """Return the recomputes of a unit; where it may have one in every stage, each has its own."""
        low, high = int(self.windows.run_low[unit]), int(self.windows.run_high[unit])
        rank = int(self.windows.rank[unit])
        runs = []
        for first in range(low, low + count):
            last = first if count > high - low else high
            stage = first if first == last else self.model.new_int_var(first, last, "")
            active = self.model.new_bool_var("")
            start: Any = stage * self.width + rank
            runs.append(_Run(active, stage, start, first * self.width + rank, last * self.width + rank))
        return runs

    def _ends(self, value: int) -> _Copies:
        if not self.problem.size[value]:
            return {}
        makers = self.runs.get(self.windows.unit_of[value], [])
        return {run: self.model.new_int_var(NOTHING, self.end, "") for run in (None, *makers)}

    def _at(self, op: int) -> int:
        """Return the position of *op* of program order: behind all slots of its stage."""
        return op * self.width + self.width - 1

    def _order(self) -> None:
        """Recomputes of a unit come one after the other, and when one comes, older copies are gone."""
        for runs in self.runs.values():
            for before, run in pairwise(runs):
                if not isinstance(run.stage, int):
                    self.model.add_implication(run.active, before.active)
                    self.model.add(run.stage > before.stage).only_enforce_if(run.active)
        for ends in self.ends:
            for (_, before_end), (copy, _) in pairwise(ends.items()):
                if copy is not None:  # only the first is
                    self.model.add(before_end < copy.start).only_enforce_if(copy.active)

    def _keep(self) -> None:
        """State what must be there when."""
        problem = self.problem
        for op in range(problem.ops):
            for value in problem.reads[op]:
                self._read(value, self._at(op))
        for value in problem.kept.tolist():
            self._read(value, self.end)
        for unit, runs in self.runs.items():
            for value in problem.reads[problem.ops + unit]:
                for run in runs:
                    self._read(value, run)
        for run in (run for runs in self.runs.values() for run in runs):
            self.model.add_bool_or([*run.reads, ~run.active])  # what nothing reads is not made

    def _read(self, value: int, reader: int | _Run) -> None:
        """A copy of *value* is there at a position, or when a recompute runs."""
        if not self.problem.size[value]:
            return
        model = self.model
        at: Any = reader.start if isinstance(reader, _Run) else reader
        last = reader.high if isinstance(reader, _Run) else reader
        idle = [~reader.active] if isinstance(reader, _Run) else []
        copies = [run for run in self.ends[value] if run is None or run.low < last]
        choice: _Copies = {run: model.new_bool_var("") for run in copies}
        model.add_exactly_one([*choice.values(), *idle])
        for run, chosen in choice.items():
            model.add(self.ends[value][run] >= at).only_enforce_if(chosen)
            if run is not None:
                model.add_implication(chosen, run.active)
                model.add(run.start < at).only_enforce_if(chosen)
                run.reads.append(chosen)
        self.choices.append((value, reader, choice))

    def _fit(self) -> None:
        """At every position, there is room for all that is there."""
        occupied = [(interval, nbytes) for interval, nbytes in self._intervals() if nbytes]
        demands = [nbytes for _, nbytes in occupied]
        scale = max(1, int(np.gcd.reduce(np.array([0, *demands]))))
        room = max(0, self.room // scale)
        self.model.add_cumulative([interval for interval, _ in occupied], [n // scale for n in demands], room)

    def _intervals(self) -> Iterator[tuple[Any, int]]:
        """Yield what occupies memory, and how many bytes of it."""
        model, problem = self.model, self.problem
        for value in np.flatnonzero(problem.size).tolist():
            maker = int(problem.maker[value])
            for run, end in self.ends[value].items():
                start, active = (run.start, run.active) if run else (0 if maker == NOTHING else self._at(maker), True)
                made = run is not None or maker != NOTHING  # what nothing makes or reads is never there
                length = model.new_int_var(int(made), self.end + 1, "")
                yield model.new_optional_interval_var(start, length, end + 1, active, ""), int(problem.size[value])
        for op, nbytes in enumerate(problem.workspace[: problem.ops].tolist()):
            yield model.new_fixed_size_interval_var(self._at(op), 1, ""), nbytes
        for unit, runs in self.runs.items():
            nbytes = int(problem.workspace[problem.ops + unit])
            for run in runs:
                yield model.new_optional_fixed_size_interval_var(run.start, 1, run.active, ""), nbytes

    def _costs(self) -> Iterator[Any]:
        """Yield the cost of each recompute, rounded down; views that have not run yet do not run again."""
        for unit, runs in self.runs.items():
            since, costs = self.problem.since[unit], self.problem.cost
            views = [op for op in self.problem.members[unit] if op > since and costs[op]]
            for run in runs:
                yield floor(float(self.windows.cost[unit]) / self.unit) * run.active
                for op in views:
                    late = self.model.new_bool_var("")
                    self.model.add(run.stage <= op).only_enforce_if(run.active, ~late)
                    yield floor(float(costs[op]) / self.unit) * late

    def nodes(self, value: Any) -> Ints:
        """Return the sequence of a solution."""
        starts = {unit: [value(run.start) for run in runs if value(run.active)] for unit, runs in self.runs.items()}
        return self._sequence(starts)[0]

    def _sequence(self, starts: dict[int, list[int]]) -> tuple[Ints, list[int]]:
        """Return the sequence in which units run again at *starts*, and the position of each execution."""
        ops = self.problem.ops
        order = [(self._at(op), op) for op in range(ops)]
        order += [(start, ops + unit) for unit, places in starts.items() for start in places]
        order.sort()
        return np.array([node for _, node in order], dtype=np.int64), [at for at, _ in order]

    def hint(self, nodes: Ints) -> None:
        """Suggest what of *nodes* is of the form, down to every copy, so that the solver has nothing left to find."""
        placed = self._placed(nodes)
        starts = {unit: [placed[run] for run in runs if run in placed] for unit, runs in self.runs.items()}
        form, places = self._sequence(starts)
        state = evaluate(self.problem, form)
        places.append(self.end)
        suggest = self.model.add_hint
        for run in (run for runs in self.runs.values() for run in runs):
            suggest(run.active, run in placed)
            if run in placed and not isinstance(run.stage, int):
                suggest(run.stage, placed[run] // self.width)
        for ends, row in zip(self.ends, state.first_row.tolist(), strict=True):
            there = [end for run, end in ends.items() if run is None or run in placed]
            for end, last in zip(there, state.lasts[row : row + len(there)], strict=True):
                suggest(end, places[last])
        for _, reader, choice in self.choices:
            at = placed.get(reader, NOTHING) if isinstance(reader, _Run) else reader
            latest = [run for run in choice if run is None or placed.get(run, self.end) < at][-1:]
            for copy, chosen in choice.items():
                suggest(chosen, at != NOTHING and copy in latest)

    def _placed(self, nodes: Ints) -> dict[_Run, int]:
        """Return the position of each recompute in *nodes* that the form has a place for."""
        windows, next_op = self.windows, evaluate(self.problem, nodes).next_op
        found: dict[int, set[int]] = {unit: set() for unit in self.runs}
        for unit, stage in zip((nodes - self.problem.ops).tolist(), next_op.tolist(), strict=True):
            if unit in found and windows.run_low[unit] <= stage <= windows.run_high[unit]:
                found[unit].add(stage * self.width + int(windows.rank[unit]))
        placed = {}
        for unit, starts in found.items():
            runs = iter(self.runs[unit])
            for start in sorted(starts):
                run = next((run for run in runs if run.low <= start <= run.high), None)
                if run is not None:
                    placed[run] = start
        return placed
