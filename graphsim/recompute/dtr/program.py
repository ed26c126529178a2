"""DTR's program: what it must know of a graph before it runs, in arrays.

A *node* is an op that runs for the first time (0 ... N - 1), or, N + its first op, a *unit* that runs again. An op
that overwrites a storage runs again together with all ops that gave the storage its bytes, and with those that read
it in between: they are a unit. What cannot be made again as long as it is needed is never evicted: what a source that
is overwritten, or the optimizer, has a part in. A storage goes by the number of the tensor that owns it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from graphsim.core.graph import Graph, Phase
from graphsim.core.index import NOTHING, Bools, Floats, Index, Ints, expand
from graphsim.recompute.units import first_of_units, members_of_units

OPS, READS, OUTPUTS, MADE, TOUCHED, BLOCKED, RELEASED, TENSORS, BEFORE, AFTER = range(10)
"""Ragged lists: of a node, its ops, and the tensors that it reads of others; of an op, its outputs, the evictable
storages that it makes or makes views of, all storages that it touches, those whose next use is a hold (to evict them
would free nothing), and those that nothing uses after it; of a storage, its tensors, and pairs (an evictable storage
that it is made from, or that is made from it; the op that does)."""
NEED, HOLD = range(2)
"""Rows of *nodes*: the bytes that must be free before it runs; of ops, whether it only keeps alive what it reads."""
STORAGE, REMAKER, SIZE, EVICTABLE, CONSTANT, COMPLETE, LAST_USE = range(7)
"""Rows of *tensors*: the storage, the unit that makes it again (a node); and of those that are storages, the bytes,
whether they can be made again for as long as something reads them, whether they are there from the beginning, the op
after which they have their final bytes, and the last op that uses them."""


class Program(NamedTuple):
    """A graph in arrays, N ops and M tensors.

    Attributes:
        starts, items: list i of kind k is ``items[starts[k, i]:starts[k, i + 1]]``.
        nodes: (2, 2N).
        tensors: (7, M).
        costs: (N) of each op.
        kept: tensors that must be there in the end.
    """

    starts: Ints
    items: Ints
    nodes: Ints
    tensors: Ints
    costs: Floats
    kept: Ints


def program_of(graph: Graph, costs: Floats, *, holds: bool = True) -> Program:
    """Return the program of *graph*.

    Args:
        graph: any graph.
        costs: of its ops.
        holds: ops of kind `hold` or `release` keep what they name; else they only let go of it.
    """
    index = graph.index
    uses = _Uses(index)
    units = _Reruns(graph)
    complete, evictable = _evictable(graph, uses, units)
    makes = _unique(index.output_op, index.storage[index.output_tensor], index.tensors)
    made = _where(makes, evictable[makes[1]])
    makers = _unique(index.input_op, index.input_storage, index.tensors)
    below, above, op = _edges(made, _where(makers, evictable[makers[1]]), index)
    released = np.argsort(uses.last, kind="stable")
    released = released[(uses.last[released] >= 0) & (uses.last[released] < index.ops)]
    blocked = uses.before_hold if holds else np.zeros(len(uses.op), bool)
    starts, items = _ragged(
        max(2 * index.ops, index.tensors),
        {
            OPS: units.runs,
            READS: units.reads,
            OUTPUTS: (index.output_op, index.output_tensor),
            MADE: made,
            TOUCHED: (uses.op, uses.storage),
            BLOCKED: (uses.op[blocked], uses.storage[blocked]),
            RELEASED: (uses.last[released], released),
            TENSORS: (index.storage, np.arange(index.tensors)),
            BEFORE: (np.repeat(below, 2), np.stack([above, op], axis=1).ravel()),
            AFTER: (np.repeat(above, 2), np.stack([below, op], axis=1).ravel()),
        },
    )
    remaker = index.maker.copy()
    remaker[~index.source] = index.ops + units.first[index.maker[~index.source]]
    return Program(
        starts=starts,
        items=items,
        nodes=np.stack([units.need, np.concatenate([index.hold, index.hold])]).astype(np.int64),
        tensors=np.stack(
            [
                index.storage,
                remaker,
                index.nbytes,
                evictable,
                _constants(graph),
                complete,
                uses.last,
            ]
        ).astype(np.int64),
        costs=costs,
        kept=index.kept,
    )


def _constants(graph: Graph) -> Bools:
    """Return which tensors an op of kind `constant` stands for."""
    maker, constant = graph.index.maker, np.array([op.kind == "constant" for op in graph.ops], bool)
    found: Bools = maker != NOTHING
    found[found] = constant[maker[found]]
    return found


Pairs = tuple[Ints, Ints]
"""Rows and an item of each, in order of the rows."""


def _where(pairs: Pairs, mask: Bools) -> Pairs:
    return pairs[0][mask], pairs[1][mask]


def _unique(rows: Ints, items: Ints, most: int) -> Pairs:
    """Return the pairs of (row, item), items below *most*, each once, in order."""
    keys = np.sort(rows * most + items)  # half the time of np.unique, which hashes
    keys = keys[np.diff(keys, prepend=NOTHING) != 0]
    return keys // most, keys % most


def _by_row(pairs: Pairs) -> Pairs:
    order = np.argsort(pairs[0], kind="stable")
    return pairs[0][order], pairs[1][order]


def _ragged(rows: int, lists: Mapping[int, Pairs]) -> tuple[Ints, Ints]:
    """Return *lists* one behind the other, and where each row of each begins."""
    starts = np.zeros((len(lists), rows + 1), dtype=np.int64)
    items, done = [], 0
    for kind, pairs in lists.items():
        row, item = _by_row(pairs)
        starts[kind, 1:] = np.cumsum(np.bincount(row, minlength=rows))
        starts[kind] += done
        done += len(item)
        items.append(item)
    return starts, np.concatenate(items)


def _edges(made: Pairs, makers: Pairs, index: Index) -> tuple[Ints, Ints, Ints]:
    """Return (storage, one that it is made from, the first op that does) of what ops *made* from what *makers*."""
    starts, made_from = _ragged(index.ops, {0: makers})
    operand, row = expand(starts[0], made[0])
    below, above, op = made[1][row], made_from[operand], made[0][row]
    _, first = np.unique(below * index.tensors + above, return_index=True)
    first = np.sort(first[below[first] != above[first]])
    return below[first], above[first], op[first]


class _Uses:
    """Which op touches which storage.

    Attributes:
        op, storage: each pair once, in order of the ops.
        before_hold: whether the next op that touches the storage is a hold.
        last: of each tensor that is a storage, the last op that touches it; the end, if it outlives the step.
    """

    def __init__(self, index: Index) -> None:
        ops = np.concatenate([index.input_op, index.output_op])
        tensors = np.concatenate([index.input_tensor, index.output_tensor])
        self.op, self.storage = _unique(ops, index.storage[tensors], index.tensors)
        order = np.argsort(self.storage, kind="stable")
        op, storage = self.op[order], self.storage[order]
        self.before_hold = np.zeros(len(order), bool)
        self.before_hold[order[:-1]] = (storage[1:] == storage[:-1]) & index.hold[op[1:]]
        self.last = np.full(index.tensors, NOTHING)
        self.last[self.storage] = self.op
        self.last[index.storage[index.kept]] = index.ops
        self.last[index.resident] = index.ops


class _Reruns:
    """What must run again together.

    Attributes:
        first: of each op, the first of its unit.
        fixed: ops that must not run again at all.
        overwrites: pairs of storages and the ops that overwrite them.
        runs, reads: pairs of nodes and their ops, and the tensors that they read of others.
        need: bytes that must be free for each node.
    """

    def __init__(self, graph: Graph) -> None:
        index = graph.index
        self._index = index
        self.overwrites = _by_row((index.storage[index.write_tensor], index.write_op))
        self.fixed = np.array([op.phase is Phase.OPTIMIZER or op.kind == "constant" for op in graph.ops], bool)
        self.first = first_of_units(index)
        given = index.maker[self.overwrites[0]] == NOTHING
        self.fixed[self.overwrites[1][given]] = True
        for members in members_of_units(self.first):
            self.fixed[members] = self.fixed[members].any() or not self._is_convex(members)
        ops = np.arange(index.ops)
        self.runs = np.concatenate([ops, index.ops + self.first]), np.concatenate([ops, ops])
        self.reads = self._reads()
        self.need = self._need()

    def _is_convex(self, members: list[int]) -> bool:
        """Whether no op between those of a unit depends on one of them and is read by another."""
        index, inside = self._index, set(members)
        tainted, outside = set[int](), set[int]()
        for op in range(members[0], members[-1] + 1):
            inputs = index.input_storage[index.input_start[op] : index.input_start[op + 1]].tolist()
            outputs = index.output_tensor[index.output_start[op] : index.output_start[op + 1]]
            makes = set(index.storage[outputs].tolist())
            if op in inside:
                if not outside.isdisjoint(inputs):
                    return False
                tainted |= makes
            elif not tainted.isdisjoint(inputs) or not outside.isdisjoint(inputs):
                outside |= makes - tainted
        return True

    def _reads(self) -> Pairs:
        index = self._index
        maker = index.maker[index.input_tensor]
        elsewhere = (maker == NOTHING) | (self.first[maker] != self.first[index.input_op])
        again = index.ops + self.first[index.input_op[elsewhere]]
        return np.concatenate([index.input_op, again]), np.concatenate(
            [index.input_tensor, index.input_tensor[elsewhere]]
        )

    def _need(self) -> Ints:
        index = self._index
        own = index.storage[index.output_tensor] == index.output_tensor
        made = np.bincount(
            index.output_op[own], weights=index.nbytes[index.output_tensor[own]], minlength=index.ops
        ).astype(np.int64)
        again, workspace = np.zeros((2, index.ops), dtype=np.int64)
        np.add.at(again, self.first, made)
        np.maximum.at(workspace, self.first, index.workspace)
        return np.concatenate([made + index.workspace, again + workspace])


def _evictable(graph: Graph, uses: _Uses, units: _Reruns) -> tuple[Ints, Bools]:
    """Return the op that completes each storage, and whether it can be made again for as long as it is used."""
    index = graph.index
    owner = index.storage[index.output_tensor]
    complete = np.full(index.tensors, NOTHING)
    own = owner == index.output_tensor
    ends = np.arange(index.ops)
    np.maximum.at(ends, units.first, np.arange(index.ops))
    complete[owner[own]] = ends[units.first[index.output_op[own]]]
    possible = np.ones(index.tensors, bool)
    until = np.full(index.tensors, index.ops)  # the last op before which each storage can be made again, or read
    given = index.storage[index.source]
    held = owner[units.fixed[index.output_op]]
    possible[given] = possible[held] = False
    until[given], until[held] = uses.last[given], uses.last[held]
    until[_constants(graph)] = index.ops
    evictable: Bools = possible & (uses.last <= np.array(_limits(index, units, until), dtype=np.int64))
    return complete, evictable


def _limits(index: Index, units: _Reruns, until: Ints) -> list[int]:
    """Lower *until* to what the units allow: what one makes can be made again for as long as what it reads."""
    limits: list[int] = until.tolist()
    unit, may = units.first[index.input_op], ~units.fixed[index.input_op]
    bounds = np.full(index.ops, index.ops)
    np.minimum.at(bounds, unit, np.minimum(until[index.input_storage], _overwritten(index, units)))
    reader, readers = _listed(index.tensors, index.input_storage[may], unit[may])
    make, makes = _listed(index.ops, units.first[index.output_op], index.storage[index.output_tensor])
    done: list[bool] = units.fixed.tolist()
    bounded = np.flatnonzero(bounds < index.ops)
    order = bounded[np.argsort(bounds[bounded], kind="stable")]
    for first, limit in zip(order.tolist(), bounds[order].tolist(), strict=True):  # the lowest limit comes first
        stack = [first]
        while stack:
            op = stack.pop()
            if not done[op]:
                done[op] = True
                for storage in makes[make[op] : make[op + 1]]:
                    if limit < limits[storage]:
                        limits[storage] = limit
                        stack += readers[reader[storage] : reader[storage + 1]]
    return limits


def _overwritten(index: Index, units: _Reruns) -> Ints:
    """Return, for each input, the op that next overwrites it if no op makes it anew; else the end."""
    storage, op = units.overwrites
    keys = storage * (index.ops + 1) + op
    following = np.searchsorted(keys, index.input_storage * (index.ops + 1) + index.input_op, side="right")
    storage, op = np.append(storage, NOTHING)[following], np.append(op, index.ops)[following]
    given = (index.maker[index.input_storage] == NOTHING) & (storage == index.input_storage)
    return np.where(given, op, index.ops)


def _listed(count: int, rows: Ints, items: Ints) -> tuple[list[int], list[int]]:
    """Return where each row begins, and the items, as lists."""
    starts, flat = _ragged(count, {0: (rows, items)})
    return starts[0].tolist(), flat.tolist()
