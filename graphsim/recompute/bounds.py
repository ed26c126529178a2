"""What no schedule can do without, as long as the ops first run in program order.

Between two uses of a value, in program order, lies a *gap*. When an op runs for the first time, the values whose
gaps it lies in and that are not in memory must be made again before their gaps end, and gaps of one value do not
overlap: so each gap in which the value is ever absent costs a recompute. At every op, what is absent must make up
for what the budget has no room for. The least cost of that, with fractions allowed, is a linear program: its dual
puts a price on every byte at every op, and any prices give a bound. The best single op gives the first prices (a
knapsack); subgradient steps raise them to nearly the optimum.

Source: Held, Wolfe, Crowder, "Validation of subgradient optimization", Mathematical Programming 6, 1974.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphsim.core.index import NOTHING, Floats, Ints
from graphsim.recompute.evaluation import Evaluation, evaluate
from graphsim.recompute.problem import Problem

_STEPS, _AIM = 1000, 2.0
"""Subgradient steps, and the bound that they aim at: so many times the best so far."""
_PATIENCE = 20
"""Steps without a better bound before they are made shorter, by `_SHORTER`."""
_SHORTER = 0.7
_SAFE = 1 - 1e-9
"""For rounding errors."""


def extra_cost(problem: Problem, budget: int) -> float:
    """Return a lower bound of what recompute costs within *budget*; infinity if no recompute can help."""
    stored = evaluate(problem, np.arange(problem.ops))
    excess = np.maximum(stored.memory - budget, 0).astype(np.float64)
    gaps = _gaps_of(stored, excess > 0)
    if (gaps.absent(np.ones(len(gaps.size), bool)) < excess).any():
        return float("inf")
    best = np.zeros(problem.ops)
    for op in np.flatnonzero(excess).tolist():
        best = max(best, gaps.prices_at(op, float(excess[op])), key=lambda prices: gaps.bound(prices, excess)[0])
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

    def absent(self, chosen: np.typing.NDArray[np.bool_]) -> Floats:
        """Return the bytes absent at each op if the values of the *chosen* gaps are."""
        change = np.zeros(self.ops + 1)
        np.add.at(change, self.begin[chosen] + 1, self.size[chosen])
        np.subtract.at(change, self.end[chosen], self.size[chosen])
        absent: Floats = np.cumsum(change)[: self.ops]
        return absent

    def bound(self, prices: Floats, excess: Floats) -> tuple[float, np.typing.NDArray[np.bool_]]:
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


def _gaps_of(stored: Evaluation, matters: np.typing.NDArray[np.bool_]) -> _Gaps:
    """Return the gaps of values that can be made again, if an op that *matters* lies in them."""
    problem = stored.problem
    maker = problem.maker[stored.value]
    unit = np.where(maker == NOTHING, 0, problem.unit[np.maximum(maker, 0)])
    size = problem.size[stored.value].astype(np.float64)
    free = (maker != NOTHING) & (problem.until[unit] > 0) & (size > 0)
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
    best, (highest, dear) = prices, gaps.bound(prices, excess)
    length, idle = 1.0, 0
    for _ in range(_STEPS):
        slope = np.where(excess > 0, excess - gaps.absent(dear), 0.0)
        slope[(prices <= 0) & (slope < 0)] = 0.0
        square = float(slope @ slope)
        bound = gaps.bound(prices, excess)[0]
        if square == 0:
            break
        prices = np.maximum(prices + slope * (length * (_AIM * highest - bound) / square), 0.0)
        bound, dear = gaps.bound(prices, excess)
        idle += 1
        if bound > highest:
            best, highest, idle = prices, bound, 0
        elif idle > _PATIENCE:
            prices, length, idle = best, _SHORTER * length, 0
            dear = gaps.bound(prices, excess)[1]
    return best
