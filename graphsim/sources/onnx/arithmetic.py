"""Elementwise nodes, reductions and softmax."""

from __future__ import annotations

from collections.abc import Sequence

from graphsim.errors import SpecError
from graphsim.sources.onnx.emitter import Emitter, Handler
from graphsim.sources.onnx.fusion import fused_gelu, fused_rsqrt, fused_silu
from graphsim.sources.onnx.values import Node, Operand, Result, dtype_of, is_learned

SAME = {
    "Relu": "relu",
    "LeakyRelu": "leaky_relu",
    "Elu": "elu",
    "Celu": "elu",
    "Selu": "selu",
    "Gelu": "gelu",
    "HardSwish": "hardswish",
    "HardSigmoid": "hardsigmoid",
    "Mish": "mish",
    "Swish": "silu",
    "Softplus": "softplus",
    "Tanh": "tanh",
    "Exp": "exp",
    "Log": "log",
    "Reciprocal": "reciprocal",
    "Neg": "neg",
    "Abs": "abs",
    "Sin": "sin",
    "Cos": "cos",
    "Erf": "erf",
}
"""Functions of one operand that are op kinds of ours."""


def _same(kind: str) -> Handler:
    return lambda emitter, node: [emitter.emit(node, kind, [node.required(0)])]


def _sigmoid(emitter: Emitter, node: Node) -> Sequence[Operand]:
    return fused_silu(emitter, node) or [emitter.emit(node, "sigmoid", [node.required(0)])]


def _sqrt(emitter: Emitter, node: Node) -> Sequence[Operand]:
    return fused_rsqrt(emitter, node) or [emitter.emit(node, "sqrt", [node.required(0)])]


def _binary(kind: str, constant: str) -> Handler:
    """*kind* of two tensors; *constant* if one of them is a number."""

    def handle(emitter: Emitter, node: Node) -> Sequence[Operand]:
        a, b = node.required(0), node.required(1)
        if kind == "div" and (gelu := fused_gelu(emitter, node)):
            return gelu
        if emitter.scalar(b) is not None and b.type.size == 1 and len(b.type.shape) <= len(a.type.shape):
            return [_scaled(emitter, node, constant, a)]
        if emitter.scalar(a) is not None and len(a.type.shape) <= len(b.type.shape):
            return [_turned(emitter, node, kind, constant, b)]
        return [emitter.emit(node, kind, [a, b])]

    return handle


def _scaled(emitter: Emitter, node: Node, kind: str, x: Operand) -> Result:
    """A product with a number leaves a transposed operand of a product as it lies."""
    if isinstance(x, Result) and x.flipped and kind == "scale":
        y = emitter.emit(node, kind, [emitter.unflipped(x)])
        return Result(y.name, y.tensor, y.learned, flipped=True)
    return emitter.emit(node, kind, [x])


def _turned(emitter: Emitter, node: Node, kind: str, constant: str, x: Operand) -> Result:
    """A number stands first: c - x is one kernel, c / x two (torch/_tensor.py, __rsub__ and __rdiv__)."""
    if kind == "sub":
        return emitter.emit(node, "rsub", [x])
    if kind == "div":
        return emitter.emit(node, "scale", [emitter.emit(node, "reciprocal", [x])])
    return _scaled(emitter, node, constant, x)


def _many(kind: str) -> Handler:
    """Sum and Mean of any number of operands."""

    def handle(emitter: Emitter, node: Node) -> Sequence[Operand]:
        operands = [value for value in node.inputs if value is not None]
        return [operands[0] if len(operands) == 1 else emitter.emit(node, kind, operands)]

    return handle


def _pow(emitter: Emitter, node: Node) -> Sequence[Operand]:
    if emitter.scalar(node.required(1)) is None:
        raise SpecError("an exponent that is no constant number has no counterpart among our ops", node.where)
    return [emitter.emit(node, "power", [node.required(0)])]


def _extreme(emitter: Emitter, node: Node) -> Sequence[Operand]:
    """Max or Min: with a number it is a clamp."""
    x, *others = (value for value in node.inputs if value is not None)
    if not is_learned(x) and not any(is_learned(value) for value in others):
        return [emitter.compute(node, node.outputs[0])]
    if any(emitter.scalar(value) is None for value in others):
        raise SpecError(f"{node.op} of two tensors has no counterpart among our ops", node.where)
    return [emitter.emit(node, "clamp", [x])]


def _clip(emitter: Emitter, node: Node) -> Sequence[Operand]:
    bounds = [emitter.scalar(node.operand(1)), emitter.scalar(node.operand(2))]
    bounds = [node.get("min", bounds[0]), node.get("max", bounds[1])]
    kind = "relu6" if bounds == [0.0, 6.0] else "clamp"
    return [emitter.emit(node, kind, [node.required(0)])]


def _cast(emitter: Emitter, node: Node) -> Sequence[Operand]:
    x = node.required(0)
    dtype = node.outputs[0].dtype if node.op == "CastLike" else dtype_of(node.get("to", 0), node.where)
    return [x if x.type.dtype == dtype else emitter.emit(node, "cast", [x], dtype=dtype)]


def _where(emitter: Emitter, node: Node) -> Sequence[Operand]:
    return [emitter.emit(node, "where", [node.required(number) for number in range(3)])]


def _dropout(emitter: Emitter, node: Node) -> Sequence[Operand]:
    p = node.get("ratio", emitter.scalar(node.operand(1)))
    return [emitter.emit(node, "dropout", [node.required(0)], p=0.5 if p is None else float(p))]


def _reduce(kind: str) -> Handler:
    def handle(emitter: Emitter, node: Node) -> Sequence[Operand]:
        x = node.required(0)
        dims = emitter.integers(node, 1, "axes")
        if not dims and node.get("noop_with_empty_axes", 0):
            return [x]
        dims = dims or list(range(len(x.type.shape)))
        return [emitter.emit(node, kind, [x], dims=dims, keep=bool(node.get("keepdims", 1)))]

    return handle


HANDLERS: dict[str, Handler] = {
    **{op: _same(kind) for op, kind in SAME.items()},
    "Sigmoid": _sigmoid,
    "Sqrt": _sqrt,
    "Add": _binary("add", "shift"),
    "Sub": _binary("sub", "shift"),
    "Mul": _binary("mul", "scale"),
    "Div": _binary("div", "scale"),
    "Sum": _many("add"),
    "Pow": _pow,
    "Max": _extreme,
    "Min": _extreme,
    "Clip": _clip,
    "Cast": _cast,
    "CastLike": _cast,
    "Where": _where,
    "Softmax": _same("softmax"),
    "LogSoftmax": _same("log_softmax"),
    "Dropout": _dropout,
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "GlobalAveragePool": lambda emitter, node: [emitter.emit(node, "adaptive_avg_pool", [node.required(0)])],
    "GlobalMaxPool": lambda emitter, node: [emitter.emit(node, "adaptive_max_pool", [node.required(0)])],
}
"""Handlers by op type."""
