"""The graph: tensors, ops, and two read-only views of them, networkx and numpy.

One truth, ops in program order and the tensors they read and write; `Graph.dag` (networkx) is the
form in which people inspect and exchange it, `Graph.index` (numpy) the form in which it is executed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from graphsim.core.index import Index, compile_index
from graphsim.errors import GraphError
from graphsim.units import itemsize

if TYPE_CHECKING:
    import networkx as nx

MAX_BYTES = 2**62
"""Sums of bytes fit the 64-bit integers of the simulation."""

HOLD = "hold"
"""Kind of the zero-cost op by which a framework keeps tensors beyond their last use in data."""

RELEASE = "release"
"""Kind of such an op in the log of a runtime that may evict what only a name keeps: a schedule may leave it out, and
plans do."""

KEEPS = frozenset({HOLD, RELEASE})


class Phase(StrEnum):
    """The part of a training step in which an op runs."""

    FORWARD = "forward"
    BACKWARD = "backward"
    RECOMPUTE = "recompute"
    OPTIMIZER = "optimizer"


class Role(StrEnum):
    """What the bytes of a tensor are for."""

    PARAMETER = "parameters"
    GRADIENT = "gradients"
    OPTIMIZER_STATE = "optimizer_state"
    ACTIVATION = "activations"
    INPUT = "inputs"
    BUFFER = "buffers"
    TEMPORARY = "temporaries"
    LIBRARY = "libraries"


RESIDENT = frozenset({Role.PARAMETER, Role.OPTIMIZER_STATE, Role.INPUT, Role.BUFFER, Role.LIBRARY})
"""Roles of a source tensor that live for the whole step."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array of *shape* (elements) and *dtype*, over its own storage or another tensor's.

    ``storage`` names the tensor that owns the bytes; empty means this one does. A view or an
    in-place result names its base and is free.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    role: Role = Role.ACTIVATION
    storage: str = ""

    @property
    def base(self) -> str:
        """Name of the tensor that owns the bytes."""
        return self.storage or self.name

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements (the bytes of the storage, for a tensor that owns it)."""
        return prod(self.shape) * itemsize(self.dtype)


@dataclass(frozen=True, slots=True)
class Op:
    """One operation: reads *inputs*, writes *outputs*, overwrites the bytes of *mutates*.

    ``workspace`` is scratch memory in bytes that lives while the op runs; ``flops`` and ``moved``
    (bytes read and written) are its work; ``time`` is a cost in any unit, if one is known.
    ``forward_of`` of a backward op names the forward op that it differentiates.
    """

    name: str
    kind: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    phase: Phase = Phase.FORWARD
    layer: str = ""
    workspace: int = 0
    flops: int = 0
    moved: int = 0
    time: float = 0.0
    mutates: tuple[str, ...] = ()
    forward_of: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Graph:
    """Ops in program order over tensors; immutable, checked on construction.

    Program order is a topological order. Tensors that no op writes are *sources*: they are live
    from the start to their last use. Sources of a resident role, and every tensor in *outputs*,
    live to the end.

    Raises:
        GraphError: a name stands twice, a tensor is read before it is written, written twice, or
            its storage does not exist (yet); a size is negative or astronomical.
    """

    def __init__(
        self,
        ops: Iterable[Op],
        tensors: Iterable[Tensor],
        *,
        outputs: Iterable[str] = (),
        name: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.ops: tuple[Op, ...] = tuple(ops)
        table = {}
        for tensor in tensors:
            if tensor.name in table:
                raise GraphError(f"tensor '{tensor.name}' stands twice")
            table[tensor.name] = tensor
        self.tensors: Mapping[str, Tensor] = MappingProxyType(table)
        self.outputs: tuple[str, ...] = tuple(outputs)
        self.attributes: Mapping[str, Any] = MappingProxyType(dict(attributes or {}))
        _check(self)

    def __repr__(self) -> str:
        return f"<Graph {self.name!r}: {len(self.ops)} ops, {len(self.tensors)} tensors>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph):
            return NotImplemented
        return (
            self.name == other.name
            and self.ops == other.ops
            and self.tensors == other.tensors
            and self.outputs == other.outputs
            and self.attributes == other.attributes
        )

    @cached_property
    def index(self) -> Index:
        """The numpy view: integer columns and CSR operands, built once."""
        return compile_index(self)

    @cached_property
    def dag(self) -> nx.DiGraph:
        """The networkx view: a node per op, an edge per dependence, built once.

        Node attributes are the fields of `Op`. Edge attributes: ``tensors`` (names that flow),
        ``bytes`` (their size), ``order`` (True if the edge only orders a mutation
        after the readers of the old value).
        """
        from graphsim.core.interchange import to_networkx

        return to_networkx(self)

    def to_json(self) -> str:
        """Return the graph as networkx node-link JSON."""
        from graphsim.core.interchange import to_json

        return to_json(self)

    @staticmethod
    def from_json(text: str) -> Graph:
        """Return the graph that `to_json` wrote, or any node-link DAG with ``bytes`` per node."""
        from graphsim.core.interchange import from_json

        return from_json(text)

    @staticmethod
    def from_networkx(dag: nx.DiGraph, *, size: str = "bytes", time: str = "time") -> Graph:
        """Return a graph with one op per node and one output tensor of ``node[size]`` bytes.

        This is the one-output-per-node model of the rematerialization literature; ``node[time]``
        is the op's cost. Program order is ``dag.graph['order']`` or a topological order.
        """
        from graphsim.core.interchange import from_networkx

        return from_networkx(dag, size=size, time=time)


def _check(graph: Graph) -> None:
    tensors = graph.tensors
    written = {name for op in graph.ops for name in op.outputs}
    _check_tensors(tensors, written)
    if sum(t.nbytes for t in tensors.values()) + sum(op.workspace for op in graph.ops) > MAX_BYTES:
        raise GraphError(f"the tensors of the graph have more than {MAX_BYTES:,} bytes in total")
    ready = {name for name in tensors if name not in written}
    names: set[str] = set()
    for op in graph.ops:
        if op.name in names:
            raise GraphError(f"op '{op.name}' stands twice")
        names.add(op.name)
        _check_op(op, tensors, written, ready)
    for name in graph.outputs:
        if name not in tensors:
            raise GraphError(f"output '{name}' is not a tensor of the graph")


def _check_tensors(tensors: Mapping[str, Tensor], written: set[str]) -> None:
    for tensor in tensors.values():
        base = tensors.get(tensor.base)
        if base is None or base.storage:
            raise GraphError(f"tensor '{tensor.name}': '{tensor.storage}' is not a tensor that owns its storage")
        if base.name in written and tensor.name not in written:
            raise GraphError(f"no op writes tensor '{tensor.name}', but one writes its storage '{base.name}'")
        if any(extent < 0 for extent in tensor.shape):
            raise GraphError(f"tensor '{tensor.name}' has a negative extent in shape {tensor.shape}")


def _check_op(op: Op, tensors: Mapping[str, Tensor], written: set[str], ready: set[str]) -> None:
    if op.workspace < 0:
        raise GraphError(f"op '{op.name}' has a negative workspace")
    for name in op.inputs:
        if name not in ready:
            why = "only written later" if name in written else "unknown"
            raise GraphError(f"op '{op.name}' reads tensor '{name}', which is {why}")
    read = frozenset(op.inputs)  # optimizers read and mutate thousands of tensors in one op
    for name in op.mutates:
        if name not in read:
            raise GraphError(f"op '{op.name}' mutates '{name}' without reading it")
    bases = {tensors[name].base for name in op.inputs}
    for name in op.outputs:
        if name in ready:
            raise GraphError(f"op '{op.name}' writes tensor '{name}', which exists already")
        if name not in tensors:
            raise GraphError(f"op '{op.name}' writes tensor '{name}', which has no entry in tensors")
        if tensors[name].storage and tensors[name].storage not in bases:
            raise GraphError(
                f"op '{op.name}' writes '{name}' over the storage of '{tensors[name].storage}' without reading it"
            )
        ready.add(name)
