"""A recording of a deep model from that of a shallow one, whose layers are all alike.

Layers stand in a list, such as ``model.layers``. What one in the middle does, and what its neighbours do with its
tensors, each further layer does too: its ops run after it where layers run in order, before it in the backward pass;
operands in its own layer or the next are those of the copy, or of the copy's neighbour; lists over all parameters, as
optimizers take, grow. Whether that is so is not assumed: what is told of one more layer is held against a capture with
one more, `same`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import copy as shallow_copy
from itertools import groupby
from typing import NamedTuple

from graphsim.core.graph import Phase
from graphsim.sources.torch.build import build_graph
from graphsim.sources.torch.record import ALIVE, BEFORE, Executed, Operand, Recording, Storage

COPIED = 1
"""The layer that is copied: it has one on each side in a model of three."""

SHALLOW = COPIED + 2
"""Layers of the model that tells of deeper ones."""

Key = tuple[int | str, ...]
"""What tells an op, or a tensor, from others of its layer; equal for those that do the same in another layer."""


class UnlikeLayersError(Exception):
    """What one layer does cannot stand for what others do."""


class _Place(NamedTuple):
    """A layer of the shallow model, or a copy of the one that is copied (counted from 1)."""

    layer: int
    copy: int = 0


def deepened(shallow: Recording, stack: str, more: int) -> Recording:
    """Return the recording of a model with *more* layers, told from one with `SHALLOW`.

    Args:
        stack: the path of the list of layers.

    Raises:
        UnlikeLayersError: layers do not do the same.
    """
    return _Copier(shallow, stack, more).made()


def same(made: Recording, captured: Recording) -> bool:
    """Whether all steps of two recordings are the same graphs."""
    if made.bounds != captured.bounds:
        return False
    for number in range(len(made.bounds)):
        step = slice(number, number + 1)
        one, other = (build_graph(each, step, name="", attributes={}) for each in (made, captured))
        if one.ops != other.ops or one.tensors != other.tensors or set(one.outputs) != set(other.outputs):
            return False
    return True


class _Layers:
    """Which layer each op and each storage of a recording belongs to, and by which key it is known there."""

    def __init__(self, recording: Recording, stack: str) -> None:
        self.recording = recording
        self._path = re.compile(rf"{re.escape(stack)}\.(\d+)(?=\.|$)")
        self.stack = stack
        self.of_storage: dict[int, int | None] = {
            id(storage): self.of_path(storage.label) for storage in recording.storages
        }
        self.of_op = [self._place(position, op) for position, op in enumerate(recording.ops)]
        self.runs = self._runs()
        self.op_key: list[Key] = self._op_keys()
        self.op_at = {(layer, *key): p for p, (layer, key) in enumerate(zip(self.of_op, self.op_key, strict=True))}
        self.storage_key = self._storage_keys()
        self.storage_at = {
            (layer, *self.storage_key[id(storage)]): storage
            for storage in recording.storages
            if (layer := self.of_storage[id(storage)]) is not None
        }

    def of_path(self, path: str) -> int | None:
        """Return the number of the layer that a path lies in, if it lies in one."""
        found = self._path.match(path)
        return int(found[1]) if found else None

    def renamed(self, path: str, layer: int | None) -> str:
        """Return *path* as that of another layer, if it lies in one."""
        return path if layer is None else self._path.sub(f"{self.stack}.{layer}", path, count=1)

    def _place(self, position: int, op: Executed) -> int | None:
        """Say which layer an op belongs to: by its path, or as all its operands; and so do its results."""
        if op.layer:
            layer = self.of_path(op.layer)
        else:
            layers = {self.of_storage[id(storage)] for storage, _ in op.inputs}
            layers |= {self.of_storage[id(storage)] for storage, _ in op.outputs if storage.label}
            if op.phase is Phase.OPTIMIZER:
                layers.discard(None)  # what it keeps for all parameters
            layer = layers.pop() if len(layers) == 1 else None
        paired = len(op.outputs) > 1 and len(op.outputs) <= len(op.inputs)
        for number, (storage, _) in enumerate(op.outputs):
            if storage.born == position and not storage.label:
                like = self.of_storage[id(op.inputs[number][0])] if layer is None and paired else layer
                self.of_storage[id(storage)] = like
        return layer

    def _runs(self) -> list[tuple[int | None, range]]:
        """Return the ops that follow each other in one layer, within the passes of one step or within its update."""
        ends = {end for _, end in self.recording.bounds}
        updates = [op.phase is Phase.OPTIMIZER for op in self.recording.ops]
        where = list(zip(self.of_op, updates, strict=True))
        runs: list[tuple[int | None, range]] = []
        begin = 0
        for position in range(1, len(where) + 1):
            if position == len(where) or where[position] != where[begin] or position in ends:
                runs.append((self.of_op[begin], range(begin, position)))
                begin = position
        return runs

    def _op_keys(self) -> list[Key]:
        """Return for each op its step, module and kind, and which of those of its layer it is."""
        seen: dict[tuple[int | None, Key], int] = {}
        keys: list[Key] = []
        step = 0
        for position, (op, layer) in enumerate(zip(self.recording.ops, self.of_op, strict=True)):
            step += position >= self.recording.bounds[step][1]
            stem = (step, self.renamed(op.layer, None if layer is None else 0), op.kind, op.phase)
            number = seen[layer, stem] = seen.get((layer, stem), -1) + 1
            keys.append((*stem, number))
        return keys

    def _storage_keys(self) -> dict[int, Key]:
        """Return for each storage of a layer where it is born and as which result, or its name."""
        keys: dict[int, Key] = {}
        seen: dict[tuple[int | None, Key], int] = {}
        for storage in self.recording.storages:
            layer = self.of_storage[id(storage)]
            stem: Key
            if layer is None:
                continue
            if storage.born == BEFORE:
                stem = ("before", self.renamed(storage.label, 0))
            elif self.of_op[storage.born] is None:
                stem = ("beside", storage.born)
            elif self.of_op[storage.born] == layer:
                stem = self.op_key[storage.born]
            else:
                raise UnlikeLayersError(f"{storage.label} is made in another layer")
            number = seen[layer, stem] = seen.get((layer, stem), -1) + 1
            keys[id(storage)] = (*stem, number)
        return keys


class _Copier:
    """Makes a recording with *more* layers."""

    def __init__(self, recording: Recording, stack: str, more: int) -> None:
        self.old, self.more = recording, more
        self.layers = _Layers(recording, stack)
        self.order = list(self._order())
        self.position = {instance: number for number, instance in enumerate(self.order)}
        self.bound = self._bounds()
        self._known: dict[tuple[int, _Place | None], Storage] = {}
        self.storage = {
            (id(storage), copy): self._storage(storage, copy)
            for storage in recording.storages
            for copy in self._copies(self.layers.of_storage[id(storage)])
        }

    def made(self) -> Recording:
        """Return the recording."""
        return Recording(
            [self._op(position, copy) for position, copy in self.order],
            self._storages(),
            [(self.bound[begin], self.bound[end]) for begin, end in self.old.bounds],
        )

    # -- where things stand --------------------------------------------------------------------

    def _copies(self, layer: int | None) -> range:
        return range(self.more + 1 if layer == COPIED else 1)

    def _order(self) -> Iterator[tuple[int, int]]:
        """Yield the ops in their new order: where they stood, and the number of the copy."""
        for number, copy in self._spread([layer for layer, _ in self.layers.runs]):
            for position in self.layers.runs[number][1]:
                yield position, copy

    def _bounds(self) -> dict[int, int]:
        """Return where steps begin and end, by where they did."""
        first = {len(self.old.ops): len(self.order)}
        for number, (position, _) in enumerate(self.order):
            first.setdefault(position, number)
        return {bound: first[bound] for bounds in self.old.bounds for bound in bounds}

    def _spread(self, layers: Sequence[int | None]) -> Iterator[tuple[int, int]]:
        """Yield the indices of a row of things in *layers* with the number of the copy, copies in their places."""
        inside = [layer for layer, _ in groupby(layer for layer in layers if layer is not None)]
        turn = 0
        for layer, group in groupby(range(len(layers)), lambda number: layers[number]):
            row = list(group)
            copies: Sequence[int] = (0,)
            if layer is not None:
                while inside[turn] != layer:
                    turn += 1
            if layer == COPIED:
                copies = self._directed(inside, turn)
            for copy in copies:
                for number in row:
                    yield number, copy

    def _directed(self, inside: Sequence[int], turn: int) -> Sequence[int]:
        """Return the numbers of the copies in the order in which layers follow each other around here."""
        before = inside[turn - 1] if turn else None
        after = inside[turn + 1] if turn + 1 < len(inside) else None
        alone = before is None and after is None  # results of one op of the layer, where the order does not matter
        if alone or before == COPIED - 1 or after == COPIED + 1:
            return range(self.more + 1)
        if before == COPIED + 1 or after == COPIED - 1:
            return range(self.more, -1, -1)
        raise UnlikeLayersError("layers follow each other neither upwards nor downwards")

    def _new_layer(self, place: _Place) -> int:
        return place.layer + (place.copy if place.layer <= COPIED else self.more)

    def _place_of(self, new_layer: int) -> _Place:
        if new_layer <= COPIED:
            return _Place(new_layer)
        if new_layer <= COPIED + self.more:
            return _Place(COPIED, new_layer - COPIED)
        return _Place(new_layer - self.more)

    def _beside(self, place: _Place, other: int) -> _Place:
        """Return the place that stands to *place* as the layer *other* does to that of *place*."""
        return self._place_of(self._new_layer(place) + other - place.layer)

    def _position_of(self, position: int, place: _Place | None) -> int:
        """Return where the op goes that is to *place* what the one at *position* was to its layer."""
        layer = self.layers.of_op[position]
        if layer is None or place is None:
            return self.position[position, 0]
        there = self._beside(place, layer)
        found = self.layers.op_at.get((there.layer, *self.layers.op_key[position]))
        if found is None:
            raise UnlikeLayersError(f"layer {layer} runs an op that layer {there.layer} does not")
        return self.position[found, there.copy]

    # -- storages ------------------------------------------------------------------------------

    def _storage(self, old: Storage, copy: int) -> Storage:
        layer = self.layers.of_storage[id(old)]
        place = None if layer is None else _Place(layer, copy)
        new_layer = None if place is None else self._new_layer(place)
        born = old.born if old.born == BEFORE else self._position_of(old.born, place)
        label, owner = (self.layers.renamed(path, new_layer) for path in (old.label, old.owner))
        new = Storage(old.nbytes, old.geometry, born, label, old.role, owner)
        new.died = self._death(old, place)
        return new

    def _death(self, old: Storage, place: _Place | None) -> int:
        """Return when the counterpart at *place* of a storage dies, as `Storage` says it."""
        if old.died == ALIVE or old.died in self.bound:
            return self.bound.get(old.died, ALIVE)
        last = old.died - 1
        layer = self.layers.of_op[last]
        if layer is None or place is None:
            return self.position[last, 0] + 1
        there = self._beside(place, layer)
        # The first and the last layer may lack the op at which tensors of inner layers die in their neighbour.
        beside = there.layer - layer + place.layer
        told = self.layers.storage_at.get((beside, *self.layers.storage_key[id(old)]))
        if told is not None and told.died > 0 and self.layers.of_op[told.died - 1] == there.layer:
            return self.position[told.died - 1, there.copy] + 1
        return self._position_of(last, place) + 1

    def _storages(self) -> list[Storage]:
        """Return the new storages in the order of their births."""
        found: list[Storage] = []
        for _, group in groupby(self.old.storages, lambda storage: storage.born):
            row = list(group)
            layers = [self.layers.of_storage[id(storage)] for storage in row]
            found += (self.storage[id(row[number]), copy] for number, copy in self._spread(layers))
        return sorted(found, key=lambda storage: storage.born)

    def _counterpart(self, storage: Storage, place: _Place | None) -> Storage:
        """Return the storage that is to *place* what *storage* was to its layer."""
        found = self._known.get((id(storage), place))
        if found is None:
            found = self._known[id(storage), place] = self._found(storage, place)
        return found

    def _found(self, storage: Storage, place: _Place | None) -> Storage:
        layer = self.layers.of_storage[id(storage)]
        if layer is None or place is None:
            return self.storage[id(storage), 0]
        there = self._beside(place, layer)
        found = self.layers.storage_at.get((there.layer, *self.layers.storage_key[id(storage)]))
        if found is None or found.nbytes != storage.nbytes:
            raise UnlikeLayersError(f"layer {layer} has a tensor that layer {there.layer} has not")
        return self.storage[id(found), there.copy]

    # -- ops -----------------------------------------------------------------------------------

    def _op(self, position: int, copy: int) -> Executed:
        op, layer = self.old.ops[position], self.layers.of_op[position]
        if layer is None:
            return self._op_beside(op)
        place = _Place(layer, copy)
        new_layer = self._new_layer(place)
        new = shallow_copy(op)
        new.inputs = [(self._counterpart(storage, place), geometry) for storage, geometry in op.inputs]
        new.outputs = [(self._counterpart(storage, place), geometry) for storage, geometry in op.outputs]
        new.layer = self.layers.renamed(op.layer, new_layer)
        new.gradient_of = self.layers.renamed(op.gradient_of, new_layer)
        if op.forward_of != BEFORE:
            new.forward_of = self._position_of(op.forward_of, place)
        return new

    def _op_beside(self, op: Executed) -> Executed:
        """Return an op that belongs to no layer, with what it takes of each."""
        inputs, outputs = (
            list(self._spread([self.layers.of_storage[id(storage)] for storage, _ in operands]))
            for operands in (op.inputs, op.outputs)
        )
        new = shallow_copy(op)
        new.inputs = [self._copied(op.inputs[number], copy) for number, copy in inputs]
        new.outputs = [self._copied(op.outputs[number], copy) for number, copy in outputs]
        new.mutates = [at for at, (number, _) in enumerate(inputs) if number in set(op.mutates)]
        if (layer := self.layers.of_path(op.gradient_of)) is not None:
            new.gradient_of = self.layers.renamed(op.gradient_of, self._new_layer(_Place(layer)))
        if op.forward_of != BEFORE:
            new.forward_of = self._position_of(op.forward_of, None)
        return new

    def _copied(self, operand: Operand, copy: int) -> Operand:
        return self.storage[id(operand[0]), copy], operand[1]
