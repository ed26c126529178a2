"""How long strategies plan a step of 5,000 ops, how fast DTR runs and schedules are evaluated; times are asserted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import graphsim as gs
from graphsim.core.graph import Graph
from graphsim.core.liveness import live_ranges
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import simulate, with_costs
from graphsim.recompute.evaluation import evaluate
from graphsim.recompute.moves import sequence as sequence_rows
from graphsim.recompute.moves.columns import MEMORY, columns_of, scratch
from graphsim.recompute.moves.sequence import all_readers, place, sequence_of, take
from graphsim.recompute.moves.walk import walk
from graphsim.recompute.plan import make_plan, make_schedule
from graphsim.recompute.problem import problem_of
from graphsim.recompute.strategies import STRATEGIES
from graphsim.recompute.strategies.auto import Auto
from graphsim.recompute.strategies.dtr import simulate_log
from graphsim.sources.layered import layered

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from reference import interpret

SECONDS = 1.0
"""What a heuristic strategy may take for 5,000 ops."""
FIRST_SECONDS = 5.0
"""What `auto` may take for its first plan that fits."""
SEARCHES = {"auto", "moccasin", "checkmate", "checkmate_lp"}
"""They take the time that they are given."""


@pytest.fixture(scope="module")
def step() -> Graph:
    graph = gs.training_step(
        gs.load("gpt2", layers=48, width=1600, heads=25, batch=2, seq=1024), optimizer="sgd", precision="bf16"
    )
    assert len(graph.ops) > 5000
    return graph


@pytest.mark.parametrize("share", [None, 0.8, 0.6])
@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in SEARCHES])
@pytest.mark.benchmark(group="plans of gpt2-xl, 5,400 ops")
def test_planning(benchmark, step, name, share):
    budget = None if share is None else int(simulate(step).peak * share)
    plan = benchmark.pedantic(lambda: make_plan(step, name, budget), rounds=2, warmup_rounds=1)
    benchmark.extra_info["peak"] = plan.peak_bytes / simulate(step).peak
    benchmark.extra_info["overhead"] = plan.overhead
    assert plan.peak_bytes == simulate(step, plan.schedule).peak
    assert not benchmark.enabled or benchmark.stats["min"] < SECONDS


@pytest.mark.parametrize("share", [0.9, 0.6])
@pytest.mark.benchmark(group="the first plan of gpt2-xl that fits, 5,400 ops")
def test_the_first_plan(benchmark, step, share):
    auto = Auto(seconds=FIRST_SECONDS)
    plan = benchmark.pedantic(lambda: make_plan(step, auto, int(simulate(step).peak * share)), rounds=1)
    benchmark.extra_info["overhead"] = plan.overhead
    assert plan.feasible
    assert not benchmark.enabled or benchmark.stats["min"] < 1.2 * FIRST_SECONDS


@pytest.mark.parametrize("heuristic", ["dtr", "eqclass", "local", "lru", "size", "msps"])
@pytest.mark.benchmark(group="DTR within 0.8 of the peak of gpt2-xl, 5,400 ops")
def test_dtr(benchmark, step, heuristic):
    graph, budget = with_costs(step, "a100-80g"), int(simulate(step).peak * 0.8)  # with times, as a log
    outcome = benchmark.pedantic(lambda: simulate_log(graph, budget, heuristic, most=2), rounds=5, warmup_rounds=1)
    if benchmark.enabled:
        benchmark.extra_info["ops per second"] = round(len(outcome.order) / benchmark.stats["min"])
    benchmark.extra_info["overhead"] = outcome.overhead
    assert outcome.finished


@pytest.fixture(scope="module")
def planned() -> tuple[Graph, Schedule]:
    """A layered graph of 1,000 ops and about 5,900 edges, and a schedule within 0.9 of its peak."""
    graph = Graph.from_networkx(layered(1000, 0, 0.31))
    schedule = make_schedule(graph, Auto(seconds=2), int(simulate(graph).peak * 0.9))
    assert schedule.repeats.any()
    return graph, schedule


@pytest.mark.benchmark(group="one schedule, 1,000 ops, about 5,900 edges")
@pytest.mark.parametrize("how", ["brute force", "liveness pass", "search, numpy", "search, compiled"])
def test_evaluation(benchmark, planned, how):
    graph, schedule = planned
    problem = problem_of(graph)
    nodes = problem.nodes(schedule)
    columns, (walked, _) = columns_of(problem), scratch(problem, len(nodes))
    budget = live_ranges(graph, schedule).peak
    ways = {
        "brute force": lambda: max(interpret(graph, schedule.ops.tolist(), "eager").during),
        "liveness pass": lambda: live_ranges(graph, schedule).peak,
        "search, numpy": lambda: evaluate(problem, nodes).peak,
        "search, compiled": lambda: (
            walk(columns, walked, nodes, len(nodes), budget) and int(walked[MEMORY, : len(nodes)].max())
        ),
    }
    assert benchmark(ways[how]) == budget
    assert not benchmark.enabled or how == "brute force" or benchmark.stats["min"] < 0.5e-3
    benchmark.extra_info["edges"] = len(graph.index.input_tensor)


@pytest.mark.benchmark(group="one recompute less and once more, 1,000 ops: incrementally, and as a whole")
@pytest.mark.parametrize("how", ["whole", "incremental"])
def test_a_local_move(benchmark, planned, how):
    graph, schedule = planned
    problem = problem_of(graph)
    state = evaluate(problem, problem.nodes(schedule))
    at = int(np.flatnonzero(state.nodes >= problem.ops)[0])
    shorter = evaluate(problem, np.delete(state.nodes, at))
    columns, readers = columns_of(problem), all_readers(problem)
    sequence = sequence_of(state)
    length = len(state.nodes)

    def incrementally() -> int:
        unit = take(columns, readers, sequence, at)
        place(columns, readers, sequence, unit, at)
        return int(sequence.rows[sequence_rows.MEMORY, :length].max())

    def as_a_whole() -> int:
        return evaluate(
            problem, np.insert(evaluate(problem, np.delete(state.nodes, at)).nodes, at, state.nodes[at])
        ).peak

    assert benchmark(incrementally if how == "incremental" else as_a_whole) == state.peak
    take(columns, readers, sequence, at)
    assert np.array_equal(sequence.rows[sequence_rows.MEMORY, : length - 1], shorter.memory)


@pytest.mark.benchmark(group="one schedule of gpt2-xl, 5,400 ops")
def test_evaluation_of_a_step(benchmark, step):
    schedule = make_schedule(step, "sqrt", int(simulate(step).peak * 0.8))
    assert schedule.repeats.any()
    peak = benchmark(lambda: live_ranges(step, schedule).peak)
    assert peak == max(interpret(step, schedule.ops.tolist(), "eager").during)
    assert not benchmark.enabled or benchmark.stats["min"] < 2e-3
