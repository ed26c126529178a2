"""The judgement of a schedule."""

from __future__ import annotations

from generators import graphs
from hypothesis import given, settings
from hypothesis import strategies as st

from graphsim.core.graph import Graph, Op, Phase, Role, Tensor
from graphsim.core.liveness import POLICIES, live_ranges
from graphsim.core.schedule import Schedule
from graphsim.recompute.plan import judge, memory_bound

OPS = [
    Op("a", "n", ("w",), ("x",), workspace=3, flops=10),
    Op("b", "n", ("x",), ("y",), flops=20),
    Op("c", "n", ("x", "y", "w"), ("z",), Phase.BACKWARD, flops=40),
]
TENSORS = [Tensor(name, (size,), "uint8") for name, size in (("x", 10), ("y", 1), ("z", 5))]
TENSORS.append(Tensor("w", (100,), "uint8", Role.PARAMETER))
GRAPH = Graph(OPS, TENSORS)


def test_a_plan_says_what_the_schedule_costs():
    plan = judge(GRAPH, Schedule.of(GRAPH, ["a", "b", "a", "c"]), strategy="mine", budget=115, seconds=0.5)
    assert (plan.peak_bytes, plan.feasible, plan.memory_bound) == (116, False, 116)
    assert (plan.time, plan.base_time, plan.overhead) == (80.0, 70.0, 80 / 70 - 1)
    assert (plan.strategy, plan.budget, plan.seconds, plan.proved_optimal) == ("mine", 115, 0.5, False)


def test_nothing_is_cheaper_than_running_each_op_once_if_that_fits():
    order = Schedule.of(GRAPH)
    assert judge(GRAPH, order, strategy="mine", budget=116, seconds=0).proved_optimal
    assert not judge(GRAPH, order, strategy="mine", budget=115, seconds=0).proved_optimal


def test_times_are_taken_before_flops():
    ops = [Op("a", "n", (), ("x",), time=2.5, flops=7), Op("b", "n", ("x",), ("y",), flops=9)]
    graph = Graph(ops, TENSORS[:2])
    assert judge(graph, Schedule.of(graph), strategy="mine", budget=None, seconds=0).base_time == 2.5


@given(graph=graphs(), policy=st.sampled_from(POLICIES))
@settings(max_examples=500)
def test_no_schedule_gets_below_the_lower_bound(graph, policy):
    assert memory_bound(graph) <= live_ranges(graph, policy=policy).peak


@given(graph=graphs())
@settings(max_examples=300)
def test_the_lower_bound_is_the_most_that_one_op_touches(graph):
    storages = {t.name: t.nbytes for t in graph.tensors.values() if not t.storage}
    written = {name for op in graph.ops for name in op.outputs}
    roles = {Role.PARAMETER, Role.BUFFER, Role.INPUT, Role.OPTIMIZER_STATE}
    always = {name for name in storages if name not in written and graph.tensors[name].role in roles}
    most = 0
    for op in graph.ops:
        only_holds = op.kind in ("hold", "release") and not op.outputs and not op.mutates
        names = () if only_holds else (*op.inputs, *op.outputs)
        bases = {graph.tensors[name].base for name in names}
        most = max(most, sum(storages[base] for base in bases - always) + op.workspace)
    assert memory_bound(graph) == most + sum(storages[name] for name in always)
