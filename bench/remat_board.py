"""All strategies on our own graphs, with equal time: one table with bounds, the best and when it was found.

    python bench/remat_board.py [--seconds S] [--seed N] [--parallel SEEDS] [--ratios 0.9,0.8] [--graphs gpt2,...]

The graphs are in `bench/remat`, in the node-link form of published instances (`bytes` and `time` of each node):
forward and backward of shipped specs, one node an op, with the times of an A100's roofline in nanoseconds, and layered
graphs. `--write` makes them anew. A figure is the extra cost of the cheapest plan within the ratio of the peak without
recompute, in per cent; `-` is none, `=` is proved optimal. The bound is for any plan that keeps the order of ops.
With `--parallel` so many seeds run at a time, and the cheapest plan counts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, is_dataclass, replace
from functools import cache
from itertools import groupby, product
from math import inf
from multiprocessing import get_context
from pathlib import Path

import networkx as nx

import graphsim as gs
from graphsim.core.graph import Graph, Phase
from graphsim.core.simulation import op_costs
from graphsim.errors import GraphSimError
from graphsim.recompute.case import Case
from graphsim.recompute.plan import make_plan
from graphsim.recompute.strategies import STRATEGIES, with_limits

GRAPHS = Path(__file__).parent / "remat"
SPECS = {
    "gpt2": {"batch": 8, "seq": 512, "layers": 4},
    "resnet18": {"batch": 64},
    "unet": {},
    "vgg16": {"batch": 64},
}
RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)


@dataclass(frozen=True, slots=True)
class Task:
    """A strategy with a seed, on a graph within a ratio of its peak, for so many seconds."""

    graph: str
    ratio: float
    strategy: str
    seed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Found:
    """The overhead that a task reaches (infinity: none), the one that is proved, and after how many seconds."""

    task: Task
    overhead: float
    bound: float
    optimal: bool
    after: float


def solve(task: Task) -> Found:
    """Run a task; the last that a search tells of is when it found its best."""
    case = case_of(task.graph)
    budget, begin = int(task.ratio * case.stored.peak), time.perf_counter()
    last, told = begin, ""

    def watch(text: str) -> None:
        nonlocal last, told
        reached = text.partition(";")[0]
        if reached != told:
            last, told = time.perf_counter(), reached

    strategy = STRATEGIES[task.strategy]()
    if is_dataclass(strategy) and "seed" in strategy.__dataclass_fields__:
        strategy = replace(strategy, seed=task.seed)
    try:
        plan = make_plan(case, with_limits(strategy, seconds=task.seconds, progress=watch), budget)
    except GraphSimError:  # too large for it, or an extra is missing
        return Found(task, inf, 0.0, False, 0.0)
    overhead = plan.overhead if plan.feasible else inf
    bound = case.least_time(budget) / case.base_time - 1
    return Found(task, overhead, bound, plan.proved_optimal, last - begin if told else plan.seconds)


@cache
def case_of(name: str) -> Case:
    """Return the case of a graph of the board, or of any source."""
    path = GRAPHS / f"{name}.json"
    return Case(gs.source_of(str(path) if path.exists() else name).steps(gs.Training()).steady)


def board(tasks: Sequence[Task], parallel: int) -> Iterator[str]:
    """Yield the lines of the table; tasks are in order of graph, ratio and strategy."""
    names = list(dict.fromkeys(task.strategy for task in tasks))
    yield "| " + " | ".join(["graph", "ops", "ratio", *names, "bound", "best", "of", "after"]) + " |"
    yield "|---|" + "---:|" * (len(names) + 4) + "---|---:|"
    with ProcessPoolExecutor(parallel, get_context("spawn")) as pool:
        solved = pool.map(solve, tasks) if parallel > 1 else map(solve, tasks)
        for (graph, ratio), found in groupby(solved, key=lambda one: (one.task.graph, one.task.ratio)):
            yield row(graph, ratio, names, list(found))


def row(graph: str, ratio: float, names: Sequence[str], found: Sequence[Found]) -> str:
    """Return the line of a graph within a ratio."""
    of = {name: min((one for one in found if one.task.strategy == name), key=rank) for name in names}
    best = min(of.values(), key=rank)
    cells = [graph, f"{len(case_of(graph).graph.ops):,}", f"{ratio:.1f}", *(figure(one) for one in of.values())]
    bound = max(one.bound for one in found)
    cells += ["none fits" if bound == inf else f"{bound:.3%}", figure(best)]
    cells += ["", ""] if best.overhead == inf else [best.task.strategy, f"{best.after:.1f} s"]
    return "| " + " | ".join(cells) + " |"


def rank(one: Found) -> tuple[float, float]:
    return one.overhead, one.after


def figure(one: Found) -> str:
    return "-" if one.overhead == inf else f"{one.overhead:.3%}" + "=" * one.optimal


def dag_of(step: Graph) -> nx.DiGraph:
    """Return forward and backward of a step as a plain DAG: an op has the bytes that it makes, and reads from makers.

    Views are no nodes, who reads one reads its storage; an op that works in place makes a new value; `end` reads what
    the optimizer would.
    """
    made: dict[str, str] = {}
    dag = nx.DiGraph()
    for op, cost in zip(step.ops, op_costs(step).tolist(), strict=True):
        reads = {made[base] for name in op.inputs if (base := step.tensors[name].base) in made}
        fresh = {name for name in op.outputs if step.tensors[name].base == name}
        fresh |= {base for name in op.mutates if (base := step.tensors[name].base) in made}
        late = op.phase is Phase.OPTIMIZER
        if late or fresh:
            node = "end" if late else op.name
            dag.add_node(node, bytes=sum(step.tensors[name].nbytes for name in fresh), time=round(1e9 * cost))
            dag.add_edges_from((maker, node) for maker in reads)
            made |= dict.fromkeys(() if late else fresh, node)
    dag.add_node("end", bytes=0, time=0)  # the optimizer's own bytes and time are no matter of recompute
    return dag


def made() -> Iterator[tuple[str, nx.DiGraph]]:
    """Yield the graphs of the board."""
    for name, sizes in SPECS.items():
        step = gs.training_step(gs.load(name, **sizes), optimizer="sgd", optimizer_impl="forloop", device="a100-80g")
        yield name, dag_of(step)
    for nodes, width in ((100, 0.27), (250, 0.43)):
        yield f"layered_{nodes}", gs.layered(nodes, seed=1, width=width)


def write() -> None:
    """Make the files anew."""
    for name, dag in made():
        text = json.dumps(nx.node_link_data(dag, edges="links"), separators=(",", ":"))
        (GRAPHS / f"{name}.json").write_text(text + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each strategy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=1, metavar="SEEDS", help="seeds, each in a process of its own")
    parser.add_argument("--ratios", default=",".join(map(str, RATIOS)))
    parser.add_argument(
        "--graphs", default=",".join(sorted(path.stem for path in GRAPHS.glob("*.json"))), help="or sources"
    )
    parser.add_argument("--strategies", default=",".join(name for name in STRATEGIES if name != "none"))
    parser.add_argument("--write", action="store_true", help="make the graphs anew")
    asked = parser.parse_args(arguments)
    if asked.write:
        write()
        return
    seeds = range(asked.seed, asked.seed + asked.parallel)
    ratios = [float(ratio) for ratio in asked.ratios.split(",")]
    each = product(asked.graphs.split(","), ratios, asked.strategies.split(","), seeds)
    for line in board([Task(*one, asked.seconds) for one in each], asked.parallel):
        print(line, flush=True)


if __name__ == "__main__":
    main()
