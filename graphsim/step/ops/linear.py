"""Matrix products: linear layers, matmul, embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from graphsim.core.graph import Tensor
from graphsim.step.ops.elementwise import like
from graphsim.step.ops.kind import Attribute, Attributes, Kind, Parameter, ShapeError, Signature
from graphsim.step.ops.reduction import emit_sum
from graphsim.step.ops.tape import Gradients, Tape, Type


def linear(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x @ weight.T + bias. x: (..., in), weight: (out, in), bias: (out).

    Leading dimensions are folded into rows, without a copy unless *x* is transposed, and unfolded
    again (aten/src/ATen/native/Linear.cpp); between the two stands one addmm, or mm without bias.
    """
    if bias is None:
        x, weight = tape.low_precision(x, weight)
    else:
        x, weight, bias = tape.low_precision(x, weight, bias)
    rows = tape.view(x if len(x.shape) == 2 else tape.contiguous(x), (prod(x.shape[:-1]), x.shape[-1]))
    y = _product(tape, rows, weight) if bias is None else _addmm(tape, rows, weight, bias)
    return tape.view(y, (*x.shape[:-1], weight.shape[0]))


def _product(tape: Tape, x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T. Gradients in the order of mm's formulas: mat2, then self."""
    flops = 2 * x.size * weight.shape[0]
    y = tape.emit("mm", (x, weight), Type((x.shape[0], weight.shape[0]), x.dtype), flops=flops)

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        grad_w = _weight_gradient(tape, x, grad, weight, flops) if needs[1] else None
        return (tape.emit("mm", (grad, weight), like(x), flops=flops) if needs[0] else None, grad_w)

    tape.differentiate((x, weight), y, _saved(tape, x, weight), backward)
    return y


def _addmm(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x @ weight.T + bias. Gradients in the order of addmm's formulas: mat1, mat2; the bias's is a sum over rows.

    The bias stands first among the operands, so its gradient is delivered first.
    """
    flops = 2 * x.size * weight.shape[0]
    y = tape.emit("addmm", (bias, x, weight), Type((x.shape[0], weight.shape[0]), x.dtype), flops=flops)

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        grad_x = tape.emit("mm", (grad, weight), like(x), flops=flops) if needs[1] else None
        grad_w = _weight_gradient(tape, x, grad, weight, flops) if needs[2] else None
        grad_b = None
        if needs[0]:
            grad_b = tape.alias(emit_sum(tape, grad, Type((1, bias.size), bias.dtype)), bias.shape)
        return (grad_b, grad_x, grad_w)

    tape.differentiate((bias, x, weight), y, _saved(tape, x, weight), backward)
    return y


def _saved(tape: Tape, x: Tensor, weight: Tensor) -> list[Tensor]:
    """Each factor is saved if the other's gradient needs it."""
    return [t for t, other in ((x, weight), (weight, x)) if tape.requires_gradient(other)]


def _weight_gradient(tape: Tape, x: Tensor, grad: Tensor, weight: Tensor, flops: int) -> Tensor:
    """The weight enters transposed, so its gradient is a transposed view of a product."""
    product = tape.emit("mm", (x, grad), Type((weight.shape[1], weight.shape[0]), weight.dtype), flops=flops)
    return tape.alias(product, weight.shape, kind="t")


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
