"""What `auto` finds on graphs of the kinds that the literature plans, beside exact solvers and the certified bound.

    python bench/plan_quality.py [--seeds N]     # a quarter of an hour

Layered graphs as in Moccasin's paper (the generator's, not its instances), and training graphs of FCN-8, a U-Net,
SegNet and ResNet-50 with one node per layer and pass, as in Checkmate's (`tests/networks.py`). Exact means
CP-SAT where it can (up to 100 ops, 20 s); its answer is optimal only among the schedules of its form.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

from graphsim.core.graph import Graph
from graphsim.core.simulation import simulate
from graphsim.recompute.plan import make_plan
from graphsim.recompute.strategies.auto import Auto
from graphsim.recompute.strategies.moccasin import Moccasin
from graphsim.sources.layered import layered

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from networks import NETWORKS

WIDTHS = {100: 0.27, 250: 0.43, 1000: 0.31}
EXACT_OPS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=2, help="layered graphs of each size")
    print("| graph | ops | edges | budget | `auto` | seconds | at least | CP-SAT, 20 s |\n|---|" + "---:|" * 7)
    for name, dag, shares in cases(parser.parse_args().seeds):
        graph = Graph.from_networkx(dag)
        for share in shares:
            budget = int(share * simulate(graph).peak)
            begin = time.perf_counter()
            plan = make_plan(graph, Auto(), budget)
            seconds = time.perf_counter() - begin
            least = plan.time_bound / plan.base_time - 1
            cells = [name, f"{len(dag):,}", f"{dag.number_of_edges():,}", f"{share:.1f}x"]
            cells += [f"{plan.overhead:.3%}" if plan.feasible else "does not fit", f"{seconds:.1f}", f"{least:.3%}"]
            print("| " + " | ".join([*cells, exact(graph, budget)]) + " |", flush=True)


def cases(seeds: int) -> Iterator[tuple[str, nx.DiGraph, tuple[float, ...]]]:
    for name, make in NETWORKS.items():
        yield name, make(), (0.9, 0.8, 0.7, 0.6)
    for nodes, width in WIDTHS.items():
        for seed in range(seeds):
            yield f"layered, seed {seed}", layered(nodes, seed, width), (0.9, 0.8)


def exact(graph: Graph, budget: int) -> str:
    if len(graph.ops) > EXACT_OPS:
        return ""
    plan = make_plan(graph, Moccasin(seconds=20), budget)
    return f"{plan.overhead:.3%}" if plan.feasible else "nothing"


if __name__ == "__main__":
    main()
