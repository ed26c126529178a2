"""Ops that select, repeat or sum elements, as exported graphs spell them out.

Source: aten/src/ATen/native/TensorShape.cpp, TensorAdvancedIndexing.cpp, ReduceOps.cpp; gradients:
tools/autograd/derivatives.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphsim.core.graph import Tensor
from graphsim.step.ops.attention import attend, choose
from graphsim.step.ops.elementwise import broadcast, like
from graphsim.step.ops.kind import Attribute, Attributes, Kind, ShapeError, Signature
from graphsim.step.ops.reduction import emit_sum
from graphsim.step.ops.shape import axis, expand, narrow, permute
from graphsim.step.ops.tape import Gradients, Tape, Type

Owned = Mapping[str, Tensor]
Shape = tuple[int, ...]


def total(tape: Tape, x: Tensor, shape: Shape) -> Tensor:
    """Sum over the dimensions that *shape* lacks or has as 1; the gradient is expanded, a view."""
    y = emit_sum(tape, x, Type(shape, x.dtype))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (tape.alias(grad, x.shape, kind="expand", contiguous=False, sliced=True),)

    tape.differentiate((x,), y, (), backward)
    return y


def index_select(tape: Tape, x: Tensor, indices: Sequence[Tensor], dim: int, count: Shape) -> Tensor:
    """Copy the slices of *x* at *indices* along *dim*; backward adds them into zeros of the whole shape."""
    shape = (*x.shape[:dim], *count, *x.shape[dim + 1 :])
    y = tape.emit("index_select", (x, *indices), Type(shape, x.dtype))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return [tape.emit("index_add", (grad, *indices), like(x)), *(None for _ in indices)]

    tape.differentiate((x, *indices), y, indices, backward)
    return y


def _infer_permute(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    order = attributes["order"]
    if sorted(order) != list(range(len(x.shape))):
        raise ShapeError(f"permute: 'order' names each dimension of {list(x.shape)} once, not {list(order)}")
    return Signature((Type(tuple(x.shape[i] for i in order), x.dtype),))


def _infer_expand(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    shape = tuple(attributes["shape"])
    if broadcast(x.shape, shape) != shape:
        raise ShapeError(f"expand: {list(x.shape)} does not expand to {list(shape)}")
    return Signature((Type(shape, x.dtype),))


def _infer_part(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    shape = tuple(attributes["shape"])
    if len(shape) != len(x.shape) or any(part > whole for part, whole in zip(shape, x.shape, strict=True)):
        raise ShapeError(f"part: {list(shape)} is no part of {list(x.shape)}")
    return Signature((Type(shape, x.dtype),))


def _infer_sum(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    dims = {axis(x.shape, dim) for dim in attributes["dims"]}
    if attributes["keep"]:
        return Signature((Type(tuple(1 if i in dims else extent for i, extent in enumerate(x.shape)), x.dtype),))
    return Signature((Type(tuple(extent for i, extent in enumerate(x.shape) if i not in dims), x.dtype),))


def _infer_index(types: Sequence[Type], attributes: Attributes) -> Signature:
    x = types[0]
    dim = axis(x.shape, attributes["dim"])
    return Signature((Type((*x.shape[:dim], *_count(types, attributes), *x.shape[dim + 1 :]), x.dtype),))


def _count(types: Sequence[Type] | Sequence[Tensor], attributes: Attributes) -> Shape:
    return types[1].shape if len(types) > 1 else (attributes["count"],)


def _lower_sum(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    (x,) = inputs
    return total(tape, x, _infer_sum([like(x)], attributes).outputs[0].shape)


def _lower_index(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    x, *indices = inputs
    return index_select(tape, x, indices, axis(x.shape, attributes["dim"]), _count(inputs, attributes))


def _infer_sdpa(types: Sequence[Type], attributes: Attributes) -> Signature:
    q, k, v = types[:3]
    if len(q.shape) != 4 or k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ShapeError(f"sdpa needs q, k, v of (batch, heads, length, width), not {[list(t.shape) for t in types]}")
    return Signature((q,))


def _lower_sdpa(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    q, k, v, *rest = tape.low_precision(*inputs[:3]) + tuple(inputs[3:])
    mask, p = rest[0] if rest else None, attributes["p"]
    kernel = choose(tape, q, "sdpa", mask=mask, p=p, grouped=q.shape[1] != k.shape[1])
    return attend(tape, q, k, v, mask, kernel=kernel, causal=False, p=p)


_SHAPE = Attribute("shape", "ints", about="of the result", minimum=1, maximum=2**44)
_DIM = Attribute("dim", "int", 0, "dimension, negative from the end", minimum=-8, maximum=7)

KINDS: tuple[Kind, ...] = (
    Kind(
        "permute",
        _infer_permute,
        lambda tape, inputs, owned, attributes: permute(tape, inputs[0], tuple(attributes["order"])),
        (Attribute("order", "ints", about="the old dimension at each new one", maximum=7),),
        about="dimensions in another order; a view",
        counted=False,
    ),
    Kind(
        "expand",
        _infer_expand,
        lambda tape, inputs, owned, attributes: expand(tape, inputs[0], tuple(attributes["shape"])),
        (_SHAPE,),
        about="repeated along new or one-wide dimensions; a view",
        counted=False,
    ),
    Kind(
        "part",
        _infer_part,
        lambda tape, inputs, owned, attributes: narrow(tape, inputs[0], tuple(attributes["shape"])),
        (_SHAPE,),
        about="some of the elements in each dimension, evenly spaced; a view",
        counted=False,
    ),
    Kind(
        "sum",
        _infer_sum,
        _lower_sum,
        (
            Attribute("dims", "ints", about="dimensions to sum over", minimum=-8, maximum=7),
            Attribute("keep", "bool", False, "keep them with extent 1"),
        ),
        about="sum over dimensions",
    ),
    Kind(
        "index_select",
        _infer_index,
        _lower_index,
        (_DIM, Attribute("count", "int", 1, "number of slices, if no operand holds their indices", minimum=1)),
        operands=(1, 2),
        about="slices along a dimension, at the indices in the second operand or at constant ones; a copy",
        counted=False,
    ),
    Kind(
        "sdpa",
        _infer_sdpa,
        _lower_sdpa,
        (Attribute("p", "float", 0.0, "dropout of the weights", maximum=1),),
        operands=(3, 4),
        about="scaled dot-product attention of q, k, v (batch, heads, length, width) and an additive mask",
        source="aten/src/ATen/native/transformers/attention.cpp",
    ),
)
