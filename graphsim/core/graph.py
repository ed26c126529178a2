"""The graph: tensors, ops, and two read-only views of them, networkx and numpy.

One truth, ops in program order and the tensors they read and write; `Graph.dag` (networkx) is the
form in which people inspect and exchange it, `Graph.index` (numpy) the form in which it is executed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from graphsim.core.index import Index, compile_index
from graphsim.core.interchange import from_json, from_networkx, to_json, to_networkx
from graphsim.core.op import HOLD, KEEPS, MAX_BYTES, RELEASE, RESIDENT, Op, Phase, Role, Tensor
from graphsim.errors import GraphError, preformatted
from graphsim.units import format_bytes

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["HOLD", "KEEPS", "MAX_BYTES", "RELEASE", "RESIDENT", "Graph", "Op", "Phase", "Role", "Tensor"]


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

    def _repr_html_(self) -> str:
        owned: Counter[str] = Counter()
        for tensor in self.tensors.values():
            owned[tensor.role] += 0 if tensor.storage else tensor.nbytes
        phases = Counter(op.phase for op in self.ops)
        lines = [f"{self.name}: {len(self.ops):,} ops, {len(self.tensors):,} tensors"]
        lines += [f"{count:>12,}  ops in {phase}" for phase, count in phases.items()]
        lines += [f"{format_bytes(size):>12}  {role.replace('_', ' ')}" for role, size in owned.items() if size]
        return preformatted("\n".join(lines))

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
        return to_networkx(self)

    def to_json(self) -> str:
        """Return the graph as networkx node-link JSON."""
        return to_json(self)

    @staticmethod
    def from_json(text: str) -> Graph:
        """Return the graph that `to_json` wrote, or any node-link DAG with ``bytes`` per node."""
        return Graph(**from_json(text)._asdict())

    @staticmethod
    def from_networkx(dag: nx.DiGraph, *, size: str = "bytes", time: str = "time") -> Graph:
        """Return a graph with one op per node and one output tensor of ``node[size]`` bytes.

        This is the one-output-per-node model of the rematerialization literature; ``node[time]``
        is the op's cost. Program order is ``dag.graph['order']`` or a topological order.
        """
        return Graph(**from_networkx(dag, size=size, time=time)._asdict())


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
