"""How long strategies plan a step of 5,000 ops, and how fast DTR runs; the times are asserted."""

from __future__ import annotations

import pytest

import graphsim as gs
from graphsim.frontends.layered import layered
from graphsim.graph import Graph
from graphsim.liveness import live_ranges
from graphsim.simulation import simulate
from graphsim.strategies import STRATEGIES
from graphsim.strategies.auto import Auto
from graphsim.strategies.dtr import replay

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
    plan = benchmark.pedantic(lambda: STRATEGIES[name]()(step, budget=budget), rounds=2, warmup_rounds=1)
    benchmark.extra_info["peak"] = plan.peak_bytes / simulate(step).peak
    benchmark.extra_info["overhead"] = plan.overhead
    assert benchmark.stats["min"] < SECONDS


@pytest.mark.parametrize("share", [0.9, 0.6])
@pytest.mark.benchmark(group="the first plan of gpt2-xl that fits, 5,400 ops")
def test_the_first_plan(benchmark, step, share):
    auto = Auto(seconds=FIRST_SECONDS)
    plan = benchmark.pedantic(lambda: auto(step, budget=int(simulate(step).peak * share)), rounds=1)
    benchmark.extra_info["overhead"] = plan.overhead
    assert plan.feasible
    assert benchmark.stats["min"] < 1.2 * FIRST_SECONDS


@pytest.mark.parametrize("heuristic", ["dtr", "eqclass", "local", "lru", "size", "msps"])
@pytest.mark.benchmark(group="DTR within 0.8 of the peak of gpt2-xl, 5,400 ops")
def test_dtr(benchmark, step, heuristic):
    budget = int(simulate(step).peak * 0.8)
    outcome = benchmark.pedantic(lambda: replay(step, budget, heuristic, most=2), rounds=2, warmup_rounds=1)
    benchmark.extra_info["ops per second"] = round(len(outcome.order) / benchmark.stats["min"])
    benchmark.extra_info["overhead"] = outcome.overhead
    assert outcome.finished


@pytest.mark.benchmark(group="one schedule, 1,000 ops, about 5,900 edges")
def test_evaluation(benchmark):
    graph = Graph.from_networkx(layered(1000, 0, 0.31))
    schedule = Auto(seconds=2)(graph, budget=int(simulate(graph).peak * 0.9)).schedule
    assert schedule.repeats.any()
    peak = benchmark(lambda: live_ranges(graph, schedule).peak)
    assert peak > 0
    benchmark.extra_info["edges"] = len(graph.index.input_tensor)
