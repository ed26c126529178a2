"""Matrix products: linear layers, matmul, embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from graphsim.graph import Tensor
from graphsim.ops.kind import Attribute, Attributes, Kind, Parameter, ShapeError, Signature
from graphsim.ops.tape import Gradients, Tape, Type


def linear(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x @ weight.T + bias. x: (..., in), weight: (out, in), bias: (out).

    Leading dimensions are folded, without a copy unless *x* is transposed (aten/src/ATen/native/
    Linear.cpp), so it is one addmm, or mm without bias. Backward: all gradients are views: of folded
    rows, of a product that is transposed, and of a sum over rows (engine.cpp, validate_outputs), so
    none is added to in place. The bias stands first, as in addmm: its gradient arrives first.
    """
    if bias is None:
        x, weight = tape.low_precision(x, weight)
    else:
        x, weight, bias = tape.low_precision(x, weight, bias)
    if len(x.shape) > 2:
        x = tape.contiguous(x)
    rows, inner, outer = prod(x.shape[:-1]), x.shape[-1], weight.shape[0]
    flops = 2 * rows * inner * outer
    operands = (x, weight) if bias is None else (bias, x, weight)
    y = tape.emit("mm" if bias is None else "addmm", operands, Type((*x.shape[:-1], outer), x.dtype), flops=flops)
    saved = [t for t, other in ((x, weight), (weight, x)) if tape.requires_gradient(other)]

    def backward(grads: tuple[Tensor | None, ...], needs: tuple[bool, ...]) -> Gradients:
        (grad,) = grads
        if grad is None:
            return [None] * len(operands)
        if len(grad.shape) > 2:  # rows are folded by a reshape, which copies what a transpose has left
            grad = tape.contiguous(grad)
        need_b, need_x, need_w = (False, *needs)[-3:]
        product = grad_b = None
        if need_w and bias is None:  # mm's formulas run in the order of their names: mat2, self
            product = tape.emit("mm", (x, grad), Type((inner, outer), weight.dtype), flops=flops)
        grad_x = tape.emit("mm", (grad, weight), Type((rows, inner), x.dtype), flops=flops) if need_x else None
        if need_w and bias is not None:  # addmm's: mat1, mat2, self
            product = tape.emit("mm", (x, grad), Type((inner, outer), weight.dtype), flops=flops)
        grad_w = product and tape.alias(product, weight.shape, kind="t")
        if bias is not None and need_b:
            total = tape.emit("sum", (grad,), Type((1, outer), bias.dtype), flops=rows * outer)
            grad_b = tape.alias(total, bias.shape)
        if grad_x is not None and len(x.shape) > 2:
            grad_x = tape.alias(grad_x, x.shape)
        return [grad_b, grad_x, grad_w][-len(operands) :]

    tape.differentiate(operands, (y,), saved, backward)
    return y


def _infer_linear(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    if not x.shape:
        raise ShapeError("linear needs at least one dimension")
    out = attributes["out"]
    parameters = [Parameter("weight", (out, x.shape[-1]))]
    if attributes["bias"]:
        parameters.append(Parameter("bias", (out,)))
    return Signature((Type((*x.shape[:-1], out), x.dtype),), tuple(parameters))


def _lower_linear(tape: Tape, inputs: Sequence[Tensor], owned: Mapping[str, Tensor], attributes: Attributes) -> Tensor:
    return linear(tape, inputs[0], owned["weight"], owned.get("bias"))


KINDS = (
    Kind(
        "linear",
        _infer_linear,
        _lower_linear,
        (Attribute("out", "int", about="output features", minimum=1), Attribute("bias", "bool", True)),
        about="fully connected: (..., in) -> (..., out)",
        source="aten/src/ATen/native/Linear.cpp",
    ),
)
