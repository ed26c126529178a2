"""A case: what follows from a graph is worked out once, whoever plans on it."""

from __future__ import annotations

from collections import Counter

import pytest
from reference import interpret

import graphsim as gs
from graphsim.core.graph import Graph, Op, Tensor
from graphsim.core.simulation import cost_unit, op_costs, simulate
from graphsim.recompute import case as case_module
from graphsim.recompute.case import Case
from graphsim.recompute.plan import make_plan
from graphsim.recompute.strategies.auto import Auto

ONCE = ("op_costs", "problem_of", "forward_passes", "program_of", "memory_bound", "without_releases", "extra_cost")


@pytest.fixture(scope="module")
def step() -> Graph:
    return gs.training_step(gs.load("resnet18", batch=32))


def test_it_says_what_the_graph_is():
    step = gs.training_step(gs.load("lenet5", batch=8), target="cuda")
    case = Case(step)
    assert (case.stored.peak, case.stored.time) == (simulate(step).peak, simulate(step).time)
    assert case.cost_unit == cost_unit(step) == "seconds"
    assert case.given_costs.tolist() == op_costs(step).tolist()
    assert (
        case.program_order.peak == case.live_ranges.peak == max(interpret(step, range(len(step.ops)), "eager").during)
    )
    assert case.base_time < case.one_more_forward < 2 * case.base_time


def test_plans_are_made_without_releases_and_handed_out_as_of_the_graph_as_given():
    ops = [
        Op("a", "n", (), ("x",), time=1.0),
        Op("gone", "release", ("x",)),
        Op("b", "n", ("x",), ("y",), time=1.0),
    ]
    graph = Graph(ops, [Tensor("x", (8,), "uint8"), Tensor("y", (8,), "uint8")])
    case = Case(graph)
    assert [op.name for op in case.graph.ops] == ["a", "b"]
    assert case.of_given(case.stored.schedule).ops.tolist() == [0, 2]
    assert make_plan(case, "none").schedule.ops.tolist() == [0, 1, 2]
    assert make_plan(case, "sqrt").schedule.ops.tolist() == [0, 2]


def test_whatever_plans_on_it_nothing_is_worked_out_twice(step, monkeypatch):
    calls: Counter[str] = Counter()

    def counting(name):
        function = getattr(case_module, name)

        def counted(*arguments):
            calls[name] += 1
            return function(*arguments)

        return counted

    for name in ONCE:
        monkeypatch.setattr(case_module, name, counting(name))
    case = Case(step)
    budget = int(0.8 * case.stored.peak)
    assert budget > case.memory_bound
    for strategy in ("none", "sqrt", "greedy", "rotor", "dtr", "mincut", Auto(seconds=0.5)):
        make_plan(case, strategy, budget)
    assert calls == dict.fromkeys(ONCE, 1)
