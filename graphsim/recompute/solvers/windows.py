"""When it may be of use to run a unit again, and to keep a value: windows of stages.

Stage t ends with the first execution of op t of program order; before it, units run again, each once, in order.
"""

from __future__ import annotations

from math import inf

import numpy as np

from graphsim.core.index import NOTHING, Ints
from graphsim.recompute.problem import Problem

_SLACK = 1 + 1e-9
"""Sums of costs are rounded."""


class Windows:
    """The stages in which units may usefully run again and values be stored.

    Attributes:
        order: units that may run again, in the order in which they do so within a stage.
        rank: (N) place of each unit in it; `NOTHING` for the others.
        run_low, run_high: (N) first and last stage in which each unit may run again.
        keep_low, keep_high: (V) first and last stage at whose start each value may be stored; stage N is the end.
        cost: (N) what it costs at least to run a unit again: views that have not run yet do not run again.
    """

    def __init__(self, problem: Problem, most: float = inf) -> None:
        """Work them out for sequences of an extra cost of *most*: dearer units do not run again."""
        self.problem, ops = problem, problem.ops
        self.run_low, self.run_high = np.zeros(ops, dtype=np.int64), np.full(ops, NOTHING)
        self.keep_low = problem.maker + 1
        self.op_reads = _readers(problem, range(ops))
        last = np.array([max(readers, default=NOTHING) for readers in self.op_reads], dtype=np.int64)
        last[problem.kept] = ops
        self.last_read = last.copy()
        self.cost = np.array(
            [
                problem.cost[[op for op in members if op <= since]].sum()
                for members, since in zip(problem.members, problem.since.tolist(), strict=True)
            ]
        )
        units = [u for u in range(ops) if problem.unit[u] == u and problem.until[u] > problem.since[u]]
        units = [unit for unit in units if self.cost[unit] <= most * _SLACK]
        units.sort(key=lambda unit: (int(problem.since[unit]), unit))
        self._extend(units, last)
        self.order = [unit for unit in units if self.run_low[unit] <= self.run_high[unit]]
        self.rank = np.full(ops, NOTHING)
        self.rank[self.order] = np.arange(len(self.order))
        self.keep_high = np.where(problem.size > 0, last, NOTHING)
        self.unit_reads = _readers(problem, [ops + unit for unit in self.order])
        self.unit_of = [u if u != NOTHING and self.rank[u] != NOTHING else NOTHING for u in problem.unit_of]

    def _extend(self, units: list[int], last: Ints) -> None:
        """Work out when units are of use, from what reads what they make; *last* use of values grows with it."""
        problem, changed = self.problem, True
        while changed:
            changed = False
            for unit in reversed(units):
                node = problem.ops + unit
                wanted = [int(last[v]) for v in problem.makes[node] if problem.size[v]]
                high = min(int(problem.until[unit]), problem.ops - 1, max(wanted, default=NOTHING))
                low = int(problem.since[unit]) + 1
                if high < low or high <= self.run_high[unit]:
                    continue
                self.run_low[unit], self.run_high[unit], changed = low, high, True
                for value in problem.reads[node]:
                    last[value] = max(int(last[value]), high)

    def enough(self, most: float = inf) -> Ints:
        """Return (N) how often units run again at most in some cheapest sequence, if that costs *most* extra or less.

        A unit runs once in a stage at most, and no more often than something reads what it makes: any op that
        reads it, any recompute of a unit that reads it, and the end if it is kept.
        """
        counts = np.maximum(0, self.run_high - self.run_low + 1)
        kept = {*self.problem.kept.tolist()}
        for unit in reversed(self.order):
            values = {value for value in self.problem.makes[self.problem.ops + unit] if self.problem.size[value]}
            ops = {op for value in values for op in self.op_reads[value] if op >= self.run_low[unit]}
            units = {reader for value in values for reader in self.unit_reads[value]} - {unit}
            reads = len(ops) + int(counts[[*units]].sum()) + bool(values & kept)
            paid = most * _SLACK / self.cost[unit] if self.cost[unit] else inf
            counts[unit] = int(min(counts[unit], reads, paid))
        return counts


def _readers(problem: Problem, nodes: range | list[int]) -> list[list[int]]:
    """Return for each value which of *nodes* (ops, or units by their first op) read it."""
    found: list[list[int]] = [[] for _ in problem.size]
    for node in nodes:
        for value in problem.reads[node]:
            found[value].append(node % problem.ops)
    return found
