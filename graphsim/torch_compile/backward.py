"""The backward graph that a set of saved values leads to, and its true peak: plain integers, no PyTorch.

Of a joint forward and backward graph, PyTorch's partitioner keeps in the backward graph every backward node, and
every other node that these need and that is not saved: those are recomputed. It then moves each recomputed node
directly before the first backward node that needs it (``reordering_to_mimic_autograd_engine``). Liveness over
that order, storage by storage, is the backward peak.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class NumberedGraph:
    """A joint graph as integers; nodes are numbered in the graph's order.

    Attributes:
        inputs: of each node, the nodes that it reads.
        storages: of each node, the storages of its value; several if it returns a tuple, none if no tensor.
        owner: of each node, the input whose storage it shares (a view, an element of a tuple), or -1.
        unpacks: nodes that only take an element out of a tuple.
        sources: nodes that run nothing: placeholders and constants.
        first: where the backward pass begins.
        backward: nodes that always run in the backward pass (they depend on a tangent), ascending.
        results: nodes that the backward pass returns.
        nbytes: of each storage; 0 for what outlives the backward pass anyway (``persistent_bytes``).
    """

    inputs: tuple[tuple[int, ...], ...]
    storages: tuple[tuple[int, ...], ...]
    owner: tuple[int, ...]
    unpacks: frozenset[int]
    sources: frozenset[int]
    first: int
    backward: tuple[int, ...]
    results: tuple[int, ...]
    nbytes: tuple[int, ...]
    persistent_bytes: int

    @cached_property
    def tables(self) -> _Tables:
        """Return what every evaluation reads, made once."""
        return _tables(self)


@dataclass(frozen=True)
class BackwardPass:
    """One backward pass.

    Attributes:
        peak: bytes live at the peak, with those that outlive the pass.
        recomputed: forward nodes that run again.
        live_saved: storages of saved values that are live at the peak.
        live_recomputed: storages of recomputed values that are live at the peak.
    """

    peak: int
    saved_bytes: int
    recomputed: frozenset[int]
    live_saved: frozenset[int]
    live_recomputed: frozenset[int]


@dataclass(frozen=True)
class _Tables:
    others: tuple[tuple[int, tuple[int, ...]], ...]  # nodes that can be saved, with their inputs, last first
    needed_by: list[int]  # of each node, the first backward node that reads it; one more than the output: none
    anchors: Ints
    backward: Ints
    entry: Ints  # of each backward node, the forward node whose storage it shares, or -1
    readers: Ints
    read: Ints
    read_storage: Ints
    makers: Ints
    made_storage: Ints
    results: Ints
    result_storage: Ints
    nbytes: Ints


def backward_pass(joint: NumberedGraph, saved: Set[int]) -> BackwardPass:
    """Return the backward pass in which the nodes *saved* are kept from the forward pass."""
    recomputed, needed_by = _recomputed(joint, saved)
    fresh = _fresh(joint, recomputed)
    position, end = _positions(joint, recomputed, needed_by)
    birth, last = _lives(joint, position, fresh, end)
    return _run(joint, birth, last, end, recomputed)


def floor(joint: NumberedGraph) -> int:
    """Return bytes that no choice of saved values can do without: what one backward node reads and writes."""

    def touched(node: int) -> int:
        nodes = (node, *joint.inputs[node])
        return sum(joint.nbytes[storage] for storage in {s for n in nodes for s in joint.storages[n]})

    return joint.persistent_bytes + max(
        (touched(node) for node in joint.backward if node not in joint.unpacks), default=0
    )


def _recomputed(joint: NumberedGraph, saved: Set[int]) -> tuple[list[int], list[int]]:
    """Return the other nodes that run, ascending, and of every node the first backward node that needs it."""
    never = len(joint.inputs) + 1
    needed_by = joint.tables.needed_by.copy()
    recomputed = []
    for node, inputs in joint.tables.others:
        first = needed_by[node]
        if first == never or node in saved:
            continue
        recomputed.append(node)
        if node > joint.first:  # it has a place of its own
            first = needed_by[node] = node
        for source in inputs:
            if first < needed_by[source]:
                needed_by[source] = first
    recomputed.reverse()
    return recomputed, needed_by


def _fresh(joint: NumberedGraph, recomputed: list[int]) -> NDArray[np.bool_]:
    """Return of every node whether its storage is made in the backward pass, and not one from before."""
    fresh = np.zeros(len(joint.inputs) + 1, np.bool_)
    fresh[-1] = True  # what owner -1 points to
    for node in recomputed:
        fresh[node] = fresh[joint.owner[node]]
    fresh[joint.tables.backward] = fresh[joint.tables.entry]
    return fresh


def _positions(joint: NumberedGraph, recomputed: list[int], needed_by: list[int]) -> tuple[Ints, int]:
    """Return of every node when it runs (-1: never), and the time at which the pass returns."""
    tables = joint.tables
    again = np.fromiter(recomputed, np.int64, len(recomputed))
    before = np.fromiter((needed_by[node] for node in recomputed), np.int64, len(recomputed))
    nodes = np.concatenate([again, tables.backward])
    keys = np.concatenate([before * (len(joint.inputs) + 2) + again, tables.anchors])
    position = np.full(len(joint.inputs), -1, np.int64)
    position[nodes[np.argsort(keys)]] = np.arange(1, len(nodes) + 1)
    return position, len(nodes) + 1


def _lives(joint: NumberedGraph, position: Ints, fresh: NDArray[np.bool_], end: int) -> tuple[Ints, Ints]:
    """Return birth and last use of every storage: first those from before the pass, then those made in it."""
    tables = joint.tables
    storages = len(joint.nbytes)
    birth = np.full(2 * storages, -1, np.int64)
    last = np.full(2 * storages, -1, np.int64)
    runs = position[tables.readers] > 0
    value = tables.read_storage[runs] + storages * fresh[tables.read[runs]]
    np.maximum.at(last, value, position[tables.readers[runs]])
    last[tables.result_storage + storages * fresh[tables.results]] = end
    birth[:storages][last[:storages] >= 0] = 0
    makes = position[tables.makers] > 0
    born = tables.made_storage[makes] + storages
    birth[born] = position[tables.makers[makes]]
    np.maximum.at(last, born, birth[born])
    return birth, last


def _run(joint: NumberedGraph, birth: Ints, last: Ints, end: int, recomputed: list[int]) -> BackwardPass:
    storages = len(joint.nbytes)
    nbytes = joint.tables.nbytes
    live = np.flatnonzero(birth >= 0)
    change = np.zeros(end + 2, np.int64)
    np.add.at(change, birth[live], nbytes[live])
    np.subtract.at(change, last[live] + 1, nbytes[live])
    timeline = np.cumsum(change)
    top = int(np.argmax(timeline))
    at_top = [int(s) for s in live[(birth[live] <= top) & (top <= last[live])]]
    return BackwardPass(
        peak=int(timeline[top]) + joint.persistent_bytes,
        saved_bytes=int(nbytes[live[live < storages]].sum()),
        recomputed=frozenset(recomputed),
        live_saved=frozenset(s for s in at_top if s < storages),
        live_recomputed=frozenset(s - storages for s in at_top if s >= storages),
    )


def _tables(joint: NumberedGraph) -> _Tables:
    count = len(joint.inputs)
    backward = set(joint.backward)
    needed_by = [count + 1] * count
    for node in reversed(joint.backward):
        for source in joint.inputs[node]:
            needed_by[source] = min(needed_by[source], node)
    for node in joint.results:
        needed_by[node] = min(needed_by[node], count)  # before the graph's output
    reads = [
        (reader, node, storage)
        for reader in range(count)
        if reader not in joint.unpacks
        for node in joint.inputs[reader]
        for storage in joint.storages[node]
    ]
    makes = [
        (node, storage)
        for node in range(count)
        if joint.owner[node] < 0 and node not in joint.sources
        for storage in joint.storages[node]
    ]
    results = [(node, storage) for node in joint.results for storage in joint.storages[node]]
    others = (n for n in range(count - 1, -1, -1) if n not in backward and n not in joint.sources)
    return _Tables(
        others=tuple((node, joint.inputs[node]) for node in others),
        needed_by=needed_by,
        anchors=_ints(node * (count + 2) + node for node in joint.backward),
        backward=_ints(joint.backward),
        entry=_ints(_entry(joint, node, backward) for node in joint.backward),
        readers=_ints(row[0] for row in reads),
        read=_ints(row[1] for row in reads),
        read_storage=_ints(row[2] for row in reads),
        makers=_ints(row[0] for row in makes),
        made_storage=_ints(row[1] for row in makes),
        results=_ints(row[0] for row in results),
        result_storage=_ints(row[1] for row in results),
        nbytes=_ints(chain(joint.nbytes, joint.nbytes)),
    )


def _entry(joint: NumberedGraph, node: int, backward: set[int]) -> int:
    """Return the forward node or source whose storage the backward node shares through views, or -1."""
    while node in backward:
        node = joint.owner[node]
    return node


def _ints(values: Iterable[int]) -> Ints:
    return np.fromiter(values, np.int64)
