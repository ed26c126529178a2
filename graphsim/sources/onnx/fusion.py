"""What exporters take apart, and PyTorch runs as one kernel: found again by the only reader of each part."""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose, sqrt
from typing import Any

from graphsim.core.graph import Role
from graphsim.sources.onnx.emitter import Emitter
from graphsim.sources.onnx.values import Node, Operand, Result, Stored


def other_input(proto: Any, name: str) -> str:
    """Return the operand of a node of two that is not *name*; '' if it has others."""
    names = list(proto.input)
    if len(names) != 2 or name not in names:
        return ""
    return str(names[1 - names.index(name)])


def bias_of_product(emitter: Emitter, node: Node, width: int) -> tuple[Any, Stored] | None:
    """Return the only reader of a product and the parameter that it adds, if it does."""
    output = node.proto.output[0]
    reader = emitter.sole_consumer(output)
    if reader is None or reader.op_type != "Add":
        return None
    value = emitter.values.get(other_input(reader, output))
    if not isinstance(value, Stored) or value.type.shape != (width,) or value.role is not Role.PARAMETER:
        return None
    return reader, value


def is_second_factor(emitter: Emitter, name: str) -> bool:
    """True if *name*, perhaps scaled by a number, is read only as the second factor of a product.

    A factor that no node has written yet is taken for a number.
    """
    reader = emitter.sole_consumer(name)
    if reader is not None and reader.op_type in ("Mul", "Div"):
        number = emitter.values.get(other_input(reader, name))
        if reader.input[0] != name or (number is not None and emitter.scalar(number) is None):
            return False
        name = reader.output[0]
        reader = emitter.sole_consumer(name)
    return reader is not None and reader.op_type == "MatMul" and reader.input[1] == name != reader.input[0]


def fused_silu(emitter: Emitter, node: Node) -> Sequence[Operand]:
    """x * sigmoid(x)."""
    reader = emitter.sole_consumer(node.proto.output[0])
    if reader is None or reader.op_type != "Mul":
        return ()
    if other_input(reader, node.proto.output[0]) != node.proto.input[0]:
        return ()
    result = emitter.emit(node, "silu", [node.required(0)])
    emitter.fuse([reader], result)
    return [result]


def fused_gelu(emitter: Emitter, node: Node) -> Sequence[Operand]:
    """x * (1 + erf(x / sqrt(2))) * 0.5, in the order of either exporter."""
    divisor = emitter.scalar(node.required(1))
    if divisor is None or not isclose(divisor, sqrt(2), rel_tol=1e-3):
        return ()
    x, name = node.proto.input[0], node.proto.output[0]
    parts = []
    for op in ("Erf", "Add", "Mul", "Mul"):
        reader = emitter.sole_consumer(name)
        if reader is None or reader.op_type != op:
            return ()
        other = emitter.values.get(other_input(reader, name))
        if op != "Erf" and x not in reader.input and (other is None or emitter.scalar(other) is None):
            return ()
        parts.append(reader)
        name = reader.output[0]
    result = emitter.emit(node, "gelu", [node.required(0)])
    emitter.fuse(parts, result)
    return [result]


def fused_rsqrt(emitter: Emitter, node: Node) -> Sequence[Operand]:
    """1 / sqrt(x)."""
    reader = emitter.sole_consumer(node.proto.output[0])
    if reader is None or reader.op_type != "Reciprocal":
        return ()
    result = emitter.emit(node, "rsqrt", [node.required(0)])
    emitter.fuse([reader], result)
    return [result]


# -- attention -------------------------------------------------------------------------------------


class _Trail:
    """A walk from a result back to where it comes from, and the nodes passed."""

    def __init__(self, emitter: Emitter, name: str) -> None:
        self.emitter, self.name = emitter, name
        self.passed: list[Any] = []

    def producer(self) -> Any:
        """Return the node that writes what is reached."""
        return self.emitter.producers.get(self.name)

    def step(self, op: str, operand: int = 0) -> bool:
        """Go back over a node of type *op*, to one of its operands; False if there is none."""
        node = self.producer()
        if node is None or node.op_type != op:
            return False
        self.passed.append(node)
        self.name = node.input[operand]
        return True

    def skip_scale(self) -> bool:
        """Go back over a product with a number."""
        node = self.producer()
        number = self.emitter.values.get(node.input[1]) if node is not None and node.op_type == "Mul" else None
        return number is not None and self.emitter.scalar(number) is not None and self.step("Mul")

    @property
    def value(self) -> Operand | None:
        """What is reached."""
        return self.emitter.values.get(self.name)


def fused_attention(emitter: Emitter, node: Node) -> Sequence[Operand]:
    """softmax((s q) @ (s k)^T + mask) @ v: the form in which scaled dot-product attention is exported.

    Both factors are scaled before the product; attention that a model spells out scales the scores, and
    stays as it is (torch/onnx, scaled_dot_product_attention).
    """
    v = node.required(1)
    if not isinstance(v, Result) or v.flipped or len(v.type.shape) != 4:
        return ()
    trail = _Trail(emitter, node.proto.input[0])
    safe = trail.step("Where", 2) and emitter.producers.get(trail.passed[0].input[0])
    p = _dropped(trail)
    if not trail.step("Softmax"):
        return ()
    mask = _added(trail)
    scores = trail.producer()
    if scores is None or scores.op_type != "MatMul":
        return ()
    query, key = (_Trail(emitter, name) for name in scores.input)
    if not query.skip_scale():
        return ()
    q, k = query.value, _transposed_key(key, v.type.shape)
    parts = [*trail.passed, scores, *query.passed, *key.passed, *([safe] if safe else [])]
    if q is None or k is None or len(q.type.shape) != 4 or not emitter.is_closed(parts, node.proto):
        return ()
    emitter.drop(parts)
    if k.type.shape != v.type.shape:
        k = emitter.emit(node, "reshape", [k], shape=list(v.type.shape))
    return [emitter.emit(node, "sdpa", [q, k, v, *([] if mask is None else [mask])], p=p)]


def _dropped(trail: _Trail) -> float:
    """Go back over a dropout of the weights; return its probability."""
    if not trail.step("Dropout"):
        return 0.0
    ratio = trail.emitter.values.get(trail.passed[-1].input[1]) if len(trail.passed[-1].input) > 1 else None
    known = None if ratio is None else trail.emitter.scalar(ratio)
    return 0.5 if known is None else known


def _added(trail: _Trail) -> Operand | None:
    """Go back over the sum of scores and mask; return the mask."""
    node = trail.producer()
    if node is None or node.op_type != "Add":
        return None
    before = [trail.emitter.producers.get(name) for name in node.input]
    number = next((i for i, other in enumerate(before) if other is not None and other.op_type == "MatMul"), None)
    if number is None:
        return None
    trail.step("Add", number)
    return trail.emitter.values.get(node.input[1 - number])


def _transposed_key(trail: _Trail, shape: tuple[int, ...]) -> Operand | None:
    """Go back over scaling and transposing; return the keys, of *shape* or with batch and heads folded.

    The newer exporter folds them before it transposes.
    """
    if not trail.skip_scale():
        return None
    value = trail.value
    if isinstance(value, Result) and value.flipped and value.tensor.shape == shape:
        return trail.emitter.unflipped(value)
    trail.step("Reshape")
    if not trail.step("Transpose"):
        return None
    folded, before = trail.value, trail.producer()
    if folded is not None and folded.type.shape == shape:
        return folded
    if folded is None or folded.type.shape != (shape[0] * shape[1], *shape[2:]):
        return None
    unfolded = trail.emitter.values.get(before.input[0]) if before is not None else None
    if unfolded is None or unfolded.type.shape != shape:
        return folded
    trail.step("Reshape")
    return unfolded
