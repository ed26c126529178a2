"""Pooling and upsampling.

Source: aten/src/ATen/native/Pool.h, DilatedMaxPool2d.cpp, AveragePool2d.cpp, AdaptiveAveragePooling.cpp,
UpSample.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphsim.core.graph import Tensor
from graphsim.step.ops.conv import check_spatial, per_dimension
from graphsim.step.ops.elementwise import like
from graphsim.step.ops.kind import Attribute, Attributes, Kind, ShapeError, Signature
from graphsim.step.ops.shape import mean
from graphsim.step.ops.tape import Gradients, Tape, Type

Owned = Mapping[str, Tensor]


def max_pool(tape: Tape, x: Tensor, shape: tuple[int, ...], window: int) -> Tensor:
    """Maximum over windows; saves the input and an int64 index per output element."""
    y, indices = tape.emit_many(
        "max_pool", (x,), (Type(shape, x.dtype), Type(shape, "int64")), flops=window * Type(shape).size
    )
    _pool_gradient(tape, "max_pool_backward", x, y, (x, indices))
    return y


def avg_pool(tape: Tape, x: Tensor, shape: tuple[int, ...], window: int) -> Tensor:
    """Average over windows; saves the input."""
    y = tape.emit("avg_pool", (x,), Type(shape, x.dtype), flops=window * Type(shape).size)
    _pool_gradient(tape, "avg_pool_backward", x, y, (x,))
    return y


def adaptive_avg_pool(tape: Tape, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Average down to given extents; to extent 1 it is a mean, which saves nothing."""
    if all(extent == 1 for extent in shape[2:]):
        return mean(tape, x, shape)
    y = tape.emit("adaptive_avg_pool", (x,), Type(shape, x.dtype), flops=x.size)
    _pool_gradient(tape, "adaptive_avg_pool_backward", x, y, (x,))
    return y


def upsample(tape: Tape, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Interpolate to larger extents; saves sizes only."""
    y = tape.emit("upsample", (x,), Type(shape, x.dtype), flops=4 * Type(shape).size)
    _pool_gradient(tape, "upsample_backward", x, y, ())
    return y


def _pool_gradient(tape: Tape, kind: str, x: Tensor, y: Tensor, saved: tuple[Tensor, ...]) -> None:
    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (tape.emit(kind, (grad, *saved), like(x), flops=x.size),)

    tape.differentiate((x,), y, saved, backward)


# -- shape rules -----------------------------------------------------------------------------------


def _rank(x: Type, name: str) -> int:
    if not 3 <= len(x.shape) <= 5:
        raise ShapeError(f"{name} needs (batch, channels, 1 to 3 spatial extents), not shape {list(x.shape)}")
    return len(x.shape) - 2


def _infer_pool(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    rank = _rank(x, "a pool")
    kernel = per_dimension(attributes["kernel"], rank, "kernel")
    stride = kernel if attributes["stride"] is None else per_dimension(attributes["stride"], rank, "stride")
    padding = per_dimension(attributes["padding"], rank, "padding")
    extents = []
    for extent, k, s, p in zip(x.shape[2:], kernel, stride, padding, strict=True):
        if 2 * p > k:
            raise ShapeError(f"padding {p} is more than half of the window {k}")
        span = extent + 2 * p - k
        size = span // s + 1
        # In ceil mode a last window may hang over, if it starts inside the input or its left padding.
        if attributes["ceil"] and span % s and size * s < extent + p:
            size += 1
        if span < 0 and not (attributes["ceil"] and size >= 1):
            raise ShapeError(f"window {k} is larger than extent {extent} + padding")
        extents.append(size)
    return Signature((Type((*x.shape[:2], *extents), x.dtype),))


def _infer_adaptive(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    size = per_dimension(attributes["size"], _rank(x, "an adaptive pool"), "size")
    return Signature((Type((*x.shape[:2], *size), x.dtype),))


def _infer_upsample(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    factor = per_dimension(attributes["factor"], _rank(x, "upsample"), "factor")
    check_spatial(x, len(factor), "upsample")
    return Signature(
        (Type((*x.shape[:2], *(extent * f for extent, f in zip(x.shape[2:], factor, strict=True))), x.dtype),)
    )


def _window(attributes: Attributes, x: Tensor) -> int:
    product = 1
    for extent in per_dimension(attributes["kernel"], len(x.shape) - 2, "kernel"):
        product *= extent
    return product


def _lower_max_pool(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    (x,) = inputs
    return max_pool(tape, x, _infer_pool([like(x)], attributes).outputs[0].shape, _window(attributes, x))


def _lower_avg_pool(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    (x,) = inputs
    return avg_pool(tape, x, _infer_pool([like(x)], attributes).outputs[0].shape, _window(attributes, x))


def _lower_adaptive_avg(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    (x,) = inputs
    return adaptive_avg_pool(tape, x, _infer_adaptive([like(x)], attributes).outputs[0].shape)


def _lower_adaptive_max(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    (x,) = inputs
    return max_pool(tape, x, _infer_adaptive([like(x)], attributes).outputs[0].shape, 1)


def _lower_upsample(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    (x,) = inputs
    return upsample(tape, x, _infer_upsample([like(x)], attributes).outputs[0].shape)


_POOL = (
    Attribute("kernel", "pair", about="extent of the window", minimum=1, maximum=2**20),
    Attribute("stride", "pair", None, "by default the window's extent", minimum=1, maximum=2**20),
    Attribute("padding", "pair", 0, "on both sides", maximum=2**20),
    Attribute("ceil", "bool", False, "let the last window hang over the edge"),
)
_SIZE = (Attribute("size", "pair", 1, "spatial extents of the output", minimum=1, maximum=2**20),)

KINDS: tuple[Kind, ...] = (
    Kind("max_pool", _infer_pool, _lower_max_pool, _POOL, about="maximum over windows of 1 to 3 dimensions"),
    Kind("avg_pool", _infer_pool, _lower_avg_pool, _POOL, about="average over windows of 1 to 3 dimensions"),
    Kind("adaptive_avg_pool", _infer_adaptive, _lower_adaptive_avg, _SIZE, about="average down to given extents"),
    Kind("adaptive_max_pool", _infer_adaptive, _lower_adaptive_max, _SIZE, about="maximum down to given extents"),
    Kind(
        "upsample",
        _infer_upsample,
        _lower_upsample,
        (
            Attribute("factor", "pair", 2, "how many times larger", minimum=1, maximum=2**20),
            Attribute("mode", "name", "nearest", "interpolation", choices=("nearest", "bilinear")),
        ),
        about="interpolate to larger spatial extents",
    ),
)
