"""The liveness pass on compiled arrays, against a walk over the networkx graph; and how it grows."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest

from graphsim.core.index import NOTHING, Index
from graphsim.core.liveness import ranges_in_any_order, ranges_in_program_order

WINDOW = 1000


def random_index(ops: int, degree: int = 3) -> Index:
    """A random DAG with one output per op; each op but the first reads *degree* of the 1000 before it."""
    rng = np.random.default_rng(ops)
    reader = np.repeat(np.arange(1, ops), degree)
    source = np.maximum(0, reader - rng.integers(1, WINDOW, len(reader)))
    none = np.zeros(0, dtype=np.int64)
    return Index(
        input_start=np.concatenate([[0, 0], np.arange(1, ops) * degree]),
        input_tensor=source,
        output_start=np.arange(ops + 1),
        output_tensor=np.arange(ops),
        output_parent=np.full(ops, NOTHING),
        write_start=np.zeros(ops + 1, dtype=np.int64),
        write_tensor=none,
        input_writer=source,
        workspace=np.zeros(ops, dtype=np.int64),
        hold=np.zeros(ops, bool),
        release=np.zeros(ops, bool),
        storage=np.arange(ops),
        nbytes=rng.integers(1, 1000, ops),
        source=np.zeros(ops, bool),
        resident=np.zeros(ops, bool),
        kept=none,
    )


def networkx_graph(index: Index) -> nx.DiGraph:
    dag = nx.DiGraph()
    dag.add_nodes_from((i, {"bytes": size}) for i, size in enumerate(index.nbytes.tolist()))
    reader = np.repeat(np.arange(index.ops), np.diff(index.input_start))
    dag.add_edges_from(zip(index.input_tensor.tolist(), reader.tolist(), strict=True))
    return dag


def walk(dag: nx.DiGraph) -> int:
    """The plain way: last uses from the edges, then one pass over the nodes in program order."""
    dying: dict[int, list[int]] = {}
    for node in dag:
        last = max(dag.successors(node), default=node)
        dying.setdefault(last, []).append(node)
    size = dag.nodes(data="bytes")
    live = peak = 0
    for node in dag:
        live += size[node]
        peak = max(peak, live)
        live -= sum(size[dead] for dead in dying.get(node, ()))
    return peak


def order_with_repeats(ops: int, repeats: int) -> np.ndarray:
    """Program order, in which *repeats* ops run once more, up to 5000 places later."""
    rng = np.random.default_rng(ops)
    again = np.sort(rng.choice(ops, repeats, replace=False))
    place = np.minimum(again + rng.integers(1, 5 * WINDOW, repeats), ops)
    return np.insert(np.arange(ops), place, again)


def walk_with_repeats(index: Index, order: np.ndarray) -> int:
    """The plain way: every execution makes a new value, a name stands for the latest."""
    inputs = index.input_tensor.tolist()
    start, size, ops = index.input_start.tolist(), index.nbytes.tolist(), order.tolist()
    latest: dict[int, int] = {}
    last_use = list(range(len(ops)))
    for execution, op in enumerate(ops):
        for tensor in inputs[start[op] : start[op + 1]]:
            last_use[latest[tensor]] = execution
        latest[op] = execution
    dying = [0] * len(ops)
    for execution, op in enumerate(ops):
        dying[last_use[execution]] += size[op]
    live = peak = 0
    for execution, op in enumerate(ops):
        live += size[op]
        peak = max(peak, live)
        live -= dying[execution]
    return peak


@pytest.fixture(scope="module")
def million(request: pytest.FixtureRequest) -> Index:
    timed = not request.config.getoption("benchmark_disable")
    return random_index(1_000_000 if timed else 50_000)  # the walk over the networkx graph takes its time


@pytest.mark.benchmark(group="liveness of 1M ops, 3M edges")
def test_pass_in_program_order(benchmark, million):
    peak = benchmark.pedantic(lambda: ranges_in_program_order(million, "eager").peak, rounds=7, warmup_rounds=1)
    assert peak > 0


@pytest.mark.benchmark(group="liveness of 1M ops, 3M edges")
def test_first_pass_on_an_index(benchmark):
    """With the columns that an index computes once, on demand."""

    def fresh() -> tuple[tuple[Index], dict[str, Any]]:
        return (random_index(1_000_000),), {}

    peak = benchmark.pedantic(lambda index: ranges_in_program_order(index, "eager").peak, setup=fresh, rounds=3)
    assert peak > 0


@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.benchmark(group="liveness of 1M executions with repeats")
def test_pass_with_repeats(benchmark, share):
    repeats = int(1_000_000 * share)
    index = random_index(1_000_000 - repeats)
    order = order_with_repeats(index.ops, repeats)
    assert len(order) == 1_000_000
    peak = benchmark.pedantic(lambda: ranges_in_any_order(index, order, "eager").peak, rounds=5, warmup_rounds=1)
    assert peak == walk_with_repeats(index, order)


@pytest.mark.benchmark(group="liveness of 1M ops, 3M edges")
def test_networkx_walk(benchmark, million):
    dag = networkx_graph(million)
    peak = benchmark.pedantic(walk, args=(dag,), rounds=2)
    assert peak == ranges_in_program_order(million, "eager").peak


@pytest.mark.parametrize("ops", [10_000, 100_000, 1_000_000])
@pytest.mark.benchmark(group="growth of the pass")
def test_growth(benchmark, ops):
    index = random_index(ops)
    benchmark.pedantic(lambda: ranges_in_program_order(index, "eager").peak, rounds=7, warmup_rounds=1)
    assert ranges_in_program_order(index, "eager").peak == ranges_in_any_order(index, np.arange(ops), "eager").peak
    if benchmark.enabled:
        benchmark.extra_info["nanoseconds per op"] = round(benchmark.stats["min"] / ops * 1e9, 1)
