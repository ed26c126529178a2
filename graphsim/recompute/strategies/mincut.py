"""Min-cut with a memory budget, as PyTorch's partitioner chooses what to save for backward.

Source: torch/_functorch/partitioners.py of PyTorch 2.13, `choose_saved_values_set`, and
torch/_functorch/_activation_checkpointing/knapsack.py, `dp_knapsack`. Its `activation_memory_budget` is a number in
0 ... 1: of the bytes saved, between what the inputs need (0) and what the fastest cut saves (1):

- at 1, the cheapest cut of the joint graph where only cheap ops run again; below, cuts with fewer bans;
- if these save too much, a knapsack chooses which of the expensive ops to save, by their time, within the budget;
  its weights are rounded to 1/10,000;
- at 0, everything runs again.

What is not saved runs again when backward first needs it, with all it needs (`reordering_to_mimic_autograd_engine`),
and once only: a long stretch without saved values runs again at a stroke, and all of it is live then. So less saved
can mean a higher peak. That is PyTorch's way and is kept: here the setting is searched, in steps of 1/10 and then
of 1/50, for the cheapest plan whose true peak is within the budget.

The rules of the cut, and how they differ as our ops are kernels, are in `mincut_graph`. The time of an op is its
cost (see `op_costs`); PyTorch takes its flops by default.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from graphsim.core.graph import Phase
from graphsim.core.index import Floats, Ints
from graphsim.core.schedule import Schedule
from graphsim.errors import UsageError
from graphsim.recompute.candidates import pick
from graphsim.recompute.case import Candidate, Case
from graphsim.recompute.problem import Problem
from graphsim.recompute.solvers.mincut_graph import Bans, Cut, JointGraph

COARSE, FINE = 10, 50
"""Settings that are tried: steps of 1/10, then around the best steps of 1/50."""
PARTS = 10_000
"""Equal parts in which the knapsack counts the budget."""


@dataclass(frozen=True, slots=True)
class MinCut:
    """Saves what the min-cut and the knapsack choose.

    Attributes:
        setting: PyTorch's `activation_memory_budget`; below 0, the best is searched.

    Raises:
        UsageError: *setting* is above 1.
    """

    setting: float = -1.0

    def __post_init__(self) -> None:
        if not self.setting <= 1:
            raise UsageError(f"setting must be in 0 ... 1, or below 0 for the best, not {self.setting}")

    def __call__(self, case: Case, budget: int | None = None, /) -> Schedule:
        """Return the cheapest that fits the budget; without one, the lowest peak of at most one more forward pass."""
        if not case.passes:
            return case.stored.schedule
        cuts = Cuts(case)
        if self.setting >= 0:
            return cuts.schedule(cuts.choose(self.setting))
        tried: dict[frozenset[int], Candidate] = {}

        def judged(setting: float) -> Candidate:
            cut = cuts.choose(setting)
            if cut.again not in tried:
                tried[cut.again] = case.candidate(cuts.schedule(cut))
            return tried[cut.again]

        coarse = [(judged(i / COARSE), i / COARSE) for i in range(COARSE + 1)]
        best = pick(case, (candidate for candidate, _ in coarse), budget)
        near = next((setting for candidate, setting in coarse if candidate is best), None)
        if near is None:
            return best.schedule
        steps = range(round(FINE * (near - 1 / COARSE)), round(FINE * (near + 1 / COARSE)) + 1)
        fine = [judged(step / FINE) for step in steps if 0 <= step <= FINE]
        return pick(case, [best, *fine], budget).schedule


class Cuts:
    """The cuts of one case; each is worked out once."""

    def __init__(self, case: Case) -> None:
        self.graph, self.problem = case.graph, case.problem
        self.joint = JointGraph(self.graph, self.problem)

    def choose(self, setting: float) -> Cut:
        """Return the cut at *setting* (`choose_saved_values_set`)."""
        if setting == 0:
            return self.joint.everything()
        if setting == 1 or self._most <= self.joint.input_bytes:
            return self._fastest
        for share, cut in self._relaxing:
            if share < setting:
                return cut
        if not self._candidates:
            return self.joint.everything()
        saved = set(self._knapsack.choose(setting))
        dropped = {unit for i, unit in enumerate(self._candidates) if i not in saved}
        return self.joint.cut(self._expensive - dropped)

    @cached_property
    def _fastest(self) -> Cut:
        return self.joint.cut(self.joint.banned(Bans()))

    @cached_property
    def _expensive(self) -> set[int]:
        return self.joint.banned(Bans(False, False, False, False))

    @cached_property
    def _most(self) -> int:
        return self.joint.saved_bytes(self._fastest)

    @cached_property
    def _relaxing(self) -> list[tuple[float, Cut]]:
        """The cuts of fewer and fewer bans, and what each saves as a setting (`get_mem_ratio`)."""
        least = self.joint.input_bytes
        cuts = self.joint.cut(self.joint.banned(Bans(False, False, False))), self.joint.cut(self._expensive)
        return [((self.joint.saved_bytes(cut) - least) / (self._most - least), cut) for cut in cuts]

    @cached_property
    def _candidates(self) -> list[int]:
        """Units that are too expensive to run again by default, but could, largest first."""
        joint = self.joint
        able = (u for u in joint.units if u in self._expensive and u not in joint.stored and joint.distance[u] < 10**9)
        return sorted(able, key=joint.bytes_of, reverse=True)

    @cached_property
    def _knapsack(self) -> Knapsack:
        room = self._most - self.joint.input_bytes
        sizes = [self.joint.bytes_of(unit) / room for unit in self._candidates]
        costs = self.problem.cost[[self.problem.ops + unit for unit in self._candidates]]
        return Knapsack(sizes, costs)

    def schedule(self, cut: Cut) -> Schedule:
        """Return program order, and before each op of backward what it misses."""
        return self.problem.schedule(self.nodes(cut))

    def nodes(self, cut: Cut) -> Ints:
        """Return the schedule of *cut* as nodes of the problem."""
        problem = self.problem
        missing = {value for unit in cut.again for value in self.joint.makes[unit]}.difference(problem.kept.tolist())
        before: list[int] = []
        nodes: list[int] = []
        for op, reads in self._reading:
            if missing.isdisjoint(reads):
                continue
            for unit in _closure(problem, missing, missing.intersection(reads)):
                if problem.may_run(unit, op):  # else what it made is still there: liveness keeps it
                    before.append(op)
                    nodes.append(problem.ops + unit)
                missing.difference_update(problem.makes[problem.ops + unit])
        return np.insert(np.arange(problem.ops), before, nodes)

    @cached_property
    def _reading(self) -> list[tuple[int, list[int]]]:
        """Ops behind forward that read values, with these; holds apart."""
        ops, reads = self.graph.ops, self.problem.reads
        later = (op for op in range(len(ops)) if ops[op].phase is not Phase.FORWARD and not self.problem.hold[op])
        return [(op, reads[op]) for op in later if reads[op]]


def _closure(problem: Problem, missing: set[int], values: Iterable[int]) -> list[int]:
    """Return the units that make *values* and what they read that is missing, in program order."""
    stack, found = list(values), set[int]()
    while stack:
        unit = problem.unit_of[stack.pop()]
        if unit not in found:
            found.add(unit)
            stack += [value for value in problem.reads[problem.ops + unit] if value in missing]
    return sorted(found, key=lambda unit: (int(problem.since[unit]), unit))


class Knapsack:
    """The items worth most within a budget, by dynamic programming over rounded sizes (`dp_knapsack`)."""

    def __init__(self, sizes: list[float], worth: Floats) -> None:
        self.sizes = [round(size * PARTS) for size in sizes]
        best = np.zeros(PARTS + 1, dtype=np.float32)
        self._takes = np.zeros((len(sizes), PARTS + 1), bool)
        for i, (size, value) in enumerate(zip(self.sizes, worth.astype(np.float32), strict=True)):
            after = best.copy()
            if size == 0:
                after += value
            elif size <= PARTS:
                after[size:] = np.maximum(best[size:], best[:-size] + value)
            self._takes[i] = after != best
            best = after

    def choose(self, budget: float) -> list[int]:
        """Return the items that fit *budget* (a share of 1)."""
        room, chosen = round(budget * PARTS), []
        for i in range(len(self.sizes) - 1, -1, -1):
            if self._takes[i, room]:
                chosen.append(i)
                room -= self.sizes[i]
        return chosen
