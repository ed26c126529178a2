"""What no schedule can do without: of memory; of time, as long as the ops first run in program order; of time at all.

Between two uses of a value, in program order, lies a *gap*. When an op runs for the first time, the values whose
gaps it lies in and that are not in memory must be made again before their gaps end, and gaps of one value do not
overlap: so each gap in which the value is ever absent costs a recompute. At every op, what is absent must make up
for what the budget has no room for. The least cost of that, with fractions allowed, is a linear program: its dual
puts a price on every byte at every op, and any prices give a bound. The best single op gives the first prices (a
knapsack); subgradient steps raise them to nearly the optimum.

Source: Held, Wolfe, Crowder, "Validation of subgradient optimization", Mathematical Programming 6, 1974.

In any order that the data allow, an op first runs after all that it depends on, and before all that depends on it. So
what the ones made and the others read is in memory then, or made again later: the knapsack of that op alone.
`recompute.proof` raises the bound for program order as far as its time allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np

from graphsim.core.graph import Graph, Op, Tensor
from graphsim.core.index import NOTHING, Bools, Floats, Ints
from graphsim.recompute.evaluation import Evaluation
from graphsim.recompute.problem import Problem

_STEPS, _AIM = 1000, 2.0
"""Subgradient steps, and the bound that they aim at: so many times the best so far."""
_PATIENCE = 20
"""Steps without a better bound before they are made shorter, by `_SHORTER`."""
_SHORTER = 0.7
_SAFE = 1 - 1e-9
"""For rounding errors."""
_LOOKS = 16
"""Ops for which the bound in any order is worked out: those at which program order needs the most."""


def extra_cost(stored: Evaluation, budget: int) -> float:
    """Return a lower bound of what recompute costs within *budget*; infinity if no recompute can help.

    Args:
        stored: program order.
        budget: bytes.
    """
    excess = np.maximum(stored.memory - budget, 0).astype(np.float64)
    gaps = _gaps_of(stored, excess > 0)
    if (gaps.absent(np.ones(len(gaps.size), bool)) < excess).any():
        return float("inf")
    singles = [gaps.prices_at(op, float(excess[op])) for op in np.flatnonzero(excess).tolist()]
    best = max([np.zeros(stored.problem.ops), *singles], key=lambda prices: gaps.bound(prices, excess)[0])
    return gaps.bound(_ascend(gaps, excess, best), excess)[0] * _SAFE


@dataclass(frozen=True, slots=True)
class _Gaps:
    """Gaps that an op above the budget lies in.

    Attributes:
        begin, end: the uses of the value at either end, as ops.
        size, cost: bytes of the value; its part, by bytes, of the cost of the op that makes it and others with gaps.
        ops: number of ops.
    """

    begin: Ints
    end: Ints
    size: Floats
    cost: Floats
    ops: int

    def absent(self, chosen: Bools) -> Floats:
        """Return the bytes absent at each op if the values of the *chosen* gaps are."""
        size = self.size * chosen
        change = np.bincount(self.begin + 1, size, self.ops + 1) - np.bincount(self.end, size, self.ops + 1)
        absent: Floats = np.cumsum(change)[: self.ops]
        return absent

    def bound(self, prices: Floats, excess: Floats) -> tuple[float, Bools]:
        """Return the bound by *prices* of a byte at each op, and the gaps through which keeping a value is dearer."""
        total = np.concatenate([[0.0], np.cumsum(prices)])
        gain = self.size * (total[self.end] - total[self.begin + 1]) - self.cost
        dear = gain > 0
        return float(prices @ excess - gain[dear].sum()), dear

    def prices_at(self, op: int, excess: float) -> Floats:
        """Return the prices of the fractional knapsack at *op* alone."""
        here = np.flatnonzero((self.begin < op) & (op < self.end))
        here = here[np.argsort(self.cost[here] / self.size[here], kind="stable")]
        last = here[min(int(np.searchsorted(np.cumsum(self.size[here]), excess)), len(here) - 1)]
        prices = np.zeros(self.ops)
        prices[op] = self.cost[last] / self.size[last]
        return prices


def _gaps_of(stored: Evaluation, matters: Bools) -> _Gaps:
    """Return the gaps of values that can be made again, if an op that *matters* lies in them."""
    problem = stored.problem
    maker = problem.maker[stored.value]
    size = problem.size[stored.value].astype(np.float64)
    free = (maker != NOTHING) & (np.array([*problem.latest, 0])[maker] > 0) & (size > 0)
    kept = np.flatnonzero(stored.last >= problem.ops)
    row = np.concatenate([np.arange(len(maker)), stored.read_row, kept])
    use = np.concatenate([stored.born, stored.read_at, np.full(len(kept), problem.ops)])
    order = np.lexsort((use, row))
    row, use = row[order], use[order]
    before = np.concatenate([[0], np.cumsum(matters)])
    begin, end = use[:-1], use[1:]
    chosen = (row[1:] == row[:-1]) & free[row[1:]] & (before[end] > before[np.minimum(begin + 1, problem.ops)])
    row, begin, end = row[1:][chosen], begin[chosen], end[chosen]
    rows = np.unique(row)
    made = np.bincount(maker[rows], weights=size[rows], minlength=problem.ops)
    cost = problem.cost[maker[row]] * size[row] / made[maker[row]]  # of the op alone: views may cost nothing extra
    return _Gaps(begin, end, size[row], cost, problem.ops)


def _ascend(gaps: _Gaps, excess: Floats, prices: Floats) -> Floats:
    """Return prices with a better bound than *prices*."""
    bound, dear = gaps.bound(prices, excess)
    best = prices, bound, dear
    length, idle = 1.0, 0
    for _ in range(_STEPS):
        slope = np.where(excess > 0, excess - gaps.absent(dear), 0.0)
        slope[(prices <= 0) & (slope < 0)] = 0.0
        square = float(slope @ slope)
        if square == 0:
            break
        prices = np.maximum(prices + slope * (length * (_AIM * best[1] - bound) / square), 0.0)
        bound, dear = gaps.bound(prices, excess)
        idle += 1
        if bound > best[1]:
            best, idle = (prices, bound, dear), 0
        elif idle > _PATIENCE:
            (prices, bound, dear), length, idle = best, _SHORTER * length, 0
    return best[0]


def extra_cost_in_any_order(stored: Evaluation, budget: int) -> float:
    """Return a lower bound of what recompute costs within *budget*, whatever the order of ops; infinity if none helps.

    Args:
        stored: program order.
        budget: bytes.
    """
    problem, memory = stored.problem, stored.memory
    above = np.flatnonzero((memory > budget) & ~problem.hold[: problem.ops])
    highest = above[np.argsort(-memory[above], kind="stable")][:_LOOKS]
    return max((_knapsack_around(problem, op, budget) for op in highest.tolist()), default=0.0) * _SAFE


def _knapsack_around(problem: Problem, op: int, budget: int) -> float:
    """Return the least cost of making room for *op*, by fractions, of what is made before and read after it."""
    before, after = _related(problem, op)
    touched = {*problem.reads[op], *problem.makes[op]}
    wanted = {value for reader in after for value in problem.reads[reader]} | {*problem.kept.tolist()}
    excess = problem.constant + int(problem.workspace[op]) - budget
    excess += sum(int(problem.size[value]) for value in touched)
    crossing: dict[int, int] = {}
    for value in wanted - touched:
        maker = int(problem.maker[value])
        if maker == NOTHING or maker in before:
            excess += int(problem.size[value])
            if maker != NOTHING:
                crossing[maker] = crossing.get(maker, 0) + int(problem.size[value])
    total = 0.0
    for maker, size in sorted(crossing.items(), key=lambda item: problem.cost[item[0]] / max(1, item[1])):
        if excess <= 0:
            break
        total += float(problem.cost[maker]) * min(1.0, excess / max(1, size))
        excess -= size
    return inf if excess > 0 else total


def _related(problem: Problem, op: int) -> tuple[set[int], set[int]]:
    """Return the ops that *op* depends on by data, and those that depend on it but for holds."""
    before, stack = set[int](), [op]
    while stack:
        makers = {int(problem.maker[value]) for value in problem.reads[stack.pop()]} - before - {NOTHING}
        before |= makers
        stack += makers
    made, after = {*problem.makes[op]}, set[int]()
    for later in range(op + 1, problem.ops):
        if not problem.hold[later] and not made.isdisjoint(problem.reads[later]):
            after.add(later)
            made.update(problem.makes[later])
    return before, after


def memory_bound(graph: Graph) -> int:
    """Return bytes that every schedule needs: what is resident, and all that one op touches at once."""
    index = graph.index
    resident = index.resident & (index.storage == np.arange(index.tensors))
    op, storage = _touched(graph)
    together = index.workspace.copy()
    np.add.at(together, op, index.nbytes[storage])
    return int(index.nbytes[resident].sum()) + int(together.max(initial=0))


def pinning_op(graph: Graph) -> tuple[Op, tuple[Tensor, ...]] | None:
    """Return the op that sets the lower bound, and the storages it touches that are not resident."""
    if not graph.ops:
        return None
    op, storage = _touched(graph)
    together = graph.index.workspace.copy()
    np.add.at(together, op, graph.index.nbytes[storage])
    first = int(together.argmax())
    tensors = tuple(graph.tensors.values())
    return graph.ops[first], tuple(tensors[i] for i in storage[op == first].tolist())


def _touched(graph: Graph) -> tuple[Ints, Ints]:
    """Return pairs of op and storage, each once: what an op reads or writes and is not resident."""
    index = graph.index
    resident = index.resident & (index.storage == np.arange(index.tensors))
    op = np.concatenate([index.input_op, index.output_op])
    storage = np.concatenate([index.input_storage, index.storage[index.output_tensor]])
    counts = ~(resident[storage] | index.hold[op])
    width = max(1, index.tensors)
    touched = np.unique(op[counts] * width + storage[counts])
    return touched // width, touched % width
