"""The optimum of small problems by exhaustive search: which values are in memory while the ops first run in order."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

from graphsim.core.graph import Graph


def optimum(graph: Graph, budget: int) -> float:
    """Return the least cost of a plain DAG within *budget* (infinity if there is none): Dijkstra over memory contents.

    A state is (next op, values held). Running an op needs its inputs held and room for its output; any
    held value may be dropped at any time; outputs of the graph must be held at the end.
    """
    names = [op.outputs[0] for op in graph.ops]
    number = {name: i for i, name in enumerate(names)}
    size = [graph.tensors[name].nbytes for name in names]
    inputs = [sum(1 << number[name] for name in {*op.inputs}) for op in graph.ops]
    kept = sum(1 << number[name] for name in graph.outputs)

    def bytes_of(held: int) -> int:
        return sum(size[i] for i in range(len(size)) if held >> i & 1)

    start = (0, 0)
    costs = {start: 0.0}
    queue = [(0.0, start)]
    while queue:
        cost, state = heappop(queue)
        if cost > costs[state]:
            continue
        done, held = state
        if done == len(names) and held & kept == kept:
            return cost
        moves = [(0.0, (done, held & ~(1 << i))) for i in range(len(names)) if held >> i & 1]
        for op in range(min(done + 1, len(names))):
            if held >> op & 1 or held & inputs[op] != inputs[op] or bytes_of(held | 1 << op) > budget:
                continue
            moves.append((graph.ops[op].time, (max(done, op + 1), held | 1 << op)))
        for extra, target in moves:
            if cost + extra < costs.get(target, float("inf")):
                costs[target] = cost + extra
                heappush(queue, (cost + extra, target))
    return float("inf")


def optimum_in_any_order(graph: Graph, budget: int) -> float:
    """Return the least cost of a plain DAG within *budget* whatever the order of ops: a state is (ops run, held)."""
    names = [op.outputs[0] for op in graph.ops]
    number = {name: i for i, name in enumerate(names)}
    size = [graph.tensors[name].nbytes for name in names]
    inputs = [sum(1 << number[name] for name in {*op.inputs}) for op in graph.ops]
    kept = sum(1 << number[name] for name in graph.outputs)
    costs = {(0, 0): 0.0}
    queue = [(0.0, (0, 0))]
    while queue:
        cost, (done, held) = heappop(queue)
        if cost > costs[done, held]:
            continue
        if done == (1 << len(names)) - 1 and held & kept == kept:
            return cost
        moves = [(0.0, (done, held & ~(1 << i))) for i in range(len(names)) if held >> i & 1]
        for op in range(len(names)):
            live = sum(size[i] for i in range(len(size)) if (held | 1 << op) >> i & 1)
            if not held >> op & 1 and held & inputs[op] == inputs[op] and live <= budget:
                moves.append((graph.ops[op].time, (done | 1 << op, held | 1 << op)))
        for extra, target in moves:
            if cost + extra < costs.get(target, float("inf")):
                costs[target] = cost + extra
                heappush(queue, (cost + extra, target))
    return float("inf")


def staged_optimum(graph: Graph, budget: int) -> float:
    """Return the least cost of a plain DAG within *budget* among schedules of stages: Dijkstra, as in `optimum`.

    A state is (next op, last op that ran in this stage, values held): between two first executions the ops that
    run again do so in program order, each at most once.
    """
    names = [op.outputs[0] for op in graph.ops]
    number = {name: i for i, name in enumerate(names)}
    size = [graph.tensors[name].nbytes for name in names]
    inputs = [sum(1 << number[name] for name in {*op.inputs}) for op in graph.ops]
    kept = sum(1 << number[name] for name in graph.outputs)
    start = (0, -1, 0)
    costs = {start: 0.0}
    queue: list[Any] = [(0.0, start)]
    while queue:
        cost, state = heappop(queue)
        if cost > costs[state]:
            continue
        done, at, held = state
        if done == len(names):
            if held & kept == kept:
                return cost
            continue
        moves = [(0.0, (done, at, held & ~(1 << i))) for i in range(len(names)) if held >> i & 1]
        for op in range(at + 1, done + 1):
            live = sum(size[i] for i in range(len(size)) if (held | 1 << op) >> i & 1)
            if held >> op & 1 or held & inputs[op] != inputs[op] or live > budget:
                continue
            target = (done + 1, -1) if op == done else (done, op)
            moves.append((graph.ops[op].time, (*target, held | 1 << op)))
        for extra, target in moves:
            if cost + extra < costs.get(target, float("inf")):
                costs[target] = cost + extra
                heappush(queue, (cost + extra, target))
    return float("inf")
