"""The bound of the extra cost: a linear program over the gaps between uses, solved from its dual."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from optimum import optimum
from test_remat import small_dag

from graphsim.core.graph import Graph
from graphsim.core.simulation import simulate
from graphsim.recompute.bounds import extra_cost
from graphsim.recompute.case import Case
from graphsim.recompute.solvers.checkmate_highs import solve
from graphsim.recompute.solvers.checkmate_model import Program
from graphsim.sources.layered import layered


def program(graph: Graph, budget: int) -> float:
    """The linear program of a plain DAG, by HiGHS: how much of the value is absent in each gap, at what cost."""
    made = {op.outputs[0]: at for at, op in enumerate(graph.ops)}
    uses = {name: [at] for name, at in made.items()}
    for at, op in enumerate(graph.ops):
        for name in dict.fromkeys(op.inputs):
            uses[name].append(at)
    for name in graph.outputs:
        uses[name].append(len(graph.ops))
    excess = simulate(graph).timeline - budget
    rows = {int(at): number for number, at in enumerate(np.flatnonzero(excess > 0))}
    scale = float(excess.max())
    costs, columns = [], []
    for name, at in uses.items():
        size, cost = graph.tensors[name].nbytes, graph.ops[made[name]].time
        for begin, end in pairwise(at):
            touched = [rows[i] for i in range(begin + 1, end) if i in rows]
            if touched and size:
                costs.append(cost)
                columns.append(np.isin(np.arange(len(rows)), touched) * size / scale)
    matrix = np.array(columns).reshape(len(costs), len(rows)).T
    dense = Program(
        cost=np.array(costs),
        lower=np.zeros(len(costs)),
        upper=np.ones(len(costs)),
        row_lower=excess[list(rows)] / scale,
        row_upper=np.full(len(rows), np.inf),
        start=np.arange(len(rows) + 1) * len(costs),
        column=np.tile(np.arange(len(costs)), len(rows)),
        value=matrix.ravel(),
        integer=np.zeros(len(costs), bool),
    )
    return solve(dense, integer=False, seconds=60).bound


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.9, 0.8])
def test_it_is_nearly_the_optimum_of_the_linear_program_and_never_above_it(seed, share):
    graph = Graph.from_networkx(layered(80, seed))
    budget = int(share * simulate(graph).peak)
    best = program(graph, budget)
    assert 0.98 * best <= extra_cost(Case(graph).program_order, budget) <= best * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(200))
def test_no_schedule_of_a_small_dag_costs_less(seed):
    graph = small_dag(seed)
    budget = int(0.75 * simulate(graph).peak)
    least = sum(op.time for op in graph.ops) + extra_cost(Case(graph).program_order, budget)
    assert least <= optimum(graph, budget)
