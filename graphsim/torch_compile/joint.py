"""PyTorch's joint graph as integers, and its partitioner's minimum cut as a function of what may be recomputed."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._functorch import config
from torch._functorch._aot_autograd.utils import _is_tangent
from torch._functorch.partitioners import (
    MinCutOptions,
    NodeInfo,
    estimate_runtime,
    solve_min_cut,
)
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import optimization_hint
from torch.utils._ordered_set import OrderedSet
from torch.utils.flop_counter import flop_registry

from graphsim.torch_compile.backward import NumberedGraph

SYMBOL = 4096
"""Size taken for a dimension that is unknown at compile time, as the partitioner does."""


@dataclass(frozen=True)
class PartitionedGraph:
    """What PyTorch's partitioner makes of a choice of nodes that may be recomputed.

    Attributes:
        nodes: of the joint graph, in its order, without the output.
        number: of each node.
    """

    graph: Graph
    info: NodeInfo
    nodes: tuple[Node, ...]
    number: dict[Node, int]

    @classmethod
    def of(cls, graph: Graph, info: NodeInfo) -> PartitionedGraph:
        """Return the partitioner of one joint graph."""
        nodes = tuple(node for node in graph.nodes if node.op != "output")
        return cls(graph, info, nodes, {node: number for number, node in enumerate(nodes)})

    def saved(self, recomputable: Iterable[Node]) -> frozenset[int]:
        """Return what its minimum cut saves if, of the nodes that it would not recompute, *recomputable* may be."""
        allowed: OrderedSet[Node] = OrderedSet(recomputable)
        options = MinCutOptions(  # `aggressive_options` in its choose_saved_values_set
            ban_if_used_far_apart=False,
            ban_if_long_fusible_chains=False,
            ban_if_materialized_backward=False,
            ban_if_not_in_allowlist=False,
            ban_if_reduction=config.ban_recompute_reductions,
        )
        values, _ = solve_min_cut(self.graph, self.info, options, allowed)
        return frozenset(self.number[value] for value in values)

    def values(self, number: int) -> tuple[int, ...]:
        """Return the nodes to save in place of a node: itself, or its elements if it returns a tuple."""
        node = self.nodes[number]
        if isinstance(node.meta.get("val"), torch.Tensor):
            return (number,)
        return tuple(self.number[user] for user in node.users if user.target is operator.getitem)

    def numbered(self) -> NumberedGraph:
        """Return the graph as integers."""
        storages = _Storages()
        results = self._results()
        tensors = tuple(storages.of(node) for node in self.nodes)
        persistent = {s for node in self.info.inputs for s in tensors[self.number[node]]}
        sizes = storages.nbytes
        return NumberedGraph(
            inputs=tuple(tuple(self.number[source] for source in node.all_input_nodes) for node in self.nodes),
            storages=tensors,
            owner=tuple(self._owner(node, tensors) for node in self.nodes),
            unpacks=frozenset(n for n, node in enumerate(self.nodes) if node.target is operator.getitem),
            sources=frozenset(n for n, node in enumerate(self.nodes) if node.op in ("placeholder", "get_attr")),
            first=self._first(),
            backward=tuple(self._backward(results)),
            results=results,
            nbytes=tuple(0 if s in persistent else size for s, size in enumerate(sizes)),
            persistent_bytes=sum(sizes[s] for s in persistent),
        )

    def _results(self) -> tuple[int, ...]:
        """Return the outputs of the backward pass: the gradients."""
        (output,) = self.graph.find_nodes(op="output")
        returned = dict.fromkeys(output.all_input_nodes)
        return tuple(self.number[node] for node in returned if self.info.is_required_bw(node))

    def _first(self) -> int:
        """Return the first node that reads a tangent: there the partitioner sees the backward pass begin."""
        users = (user for node in self.nodes if _is_tangent(node) for user in node.users)
        return min((self.number[user] for user in users if user in self.number), default=0)

    def _backward(self, results: Sequence[int]) -> list[int]:
        """Return the nodes that run in every backward pass."""
        alive: set[int] = set()
        stack = list(results)
        while stack:
            number = stack.pop()
            if number not in alive:
                alive.add(number)
                stack.extend(self.number[source] for source in self.nodes[number].all_input_nodes)
        closure = self.info.tangents_closure
        return [n for n in sorted(alive) if self.nodes[n] in closure and self.nodes[n].op == "call_function"]

    def _owner(self, node: Node, tensors: tuple[tuple[int, ...], ...]) -> int:
        mine = tensors[self.number[node]]
        if node.op != "call_function" or len(mine) != 1:
            return -1
        return next((self.number[i] for i in node.all_input_nodes if mine[0] in tensors[self.number[i]]), -1)


class _Storages:
    """Numbers the storages of fake tensors."""

    def __init__(self) -> None:
        self.nbytes: list[int] = []
        self._number: dict[int, int] = {}

    def of(self, node: Node) -> tuple[int, ...]:
        value = node.meta.get("val")
        values = value if isinstance(value, (list, tuple)) else [value]
        found = [self._of(v.untyped_storage()) for v in values if isinstance(v, torch.Tensor) and _has_storage(v)]
        return tuple(dict.fromkeys(found))

    def _of(self, storage: torch.UntypedStorage) -> int:
        number = self._number.setdefault(storage._cdata, len(self.nbytes))
        if number == len(self.nbytes):
            self.nbytes.append(int(optimization_hint(storage.nbytes(), fallback=SYMBOL)))
        return number


def _has_storage(value: torch.Tensor) -> bool:
    return torch._C._has_storage(value)


def time_of(node: Node) -> float:
    """Return the cost of *node* under ``torch._functorch.config.activation_memory_budget_runtime_estimator``."""
    if config.activation_memory_budget_runtime_estimator != "flops":
        return float(estimate_runtime(node))
    # The partitioner calls solvers with dispatch off, so its own counter, a dispatch mode, would see nothing.
    packet = getattr(node.target, "_overloadpacket", node.target)
    if packet not in flop_registry:
        return 1.0
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), _value)
    flops = flop_registry[packet](*args, **kwargs, out_val=_value(node))
    return max(1.0, float(optimization_hint(flops, fallback=SYMBOL)))


def _value(node: Node) -> Any:
    return node.meta["val"]


def is_random(node: Node) -> bool:
    """Return whether *node* draws random numbers, so that running it again would not return the same."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    return bool(_argument(node, "dropout_p") != 0)  # attention carries the tag, and draws only with dropout


def _argument(node: Node, name: str) -> Any:
    target: Any = node.target
    for place, argument in enumerate(target._schema.arguments):
        if argument.name == name:
            return node.args[place] if place < len(node.args) else node.kwargs.get(name, argument.default_value)
    return None
