"""The last linear layer and cross-entropy in one op over chunks of rows: the logits are never all there.

Source: Liger-Kernel, ``fused_linear_cross_entropy_forward`` (liger_kernel/ops/fused_linear_cross_entropy.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from graphsim.core.graph import Tensor
from graphsim.step.ops.elementwise import like
from graphsim.step.ops.kind import Attribute, Attributes, Kind, Parameter, ShapeError, Signature
from graphsim.step.ops.tape import Gradients, Tape, Type


def chunk_rows(rows: int, width: int, classes: int) -> int:
    """Return the rows of a chunk: its logits take about as much as the input, rounded up to a power of two."""
    chunk = -(-rows // -(-classes // width))
    return 1 << max(0, chunk - 1).bit_length()


def linear_cross_entropy(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Mean cross-entropy of x @ weight.T + bias. x: (..., in), weight: (classes, in).

    Forward computes the gradients too, chunk by chunk: they are what is saved, and backward only hands them
    over. Scratch: the logits of a chunk, which its gradient overwrites, beside those of the chunk before (a
    local variable) or the gradient of its rows; the loss of each row; under autocast also the operands in 16
    bit, which are cast for each chunk.
    """
    rows, (classes, width) = prod(x.shape[:-1]), weight.shape
    chunk = min(chunk_rows(rows, width, classes), rows)
    low = Type((1,), tape.autocast or x.dtype).nbytes
    casts = (weight.size + chunk * width) * low if tape.autocast and weight.dtype == "float32" else 0
    before = classes if chunk < rows else 0
    scratch = chunk * (classes + max(before, width)) * low + 4 * rows + casts
    owned = (weight,) if bias is None else (weight, bias)
    loss, *gradients = tape.emit_many(
        "linear_cross_entropy",
        (x, *owned, labels),
        (Type((), "float32"), like(x), *(like(t) for t in owned)),
        workspace=scratch,
        flops=6 * rows * width * classes,
    )

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return [
            tape.alias(g, g.shape, kind="detach") if need else None for g, need in zip(gradients, needs, strict=True)
        ]

    tape.differentiate((x, *owned), loss, gradients, backward)
    return loss


def _infer(types: Sequence[Type], attributes: Attributes) -> Signature:
    x, labels = types
    if not x.shape or x.shape[:-1] != labels.shape:
        raise ShapeError(
            f"linear_cross_entropy needs inputs (..., width) and labels (...), not {list(x.shape)} and "
            f"{list(labels.shape)}"
        )
    parameters = [Parameter("weight", (attributes["out"], x.shape[-1]))]
    if attributes["bias"]:
        parameters.append(Parameter("bias", (attributes["out"],)))
    return Signature((Type((), "float32"),), tuple(parameters))


def _lower(tape: Tape, inputs: Sequence[Tensor], owned: Mapping[str, Tensor], attributes: Attributes) -> Tensor:
    return linear_cross_entropy(tape, inputs[0], owned["weight"], owned.get("bias"), inputs[1])


KINDS = (
    Kind(
        "linear_cross_entropy",
        _infer,
        _lower,
        (Attribute("out", "int", about="classes", minimum=1), Attribute("bias", "bool", True)),
        operands=(2, 2),
        about="linear and cross_entropy over chunks of rows, so that the logits are never all there (Liger-Kernel)",
        source="liger_kernel/ops/fused_linear_cross_entropy.py",
    ),
)
