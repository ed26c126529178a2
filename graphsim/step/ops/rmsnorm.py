"""RMS norm: x / sqrt(mean(x^2) + eps) * weight, over the last dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphsim.core.graph import Tensor
from graphsim.step.ops.elementwise import like, mul, power, shift
from graphsim.step.ops.kind import Attribute, Attributes, Kind, Parameter, ShapeError, Signature
from graphsim.step.ops.layernorm import affine_sums_scratch
from graphsim.step.ops.shape import mean
from graphsim.step.ops.tape import Gradients, Tape, Type
from graphsim.units import itemsize


def composed_rms_norm(tape: Tape, x: Tensor, weight: Tensor, *, style: str) -> Tensor:
    """RMS norm as a composition of kernels that autograd sees one by one.

    *style* 'torch': ``rms_norm_composite`` of aten/src/ATen/native/layer_norm.cpp, the CPU path of
    nn.RMSNorm; the squares live until the reciprocal root is known. 'hf': LlamaRMSNorm and its
    copies in transformers; the Python local ``variance`` lives to the end. 't5': T5LayerNorm, which
    multiplies a low-precision input itself, not its fp32 copy.
    """
    wide = tape.to(x, "float32")
    squares = power(tape, wide)
    variance = mean(tape, squares, (*x.shape[:-1], 1))
    if style == "torch":
        inverse = _rsqrt(tape, tape.inplace("add_scalar_", variance), variance)
        tape.hold([variance, squares])
        normed = tape.to(mul(tape, mul(tape, wide, inverse), weight), x.dtype)
    else:
        shifted = shift(tape, variance)
        inverse = _rsqrt(tape, shifted, shifted)
        normed = mul(tape, x if style == "t5" else wide, inverse)
        normed = mul(tape, weight, tape.to(normed, weight.dtype if style == "t5" else x.dtype))
    tape.hold([x, wide, variance])
    return normed


def fused_rms_norm(tape: Tape, x: Tensor, weight: Tensor) -> Tensor:
    """One kernel that saves its input and the reciprocal roots in fp32 (native/cuda/layer_norm_kernel.cu)."""
    (x,) = tape.full_precision(x)
    y, rstd = tape.emit_many("rms_norm", (x, weight), (like(x), Type((*x.shape[:-1], 1), "float32")), flops=4 * x.size)

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        sums = affine_sums_scratch(x.size // x.shape[-1], x.shape[-1], itemsize(x.dtype), tape.processors)
        wanted = (like(x), like(weight))
        operands = (grad, x, rstd, weight)
        dx, dw = tape.emit_many("rms_norm_backward", operands, wanted, workspace=sums, flops=8 * x.size)
        return (dx if needs[0] else None, dw if needs[1] else None)

    tape.differentiate((x, weight), y, (x, weight, rstd), backward)
    return y


def _rsqrt(tape: Tape, x: Tensor, source: Tensor) -> Tensor:
    """1 / sqrt(x) of the tensor whose gradient is that of *source*; backward: -grad / 2 * y^3 in three kernels."""
    y = tape.emit("rsqrt", (x,), like(x))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        half = tape.emit("mul_scalar", (grad,), like(x))
        cube = tape.emit("pow", (y,), like(x))
        result = tape.emit("mul", (half, cube), like(x))
        tape.hold([half, cube])
        return (result,)

    tape.differentiate((source,), y, (y,), backward)
    return y


def _infer(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    if not x.shape:
        raise ShapeError("rms_norm needs at least one dimension")
    return Signature((x,), (Parameter("weight", (x.shape[-1],)),))


def _lower(tape: Tape, inputs: Sequence[Tensor], owned: Mapping[str, Tensor], attributes: Attributes) -> Tensor:
    x, weight = inputs[0], owned["weight"]
    if attributes["impl"] == "torch" and tape.target == "cuda":
        return fused_rms_norm(tape, x, weight)
    return composed_rms_norm(tape, x, weight, style=attributes["impl"])


KINDS = (
    Kind(
        "rms_norm",
        _infer,
        _lower,
        (
            Attribute(
                "impl",
                "name",
                "torch",
                "nn.RMSNorm, or a model's own in Python: LlamaRMSNorm, T5LayerNorm",
                choices=("torch", "hf", "t5"),
            ),
        ),
        about="root-mean-square norm over the last dimension, with a weight",
        source="aten/src/ATen/native/layer_norm.cpp, transformers/models/llama/modeling_llama.py",
        counted=False,
    ),
)
