"""What every plug-in of a kind must do, whoever wrote it."""

from __future__ import annotations

import json
from math import isqrt

import numpy as np
import pytest
from generators import chain
from quick import quick

import graphsim as gs
from graphsim.core.graph import Graph, Op, Phase, Tensor
from graphsim.core.layout import validate
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import simulate
from graphsim.core.trace import trace
from graphsim.errors import MissingExtraError, UnknownNameError, UsageError
from graphsim.measured.backends import BACKENDS
from graphsim.memory.allocators import ALLOCATORS
from graphsim.recompute.plan import make_plan, make_schedule
from graphsim.recompute.strategies import STRATEGIES
from graphsim.show.reporters import REPORTERS
from graphsim.sources import FRONTENDS, source_of

MODELS = {"lenet5": {"batch": 4}, "resnet18": {"batch": 2, "size": 32}, "gpt2": {"batch": 1, "seq": 16, "layers": 2}}


@pytest.fixture(scope="module", params=MODELS)
def step(request) -> Graph:
    return gs.training_step(gs.load(request.param, **MODELS[request.param]), optimizer="momentum", target="cpu")


# -- strategies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_returns_a_valid_plan_that_says_what_it_costs(name, step):
    plan = make_plan(step, quick(name))
    run = simulate(step, plan.schedule)
    assert plan.strategy == name
    assert plan.peak_bytes == run.peak
    assert plan.memory_bound <= plan.peak_bytes
    assert plan.feasible
    assert plan.base_time <= plan.time


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_never_repeats_the_optimizer_or_an_update_of_statistics(name, step):
    plan = make_plan(step, quick(name))
    counts = np.bincount(plan.schedule.ops, minlength=len(step.ops))
    residents = {t.name for t in step.tensors.values() if t.role in (gs.Role.PARAMETER, gs.Role.BUFFER)}
    for op, count in zip(step.ops, counts.tolist(), strict=True):
        if op.phase is Phase.OPTIMIZER or residents & set(op.mutates):
            assert count == 1, op.name


@pytest.mark.parametrize("budget", [None, 0, 50, 100])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_takes_a_graph_in_which_nothing_can_run_again(name, budget):
    graph = Graph([Op("end", "release", ("x",), ())], [Tensor("x", (100,), "uint8")])
    plan = make_plan(graph, quick(name), budget)
    assert (plan.peak_bytes, plan.feasible) == (100, budget in (None, 100))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_says_whether_it_meets_the_budget(name):
    graph = chain(10)
    peak = make_plan(graph, quick(name)).peak_bytes
    assert make_plan(graph, quick(name), peak).feasible
    for budget in range(2000, peak + 1000, 500):
        plan = make_plan(graph, quick(name), budget)
        assert plan.feasible == (plan.peak_bytes <= budget)
        assert plan.budget == budget
    assert not make_plan(graph, quick(name), plan.memory_bound - 1).feasible


STORE_ALL_OF_A_CHAIN = {"none", "selective", "dtr", "mincut", "checkmate", "checkmate_lp", "moccasin"}
"""Without attention there is nothing to select, and without a budget nothing to evict. Of equal ops, PyTorch's
knapsack saves the first ones: the rest runs again at the start of backward, all of it, at the same peak."""


@pytest.mark.parametrize("name", sorted(STORE_ALL_OF_A_CHAIN & set(STRATEGIES)))
def test_a_strategy_that_has_nothing_to_save_says_so(name):
    plan = make_plan(chain(16), quick(name))
    assert plan.schedule == Schedule.of(chain(16))
    assert (plan.overhead, plan.proved_optimal) == (0.0, True)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in STORE_ALL_OF_A_CHAIN])
@pytest.mark.parametrize("length", [16, 64, 100])
def test_a_strategy_beats_storing_all_on_a_chain_for_at_most_one_more_forward_pass(name, length):
    graph = chain(length)
    plan, stored = make_plan(graph, quick(name)), make_plan(graph, "none")
    assert stored.peak_bytes == (length + 1) * 1000
    assert plan.peak_bytes < stored.peak_bytes
    assert plan.time - plan.base_time <= length


@pytest.mark.parametrize("length", [16, 64, 100])
def test_chens_spans_need_about_twice_the_square_root(length):
    assert make_plan(chain(length), "sqrt").peak_bytes <= (2 * isqrt(length) + 3) * 1000


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_takes_a_plain_dag(name):
    dag = Graph([Op("a", "node", (), ("a",)), Op("b", "node", ("a",), ("b",))], [Tensor("a", (5,)), Tensor("b", (3,))])
    assert make_schedule(dag, quick(name)) == Schedule.of(dag)


# -- allocators and backends ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALLOCATORS)
def test_an_allocator_places_live_blocks_apart_and_counts_no_less_than_is_live(name, step):
    events = simulate(step).trace
    layout = ALLOCATORS[name]()(events)
    validate(events, layout)
    assert layout.reserved_peak >= layout.peak >= simulate(step).peak


@pytest.mark.parametrize("registry", [ALLOCATORS, BACKENDS], ids=["allocators", "backends"])
def test_an_empty_trace_has_an_empty_layout(registry):
    empty = trace(simulate(Graph([], [])).live_ranges)
    for name in registry:
        if name in BACKENDS and not available(name):
            continue
        layout = registry[name]()(empty)
        assert (layout.peak, layout.reserved_peak, layout.fragmentation) == (0, 0, 0.0)


def available(backend: str) -> bool:
    """Whether what the backend measures is here: a GPU, for most."""
    try:
        return bool(BACKENDS[backend]().device)
    except (UsageError, MissingExtraError):
        return False


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_measures_what_was_predicted_at_every_event(name):
    if not available(name):
        pytest.skip(f"{name} needs a CUDA device and its library")
    events = simulate(gs.training_step(gs.load("lenet5", batch=4), optimizer="adam", target="cpu")).trace
    measured = BACKENDS[name]()(events)
    validate(events, measured)
    assert np.array_equal(measured.used, ALLOCATORS[BACKENDS[name]().model]()(events).used)


# -- reporters and frontends ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", REPORTERS)
def test_a_reporter_renders_every_kind_of_report(name):
    reporter = REPORTERS[name]()
    assert reporter.suffix.startswith(".")
    for options in ({}, {"mode": "inference"}, {"optimizer": "adam", "precision": "amp-bf16"}):
        report = gs.peak(gs.load("lenet5", batch=2), **options)
        rendered = reporter(report)
        assert rendered
        assert f"{report.steady.peak_bytes:,}" in rendered or str(report.steady.peak_bytes) in rendered


def test_every_frontend_reads_the_same_graph(tmp_path):
    graph = gs.load("lenet5", batch=2)
    file = tmp_path / "graph.json"
    file.write_text(graph.to_json())
    read = source_of(file)
    assert read.frontend is FRONTENDS["json"]
    assert read.graph == gs.load(file) == graph
    assert json.loads(file.read_text())["graph"]["name"] == "lenet5"
    dag = source_of(_sized(graph))
    assert dag.frontend is FRONTENDS["networkx"]
    assert len(dag.graph.ops) == len(graph.ops)


def _sized(graph: Graph):
    dag = graph.dag.copy()
    for op in graph.ops:
        dag.nodes[op.name]["bytes"] = sum(graph.tensors[name].nbytes for name in op.outputs)
    return dag


# -- registries ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("registry", [STRATEGIES, ALLOCATORS, BACKENDS, REPORTERS, FRONTENDS])
def test_a_bad_name_answers_with_the_known_ones(registry):
    name = registry.names()[0]
    with pytest.raises(UnknownNameError, match=name):
        registry[name + "x"]


@pytest.mark.parametrize("registry", [STRATEGIES, ALLOCATORS, BACKENDS])
def test_an_object_is_taken_where_a_name_is(registry):
    plugin = registry[registry.names()[0]]()
    assert registry.resolve(plugin) is plugin
    assert registry.resolve(registry.names()[0]) == plugin
