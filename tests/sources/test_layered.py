"""The generator of random layered graphs, against its published definition and instances."""

from __future__ import annotations

import json
from itertools import pairwise
from math import ceil, sqrt

import networkx as nx
import pytest
from command_line import graphsim as run
from hypothesis import given
from hypothesis import strategies as st

import graphsim as gs
from graphsim.core.graph import Graph
from graphsim.core.simulation import simulate
from graphsim.errors import UsageError
from graphsim.sources.layered import layered

INSTANCES = {250: (0.43, 944), 1000: (0.31, 5875)}
"""Nodes: width factor and edges of the instances that Moccasin ships."""


@pytest.mark.parametrize("nodes", [100, 250, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_a_graph_has_one_source_one_sink_its_layers_and_its_costs(nodes, seed):
    dag = layered(nodes, seed)
    assert len(dag) == nodes
    assert nx.is_directed_acyclic_graph(dag)
    position = {node: i for i, node in enumerate(dag.graph["order"])}
    assert all(position[u] < position[v] for u, v in dag.edges)
    assert [node for node in dag if not dag.pred[node]] == [0]
    assert dag.nodes[0]["time"] == 0
    assert all(0 <= dag.nodes[node]["time"] <= 998 for node in dag)
    assert all(dag.nodes[node]["bytes"] % 10 in (0, 9) for node in dag), "int(1000 x) of two decimals, 9 by rounding"


@pytest.mark.parametrize("nodes", [250, 1000])
def test_the_instances_have_as_many_edges_and_layers_as_the_published_ones(nodes):
    width, edges = INSTANCES[nodes]
    drawn = [layered(nodes, seed, width) for seed in range(20)]
    counts = sorted(dag.number_of_edges() for dag in drawn)
    assert counts[0] * 0.9 <= edges <= counts[-1] * 1.1
    layers = ceil(sqrt(nodes * (1 / width - 1)))
    for dag in drawn:
        depth = _layer(dag)
        assert max(depth.values()) <= 1.6 * layers
        skips = sum(1 for u, v in dag.edges if depth[v] - depth[u] > 1)
        assert 0.08 < skips / dag.number_of_edges() < 0.25


def _layer(dag: nx.DiGraph) -> dict[int, int]:
    depth: dict[int, int] = {}
    for node in nx.topological_sort(dag):
        depth[node] = max((depth[before] + 1 for before in dag.pred[node]), default=0)
    return depth


def test_equal_seeds_give_equal_graphs_and_others_do_not():
    a, b, c = layered(100, 1), layered(100, 1), layered(100, 2)
    assert nx.utils.graphs_equal(a, b)
    assert not nx.utils.graphs_equal(a, c)


def test_the_peak_grows_with_the_graph():
    peaks = [simulate(Graph.from_networkx(layered(nodes, 0))).peak for nodes in (50, 200, 800)]
    assert all(a < b for a, b in pairwise(peaks))


@given(nodes=st.integers(2, 300), seed=st.integers(), width=st.floats(1e-6, 1 - 1e-6) | st.none())
def test_any_number_of_nodes_of_any_width_has_one_source_and_one_sink(nodes, seed, width):
    dag = layered(nodes, seed, width)
    assert sorted(dag) == list(range(nodes))
    assert [node for node in dag if not dag.pred[node]] == [0]
    assert [node for node in dag if not dag.succ[node]] == [nodes - 1]
    assert len(Graph.from_networkx(dag).ops) == nodes


def test_a_source_names_it_and_params_set_the_rest():
    graph = gs.load("layered:60", seed=3, width=0.4)
    assert graph == Graph.from_networkx(gs.layered(60, 3, 0.4))
    assert graph.name == "layered:60"
    assert gs.load("layered:60") == Graph.from_networkx(layered(60))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((1,), "2 to 10,000 nodes, not 1"),
        ((True,), "2 to 10,000 nodes"),
        ((10**9,), "2 to 10,000 nodes"),
        ((9, 0.5), "integer"),
        ((9, 1, 1.0), "between 0 and 1"),
        ((9, 1, float("nan")), "between 0 and 1"),
        ((9, 1, "wide"), "between 0 and 1, not 'wide'"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments, words):
    with pytest.raises(UsageError, match=words):
        layered(*arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "layered:many", "--budget", "0.9x"), "for example layered:250"),
        (("plan", "layered:", "--budget", "0.9x"), "for example layered:250"),
        (("plan", "layered:-5", "--budget", "0.9x"), "for example layered:250"),
        (("plan", "layered:1", "--budget", "0.9x"), "2 to 10,000 nodes"),
        (("compare", "layered:50", "--batch", "3"), "no param 'batch' to set; known: seed, width"),
        (("peak", "layered:50", "--set", "with=0.4"), "did you mean 'width'"),
        (("peak", "layered:50", "--set", "width=2"), "between 0 and 1, not '2'"),
        (("fit", "layered:50"), "either --gpu NAME or --memory SIZE"),
    ],
)
def test_a_wrong_source_gets_one_line_and_exit_code_2(arguments, words):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_commands_take_it_as_a_whole_step():
    peak = json.loads(run("peak", "layered:40", "--set", "seed=1", "--json").stdout)["steady"]["peak_bytes"]
    assert peak == simulate(Graph.from_networkx(layered(40, 1))).peak
    setting = ("--set", "seed=1", "--budget", "0.9x", "--options", "seconds=1", "--json")
    plan = json.loads(run("plan", "layered:40", *setting).stdout)
    assert plan["budget_bytes"] == peak * 9 // 10
    assert plan["base_time"] == sum(layered(40, 1).nodes[node]["time"] for node in range(40))
    grew = run("diff", "layered:40", "layered:40", "--b", "seed=1")
    assert grew.returncode in (0, 1), grew.stderr
