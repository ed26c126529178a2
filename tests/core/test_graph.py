"""Graphs: what is checked on construction, and their networkx and JSON forms."""

from __future__ import annotations

import json

import networkx as nx
import numpy as np
import pytest
from generators import graphs
from hypothesis import given, settings
from hypothesis import strategies as st

import graphsim as gs
from graphsim.core.graph import Graph, Op, Tensor
from graphsim.errors import GraphError, GraphSimError

X, Y = Tensor("x", (2,)), Tensor("y", (2,))


@pytest.mark.parametrize(
    ("ops", "tensors", "words"),
    [
        ([Op("a", "n", ("x",))], [], "'a' reads tensor 'x', which is unknown"),
        ([Op("a", "n", ("y",)), Op("b", "n", (), ("y",))], [Y], "only written later"),
        ([Op("a", "n", (), ("x",)), Op("b", "n", (), ("x",))], [X], "exists already"),
        ([Op("a", "n"), Op("a", "n")], [], "op 'a' stands twice"),
        ([], [X, X], "tensor 'x' stands twice"),
        ([Op("a", "n", (), ("z",))], [], "no entry in tensors"),
        ([], [Tensor("v", (1,), storage="x")], "'x' is not a tensor that owns its storage"),
        ([Op("a", "n", (), ("v",))], [X, Tensor("v", (2,), storage="x")], "without reading it"),
        ([Op("a", "n", (), mutates=("x",))], [X], "mutates 'x' without reading it"),
        ([], [Tensor("x", (-1,))], "negative"),
        ([Op("a", "n", workspace=-1)], [], "negative workspace"),
        ([Op("a", "n", (), ("x",))], [X, Tensor("v", (1,), storage="x")], "no op writes tensor 'v', but one writes"),
        ([], [Tensor("x", (2**31, 2**31), "int64")], "bytes in total"),
    ],
)
def test_a_wrong_graph_is_refused_with_names(ops, tensors, words):
    with pytest.raises(GraphError, match=words):
        Graph(ops, tensors)


def test_an_output_must_exist():
    with pytest.raises(GraphError, match="output 'z'"):
        Graph([], [X], outputs=("z",))


@given(graph=graphs())
@settings(max_examples=300)
def test_json_round_trip_keeps_everything_and_networkx_reads_it(graph):
    text = graph.to_json()
    assert Graph.from_json(text) == graph
    dag = nx.node_link_graph(json.loads(text), edges="edges")
    assert list(dag) == [op.name for op in graph.ops]
    assert nx.is_directed_acyclic_graph(dag)
    assert set(dag.edges) == set(graph.dag.edges)


@given(graph=graphs())
@settings(max_examples=200)
def test_every_topological_order_of_the_dag_is_a_valid_schedule(graph):
    order = list(nx.lexicographical_topological_sort(graph.dag))
    run = gs.simulate(graph, gs.Schedule.of(graph, order))
    assert run.timeline.shape == (len(graph.ops),)


def test_a_training_step_survives_the_round_trip():
    step = gs.training_step(gs.load("lenet5", batch=2), optimizer="adam")
    again = Graph.from_json(step.to_json())
    assert again == step
    assert gs.simulate(again).peak == gs.simulate(step).peak


@st.composite
def plain_dags(draw: st.DrawFn) -> nx.DiGraph:
    count = draw(st.integers(1, 12))
    dag = nx.DiGraph()
    for node in range(count):
        dag.add_node(f"n{node}", bytes=draw(st.integers(0, 99)), time=draw(st.integers(0, 9)))
        if node:
            for before in draw(st.sets(st.integers(0, node - 1), max_size=3)):
                dag.add_edge(f"n{before}", f"n{node}")
    dag.graph["order"] = [f"n{node}" for node in range(count)]
    return dag


@given(dag=plain_dags())
@settings(max_examples=300)
def test_a_plain_dag_frees_each_output_after_its_last_reader(dag):
    order = dag.graph["order"]
    last = {node: max([order.index(s) for s in dag.successors(node)], default=order.index(node)) for node in dag}
    wanted = [sum(dag.nodes[n]["bytes"] for n in order if order.index(n) <= t <= last[n]) for t in range(len(order))]
    graph = Graph.from_networkx(dag)
    assert gs.simulate(graph).timeline.tolist() == wanted
    total = sum(dag.nodes[n]["time"] for n in dag)
    assert gs.simulate(graph).time == (total or len(dag))  # without any time, every node costs 1


def test_a_graph_with_a_cycle_or_without_bytes_is_refused():
    with pytest.raises(GraphError, match="acyclic"):
        Graph.from_networkx(nx.DiGraph([("a", "b"), ("b", "a")]))
    with pytest.raises(GraphError, match="'a' needs an integer attribute 'bytes'"):
        Graph.from_networkx(nx.DiGraph([("a", "b")]))
    dag = nx.DiGraph([("a", "b")], order=["a"])
    with pytest.raises(GraphError, match="order"):
        Graph.from_networkx(dag)


DOCUMENT = gs.training_step(gs.load("lenet5", batch=1), optimizer="sgd").to_json()


def _paths(value, path=()):
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _paths(inner, (*path, key))


PATHS = list(_paths(json.loads(DOCUMENT)))
JUNK = st.sampled_from([None, -1, 10**30, 1.5, "x", [], {}, [1], True, "parameters", {"a": 1}])


@given(path=st.sampled_from(PATHS), junk=JUNK, drop=st.booleans())
@settings(max_examples=600)
def test_a_damaged_document_is_a_graph_or_one_error(path, junk, drop):
    data = json.loads(DOCUMENT)
    if path:
        inner = data
        for key in path[:-1]:
            inner = inner[key]
        if drop:
            del inner[path[-1]]
        else:
            inner[path[-1]] = junk
    else:
        data = junk
    try:
        graph = Graph.from_json(json.dumps(data))
    except GraphSimError:
        return
    assert np.all(gs.simulate(graph).timeline >= 0)


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "null", "3", '{"nodes": 3}', '{"nodes": [], "edges": 3}'])
def test_text_that_is_no_graph_is_refused(text):
    with pytest.raises(GraphError):
        Graph.from_json(text)
