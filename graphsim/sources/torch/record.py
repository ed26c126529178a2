"""What a recording holds: storages with the span of their lives, and the ops that were dispatched over them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

from graphsim.core.graph import Phase, Role
from graphsim.sources.torch.collectives import Sent

ALIVE = -1
"""Stands for the death of a storage that still lives."""

BEFORE = -1
"""Stands for the birth of a storage that existed before the first op."""

Geometry = tuple[tuple[int, ...], tuple[int, ...], int, Any]
"""Shape, strides, offset (elements) and dtype of a tensor over a storage."""


class Storage:
    """Bytes that tensors share.

    Attributes:
        nbytes: size in bytes.
        geometry: of the tensor by which it was seen first.
        born: the op that allocated it, counted from 0 over all steps; `BEFORE` for what was there.
        died: the ops that had been dispatched when it went; `ALIVE` if it has not.
        label: name of the parameter, buffer, input or optimizer state that it holds, if any.
        role: what it is for; None where the phase of its birth tells.
        owner: path of the module it belongs to.
    """

    __slots__ = ("born", "died", "geometry", "label", "nbytes", "owner", "ref", "role")

    def __init__(
        self,
        nbytes: int,
        geometry: Geometry,
        born: int,
        label: str = "",
        role: Role | None = None,
        owner: str = "",
    ) -> None:
        self.nbytes = nbytes
        self.geometry = geometry
        self.born = born
        self.died = ALIVE
        self.label = label
        self.role = role
        self.owner = owner
        self.ref: Reference | None = None


class Reference(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to torch's storage object that knows our record of it; *key* is its address."""

    __slots__ = ("key", "storage")

    key: int
    storage: Storage


Operand = tuple[Storage, Geometry]


@dataclass(frozen=True, slots=True)
class Call:
    """How Python makes the call that an op is.

    Attributes:
        text: the call, with ``{n}`` for the n-th operand and ``{device}`` for the device of the model.
        results: what it returns: the number of an output, None for what is no tensor, sequences nested.
        random: it draws random numbers.
        statistics: the operands that are running statistics of a batch norm.
        function: the name of the overload, as in ``aten.add.Tensor``.
        unwritten: why it cannot be written as text, or depends on numbers that tensors hold; empty if it can.
    """

    text: str
    results: Any
    random: bool
    statistics: tuple[int, ...]
    function: str
    unwritten: str = ""


@dataclass(slots=True)
class Executed:
    """One dispatched op.

    Attributes:
        kind: the op's name without namespace ``aten`` and overload.
        mutates: which of *inputs* it overwrites.
        forward_of: the forward op whose autograd node dispatched it, or `BEFORE`.
        gradient_of: the parameter whose ``.grad`` it hands over to the result, if any.
        statistics: batch norm that updates its running statistics, the last two inputs.
        inplace: PyTorch would write the result over the first operand if nobody observed, see `inplace`.
        line: ``file:line`` of the Python code, if asked for.
        sent: what a collective sends.
        call: how Python makes it, if asked for.
    """

    kind: str
    inputs: list[Operand]
    outputs: list[Operand]
    mutates: list[int]
    phase: Phase
    layer: str
    forward_of: int
    gradient_of: str = ""
    inplace: bool = False
    workspace: int = 0
    flops: int | None = None
    line: str = ""
    statistics: bool = False
    sent: Sent | None = None
    call: Call | None = None


@dataclass(slots=True)
class Recording:
    """All ops of all steps; step *i* is ``ops[bounds[i][0]:bounds[i][1]]``."""

    ops: list[Executed] = field(default_factory=list)
    storages: list[Storage] = field(default_factory=list)
    bounds: list[tuple[int, int]] = field(default_factory=list)
