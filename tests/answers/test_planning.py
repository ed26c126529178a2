"""Plans as answers: what bounds their cost, whoever made them."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from optimum import optimum
from quick import quick
from test_remat import small_dag

import graphsim as gs
from graphsim.answers.plan import witness
from graphsim.core.graph import Graph, Op, Tensor
from graphsim.core.schedule import Schedule
from graphsim.recompute.case import Case
from graphsim.recompute.plan import judge, make_plan
from graphsim.recompute.strategies import Proposal
from graphsim.recompute.strategies.auto import Auto


def diamond() -> Graph:
    """a (10 bytes) is read at once and at the end; between, a chain of 20 bytes each: peak 50, or 40 with a again."""
    reads = {"a": (), "b": ("a",), "c": ("b",), "d": ("c",), "e": ("d", "a")}
    sizes = {"a": 10, "b": 20, "c": 20, "d": 20, "e": 5}
    times = {"a": 1.0, "b": 4.0, "c": 3.0, "d": 2.0, "e": 6.0}
    ops = [Op(name, "n", inputs, (name,), time=times[name]) for name, inputs in reads.items()]
    return Graph(ops, [Tensor(name, (size,), "uint8") for name, size in sizes.items()])


@pytest.mark.parametrize(("budget", "least"), [(None, 16.0), (50, 16.0), (49, 16.1), (40, 17.0), (39, inf)])
def test_the_bound_of_the_time_is_that_of_a_knapsack_where_memory_lacks(budget, least):
    assert Case(diamond()).least_time(budget) == pytest.approx(
        least
    )  # of a's 10 bytes, one; all; and more than there are


def test_a_graph_without_ops_costs_nothing():
    assert Case(Graph([], [])).least_time(1) == 0.0


def test_releases_are_no_part_of_what_a_plan_costs():
    ops = [Op("a", "node", (), ("x",), time=3.0), Op("end", "release", ("x",), (), time=9.0)]
    graph = Graph(ops, [Tensor("x", (8,), "uint8")])
    assert Case(graph).least_time(8) == Case(graph).least_time(None) == 3.0
    plan = make_plan(graph, Auto(), 8)
    assert (plan.time, plan.base_time, plan.proved_optimal) == (3.0, 3.0, True)
    assert Case(Graph([Op("end", "release", (), ())], [])).least_time(8) == 0


def test_a_plan_at_the_bound_is_proved_optimal_whoever_made_it():
    graph = diamond()
    again = Schedule.of(graph, list("abcdae"))
    best = judge(graph, again, strategy="mine", budget=40, seconds=0.0)
    assert (best.proved_optimal, best.time_bound, best.gap) == (True, 17.0, 0.0)
    assert best.least_overhead == best.overhead == pytest.approx(1 / 16)


def test_the_bound_says_nothing_of_a_plan_in_another_order():
    ops = [Op("a", "n", (), ("a",), time=1.0), Op("b", "n", (), ("b",), time=1.0), Op("c", "n", ("a",), (), time=1.0)]
    graph = Graph(ops, [Tensor("a", (10,), "uint8"), Tensor("b", (20,), "uint8")])
    assert Case(graph).least_time(20) == pytest.approx(4.0)  # in program order, a runs again behind b
    proposal = Proposal(Schedule.of(graph, ["b", "b", "a", "c"]))
    turned = judge(graph, proposal, strategy="mine", budget=20, seconds=0.0)
    assert (turned.time, turned.time_bound, turned.proved_optimal) == (4.0, 3.0, False)
    own = judge(graph, replace(proposal, time_bound=3.5), strategy="mine", budget=20, seconds=0.0)
    assert own.time_bound == 3.5


@pytest.mark.parametrize("seed", range(20))
def test_no_bound_is_above_the_optimum(seed):
    graph = small_dag(seed)
    budget = int(gs.simulate(graph).peak * 0.8)
    best, least = optimum(graph, budget), Case(graph).least_time(budget)
    assert least <= best
    for name in ("greedy", "dtr", "rotor", "auto"):
        plan = make_plan(graph, quick(name), budget)
        assert not plan.feasible or plan.base_time <= plan.time_bound <= best <= plan.time
        assert not plan.proved_optimal or plan.time == best


def test_a_witness_says_whether_recompute_could_help():
    graph = diamond()
    plans = [judge(graph, Schedule.of(graph), strategy="none", budget=39, seconds=0.0)]
    assert witness(graph, plans, 39).proved
    assert not witness(graph, plans, 45).proved
    assert "not proved impossible" in str(witness(graph, plans, 45).error())
