"""Random layered graphs, as the literature on rematerialization generates them.

Source: Gagrani, Rainone, Yang, Teague, Jeon, Bondesan, van Hoof, Lott, Zeng, Zappi, "Neural Topological Ordering
for Computation Graphs", NeurIPS 2022, appendix A; the parameters and costs are those of the instances that
Moccasin (ICML 2023) ships.
"""

from __future__ import annotations

import random
from itertools import pairwise
from math import ceil, floor, sqrt
from typing import Any

import networkx as nx

from graphsim.core.graph import Graph
from graphsim.errors import UsageError, suggest

PREFIX = "layered:"
PARAMS = ("seed", "width")
MAX_NODES = 10_000
"""At most; the edges of a wide graph grow with the square of its nodes."""
SIGMA, EDGES, SKIPS = 0.75, 0.2, 0.14
MIXTURE = ((0.5, 0.5, 0.2), (1.0, 1.0, 0.4), (3.0, 1.0, 0.3), (5.0, 1.0, 0.1))
"""Mean, standard deviation and weight of the Gaussians that output sizes are drawn from, in thousands."""


def takes(source: str, name: str) -> bool:
    """Whether *name* can be set."""
    return name in PARAMS


def load_layered(source: str, **parameters: Any) -> Graph:
    """Return the graph that *source* draws: ``layered:250`` is one of 250 nodes, see `layered` for the parameters.

    Raises:
        UsageError: it names no number of nodes, or a parameter does not exist or is out of range.
    """
    text = source.removeprefix(PREFIX)
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(
            f"'{source[:60]}' names no graph: write {PREFIX} and the number of nodes, for example {PREFIX}250"
        )
    for name in parameters:
        if name not in PARAMS:
            raise UsageError(f"{source} has no param '{name[:60]}' to set; {suggest(name, PARAMS)}")
    return Graph.from_networkx(layered(int(text), **parameters))


def layered(nodes: int, seed: int = 0, width: float | None = None) -> nx.DiGraph:
    """Return a random graph of layers, to be planned: what `Graph.from_networkx` reads.

    Args:
        nodes: of the graph; the first is the one source, the last the one sink.
        seed: equal ones give equal graphs.
        width: from narrow (0) to wide (1): n nodes make about sqrt(n (1 / width - 1)) layers; drawn from
            0.25 ... 0.5 if None, as in the paper.

    Returns:
        A DAG whose nodes have ``bytes`` and ``time``, and its ``order`` of execution, layer by layer.

    Raises:
        UsageError: an argument is out of range.
    """
    _check(nodes, seed, width)
    rng = random.Random(seed)
    layers = _layers(nodes, rng.uniform(0.25, 0.5) if width is None else width, rng)
    dag = nx.DiGraph(name=f"{PREFIX}{nodes}", order=[node for layer in layers for node in layer])
    dag.add_nodes_from(dag.graph["order"])
    for before, after in pairwise(layers):
        dag.add_edges_from(_connect(before, after, rng))
    _skip(dag, layers, rng)
    for node in dag:
        dag.nodes[node]["time"] = 0 if node == 0 else rng.randint(0, 998)
        mean, deviation, _ = rng.choices(MIXTURE, [weight for *_, weight in MIXTURE])[0]
        dag.nodes[node]["bytes"] = int(1000 * round(abs(rng.gauss(mean, deviation)), 2))
    return dag


def _check(nodes: int, seed: int, width: float | None) -> None:
    if type(nodes) is not int or not 2 <= nodes <= MAX_NODES:
        raise UsageError(f"a layered graph has 2 to {MAX_NODES:,} nodes, not {str(nodes)[:40]}")
    if type(seed) is not int:
        raise UsageError(f"the seed of a layered graph is an integer, not {str(seed)[:40]!r}")
    if width is not None and not (isinstance(width, float) and 0 < width < 1):
        raise UsageError(f"the width of a layered graph is a number between 0 and 1, not {str(width)[:40]!r}")


def _layers(nodes: int, width: float, rng: random.Random) -> list[list[int]]:
    """One source, layers of random size until the nodes are used up, one sink."""
    count = ceil(sqrt(nodes * (1 / width - 1)))
    low, high = ceil(nodes / count * (1 - SIGMA)), floor(nodes / count * (1 + SIGMA))
    layers, used = [[0]], 1
    while used < nodes - 1:
        size = min(rng.randint(low, max(low, high)), nodes - 1 - used)
        layers.append(list(range(used, used + size)))
        used += size
    return [*layers, [nodes - 1]]


def _connect(before: list[int], after: list[int], rng: random.Random) -> list[tuple[int, int]]:
    """Each node of the larger layer meets a window of the smaller one; the number of edges is fixed."""
    large, small = (before, after) if len(before) >= len(after) else (after, before)
    total = round(len(before) * len(after) * EDGES + (1 - EDGES) * len(large))
    counts = [total // len(large)] * len(large)
    for i in rng.sample(range(len(large)), total % len(large)):
        counts[i] += 1
    edges = []
    for i, count in enumerate(counts):
        middle = ceil(i * (len(small) - 1) / max(1, len(large) - 1))
        start = min(max(0, middle - count // 2), len(small) - count)
        window = small[start : start + count]
        edges += [(large[i], other) if large is before else (other, large[i]) for other in window]
    return edges


def _skip(dag: nx.DiGraph, layers: list[list[int]], rng: random.Random) -> None:
    """Edges over at least one layer, between nodes at about the same place of theirs; duplicates are dropped."""
    inner = len(layers) - 2
    for _ in range(round(dag.number_of_edges() * SKIPS / (1 - SKIPS))):
        if inner < 3:
            return
        source = rng.randint(1, inner - 2)
        target = rng.randint(source + 2, inner)
        x = rng.random()
        y = min(x + 0.2 * rng.random(), 0.999)
        dag.add_edge(layers[source][int(x * len(layers[source]))], layers[target][int(y * len(layers[target]))])
