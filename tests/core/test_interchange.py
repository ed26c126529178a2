"""Graphs of other programs: node-link documents of plain DAGs, and what the edges of ours say."""

from __future__ import annotations

import copy
import json
import sys

import networkx as nx
import pytest
from generators import graphs
from hypothesis import given, settings
from hypothesis import strategies as st

from graphsim.core.graph import Graph, Op, Tensor
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import simulate
from graphsim.errors import GraphError, ScheduleError

PLAIN = {
    "directed": True,
    "multigraph": False,
    "graph": {"name": "diamond", "order": ["a", "b", "c", "d"]},
    "nodes": [{"id": name, "bytes": 4, "time": 1.5} for name in "abcd"],
    "edges": [{"source": u, "target": v} for u, v in ("ab", "ac", "bd", "cd")],
}


def test_a_plain_document_of_another_program_is_read():
    graph = Graph.from_json(json.dumps(PLAIN))
    assert graph.name == "diamond"
    assert [(op.name, op.inputs) for op in graph.ops] == [
        ("a", ()),
        ("b", ("a",)),
        ("c", ("a",)),
        ("d", ("b", "c")),
    ]
    assert simulate(graph).timeline.tolist() == [4, 8, 12, 12]
    assert simulate(graph).time == 6.0


def test_the_older_key_links_is_read_too():
    older = {("links" if key == "edges" else key): value for key, value in PLAIN.items()}
    assert Graph.from_json(json.dumps(older)) == Graph.from_json(json.dumps(PLAIN))


def test_other_attributes_may_hold_the_sizes():
    dag = nx.DiGraph()
    dag.add_node(0, mem=7, cost=2)
    dag.add_edge(0, 1)
    dag.add_node(1, mem=5, cost=3)
    run = simulate(Graph.from_networkx(dag, size="mem", time="cost"))
    assert (run.timeline.tolist(), run.time) == ([7, 12], 5.0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("directed",), False),
        (("graph",), ["name"]),
        (("graph", "order"), [["a"], {}, 1, 2]),
        (("graph", "order"), ["d", "c", "b", "a"]),
        (("nodes", 0), 5),
        (("nodes", 0, "id"), {}),
        (("nodes", 0, "id"), "b"),
        (("nodes", 0, "bytes"), 10**400),
        (("nodes", 0, "bytes"), "4"),
        (("nodes", 0, "bytes"), True),
        (("nodes", 0, "time"), 10**400),
        (("nodes", 0, "time"), -1),
        (("nodes", 0, "time"), float("nan")),
        (("nodes", 0, "time"), float("inf")),
        (("edges", 0), "ab"),
        (("edges", 0, "target"), "z"),
        (("edges", 3, "target"), "a"),
        (("edges",), None),
    ],
)
def test_a_plain_document_with_a_fault_is_refused(path, value):
    with pytest.raises(GraphError):
        Graph.from_json(json.dumps(_changed(PLAIN, path, value)))


OURS = json.loads(Graph([Op("a", "n", (), ("x",))], [Tensor("x", (2,))], outputs=("x",)).to_json())


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("graph", "format"), "graphsim/9", "not one this version reads"),
        (("graph", "name"), 3, "'name' must be a string"),
        (("graph", "outputs"), "x", "'outputs' must be a list of names"),
        (("graph", "outputs"), [["x"]], "'outputs' must be a string"),
        (("graph", "attributes"), [], "'attributes' must be an object"),
        (("graph", "tensors", 0), "x", "malformed"),
        (("graph", "tensors", 0, "shape"), "", "tensor 'x': 'shape' must be a list"),
        (("graph", "tensors", 0, "shape"), {}, "tensor 'x': 'shape' must be a list"),
        (("graph", "tensors", 0, "shape"), [2.0], "'extent' must be an integer"),
        (("graph", "tensors", 0, "shape"), [-1], "'extent' must be an integer"),
        (("graph", "tensors", 0, "shape"), [2**62, 2**62], "bytes in total"),
        (("graph", "tensors", 0, "dtype"), "float33", "tensor 'x': unknown dtype 'float33'"),
        (("graph", "tensors", 0, "role"), "guest", "'guest' is not a valid Role"),
        (("nodes", 0, "phase"), [], "not a valid Phase"),
        (("nodes", 0, "workspace"), True, "'workspace' must be an integer"),
        (("nodes", 0, "workspace"), 10**30, "'workspace' must be an integer"),
        (("nodes", 0, "time"), True, "op 'a': time must be a number"),
        (("nodes", 0, "time"), float("nan"), "op 'a': time must be a number"),
        (("nodes", 0, "colour"), "red", "colour"),
    ],
)
def test_a_document_of_ours_with_a_fault_is_refused_with_its_name(path, value, words):
    with pytest.raises(GraphError, match=words):
        Graph.from_json(json.dumps(_changed(OURS, path, value)))


@pytest.mark.parametrize("document", [OURS, PLAIN], ids=["ours", "plain"])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a": ', "}")])
def test_deep_nesting_anywhere_is_one_error(document, opening, closing, monkeypatch):
    parse = json.loads

    def generous(text, **options):  # some Pythons let the parser nest deeper than everything after it
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(5 * limit)
        try:
            return parse(text, **options)
        finally:
            sys.setrecursionlimit(limit)

    depth = 2 * sys.getrecursionlimit()
    monkeypatch.setattr(json, "loads", generous)
    for path in _paths(document):
        text = json.dumps(_changed(document, path, "@")).replace('"@"', opening * depth + "1" + closing * depth)
        try:
            Graph.from_json(text)  # what nobody looks at may be anything
        except GraphError:
            continue


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a", "b", "id", "bytes", "order"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)


@given(data=st.data())
@settings(max_examples=800)
def test_a_damaged_plain_document_is_a_graph_or_one_error(data):
    document = PLAIN
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(_paths(document))))
        document = _changed(document, path, data.draw(JUNK))
    try:
        graph = Graph.from_json(json.dumps(document))
    except GraphError:
        return
    assert len(graph.dag) == len(graph.ops) == len(simulate(graph).timeline)


def test_a_bomb_of_dimensions_is_refused():
    text = Graph([], [Tensor("x", (2,))]).to_json()
    bomb = text.replace('"shape": [2]', f'"shape": [{", ".join(["4611686018427387904"] * 20_000)}]')
    with pytest.raises(GraphError, match="dimensions"):
        Graph.from_json(bomb)


def test_edges_carry_tensors_or_order_alone():
    x, y = Tensor("x", (3,)), Tensor("y", (5,))
    ops = [
        Op("make", "n", (), ("x", "y")),
        Op("read", "n", ("x", "y")),
        Op("change", "n", ("x",), mutates=("x",)),
        Op("after", "n", ("x",)),
    ]
    dag = Graph(ops, [x, y]).dag
    assert dag.edges["make", "read"] == {"tensors": ("x", "y"), "bytes": 32, "order": False}
    assert dag.edges["read", "change"] == {"tensors": (), "bytes": 0, "order": True}
    assert dag.edges["change", "after"]["order"]
    assert dag.nodes["change"]["mutates"] == ("x",)


@given(data=st.data(), graph=graphs())
@settings(max_examples=200)
def test_an_order_that_breaks_an_edge_of_data_is_no_schedule(data, graph):
    flows = [(u, v) for u, v, order in graph.dag.edges(data="order") if not order]
    if not flows:
        return
    writer, reader = data.draw(st.sampled_from(flows))
    names = [op.name for op in graph.ops if op.name != writer]
    names.insert(names.index(reader) + 1, writer)
    with pytest.raises(ScheduleError, match="before anything has written it"):
        _ = simulate(graph, Schedule.of(graph, names)).timeline


def _paths(value, path=()):
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _paths(inner, (*path, key))


def _changed(document, path, value):
    if not path:
        return value
    changed = copy.deepcopy(document)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed
