"""Graphs to and from networkx and node-link JSON."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

from graphsim.core.files import parse_json
from graphsim.core.op import MAX_BYTES, Op, Phase, Role, Tensor
from graphsim.errors import GraphError
from graphsim.units import ITEMSIZE

if TYPE_CHECKING:
    import networkx as nx

    from graphsim.core.graph import Graph

FORMAT = "graphsim/1"
"""Version of the JSON form; a reader refuses others."""

MAX_DIMENSIONS = 64
"""As many as numpy and PyTorch know."""


class Parts(NamedTuple):
    """What a `Graph` is made of."""

    ops: list[Op]
    tensors: list[Tensor]
    outputs: tuple[str, ...] = ()
    name: str = ""
    attributes: Mapping[str, Any] = {}


def to_networkx(graph: Graph) -> nx.DiGraph:
    """Return the DAG of ops; see `Graph.dag`."""
    import networkx as nx

    dag = nx.DiGraph(name=graph.name)
    for op in graph.ops:
        dag.add_node(op.name, **{f.name: getattr(op, f.name) for f in fields(Op) if f.name != "name"})
    producer = {name: op.name for op in graph.ops for name in op.outputs}
    readers: dict[str, list[str]] = {}
    writer: dict[str, str] = {}
    for op in graph.ops:
        for name in op.inputs:
            base = graph.tensors[name].base
            if name in producer:
                _add_data(dag, producer[name], op.name, graph.tensors[name])
            if base in writer:
                _add_order(dag, writer[base], op.name)
            readers.setdefault(base, []).append(op.name)
        for name in op.mutates:
            base = graph.tensors[name].base
            for reader in readers.pop(base, []):
                _add_order(dag, reader, op.name)
            writer[base] = op.name
    return nx.freeze(dag)


def _add_data(dag: nx.DiGraph, source: str, target: str, tensor: Tensor) -> None:
    edge = dag.get_edge_data(source, target)
    if edge is None or edge["order"]:
        dag.add_edge(source, target, tensors=(tensor.name,), bytes=tensor.nbytes, order=False)
    elif tensor.name not in edge["tensors"]:
        edge["tensors"] += (tensor.name,)
        edge["bytes"] += tensor.nbytes


def _add_order(dag: nx.DiGraph, source: str, target: str) -> None:
    if source != target and not dag.has_edge(source, target):
        dag.add_edge(source, target, tensors=(), bytes=0, order=True)


def to_json(graph: Graph) -> str:
    """Return node-link JSON: nodes are ops, edges dependences, tensors stand in the graph's data.

    ``networkx.node_link_graph(json.loads(text))`` reads it.
    """
    dag = graph.dag
    data = {
        "directed": True,
        "multigraph": False,
        "graph": {
            "format": FORMAT,
            "name": graph.name,
            "outputs": list(graph.outputs),
            "attributes": dict(graph.attributes),
            "tensors": [{f.name: getattr(t, f.name) for f in fields(Tensor)} for t in graph.tensors.values()],
        },
        "nodes": [{"id": name, **data} for name, data in dag.nodes(data=True)],
        "edges": [{"source": u, "target": v, **data} for u, v, data in dag.edges(data=True)],
    }
    return json.dumps(data, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} cannot stand in a graph file")


def from_json(text: str) -> Parts:
    """Return the parts of the graph of node-link JSON, ours or a plain one with ``bytes`` per node.

    Raises:
        GraphError: the text is not such a document.
    """
    try:
        return _graph(parse_json(text))
    except RecursionError:
        raise GraphError("not a graph: the document is nested too deeply") from None
    except ValueError as error:
        raise GraphError(f"not JSON: {error}") from None


def _graph(data: Any) -> Parts:
    if not isinstance(data, dict) or not isinstance(data.get("nodes"), list):
        raise GraphError("not a node-link graph: an object with 'nodes' and 'edges' is needed")
    head = data.get("graph")
    if not isinstance(head, dict) or "format" not in head:
        return from_networkx(_plain_dag(data))
    if head["format"] != FORMAT:
        raise GraphError(f"format '{head['format']}' is not one this version reads ({FORMAT})")
    try:
        return Parts(
            [_op(node) for node in data["nodes"]],
            [_tensor(entry) for entry in head["tensors"]],
            outputs=_names(head["outputs"], "outputs"),
            name=_text(head["name"], "name"),
            attributes=_attributes(head["attributes"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise GraphError(f"a node or tensor is malformed: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return f"{error.args[0]!r:.60} is missing" if isinstance(error, KeyError) and error.args else str(error)


def _attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of a graph; those that answers read have the types that they expect."""
    table = _table(value, "attributes")
    for key in ("params", "training"):
        _table(table.get(key, {}), key)
    _names(table.get("frozen", []), "frozen")
    _text(table.get("cost_unit", ""), "cost_unit")
    if not _whole(table.get("batch", 1), "batch"):
        raise ValueError("'batch' must be at least 1")
    return table


def _op(node: Mapping[str, Any]) -> Op:
    values = dict(node)
    name = _text(values.pop("id"), "id")
    for key in ("kind", "layer", "forward_of"):
        _text(values[key], key)
    for key in ("inputs", "outputs", "mutates"):
        values[key] = _names(values[key], key)
    for key in ("workspace", "flops", "moved"):
        _whole(values[key], key)
    if not _is_cost(values["time"]):
        raise ValueError(f"op '{name}': time must be a number >= 0")
    _table(values["attributes"], "attributes")
    return Op(name=name, **{**values, "phase": Phase(values["phase"])})


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    name = _text(entry["name"], "name")
    if not isinstance(entry["shape"], list):
        raise TypeError(f"tensor '{name}': 'shape' must be a list of extents, not {entry['shape']!r:.40}")
    if len(entry["shape"]) > MAX_DIMENSIONS:
        raise ValueError(f"tensor '{name}' has more than {MAX_DIMENSIONS} dimensions")
    shape = tuple(_whole(extent, "extent") for extent in entry["shape"])
    if _text(entry["dtype"], "dtype") not in ITEMSIZE:
        raise ValueError(f"tensor '{name}': unknown dtype '{entry['dtype']}'")
    return Tensor(name, shape, entry["dtype"], Role(entry["role"]), _text(entry["storage"], "storage"))


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"'{key}' must be a string, not {value!r:.40}")
    return value


def _names(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"'{key}' must be a list of names, not {value!r:.40}")
    return tuple(_text(name, key) for name in value)


def _whole(value: Any, key: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_BYTES:
        raise ValueError(f"'{key}' must be an integer in 0 ... 2**62, not {value!r:.40}")
    return value


def _is_cost(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def _table(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"'{key}' must be an object, not {value!r:.40}")
    return value


def _plain_dag(data: Mapping[str, Any]) -> nx.DiGraph:
    import networkx as nx

    edges = "links" if "links" in data and "edges" not in data else "edges"
    try:
        _table(data.get("graph", {}), "graph")
        if not data["nodes"]:
            raise ValueError("it has no nodes")
        _check_names([_table(node, "node")["id"] for node in data["nodes"]], data.get(edges, []))
        return nx.node_link_graph({"directed": True, "multigraph": False, **data}, edges=edges)
    except (AttributeError, KeyError, TypeError, ValueError, nx.NetworkXError) as error:
        raise GraphError(f"not a node-link graph: {_reason(error)}") from None


def _check_names(nodes: list[Any], links: Any) -> None:
    """Check that nodes have names of their own and edges join them: networkx merges the one and makes up the other."""
    known = set(map(_name, nodes))
    if len(known) < len(nodes):
        (twice, _), *_ = Counter(map(_name, nodes)).most_common(1)
        raise ValueError(f"the node '{twice!s:.60}' stands twice")
    for link in links:
        for end in ("source", "target"):
            if _name(link[end]) not in known:
                raise ValueError(f"an edge has the {end} '{link[end]!s:.60}', which is no node")


def _name(value: Any) -> Any:
    """Return what networkx takes for the name of a node: it has tuples where JSON has lists."""
    return tuple(map(_name, value)) if isinstance(value, list) else value


def from_networkx(dag: nx.DiGraph, *, size: str = "bytes", time: str = "time") -> Parts:
    """Return the parts of one op per node with one output tensor; see `Graph.from_networkx`.

    Raises:
        GraphError: the graph is not a DAG, or a node has no integer *size*.
    """
    import networkx as nx

    if not dag.is_directed() or not nx.is_directed_acyclic_graph(dag):
        raise GraphError("the graph is not a directed acyclic graph")
    order = dag.graph.get("order") or list(nx.topological_sort(dag))
    if not isinstance(order, list) or not _same_members(order, dag):
        raise GraphError("graph attribute 'order' must list every node once")
    ops, tensors = [], []
    for node in order:
        data = dag.nodes[node]
        nbytes, cost = data.get(size), data.get(time, 0)
        if type(nbytes) is not int or nbytes < 0:
            raise GraphError(f"node '{node}' needs an integer attribute '{size}' >= 0, not {nbytes!r:.60}")
        if not _is_cost(cost):
            raise GraphError(f"node '{node}' needs a number '{time}' >= 0, not {cost!r:.60}")
        inputs = tuple(str(before) for before in dag.predecessors(node))
        ops.append(Op(name=str(node), kind="node", inputs=inputs, outputs=(str(node),), time=float(cost)))
        tensors.append(Tensor(str(node), (nbytes,), "uint8"))
    return Parts(ops, tensors, name=str(dag.graph.get("name", "")))


def _same_members(order: list[Any], dag: nx.DiGraph) -> bool:
    try:
        return len(order) == len(dag) and set(order) == set(dag)
    except TypeError:  # something that cannot be a node, as it has no hash
        return False
