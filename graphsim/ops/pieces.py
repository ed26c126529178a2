"""Parts of tensors and their joins, as composite layers use them: chunk, unbind, cat, stack."""

from __future__ import annotations

from collections.abc import Sequence

from graphsim.graph import Tensor
from graphsim.ops.tape import Gradients, Tape, Type


def chunk(tape: Tape, x: Tensor, parts: int) -> list[Tensor]:
    """Split the last dimension without a copy; the gradient is put together again."""
    shape = (*x.shape[:-1], x.shape[-1] // parts)
    pieces = [tape.alias(x, shape, kind="chunk", contiguous=False) for _ in range(parts)]

    def backward(grads: tuple[Tensor | None, ...], needs: tuple[bool, ...]) -> Gradients:
        whole = [tape.emit("zeros", (), Type(shape, x.dtype)) if g is None else g for g in grads]
        return (tape.emit("cat", whole, Type(x.shape, x.dtype)),)

    tape.differentiate((x,), pieces, (), backward)
    return pieces


def cat(tape: Tape, parts: Sequence[Tensor]) -> Tensor:
    """Join along the last dimension; gradients are views of parts."""
    width = sum(t.shape[-1] for t in parts)
    y = tape.emit("cat", parts, Type((*parts[0].shape[:-1], width), parts[0].dtype))

    def backward(grads: tuple[Tensor | None, ...], needs: tuple[bool, ...]) -> Gradients:
        (grad,) = grads
        if grad is None:
            return [None] * len(parts)
        return [tape.alias(grad, t.shape, kind="narrow", contiguous=False) for t in parts]

    tape.differentiate(parts, (y,), (), backward)
    return y


def unbind(tape: Tape, x: Tensor) -> list[Tensor]:
    """Views of x[0], x[1], ...; their gradients are stacked."""
    rows = [tape.alias(x, x.shape[1:], kind="select") for _ in range(x.shape[0])]

    def backward(grads: tuple[Tensor | None, ...], needs: tuple[bool, ...]) -> Gradients:
        whole = [tape.emit("zeros", (), Type(x.shape[1:], x.dtype)) if g is None else g for g in grads]
        return (tape.emit("stack", whole, Type(x.shape, x.dtype)),)

    tape.differentiate((x,), rows, (), backward)
    return rows


def stack(tape: Tape, rows: Sequence[Tensor]) -> Tensor:
    """Join along a new first dimension; gradients are views of rows."""
    y = tape.emit("stack", rows, Type((len(rows), *rows[0].shape), rows[0].dtype))

    def backward(grads: tuple[Tensor | None, ...], needs: tuple[bool, ...]) -> Gradients:
        (grad,) = grads
        if grad is None:
            return [None] * len(rows)
        return [tape.alias(grad, row.shape, kind="select", contiguous=tape.is_contiguous(grad)) for row in rows]

    tape.differentiate(rows, (y,), (), backward)
    return y
