"""Checkmate's matrices, there and back."""

from __future__ import annotations

import numpy as np
import pytest
from generators import chain
from quick import quick

from graphsim.core.graph import Graph
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import simulate
from graphsim.errors import ScheduleError
from graphsim.recompute.matrices import matrices_of_schedule, schedule_of_matrices
from graphsim.recompute.plan import make_plan
from graphsim.recompute.strategies import STRATEGIES
from graphsim.sources.layered import layered


def test_the_example_of_a_chain_that_recomputes_its_first_op():
    graph = chain(2)  # f1 f2 b2 b1: b2 reads f2, b1 reads f1 and b2
    schedule = Schedule(np.array([0, 1, 2, 0, 3]))
    r, s = matrices_of_schedule(graph, schedule)
    assert r.astype(int).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]
    assert s.astype(int).tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert schedule_of_matrices(r, s, graph=graph) == schedule


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_plan_of_a_chain_survives_the_round_trip(name):
    graph = chain(20)
    plan = make_plan(graph, quick(name), 12_000)
    try:
        r, s = matrices_of_schedule(graph, plan.schedule)
    except ScheduleError:
        assert name == "dtr"  # it may run an op twice to make one value
        return
    assert schedule_of_matrices(r, s, graph=graph) == plan.schedule


@pytest.mark.parametrize("seed", range(5))
def test_what_s_stores_and_a_stage_computes_bounds_the_peak(seed):
    """Checkmate counts what is stored and computed in a stage; liveness within it can only be less."""
    graph = Graph.from_networkx(layered(40, seed))
    rng = np.random.default_rng(seed)
    r = np.tril(rng.random((40, 40)) < 0.03) | np.eye(40, dtype=bool)
    producer = {op.name: i for i, op in enumerate(graph.ops)}
    for t in range(40):  # compute whatever is read and was not
        for op in range(t, -1, -1):
            if r[t, op]:
                r[t, [producer[name] for name in graph.ops[op].inputs if rng.random() < 0.5]] = True
    schedule = schedule_of_matrices(r)
    again, s = matrices_of_schedule(graph, schedule)
    assert np.array_equal(again, r)
    assert schedule_of_matrices(r, s, graph=graph) == schedule
    size = np.array([graph.tensors[op.name].nbytes for op in graph.ops])
    assert simulate(graph, schedule).peak <= ((r | s) @ size).max()
    for stage, op in np.argwhere(s):
        less = s.copy()
        less[stage, op] = False
        with pytest.raises(ScheduleError, match=r"not there|neither stored"):
            schedule_of_matrices(r, less, graph=graph)


@pytest.mark.parametrize(
    ("r", "words"),
    [
        (np.ones((2, 3)), "square"),
        (np.array([[1, 1], [0, 1]]), "before its own"),
        (np.array([[1, 0], [1, 0]]), "own stage"),
        (np.array([[1, 0], [0.5, 1]]), "other than 0 and 1"),
    ],
)
def test_matrices_that_are_no_schedule_are_refused(r, words):
    with pytest.raises(ScheduleError, match=words):
        schedule_of_matrices(r)


def test_orders_without_stages_are_refused():
    graph = chain(3)
    with pytest.raises(ScheduleError, match="program order"):
        matrices_of_schedule(graph, Schedule(np.array([0, 1, 2, 3, 4, 5, 0])))
    with pytest.raises(ScheduleError, match="twice"):
        matrices_of_schedule(graph, Schedule(np.array([0, 1, 2, 0, 1, 0, 3, 4, 5])))
