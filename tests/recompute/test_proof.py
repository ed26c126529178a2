"""Proofs: bounds that are the optimum of exhaustive search, however few moments they look at, in and out of order."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from exhaustive import only
from generators import training_steps
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from optimum import optimum, optimum_in_any_order
from test_remat import small_dag

from graphsim.core.graph import Graph
from graphsim.core.simulation import simulate
from graphsim.errors import UsageError
from graphsim.recompute.case import Case
from graphsim.recompute.evaluation import evaluate
from graphsim.recompute.moves.repair import repair
from graphsim.recompute.plan import make_plan
from graphsim.recompute.proof import prove
from graphsim.recompute.solvers.checkmate_highs import solve
from graphsim.recompute.solvers.moments import Repeats, relax
from graphsim.recompute.strategies.auto import Auto
from graphsim.sources.layered import layered


def at(graph: Graph, share: float) -> int:
    return int(share * simulate(graph).peak)


@pytest.mark.parametrize(
    ("seed", "share"), only([(s, 0.75) for s in range(25, 60)], [(s, x) for s in range(400) for x in (0.75, 0.6)])
)
def test_a_proof_is_never_above_the_optimum_of_a_small_dag(seed, share):
    graph = small_dag(seed)
    best = optimum(graph, at(graph, share))
    proof = prove(Case(graph), at(graph, share), seconds=60)
    assert proof.least <= best * (1 + 1e-9)
    if proof.best is not None:
        assert proof.best.peak <= at(graph, share)
        assert proof.best.cost >= best * (1 - 1e-9)


def test_nearly_every_proof_is_the_optimum():
    graphs = [(graph, at(graph, 0.75)) for graph in map(small_dag, range(25))]
    found = [(prove(Case(graph), budget, seconds=60), optimum(graph, budget)) for graph, budget in graphs]
    exact = sum(proof.least == pytest.approx(best, rel=1e-6) for proof, best in found if best < inf)
    assert exact >= 0.95 * sum(best < inf for _, best in found)


@pytest.mark.parametrize("seed", range(20))
def test_any_moments_bound_the_optimum_and_more_of_them_no_less(seed):
    graph = small_dag(seed)
    budget, case = at(graph, 0.75), Case(graph)
    chance = np.random.default_rng(seed)
    few = {int(op) for op in chance.choice(len(graph.ops), 2, replace=False)}
    bounds = []
    for moments in ({*few}, {*range(len(graph.ops))}):
        relaxed = relax(Repeats(case.problem), budget, moments)
        bounds.append(case.base_time + solve(relaxed.program, integer=True, seconds=60).bound * relaxed.unit)
    assert bounds[0] <= bounds[1] * (1 + 1e-9)
    assert bounds[1] <= optimum(graph, budget) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_known_plan_is_a_point_of_the_program_at_its_cost(seed):
    case = Case(Graph.from_networkx(layered(60, seed)))
    budget = int(0.85 * case.stored.peak)
    known = repair(case.program_order, budget)
    assert known.peak <= budget
    relaxed = relax(Repeats(case.problem), budget, range(0, case.problem.ops, 3))
    program, x = relaxed.program, relaxed.point(known)
    rows = np.add.reduceat(program.value * x[program.column], program.start[:-1])
    assert (rows <= program.row_upper + 1e-6).all()
    assert program.cost @ x * relaxed.unit <= known.cost - case.base_time + 1e-6


@given(graph=training_steps(), data=st.data())
@settings(max_examples=20)
def test_no_plan_of_a_training_step_is_below_its_proof(graph, data):
    case = Case(graph)
    assume(case.memory_bound < case.stored.peak)
    budget = data.draw(st.integers(case.memory_bound, case.stored.peak - 1))
    found = make_plan(case, Auto(seconds=0.05, prove=0), budget)
    proof = prove(case, budget, seconds=20)
    if found.feasible and not (np.diff(found.schedule.ops[~found.schedule.repeats]) < 0).any():
        assert proof.least <= found.time * (1 + 1e-9)
    if proof.best is not None:
        assert evaluate(case.problem, proof.best.nodes).peak <= budget
        assert simulate(case.graph, case.problem.schedule(proof.best.nodes)).peak <= budget


def test_a_bound_within_a_known_plan_proves_it():
    case = Case(Graph.from_networkx(layered(100, 1, 0.27)))
    budget = int(0.9 * case.stored.peak)
    before = case.least_time(budget)
    first = prove(case, budget, seconds=60)
    assert first.best is not None
    assert before < first.least == pytest.approx(first.best.cost, rel=1e-8)
    assert case.least_time(budget) == first.least
    again = prove(Case(case.given), budget, seconds=60, known=first.best)
    assert again.least == pytest.approx(first.least, rel=1e-8)


def test_without_time_the_bound_is_the_one_before():
    case = Case(small_dag(3))
    budget = at(case.given, 0.75)
    assert prove(case, budget, seconds=0).least == case.least_time(budget)
    with pytest.raises(UsageError, match="prove must be at least 0"):
        Auto(prove=-1)


def test_auto_proves_small_graphs_by_itself_and_others_when_asked():
    graph = Graph.from_networkx(layered(100, 2, 0.27))
    plan = make_plan(graph, Auto(), at(graph, 0.9))
    assert plan.proved_optimal
    assert plan.time == plan.time_bound
    unproved = make_plan(graph, Auto(seconds=0.3, prove=0), at(graph, 0.9))
    assert unproved.time_bound < plan.time_bound <= unproved.time
    assert make_plan(graph, Auto(seconds=0.3, prove=30), at(graph, 0.9)).proved_optimal


@pytest.mark.parametrize("seed", only(range(60), range(400)))
def test_the_bound_in_any_order_is_below_the_optimum_of_all_orders(seed):
    graph = small_dag(seed)
    budget, case = at(graph, 0.75), Case(graph)
    least = case.least_time_in_any_order(budget)
    assert case.base_time <= least <= optimum_in_any_order(graph, budget) * (1 + 1e-9)


def test_the_bound_in_any_order_is_tight_where_a_single_op_decides():
    graph = Graph.from_networkx(layered(100, 1, 0.27))
    case = Case(graph)
    assert case.least_time_in_any_order(int(0.5 * case.stored.peak)) > case.base_time
    plan = make_plan(case, "none", case.stored.peak)
    assert plan.time_bound_in_any_order == case.base_time
