"""Losses: scalars that backward starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from graphsim.core.graph import Tensor
from graphsim.step.ops.elementwise import like
from graphsim.step.ops.kind import Attribute, Attributes, Kind, ShapeError, Signature
from graphsim.step.ops.tape import Gradients, Tape, Type


def log_softmax(tape: Tape, x: Tensor) -> Tensor:
    """Logarithm of the softmax; saves its output."""
    y = tape.emit("log_softmax", (x,), like(x), flops=5 * x.size)

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (tape.emit("log_softmax_backward", (grad, y), like(x), flops=4 * x.size),)

    tape.differentiate((x,), y, (y,), backward)
    return y


def cross_entropy(tape: Tape, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of class indices: log_softmax, then nll_loss.

    logits: (..., classes) or (batch, classes, ...); labels: the rest of the shape, int64.
    Source: aten/src/ATen/native/LossNLL.cpp. Autocast runs all of it in fp32 on the CPU; on CUDA only nll_loss,
    as the call of log_softmax states a dtype, which autocast respects (``fp32_set_opt_dtype``).
    """
    if tape.target == "cpu":
        (logits,) = tape.full_precision(logits, cpu=True)
    (scores,) = tape.full_precision(log_softmax(tape, logits))
    loss, total = tape.emit_many("nll_loss", (scores, labels), (Type((), scores.dtype), Type((), scores.dtype)))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (tape.emit("nll_loss_backward", (grad, labels, total), like(scores), flops=scores.size),)

    tape.differentiate((scores,), loss, (scores, labels, total), backward)
    return loss


def shift_labels(tape: Tape, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (batch, positions) one position early: (padded at the end, its tail in order, a view for one sample).

    Source: transformers/loss/loss_utils.py, ForCausalLMLoss; the padded labels are a local of it.
    """
    batch, length = labels.shape
    padded = tape.emit("pad", (labels,), Type((batch, length + 1), labels.dtype), flops=0)
    tail = tape.alias(padded, labels.shape, kind="slice", contiguous=batch == 1, sliced=batch > 1)
    return padded, tape.contiguous(tail)


def mse(tape: Tape, prediction: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error; saves both operands. On autocast's fp32 list.

    The squares are written to a buffer, and again into the storage of the result, which is then
    resized to a scalar but keeps its bytes (aten/src/ATen/native/Loss.cpp, mse_loss_out).
    """
    prediction, wanted = tape.full_precision(prediction, wanted, cpu=True)
    squares = tape.emit(
        "mse_loss", (prediction, wanted), like(prediction), workspace=prediction.nbytes, flops=3 * prediction.size
    )
    loss = tape.alias(squares, (), kind="resize")

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return [
            tape.emit("mse_loss_backward", (grad, prediction, wanted), like(x)) if need else None
            for x, need in zip((prediction, wanted), needs, strict=True)
        ]

    tape.differentiate((prediction, wanted), loss, (prediction, wanted), backward)
    return loss


def _infer_cross_entropy(types: Sequence[Type], attributes: Attributes) -> Signature:
    logits, labels = types
    last = len(logits.shape) >= 2 and prod(logits.shape[:-1]) == prod(labels.shape)
    second = len(logits.shape) >= 3 and (logits.shape[0], *logits.shape[2:]) == labels.shape
    if not last and not second:
        raise ShapeError(
            "cross_entropy needs logits (..., classes) and labels (...), or logits (batch, classes, ...) and labels "
            f"(batch, ...), not {list(logits.shape)} and {list(labels.shape)}"
        )
    if attributes["shift"] and len(labels.shape) != 2:
        raise ShapeError(f"cross_entropy shifts labels (batch, positions), not {list(labels.shape)}")
    return Signature((Type((), logits.dtype),))


def _infer_mse(types: Sequence[Type], attributes: Attributes) -> Signature:
    if types[0].shape != types[1].shape:
        raise ShapeError(f"mse needs two equal shapes, not {list(types[0].shape)} and {list(types[1].shape)}")
    return Signature((Type((), types[0].dtype),))


def _lower_cross_entropy(
    tape: Tape, inputs: Sequence[Tensor], owned: Mapping[str, Tensor], attributes: Attributes
) -> Tensor:
    logits, labels = inputs
    if attributes["upcast"]:
        logits = tape.to(logits, "float32")
    padded: list[Tensor] = []
    if attributes["shift"]:
        *padded, labels = shift_labels(tape, labels)
    loss = cross_entropy(tape, logits, labels)
    tape.hold([logits, *padded])
    return loss


def _lower_mse(tape: Tape, inputs: Sequence[Tensor], owned: Mapping[str, Tensor], attributes: Attributes) -> Tensor:
    return mse(tape, inputs[0], inputs[1])


KINDS = (
    Kind(
        "cross_entropy",
        _infer_cross_entropy,
        _lower_cross_entropy,
        (
            Attribute("shift", "bool", False, "each position predicts the label of the next one"),
            Attribute("upcast", "bool", False, "16-bit logits are cast to fp32 first (transformers' language models)"),
        ),
        operands=(2, 2),
        about="mean cross-entropy of logits (..., classes) and integer labels (...)",
        source="aten/src/ATen/native/LossNLL.cpp",
        counted=False,
    ),
    Kind(
        "mse",
        _infer_mse,
        _lower_mse,
        operands=(2, 2),
        about="mean squared error of two equal shapes",
        source="aten/src/ATen/native/Loss.cpp",
        counted=False,
    ),
)
