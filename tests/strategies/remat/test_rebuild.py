"""Ruin and recreate: its compiled evaluation is the vectorised one, what it returns fits and is never worse."""

from __future__ import annotations

import _thread
import importlib.util
import threading
import time

import numpy as np
import pytest
from generators import training_steps
from hypothesis import given, settings
from hypothesis import strategies as st

from graphsim.errors import MissingExtraError
from graphsim.frontends.layered import layered
from graphsim.graph import Graph
from graphsim.simulation import simulate
from graphsim.strategies.auto import Auto
from graphsim.strategies.moccasin import Moccasin
from graphsim.strategies.remat import rebuild as rebuild_module
from graphsim.strategies.remat.clock import Clock
from graphsim.strategies.remat.compiled import arrays_of, evaluated, scratch
from graphsim.strategies.remat.evaluation import Evaluation, evaluate
from graphsim.strategies.remat.problem import Problem, problem_of
from graphsim.strategies.remat.rebuild import WARM, rebuild
from graphsim.strategies.remat.repair import repair


def some_sequence(problem: Problem, places: list[tuple[float, float]]) -> Evaluation:
    """Program order with units inserted: of those that may run at a place, one."""
    nodes = list(range(problem.ops))
    for where, which in places:
        place = int(where * len(nodes))
        following = next((node for node in nodes[place:] if node < problem.ops), 0)
        units = [u for u in range(problem.ops) if problem.unit[u] == u and problem.may_run(u, following)]
        if units:
            nodes.insert(place, problem.ops + units[int(which * len(units))])
    return evaluate(problem, np.array(nodes, dtype=np.int64))


def start_of(nodes: int, seed: int, share: float) -> tuple[Evaluation, int]:
    graph = Graph.from_networkx(layered(nodes, seed))
    budget = int(share * simulate(graph).peak)
    problem = problem_of(graph)
    return repair(evaluate(problem, np.arange(problem.ops)), budget), budget


def run(state: Evaluation, budget: int, *, steps: int = 400, seed: int = 0) -> Evaluation:
    pair = rebuild((state, state), budget, steps=steps, clock=Clock(float("inf")), seed=seed, warm=(WARM, WARM))
    return min(pair, key=lambda one: (one.peak > budget, one.cost))


share = st.floats(0, 1, exclude_max=True)


@given(graph=training_steps(), places=st.lists(st.tuples(share, share), max_size=6), part=st.floats(0.3, 1))
@settings(max_examples=200, deadline=None)
def test_the_compiled_evaluation_is_the_vectorised_one(graph, places, part):
    problem = problem_of(graph)
    state = some_sequence(problem, places)
    budget = int(part * state.peak)
    cost, memory, above = evaluated(problem, state.nodes, budget)
    assert np.array_equal(memory, state.memory)
    assert np.array_equal(above, state.excess(budget))
    assert cost == pytest.approx(state.cost)


def test_scratch_holds_the_longest_sequence_of_a_step():
    step = problem_of(Graph.from_networkx(layered(30, 0)))
    room = 100
    r, d, f = scratch(step, room)
    assert r.shape[1] >= len(step.initial) + room
    assert d.shape[1] == f.shape[1] == r.shape[1]
    assert arrays_of(step).ops == 30


@given(seed=st.integers(0, 1000), part=st.sampled_from([0.6, 0.75, 0.9]))
@settings(max_examples=25, deadline=None)
def test_what_it_returns_is_no_worse_than_what_it_was_given(seed, part):
    state, budget = start_of(40, seed, part)
    found = run(state, budget, steps=100)
    assert np.array_equal(found.memory, evaluate(found.problem, found.nodes).memory)
    if state.peak <= budget:
        assert found.peak <= budget
        assert found.cost <= state.cost * (1 + 1e-9)


@given(graph=training_steps(), part=st.floats(0.5, 0.95))
@settings(max_examples=60, deadline=None)
def test_training_steps_keep_their_rules(graph, part):
    problem = problem_of(graph)
    stored = evaluate(problem, np.arange(problem.ops))
    found = run(repair(stored, int(part * stored.peak)), int(part * stored.peak), steps=60)
    replay = simulate(graph, problem.schedule(found.nodes))  # raises if a value is stale or missing
    assert replay.peak <= found.peak


@pytest.mark.parametrize("seed", range(3))
def test_it_meets_the_constraint_programs_optimum(seed):
    state, budget = start_of(40, seed, 0.9)
    exact = Moccasin(seconds=20)(Graph.from_networkx(layered(40, seed)), budget=budget)
    found = run(state, budget, steps=5000)
    assert found.peak <= budget
    assert found.cost <= exact.time * (1 + 1e-9)


def test_a_start_that_does_not_fit_comes_to_fit():
    graph = Graph.from_networkx(layered(250, 1, 0.43))
    problem = problem_of(graph)
    budget = int(0.8 * simulate(graph).peak)
    state = repair(evaluate(problem, np.arange(problem.ops)), budget)
    assert state.peak > budget, "the greedy way no longer fails here: choose another graph"
    assert run(state, budget, steps=8000).peak <= budget


def test_the_same_seed_finds_the_same():
    state, budget = start_of(120, 3, 0.8)
    first, again, other = (run(state, budget, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.nodes, again.nodes)
    assert not np.array_equal(first.nodes, other.nodes)


def test_auto_takes_it_for_graphs_that_are_not_small_and_finds_the_same_twice():
    graph = Graph.from_networkx(layered(200, 5, 0.4))
    budget = int(0.9 * simulate(graph).peak)
    first, again = (Auto(seed=4)(graph, budget=budget) for _ in range(2))
    assert first.feasible
    assert np.array_equal(first.schedule.ops, again.schedule.ops)


def test_ctrl_c_stops_it_with_the_best_so_far():
    state, budget = start_of(200, 0, 0.8)
    run(state, budget, steps=1)  # compiled before the clock runs
    clock = Clock(time.perf_counter() + 60)
    threading.Timer(0.5, _thread.interrupt_main).start()
    begin = time.perf_counter()
    found = rebuild((state, state), budget, steps=10**7, clock=clock, seed=0, warm=(WARM, WARM))
    assert time.perf_counter() - begin < 30
    assert clock.is_over()
    assert all(one.peak <= budget and one.cost <= state.cost for one in found)


def test_it_tells_what_it_has_reached():
    state, budget = start_of(100, 1, 0.8)
    told: list[float] = []
    rebuild(
        (state, state), budget, steps=200, clock=Clock(float("inf")), seed=0, warm=(WARM, WARM), watch=told.append
    )  # fmt: skip
    assert told
    assert told == sorted(told, reverse=True)


def test_without_numba_it_names_the_extra(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else real(name))
    assert not rebuild_module.is_available()
    state, budget = start_of(20, 0, 0.9)
    with pytest.raises(MissingExtraError, match="solver"):
        run(state, budget)
    graph = Graph.from_networkx(layered(160, 0, 0.4))
    assert Auto(seconds=5)(graph, budget=int(0.9 * simulate(graph).peak)).feasible  # by annealing alone
