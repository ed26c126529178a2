"""The plug-in for ``torch._functorch.config.activation_memory_budget_solver``."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch._functorch._activation_checkpointing.knapsack import dp_knapsack
from torch._inductor.custom_graph_pass import CustomKnapsackSolver, get_hash_for_files
from torch.fx import Graph, Node

from graphsim.errors import InfeasibleError, UsageError
from graphsim.torch_compile.backward import floor
from graphsim.torch_compile.joint import PartitionedGraph, is_random, time_of
from graphsim.torch_compile.search import Choice, Item, LadderSearch
from graphsim.units import format_bytes

if TYPE_CHECKING:
    from torch._functorch.partitioners import NodeInfo

STEPS = 20
"""Settings that differ: multiples of 1/20; any other counts as the next higher one."""

QUANTUM = 1e-4
"""Shares below half of this weigh nothing in the partitioner's own knapsack; the search leaves them alone."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PeakSolver(CustomKnapsackSolver):
    """Chooses what to recompute by the true peak of the backward pass.

    The peak counts every storage that is live while the backward graph runs in the order in which the partitioner
    emits it: saved values until their last use, recomputed values, gradients, and the parameters, buffers and inputs
    of the graph, which live anyway. Optimizer states and memory inside kernels are not in the graph. Inductor may
    fuse and reorder afterwards.

    **What a setting means.** ``activation_memory_budget = b`` (0 < b < 1, in steps of 0.05) allows the recompute time
    that PyTorch's default solver (``"dp"``) would spend at b, and takes the lowest true peak found for it. So at
    every setting the peak and the time are at most those of the default solver, and a larger setting never costs
    more time. PyTorch answers a setting itself, without asking a solver, if saving everything that is dear to
    recompute already meets it; 0 and 1 likewise.

    **With** ``peak_bytes`` the setting does not matter (take a small one, 0.01, so that the solver is asked): it is
    the least recompute time found whose true peak is within so many bytes.

    Time is what ``activation_memory_budget_runtime_estimator`` says. Ops that draw random numbers are never
    recomputed. The answer does not depend on the machine's speed: every rank of a distributed job finds the same.

    Attributes:
        peak_bytes: the bound of the backward peak.
    """

    peak_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.peak_bytes is not None and self.peak_bytes < 1:
            raise UsageError(f"peak_bytes is at least 1, not {self.peak_bytes}")

    def __call__(
        self,
        memory: list[float],
        joint_graph: Graph,
        max_memory: float,
        node_info: NodeInfo,
        all_recomputable_banned_nodes: list[Node],
    ) -> tuple[list[int], list[int]]:
        """Return which of the nodes to save and which to recompute, by their place in the list.

        Raises:
            InfeasibleError: nothing was found within ``peak_bytes``.
        """
        task = _Task(PartitionedGraph.of(joint_graph, node_info), tuple(all_recomputable_banned_nodes), tuple(memory))
        rungs = task.search.ladder(list(task.default_plans()))
        if self.peak_bytes is None:
            # Multiples of 0.05 come as floats: 0.15 * 20 is 3.0000000000000004 or so.
            choice = rungs[STEPS - math.ceil(round(max_memory * STEPS, 6))]
        else:
            choice = self._within(self.peak_bytes, task.search)
        told = {"peak_bytes": choice.peak}
        _log.info(
            "backward peak %s, recompute %.3g of %.3g", format_bytes(choice.peak), choice.cost, task.total, extra=told
        )
        recomputed = sorted(set(range(len(memory))) - task.saved(choice))
        return sorted(task.saved(choice)), recomputed

    @staticmethod
    def _within(limit: int, search: LadderSearch) -> Choice:
        fitting = [choice for choice in search.known.values() if choice.peak <= limit]
        if fitting:
            return min(fitting, key=lambda choice: (choice.cost, choice.peak))
        least, bound = min(choice.peak for choice in search.known.values()), floor(search.joint)
        raise InfeasibleError(
            f"no backward pass within {format_bytes(limit)} ({limit:,} bytes) found: the lowest peak is {least:,} "
            f"bytes, and none can be below {bound:,}",
            budget=limit,
            memory_bound=bound,
        )

    def uuid(self) -> object:
        """Return what PyTorch's caches of compiled graphs tell solvers apart by."""
        return get_hash_for_files(tuple(str(f) for f in sorted(Path(__file__).parent.glob("*.py"))), str(self))


class _Task:
    """One call of the solver: the nodes to decide on, as items of a search."""

    def __init__(self, graph: PartitionedGraph, nodes: tuple[Node, ...], shares: tuple[float, ...]) -> None:
        self.nodes = nodes
        self.shares = shares
        self.times = [time_of(node) for node in nodes]
        self.total = sum(self.times)
        self.free = [place for place, node in enumerate(nodes) if not is_random(node)]
        self._graph = graph
        self.search = self._search()

    def saved(self, choice: Choice) -> set[int]:
        """Return the places of the nodes that *choice* saves: all but the free ones that it recomputes."""
        recomputed = {place for number, place in enumerate(self.free) if number not in choice.items}
        return set(range(len(self.nodes))) - recomputed

    def default_plans(self) -> Iterator[frozenset[int]]:
        """Yield what PyTorch's default solver saves at each setting, from 1 down to 0."""
        number = {place: number for number, place in enumerate(self.free)}
        for step in range(STEPS, -1, -1):
            _, saved, _ = dp_knapsack(list(self.shares), self.times, step / STEPS)
            yield frozenset(number[place] for place in saved if place in number)

    def _search(self) -> LadderSearch:
        graph = self._graph
        joint = graph.numbered()
        numbers = [graph.number[node] for node in self.nodes]
        owners = _latest(joint.inputs, set(numbers))
        default = graph.saved([])
        kept = {number: tuple(sorted(v for v in default if owners[v] == number)) for number in numbers}
        kept = {number: values or graph.values(number) for number, values in kept.items()}
        free = [numbers[place] for place in self.free]
        items = tuple(self._item(place, kept[number]) for place, number in zip(self.free, free, strict=True))
        always = default.union(*kept.values()).difference(*(kept[number] for number in free))
        where = [self.nodes[place] for place in self.free]

        def saved_by(items: frozenset[int]) -> frozenset[int]:
            return graph.saved(node for number, node in enumerate(where) if number not in items)

        return LadderSearch(joint, items, always, saved_by)

    def _item(self, place: int, kept: tuple[int, ...]) -> Item:
        node, share = self.nodes[place], self.shares[place]
        kind = (str(node.target), self.times[place], share)
        return Item(self._graph.number[node], kept, share, self.times[place], kind, share > QUANTUM / 2)


def _latest(inputs: Sequence[tuple[int, ...]], marked: set[int]) -> list[int]:
    """Return of every node the last marked node among itself and its ancestors, or -1."""
    latest: list[int] = []
    for node, sources in enumerate(inputs):
        latest.append(node if node in marked else max((latest[s] for s in sources), default=-1))
    return latest
