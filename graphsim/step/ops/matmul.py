"""Batched matrix products and softmax: the parts that composed attention is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from graphsim.core.graph import Tensor
from graphsim.step.ops.elementwise import broadcast, like, reduce_to
from graphsim.step.ops.kind import Attribute, Attributes, Kind, ShapeError, Signature
from graphsim.step.ops.shape import axis, expand
from graphsim.step.ops.tape import Gradients, Tape, Type
from graphsim.units import itemsize


def bmm(tape: Tape, a: Tensor, b: Tensor, *, transpose_b: bool = False) -> Tensor:
    """a @ b over leading batch dimensions; a: (..., m, k), b: (..., k, n), or (..., n, k) if transposed.

    Saves each factor that the other's gradient needs; the second factor's gradient is computed
    first (derivatives.yaml, bmm: mat2, self).
    """
    a, b = tape.low_precision(a, b)
    columns = b.shape[-2] if transpose_b else b.shape[-1]
    batch = broadcast(a.shape[:-2], b.shape[:-2])
    flops = 2 * prod(batch) * a.shape[-2] * a.shape[-1] * columns
    y = tape.emit("bmm", (a, b), Type((*batch, a.shape[-2], columns), a.dtype), flops=flops)
    saved = [t for t, other in ((a, b), (b, a)) if tape.requires_gradient(other)]

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        grad_b = tape.emit("bmm", (a, grad), Type((*batch, *b.shape[-2:]), b.dtype), flops=flops) if needs[1] else None
        grad_a = tape.emit("bmm", (grad, b), Type((*batch, *a.shape[-2:]), a.dtype), flops=flops) if needs[0] else None
        return (
            None if grad_a is None else reduce_to(tape, grad_a, a.shape),
            None if grad_b is None else reduce_to(tape, grad_b, b.shape),
        )

    tape.differentiate((a, b), y, saved, backward)
    return y


def matmul(tape: Tape, a: Tensor, b: Tensor, *, transpose_b: bool = False) -> Tensor:
    """a @ b; operands of more than one batch dimension are folded, which copies transposed and broadcast ones.

    Source: aten/src/ATen/native/LinearAlgebra.cpp, _matmul_impl: expand, reshape, bmm, unsafe_view.
    """
    batch = broadcast(a.shape[:-2], b.shape[:-2])
    if len(batch) > 1 and batch[0] > 1:
        a, b = (tape.contiguous(expand(tape, x, (*batch, *x.shape[-2:]))) for x in (a, b))
    return bmm(tape, a, b, transpose_b=transpose_b)


def softmax(tape: Tape, x: Tensor, *, fp32: bool = False, workspace: int = 0) -> Tensor:
    """Softmax over one dimension; saves its output. On autocast's fp32 list for CUDA.

    If *fp32* (``dtype=torch.float32``) a 16-bit operand is cast first, but for fp16 on CUDA, where the
    kernel itself does (aten/src/ATen/native/SoftMax.cpp).
    """
    fused = tape.target == "cuda" and x.dtype == "float16"
    (x,) = tape.full_precision(x) if not (fp32 and fused) else (x,)
    if fp32 and not fused:
        x = tape.to(x, "float32")
    out = Type(x.shape, "float32" if fp32 else x.dtype)
    y = tape.emit("softmax", (x,), out, workspace=workspace, flops=5 * x.size)
    tape.differentiate((x,), y, (y,), lambda grad, needs: (softmax_backward(tape, grad, y, like(x)),))
    return y


def softmax_backward(tape: Tape, grad: Tensor, y: Tensor, x: Type) -> Tensor:
    """Run the backward of a softmax whose output is *y*: the gradient of its operand *x*."""
    scratch = softmax_backward_scratch(tape.target, y.size, y.dtype)
    return tape.emit("softmax_backward", (grad, y), x, workspace=scratch, flops=4 * y.size)


def softmax_backward_scratch(target: str, size: int, dtype: str) -> int:
    """Return the bytes of ``grad * output``, which CUDA makes first.

    Source: aten/src/ATen/native/cuda/SoftMax.cu, TORCH_IMPL_FUNC(softmax_backward_cuda_out); the log-softmax has none.
    """
    return size * itemsize(dtype) if target == "cuda" else 0


def _infer_matmul(types: Sequence[Type], attributes: Attributes) -> Signature:
    a, b = types
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise ShapeError(f"matmul needs matrices, not shapes {list(a.shape)} and {list(b.shape)}")
    inner, columns = b.shape[-2:] if not attributes["transpose"] else b.shape[:-3:-1]
    if a.shape[-1] != inner:
        raise ShapeError(f"matmul: {list(a.shape)} and {list(b.shape)} do not fit together")
    return Signature((Type((*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], columns), a.dtype),))


def _lower_matmul(tape: Tape, inputs: Sequence[Tensor], owned: Mapping[str, Tensor], attributes: Attributes) -> Tensor:
    return matmul(tape, inputs[0], inputs[1], transpose_b=attributes["transpose"])


def _infer_softmax(types: Sequence[Type], attributes: Attributes) -> Signature:
    axis(types[0].shape, attributes["dim"])
    return Signature((types[0],))


def _lower_softmax(tape: Tape, inputs: Sequence[Tensor], owned: Mapping[str, Tensor], attributes: Attributes) -> Tensor:
    return softmax(tape, inputs[0])


KINDS: tuple[Kind, ...] = (
    Kind(
        "matmul",
        _infer_matmul,
        _lower_matmul,
        (Attribute("transpose", "bool", False, "the second operand is (..., n, k)"),),
        operands=(2, 2),
        about="matrix product over leading batch dimensions",
        source="aten/src/ATen/native/LinearAlgebra.cpp",
    ),
    Kind(
        "softmax",
        _infer_softmax,
        _lower_softmax,
        (Attribute("dim", "int", -1, "dimension, negative from the end", minimum=-8, maximum=7),),
        about="exponentials that add up to one along a dimension",
        source="aten/src/ATen/native/SoftMax.cpp",
        counted=False,
    ),
)
