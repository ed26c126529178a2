"""The compiled searches: their evaluations are the vectorised one, what they return fits and is never worse."""

from __future__ import annotations

import _thread
import threading
import time

import numpy as np
import pytest
from generators import training_steps
from hypothesis import given, settings
from hypothesis import strategies as st

from graphsim.core.graph import Graph
from graphsim.core.index import Ints
from graphsim.core.simulation import simulate
from graphsim.errors import MissingExtraError
from graphsim.recompute.clock import Clock
from graphsim.recompute.evaluation import Evaluation, evaluate
from graphsim.recompute.machine_code import is_available
from graphsim.recompute.moves.anneal import Annealing
from graphsim.recompute.moves.columns import ABOVE, columns_of, scratch
from graphsim.recompute.moves.columns import MEMORY as LIVE
from graphsim.recompute.moves.pair import Search, side_by_side
from graphsim.recompute.moves.rebuild import Rebuilding
from graphsim.recompute.moves.repair import repair
from graphsim.recompute.moves.ruin import is_needed
from graphsim.recompute.moves.sequence import (
    AT,
    LENGTH,
    MEMORY,
    NODES,
    Sequence,
    all_readers,
    excess,
    place,
    sequence_of,
    take,
)
from graphsim.recompute.moves.walk import walk
from graphsim.recompute.plan import make_plan
from graphsim.recompute.problem import Problem, problem_of
from graphsim.recompute.strategies.auto import Auto
from graphsim.recompute.strategies.moccasin import Moccasin
from graphsim.sources.layered import layered


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


def searches(kind: str, state: Evaluation, budget: int, seed: int = 0) -> list[Search]:
    if kind == "anneal":
        return [Annealing(state, budget, (seed, number)) for number in range(2)]
    return [Rebuilding(state, budget, (seed, number)) for number in range(2)]


def run(kind: str, state: Evaluation, budget: int, *, steps: int = 0, seed: int = 0) -> Evaluation:
    steps = steps or {"anneal": 20_000, "rebuild": 400}[kind]
    found = side_by_side(searches(kind, state, budget, seed), steps=steps, clock=Clock(time.perf_counter() + 100))
    return min(found, key=lambda one: (one.peak > budget, one.cost))


KINDS = pytest.mark.parametrize("kind", ["anneal", "rebuild"])
share = st.floats(0, 1, exclude_max=True)


@given(graph=training_steps(), places=st.lists(st.tuples(share, share), max_size=6), part=st.floats(0.3, 1))
@settings(max_examples=200, deadline=None)
def test_the_compiled_evaluation_is_the_vectorised_one(graph, places, part):
    problem = problem_of(graph)
    state = some_sequence(problem, places)
    budget = int(part * state.peak)
    length = len(state.nodes)
    walked, _ = scratch(problem, length)
    _, cost, too_much = walk(columns_of(problem), walked, state.nodes, length, budget)
    assert np.array_equal(walked[LIVE, :length], state.memory)
    assert np.array_equal(walked[ABOVE, :length], state.excess(budget))
    assert too_much == state.excess(budget).sum()
    assert cost == pytest.approx(state.cost)


@given(
    graph=training_steps(),
    places=st.lists(st.tuples(share, share), max_size=6),
    taken=st.lists(share, max_size=8),
    part=st.floats(0.3, 1),
)
@settings(max_examples=200, deadline=None)
def test_a_sequence_that_changes_unit_by_unit_is_evaluated_as_a_whole_one(graph, places, taken, part):
    problem = problem_of(graph)
    whole = some_sequence(problem, places)
    budget = int(part * whole.peak)
    columns, readers = columns_of(problem), all_readers(problem)
    sequence = sequence_of(evaluate(problem, np.arange(problem.ops)))
    nodes = list(range(problem.ops))
    for at, unit in inserts(problem, whole.nodes):
        place(columns, readers, sequence, unit, at)
        nodes.insert(at, problem.ops + unit)
        assert_same(problem, nodes, sequence, budget)
    for which in taken:
        again = [at for at, node in enumerate(nodes) if node >= problem.ops]
        if again:
            at = again[int(which * len(again))]
            assert take(columns, readers, sequence, at) == nodes.pop(at) - problem.ops
            assert_same(problem, nodes, sequence, budget)


def inserts(problem: Problem, nodes: Ints) -> list[tuple[int, int]]:
    """The places and units that make *nodes* of program order, in the order of the sequence from its end."""
    units = [(place, int(node) - problem.ops) for place, node in enumerate(nodes) if node >= problem.ops]
    return [(place - before, unit) for before, (place, unit) in reversed(list(enumerate(units)))]


def assert_same(problem: Problem, nodes: list[int], sequence: Sequence, budget: int) -> None:
    whole = evaluate(problem, np.array(nodes, dtype=np.int64))
    length = int(sequence.counts[LENGTH])
    assert sequence.rows[NODES, :length].tolist() == nodes
    assert np.array_equal(sequence.rows[MEMORY, :length], whole.memory)
    assert np.array_equal(sequence.rows[AT, : problem.ops], np.flatnonzero(whole.nodes < problem.ops))
    assert excess(columns_of(problem), sequence, budget) == whole.excess(budget).sum()
    assert sequence.cost[0] == pytest.approx(whole.cost)


@given(graph=training_steps(), places=st.lists(st.tuples(share, share), min_size=1, max_size=9))
@settings(max_examples=200, deadline=None)
def test_without_what_is_plainly_needed_the_rest_does_not_fit(graph, places):
    problem = problem_of(graph)
    state = some_sequence(problem, places)
    columns, budget, length = columns_of(problem), state.peak, len(state.nodes)
    walked, _ = scratch(problem, length)
    rows, _, _ = walk(columns, walked, state.nodes, length, budget)
    for at in np.flatnonzero(state.nodes >= problem.ops).tolist():
        if is_needed(columns, walked, state.nodes, rows, at, budget):
            assert evaluate(problem, np.delete(state.nodes, at)).excess(budget).any()


@KINDS
@given(seed=st.integers(0, 1000), part=st.sampled_from([0.6, 0.75, 0.9]))
@settings(max_examples=15, deadline=None)
def test_what_it_returns_is_no_worse_than_what_it_was_given(kind, seed, part):
    state, budget = start_of(40, seed, part)
    found = run(kind, state, budget, steps=100)
    assert np.array_equal(found.memory, evaluate(found.problem, found.nodes).memory)
    if state.peak <= budget:
        assert found.peak <= budget
        assert found.cost <= state.cost * (1 + 1e-9)


def test_crossing_beats_the_best_that_it_crosses():
    gains = []
    for seed in (0, 1, 3):
        state, budget = start_of(200, seed, 0.8)
        pool = [run("rebuild", state, budget, steps=50, seed=number) for number in range(4)]
        assert all(one.peak <= budget for one in pool)
        best = min(pool, key=lambda one: one.cost)
        crossing = Rebuilding(best, budget, (0,), [one for one in pool if one is not best])
        crossing.run(400, Clock(float("inf")))
        found = crossing.found()
        assert found.peak <= budget
        gains.append(best.cost - found.cost)
    assert min(gains) >= 0
    assert max(gains) > 0


@KINDS
@given(graph=training_steps(), part=st.floats(0.5, 0.95))
@settings(max_examples=40, deadline=None)
def test_training_steps_keep_their_rules(kind, graph, part):
    problem = problem_of(graph)
    stored = evaluate(problem, np.arange(problem.ops))
    found = run(kind, repair(stored, int(part * stored.peak)), int(part * stored.peak), steps=60)
    replay = simulate(graph, problem.schedule(found.nodes))  # raises if a value is stale or missing
    assert replay.peak <= found.peak


@KINDS
@pytest.mark.parametrize("seed", range(3))
def test_it_meets_the_constraint_programs_optimum(kind, seed):
    state, budget = start_of(40, seed, 0.9)
    exact = make_plan(Graph.from_networkx(layered(40, seed)), Moccasin(seconds=20), budget)
    found = run(kind, state, budget, steps={"anneal": 200_000, "rebuild": 5000}[kind])
    assert found.peak <= budget
    assert found.cost <= exact.time * (1 + 1e-9)


@KINDS
def test_a_start_that_does_not_fit_comes_to_fit(kind):
    graph = Graph.from_networkx(layered(250, 1, 0.43))
    problem = problem_of(graph)
    budget = int(0.8 * simulate(graph).peak)
    state = repair(evaluate(problem, np.arange(problem.ops)), budget)
    assert state.peak > budget, "the greedy way no longer fails here: choose another graph"
    assert run(kind, state, budget, steps={"anneal": 400_000, "rebuild": 8000}[kind]).peak <= budget


@KINDS
def test_the_same_seed_finds_the_same(kind):
    state, budget = start_of(120, 3, 0.8)
    first, again, other = (run(kind, state, budget, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.nodes, again.nodes)
    assert not np.array_equal(first.nodes, other.nodes)


@pytest.mark.exhaustive
def test_auto_takes_it_for_graphs_that_are_not_small_and_finds_the_same_twice():
    graph = Graph.from_networkx(layered(200, 5, 0.4))
    budget = int(0.9 * simulate(graph).peak)
    first, again = (make_plan(graph, Auto(seed=4), budget) for _ in range(2))
    assert first.feasible
    assert np.array_equal(first.schedule.ops, again.schedule.ops)


@KINDS
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_stops_it_with_the_best_so_far(kind):
    state, budget = start_of(200, 0, 0.8)
    run(kind, state, budget, steps=1)  # compiled before the clock runs
    clock = Clock(time.perf_counter() + 60)
    threading.Timer(0.5, _thread.interrupt_main).start()
    begin = time.perf_counter()
    found = side_by_side(searches(kind, state, budget), steps=10**9, clock=clock)
    assert time.perf_counter() - begin < 30
    assert clock.is_over()
    assert all(one.peak <= budget and one.cost <= state.cost for one in found)


@KINDS
def test_it_tells_what_it_has_reached(kind):
    state, budget = start_of(100, 1, 0.8)
    told: list[float] = []
    side_by_side(searches(kind, state, budget), steps=200, clock=Clock(float("inf")), watch=told.append)
    assert told
    assert told == sorted(told, reverse=True)


@KINDS
def test_without_numba_it_names_the_extra_and_auto_does_without(kind, monkeypatch):
    monkeypatch.setattr("graphsim.recompute.machine_code.find_spec", lambda name: None)
    assert not is_available()
    state, budget = start_of(20, 0, 0.9)
    with pytest.raises(MissingExtraError, match="solver"):
        searches(kind, state, budget)
    graph = Graph.from_networkx(layered(160, 0, 0.4))
    assert make_plan(graph, Auto(seconds=2), int(0.9 * simulate(graph).peak)).feasible
