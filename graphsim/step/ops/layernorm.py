"""Layer norm: normalization over the last dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from graphsim.core.graph import Tensor
from graphsim.step.ops.elementwise import like
from graphsim.step.ops.kind import Attribute, Attributes, Kind, Parameter, ShapeError, Signature
from graphsim.step.ops.tape import Gradients, Tape, Type
from graphsim.units import itemsize

THREADS = 2
"""Threads whose partial sums are counted in the CPU backward kernel."""

WARP = 32


def affine_sums_scratch(rows: int, columns: int, itemsize: int, processors: int) -> int:
    """Return the bytes of CUDA's partial sums for one gradient of weight or bias, in layer norm and RMS norm.

    They are taken where there are many more rows than columns, for a device of so many multiprocessors.
    Source: aten/src/ATen/native/cuda/layer_norm_kernel.cu, ``LaunchGammaBetaBackwardCUDAKernel``.
    """
    if rows <= 64 * 1024 or columns // WARP >= processors // 2:
        return 0
    blocks = min(32 * 1024 // -(-columns // WARP), -(-rows // WARP))
    return blocks * columns * itemsize


def layer_norm(tape: Tape, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Normalize each row of x (..., width). Saves input, weight, and mean and inverse deviation of each row.

    Statistics are fp32 on CUDA. CPU: they have the weight's dtype, and the backward kernel sums weight and
    bias gradients per thread (aten/src/ATen/native/cpu/layer_norm_kernel.cpp). On autocast's fp32 list for CUDA.
    """
    (x,) = tape.full_precision(x)
    affine = [t for t in (weight, bias) if t is not None]
    rows = prod(x.shape[:-1])
    statistics = Type((rows,), "float32" if tape.target == "cuda" else (weight or x).dtype)
    y, mean, deviation = tape.emit_many("layer_norm", (x, *affine), (like(x), statistics, statistics), flops=5 * x.size)
    saved = [x, mean, deviation] if weight is None else [x, weight, mean, deviation]

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        if tape.target == "cuda":
            partial = len(affine) * affine_sums_scratch(rows, x.shape[-1], itemsize(x.dtype), tape.processors)
        else:
            partial = 2 * THREADS * x.shape[-1] * 4 if affine else 0
        results = tape.emit_many(
            "layer_norm_backward",
            (grad, *saved),
            (like(x), *(like(t) for t in affine)),
            workspace=partial,
            flops=9 * x.size,
        )
        return [result if need else None for result, need in zip(results, needs, strict=True)]

    tape.differentiate((x, *affine), y, saved, backward)
    return y


def _infer(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    if len(x.shape) < 2:
        raise ShapeError(f"layer_norm needs (..., width), not shape {list(x.shape)}")
    width = x.shape[-1]
    parameters = [Parameter("weight", (width,))] if attributes["affine"] else []
    if attributes["affine"] and attributes["bias"]:
        parameters.append(Parameter("bias", (width,)))
    return Signature((x,), tuple(parameters))


def _lower(tape: Tape, inputs: Sequence[Tensor], owned: Mapping[str, Tensor], attributes: Attributes) -> Tensor:
    return layer_norm(tape, inputs[0], owned.get("weight"), owned.get("bias"))


KINDS: tuple[Kind, ...] = (
    Kind(
        "layer_norm",
        _infer,
        _lower,
        (
            Attribute("affine", "bool", True, "learned scale (and shift)"),
            Attribute("bias", "bool", True, "learned shift"),
        ),
        about="normalize the last dimension",
        source="aten/src/ATen/native/layer_norm.cpp",
    ),
)
