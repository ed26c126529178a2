"""The generator of random layered graphs, against its published definition and instances."""

from __future__ import annotations

from itertools import pairwise
from math import ceil, sqrt

import networkx as nx
import pytest
from layered import layered

from graphsim.graph import Graph
from graphsim.simulation import simulate

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
