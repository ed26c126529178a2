"""Orders of ops: the lowest peak where it can be had, and never a higher one than program order."""

from __future__ import annotations

from itertools import permutations

import generators
import numpy as np
import pytest
from hypothesis import given, settings

import graphsim as gs
from graphsim.core.graph import KEEPS, Graph, Op, Role, Tensor
from graphsim.core.liveness import live_ranges
from graphsim.core.schedule import Schedule
from graphsim.errors import ScheduleError
from graphsim.recompute.emittable import make_emittable
from graphsim.recompute.order import least_peak_order
from graphsim.recompute.plan import make_plan
from graphsim.recompute.reordered import make_reordered
from graphsim.step.training import Training


def by_brute_force(graph: Graph) -> int:
    """The lowest peak of all orders that respect the graph and keep what is held where it was."""
    held = [at for at, op in enumerate(graph.ops) if op.kind in KEEPS and at]
    least = live_ranges(graph).peak
    for order in permutations(range(len(graph.ops))):
        place = {op: at for at, op in enumerate(order)}
        if all(place[at] > place[at - 1] for at in held):
            try:
                least = min(least, live_ranges(graph, Schedule(np.array(order))).peak)
            except ScheduleError:
                continue
    return least


@settings(max_examples=40)
@given(generators.graphs(max_ops=6))
def test_small_graphs_have_the_peak_of_brute_force(graph):
    found = least_peak_order(graph)
    assert found.proved
    assert found.peak == live_ranges(graph, found.schedule).peak == by_brute_force(graph)


def test_draws_of_random_numbers_and_talk_keep_their_order():
    kinds = ["rand", "node", "rand", "all_reduce", "all_reduce", "native_dropout"]
    tensors = [Tensor(f"t{at}", (size,), "uint8") for at, size in enumerate((50, 40, 30, 20, 10, 5))]
    ops = [
        Op(f"o{at}", kind, (), (f"t{at}",), attributes={"sent": 1, "ranks": 2} if "reduce" in kind else {})
        for at, kind in enumerate(kinds)
    ]
    ops += [Op(f"end{at}", "node", (f"t{at}",)) for at in range(6)]
    order = least_peak_order(Graph(ops, tensors)).schedule.ops.tolist()
    for chain in ((0, 2, 5), (3, 4)):
        assert [op for op in order if op in chain] == list(chain)


def test_optimizer_steps_move_into_the_backward_pass_where_their_gradients_may_go():
    """With zero_grad after the step nothing needs a gradient once its parameter is updated."""
    sizes = (1000, 1000, 1000)
    tensors = [Tensor(f"w{at}", (n,), "uint8", Role.PARAMETER) for at, n in enumerate(sizes)]
    tensors += [Tensor(f"g{at}", (n,), "uint8", Role.GRADIENT) for at, n in enumerate(sizes)]
    tensors.append(Tensor("x", (10,), "uint8"))
    ops = [Op("forward", "node", (), ("x",))]
    ops += [Op(f"grad{at}", "node", ("x", f"w{at}"), (f"g{at}",), gs.Phase.BACKWARD) for at in (2, 1, 0)]
    ops += [
        Op(f"step{at}", "add_", (f"w{at}", f"g{at}"), phase=gs.Phase.OPTIMIZER, mutates=(f"w{at}",)) for at in range(3)
    ]
    found = least_peak_order(Graph(ops, tensors))
    assert found.peak == 3000 + 10 + 1000
    assert found.proved


@pytest.fixture(scope="module")
def step():
    return gs.source_of("vgg16", batch=4).steps(Training(optimizer="sgd", optimizer_impl="forloop")).steady


def test_a_plan_in_another_order_costs_no_more_and_needs_no_more(step):
    stored = live_ranges(step).peak
    budget = int(0.95 * stored)
    program, reordered = make_plan(step, "rotor", budget), make_reordered(step, "rotor", budget)
    assert reordered.feasible
    assert reordered.time <= program.time
    assert make_reordered(step, "none").peak_bytes < stored
    tight = int(0.7 * stored)
    assert make_reordered(step, "greedy", tight).time <= make_plan(step, "greedy", tight).time


def test_the_emittable_ones_leave_the_optimizer_as_it_is(step):
    for make in (make_plan, make_reordered):
        plan = make_emittable(step, "sqrt", make=make)
        late = [at for at, op in enumerate(step.ops) if op.phase is gs.Phase.OPTIMIZER]
        assert plan.schedule.repeats.any()
        assert plan.schedule.ops[-len(late) :].tolist() == late


def test_program_order_stays_where_none_is_better():
    graph = generators.chain(6)
    found = least_peak_order(graph)
    assert found == (Schedule.of(graph), live_ranges(graph).peak, True)


def test_the_command_says_it():
    made = gs.plan("vgg16", batch=4, optimizer="sgd", budget="0.95x", strategy="rotor", reorder=True)
    assert made.feasible
    with pytest.raises(gs.GraphSimError, match="leave --reorder and --emittable out"):
        gs.plan("lenet5", budget="1GiB", allocator="torch", reorder=True)
