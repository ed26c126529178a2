"""Random graphs and schedules for property tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import networkx as nx
from hypothesis import strategies as st

from graphsim.core.graph import HOLD, RELEASE, Graph, Op, Phase, Role, Tensor

Item = TypeVar("Item")

# Strategies are made once: making one, and asking it what it is, takes longer than to draw from it.
SIZES = st.integers(0, 50)
PLACE = st.integers(0, 2520 - 1)  # of up to ten things each is as likely
PLACES = st.lists(PLACE, max_size=3)
UP_TO = [st.integers(0, most) for most in range(6)]
YES = st.booleans()
ONE_OR_TWO = st.integers(1, 2)
OVERWRITTEN = st.sampled_from([(), (0,), (1,), (2,), (0, 1), (1, 0), (0, 2), (2, 1)])
PHASES = st.sampled_from([Phase.FORWARD, Phase.FORWARD, Phase.BACKWARD])
HOLDS = st.sampled_from([HOLD, RELEASE])
KINDS = st.sampled_from(["node", "node", "node", HOLD, RELEASE])
WORKSPACES = st.sampled_from([0, 0, 7])
ROLES = st.sampled_from([Role.PARAMETER, Role.OPTIMIZER_STATE, Role.BUFFER, Role.INPUT, Role.GRADIENT, Role.ACTIVATION])


def chain(length: int) -> Graph:
    """A chain of unit-size activations: f1 ... fn, then bn ... b1, each reading one activation and one gradient."""
    ops, tensors = [], []
    for i in range(1, length + 1):
        inputs = (f"f{i - 1}",) if i > 1 else ()
        ops.append(Op(f"f{i}", "node", inputs, (f"f{i}",), time=1.0))
        tensors.append(Tensor(f"f{i}", (1000,), "uint8"))
    for i in range(length, 0, -1):
        inputs = (f"f{i}", f"b{i + 1}") if i < length else (f"f{i}",)
        ops.append(Op(f"b{i}", "node", inputs, (f"b{i}",), phase=Phase.BACKWARD, time=1.0))
        tensors.append(Tensor(f"b{i}", (1000,), "uint8"))
    return Graph(ops, tensors, outputs=("b1",), name="chain")


@st.composite
def graphs(draw: st.DrawFn, max_ops: int = 10) -> Graph:
    """A valid graph: several outputs per op, views of views and of sources, in-place ops, mutations of
    sources, ops that read a tensor twice, holds, workspace, tensors of no bytes, kept outputs."""
    tensors = [Tensor(f"s{i}", (draw(SIZES),), "uint8", draw(ROLES)) for i in range(draw(UP_TO[3]))]
    if tensors and draw(YES):
        tensors.append(Tensor("sv", (1,), "uint8", storage=_pick(draw(PLACE), tensors).name))
    ops: list[Op] = []
    for number in range(draw(st.integers(1, max_ops))):
        op, made = _op(draw, number, tensors)
        ops.append(op)
        tensors += made
    names = [t.name for t in tensors]
    kept = dict.fromkeys(_pick(place, names) for place in draw(PLACES)) if names else ()
    return Graph(ops, tensors, outputs=list(kept), name="random")


def _op(draw: st.DrawFn, number: int, tensors: list[Tensor]) -> tuple[Op, list[Tensor]]:
    inputs = [_pick(place, tensors) for place in draw(PLACES)] if tensors else []
    phase = draw(PHASES)
    if inputs and draw(UP_TO[5]) == 0:
        return Op(f"o{number}", draw(HOLDS), tuple(t.name for t in inputs), phase=phase), []
    distinct = [*dict.fromkeys(inputs)]
    mutated = [distinct[i] for i in draw(OVERWRITTEN) if i < len(distinct)] if inputs and draw(YES) else []
    made = [Tensor(f"o{number}:{i}", (draw(SIZES),), "uint8") for i in range(draw(UP_TO[2] if inputs else ONE_OR_TWO))]
    if inputs and draw(YES):
        over = _pick(draw(PLACE), mutated or inputs)
        made.append(Tensor(f"o{number}:view", over.shape, "uint8", over.role, over.base))
    op = Op(
        f"o{number}",
        draw(KINDS) if made or mutated else "node",
        tuple(t.name for t in inputs),
        tuple(t.name for t in made),
        phase=phase,
        workspace=draw(WORKSPACES),
        mutates=tuple(t.name for t in mutated),
        time=1.0,
    )
    return op, made


def _pick(place: int, items: Sequence[Item]) -> Item:
    """Return one of *items*, each as likely as another; a small place is one of the first."""
    return items[place % len(items)]


@st.composite
def training_steps(draw: st.DrawFn) -> Graph:
    """A graph whose ops are the forward and backward of one or two micro-batches, then an optimizer."""
    graph = draw(graphs(max_ops=24))
    cuts = sorted(draw(st.lists(st.integers(0, len(graph.ops)), min_size=4, max_size=4)))
    phases = (Phase.FORWARD, Phase.BACKWARD, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER)
    ops = [replace(op, phase=phases[sum(i >= cut for cut in cuts)]) for i, op in enumerate(graph.ops)]
    return Graph(ops, graph.tensors.values(), outputs=graph.outputs)


def schedules(graph: Graph) -> st.SearchStrategy[list[int]]:
    """Sequences of op numbers: program order, with repeats, permuted, or arbitrary (often invalid)."""
    count = len(graph.ops)
    program = list(range(count))
    numbers = st.integers(0, count - 1)
    stretch = st.tuples(numbers, st.integers(1, 5), st.integers(0, 2 * count))
    return st.one_of(
        st.just(program),
        st.just([op for op in program if not graph.index.release[op]]),
        st.lists(stretch, min_size=1, max_size=3).map(lambda extra: _recomputed(program, extra)),
        st.permutations(program),
        st.lists(numbers, max_size=2 * count).map(lambda extra: program + extra),
        st.lists(numbers, max_size=2 * count),
        _dependence_orders(graph),
    )


def _recomputed(program: list[int], stretches: list[tuple[int, int, int]]) -> list[int]:
    """Execute stretches of the program again, later: valid unless a mutation is in the way."""
    order = list(program)
    for begin, length, place in stretches:
        ops = program[begin : begin + length]
        first = order.index(ops[-1]) + 1
        place = first + place % (len(order) - first + 1)
        order[place:place] = ops
    return order


@st.composite
def _dependence_orders(draw: st.DrawFn, graph: Graph) -> list[int]:
    """Return any topological order of the graph's edges: always valid."""
    rank = {op.name: draw(st.integers(0, 9)) for op in graph.ops}
    number = {op.name: i for i, op in enumerate(graph.ops)}
    return [number[name] for name in nx.lexicographical_topological_sort(graph.dag, key=rank.__getitem__)]
