"""Forward graphs as they would be after a change of the model's code that computes the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from graphsim.core.graph import Graph, Op

Rewrite = Callable[[Graph], Graph]

_SAVES_INPUT = frozenset({"conv1d", "conv2d", "conv3d", "batch_norm", "group_norm", "linear", "add"})
"""Kinds of ops whose output autograd does not need: it may be overwritten."""


def with_inplace_activations(graph: Graph) -> Graph:
    """Return *graph* with every ReLU in place that may be: it alone reads what a layer makes that does not save it."""
    readers = Counter(name for op in graph.ops for name in op.inputs)
    makers = {name: op.kind for op in graph.ops for name in op.outputs}

    def one(op: Op) -> Op:
        may = op.kind == "relu" and readers[op.inputs[0]] == 1 and makers.get(op.inputs[0]) in _SAVES_INPUT
        return replace(op, attributes={**op.attributes, "inplace": True}) if may else op

    return _rebuilt(graph, [one(op) for op in graph.ops])


def with_chunked_loss(graph: Graph) -> Graph:
    """Return *graph* with the last linear layer and cross-entropy as one op, where only the loss reads the logits."""
    readers = Counter(name for op in graph.ops for name in op.inputs)
    makers = {op.outputs[0]: op for op in graph.ops if op.kind == "linear"}
    ops: list[Op] = []
    for op in graph.ops:
        head = makers.get(op.inputs[0]) if op.kind == "cross_entropy" else None
        if head is None or readers[op.inputs[0]] != 1 or op.attributes.get("owned"):
            ops.append(op)
            continue
        ops.remove(head)
        owned = head.attributes["owned"]
        x, parameters = head.inputs[0], head.inputs[1:]
        attributes = {"out": head.attributes["out"], "bias": head.attributes["bias"], "owned": owned}
        ops.append(
            replace(op, kind="linear_cross_entropy", inputs=(x, op.inputs[1], *parameters), attributes=attributes)
        )
    return _rebuilt(graph, ops)


def _rebuilt(graph: Graph, ops: list[Op]) -> Graph:
    made = {name for op in ops for name in op.outputs}
    gone = {name for op in graph.ops for name in op.outputs} - made
    tensors = [tensor for tensor in graph.tensors.values() if tensor.name not in gone]
    return Graph(ops, tensors, outputs=graph.outputs, name=graph.name, attributes=graph.attributes)
