"""What no schedule can do without, as long as the ops first run in program order.

When op t runs for the first time, every value that an op after t needs and that is not in memory must be
made again later. So the values that the budget has no room for at that moment, chosen as cheaply as a
fractional knapsack allows, are a lower bound of the extra cost; the best moment gives the bound.
"""

from __future__ import annotations

import numpy as np

from graphsim.index import NOTHING
from graphsim.strategies.remat.evaluation import evaluate
from graphsim.strategies.remat.problem import Problem


def extra_cost(problem: Problem, budget: int) -> float:
    """Return a lower bound of what recompute costs within *budget*; infinity if no recompute can help."""
    state = evaluate(problem, np.arange(problem.ops))
    maker = problem.maker[state.value]
    unit = np.where(maker == NOTHING, 0, problem.unit[np.maximum(maker, 0)])
    free = (maker != NOTHING) & (problem.until[unit] > 0)
    cost = problem.cost[: problem.ops]  # of the op alone: views and overwrites may cost nothing extra
    size = problem.size[state.value]
    used = np.zeros(len(maker), bool)
    bound = 0.0
    for moment in np.flatnonzero(state.memory > budget).tolist():
        excess = int(state.memory[moment]) - budget
        used[:] = False
        low, high = np.searchsorted(state.read_at, [moment, moment + 1])
        used[state.read_row[low:high]] = True
        idle = np.flatnonzero(free & ~used & (state.born < moment) & (state.last > moment) & (size > 0))
        if int(size[idle].sum()) < excess:
            return float("inf")
        op, row = np.unique(maker[idle], return_inverse=True)  # what an op makes again costs once
        bytes_of = np.zeros(len(op), dtype=np.int64)
        np.add.at(bytes_of, row, size[idle])
        order = np.argsort(cost[op] / bytes_of, kind="stable")
        total = np.cumsum(bytes_of[order])
        cut = int(np.searchsorted(total, excess))
        before = int(total[cut - 1]) if cut else 0
        dear = op[order[cut]]
        here = float(cost[op[order[:cut]]].sum())
        here += float(cost[dear]) * (excess - before) / float(bytes_of[order[cut]])
        bound = max(bound, here)
    return bound
