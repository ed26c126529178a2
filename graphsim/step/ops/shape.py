"""Ops that move or rearrange elements. Views are free; what has to copy is said below.

Source: aten/src/ATen/native/TensorShape.cpp; gradients: torch/csrc/autograd/FunctionsManual.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from graphsim.core.graph import Tensor
from graphsim.step.ops.kind import Attribute, Attributes, Kind, Parameter, ShapeError, Signature
from graphsim.step.ops.reduction import emit_sum, staging
from graphsim.step.ops.tape import Gradients, Tape, Type, refines
from graphsim.units import itemsize

Owned = Mapping[str, Tensor]
Shape = tuple[int, ...]


def reshape(tape: Tape, x: Tensor, shape: Shape) -> Tensor:
    """View *x* with another shape; a transposed or sliced tensor is copied first, unless dimensions only split."""
    x = x if refines(shape, x.shape) else tape.contiguous(x)
    return tape.view(x, shape, contiguous=tape.is_contiguous(x))


def transpose(tape: Tape, x: Tensor, a: int, b: int) -> Tensor:
    """Swap dimensions *a* and *b*: a view, as is its gradient."""
    order = list(range(len(x.shape)))
    order[a], order[b] = order[b], order[a]
    return _permuted(tape, x, order)


def permute(tape: Tape, x: Tensor, order: Sequence[int]) -> Tensor:
    """Put dimension ``order[i]`` at *i*: a view, as is its gradient."""
    return x if list(order) == sorted(order) else _permuted(tape, x, order)


def _permuted(tape: Tape, x: Tensor, order: Sequence[int]) -> Tensor:
    shape = tuple(x.shape[i] for i in order)
    moved = [i for i in order if x.shape[i] != 1]
    moves = moved != sorted(moved)  # dimensions of extent 1 may stand anywhere

    def in_order(tensor: Tensor) -> bool:
        return _back_in_order(tape, tensor) if moves else tape.is_contiguous(tensor)

    y = tape.alias(x, shape, kind="transpose", contiguous=in_order(x))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (tape.alias(grad, x.shape, kind="transpose", contiguous=in_order(grad)),)

    tape.differentiate((x,), y, (), backward)
    return y


def _back_in_order(tape: Tape, x: Tensor) -> bool:
    """True if transposing *x* undoes a transpose (not a slice)."""
    return not tape.is_contiguous(x) and not tape.is_sliced(x)


def concat(tape: Tape, tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Copy *tensors* side by side along *dim*; each gradient is a slice (a view) of the incoming one."""
    tensors = tape.widest(*tensors)
    shape = _replace(tensors[0].shape, dim, sum(t.shape[dim] for t in tensors))
    y = tape.emit("cat", tensors, Type(shape, tensors[0].dtype))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        whole = dim == 0
        return [
            tape.alias(grad, t.shape, kind="narrow", contiguous=whole, sliced=not whole) if need else None
            for t, need in zip(tensors, needs, strict=True)
        ]

    tape.differentiate(tensors, y, (), backward)
    return y


def split(tape: Tape, x: Tensor, sizes: Sequence[int], dim: int) -> tuple[Tensor, ...]:
    """Views of consecutive parts of *x*; the gradients are concatenated (absent ones are zeros)."""
    whole = prod(x.shape[:dim]) == 1
    parts = tuple(
        tape.alias(x, _replace(x.shape, dim, size), kind="split", contiguous=whole, sliced=not whole) for size in sizes
    )

    def backward(grads: tuple[Tensor | None, ...], needs: tuple[bool, ...]) -> Gradients:
        present = [
            grad if grad is not None else tape.emit("zeros", (), Type(part.shape, part.dtype))
            for grad, part in zip(grads, parts, strict=True)
        ]
        return (tape.emit("cat", present, Type(x.shape, x.dtype)),)

    tape.differentiate_many((x,), parts, (), backward)
    return parts


def narrow(tape: Tape, x: Tensor, shape: Shape) -> Tensor:
    """A view of part of *x*; its gradient is written into zeros of the whole shape."""
    if shape == x.shape:
        return x
    y = tape.alias(x, shape, kind="slice", contiguous=False, sliced=True)

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (tape.emit("slice_backward", (grad,), Type(x.shape, x.dtype)),)

    tape.differentiate((x,), y, (), backward)
    return y


def expand(tape: Tape, x: Tensor, shape: Shape) -> Tensor:
    """A view that repeats *x* along new or one-wide dimensions; its gradient is a sum."""
    if shape == x.shape:
        return x
    y = tape.alias(x, shape, kind="expand", contiguous=False, sliced=True)

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (emit_sum(tape, grad, Type(x.shape, x.dtype)),)

    tape.differentiate((x,), y, (), backward)
    return y


def mean(tape: Tape, x: Tensor, shape: Shape) -> Tensor:
    """Average over the dimensions that *shape* lacks or has as 1; backward divides the expanded gradient."""
    result = Type(shape, x.dtype)
    y = tape.emit("mean", (x,), result, flops=x.size, workspace=mean_workspace(tape, x, result))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (tape.emit("mean_backward", (grad,), Type(x.shape, x.dtype)),)

    tape.differentiate((x,), y, (), backward)
    return y


def mean_workspace(tape: Tape, x: Tensor, result: Type) -> int:
    """Return the scratch bytes of a mean: on the CPU a sum, and its division by a number that is made a tensor.

    There, 16-bit operands are summed in fp32 copies (aten/src/ATen/native/ReduceOps.cpp, mean_out). On CUDA it is
    that of a sum.
    """
    if tape.target != "cpu":
        return staging(tape, x.shape, result)
    if itemsize(x.dtype) >= 4:
        return 8 + itemsize(x.dtype)
    return 4 * result.size + max(4 * x.size, 8 + 4)


def pad(tape: Tape, x: Tensor, shape: Shape) -> Tensor:
    """Copy *x* into a larger constant tensor; backward copies the inner part out."""
    y = tape.emit("pad", (x,), Type(shape, x.dtype))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (tape.emit("pad_backward", (grad,), Type(x.shape, x.dtype)),)

    tape.differentiate((x,), y, (), backward)
    return y


# -- shape rules -----------------------------------------------------------------------------------


def axis(shape: Shape, dim: int) -> int:
    """Return *dim* counted from the front.

    Raises:
        ShapeError: the tensor has no such dimension.
    """
    if not -len(shape) <= dim < len(shape):
        raise ShapeError(f"dimension {dim} does not exist in shape {list(shape)}")
    return dim % len(shape)


def _replace(shape: Shape, dim: int, extent: int) -> Shape:
    return (*shape[:dim], extent, *shape[dim + 1 :])


def _swap(shape: Shape, a: int, b: int) -> Shape:
    extents = list(shape)
    extents[a], extents[b] = extents[b], extents[a]
    return tuple(extents)


def _infer_reshape(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    wanted = list(attributes["shape"])
    known = prod(extent for extent in wanted if extent != -1)
    if wanted.count(-1) == 1 and known and x.size % known == 0:
        wanted[wanted.index(-1)] = x.size // known
    if -1 in wanted or prod(wanted) != x.size:
        raise ShapeError(f"reshape: {list(x.shape)} has {x.size} elements, shape {list(attributes['shape'])} does not")
    return Signature((Type(tuple(wanted), x.dtype),))


def _infer_flatten(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    start = axis(x.shape, attributes["start"])
    return Signature((Type((*x.shape[:start], prod(x.shape[start:])), x.dtype),))


def _infer_transpose(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    a, b = (axis(x.shape, attributes[name]) for name in ("a", "b"))
    return Signature((Type(_swap(x.shape, a, b), x.dtype),))


def _infer_concat(types: Sequence[Type], attributes: Attributes) -> Signature:
    dim = axis(types[0].shape, attributes["dim"])
    first = types[0].shape
    for other in types[1:]:
        if len(other.shape) != len(first) or _replace(other.shape, dim, 0) != _replace(first, dim, 0):
            raise ShapeError(f"concat: {list(first)} and {list(other.shape)} differ outside dimension {dim}")
    return Signature((Type(_replace(first, dim, sum(t.shape[dim] for t in types)), types[0].dtype),))


def _sizes(x: Type, attributes: Attributes) -> tuple[int, tuple[int, ...]]:
    dim = axis(x.shape, attributes["dim"])
    sizes = tuple(attributes["sizes"] or ())
    parts = attributes["parts"]
    if bool(sizes) == bool(parts):
        raise ShapeError("split takes either 'parts' or 'sizes'")
    if parts:
        if x.shape[dim] % parts:
            raise ShapeError(f"split: dimension {dim} of {list(x.shape)} does not divide into {parts} parts")
        sizes = (x.shape[dim] // parts,) * parts
    if sum(sizes) != x.shape[dim]:
        raise ShapeError(f"split: sizes {list(sizes)} do not add up to dimension {dim} of {list(x.shape)}")
    return dim, sizes


def _infer_split(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    dim, sizes = _sizes(x, attributes)
    return Signature(tuple(Type(_replace(x.shape, dim, size), x.dtype) for size in sizes))


def _infer_slice(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    dim = axis(x.shape, attributes["dim"])
    if attributes["start"] + attributes["length"] > x.shape[dim]:
        raise ShapeError(
            f"slice: {attributes['start']} + {attributes['length']} is beyond dimension {dim} of {x.shape}"
        )
    return Signature((Type(_replace(x.shape, dim, attributes["length"]), x.dtype),))


def _infer_select(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    dim = axis(x.shape, attributes["dim"])
    if attributes["index"] >= x.shape[dim]:
        raise ShapeError(f"select: index {attributes['index']} is beyond dimension {dim} of {list(x.shape)}")
    return Signature((Type((*x.shape[:dim], *x.shape[dim + 1 :]), x.dtype),))


def _infer_mean(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    dims = {axis(x.shape, dim) for dim in attributes["dims"]}
    kept = [(i, extent) for i, extent in enumerate(x.shape)]
    if attributes["keep"]:
        return Signature((Type(tuple(1 if i in dims else extent for i, extent in kept), x.dtype),))
    return Signature((Type(tuple(extent for i, extent in kept if i not in dims), x.dtype),))


def _infer_pad(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    amounts = attributes["amounts"]
    if len(amounts) % 2 or len(amounts) > 2 * len(x.shape):
        raise ShapeError(f"pad: 'amounts' holds a pair per dimension, last dimension first, for shape {list(x.shape)}")
    shape = list(x.shape)
    for i in range(0, len(amounts), 2):
        shape[-1 - i // 2] += amounts[i] + amounts[i + 1]
    return Signature((Type(tuple(shape), x.dtype),))


def _infer_learned(types: Sequence[Type], attributes: Attributes) -> Signature:
    shape = tuple(attributes["shape"])
    if types:
        return Signature((Type((types[0].shape[0], *shape[1:]), "float32"),), (Parameter("weight", shape),))
    return Signature((Type(shape, "float32"),), (Parameter("weight", shape),))


# -- lowering --------------------------------------------------------------------------------------


def _lower_reshape(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    (x,) = inputs
    return reshape(tape, x, _infer_reshape([Type(x.shape, x.dtype)], attributes).outputs[0].shape)


def _lower_flatten(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    (x,) = inputs
    return reshape(tape, x, _infer_flatten([Type(x.shape, x.dtype)], attributes).outputs[0].shape)


def _lower_transpose(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    (x,) = inputs
    return transpose(tape, x, attributes["a"], attributes["b"])


def _lower_concat(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    return concat(tape, inputs, axis(inputs[0].shape, attributes["dim"]))


def _lower_split(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> tuple[Tensor, ...]:
    (x,) = inputs
    dim, sizes = _sizes(Type(x.shape, x.dtype), attributes)
    return split(tape, x, sizes, dim)


def _lower_slice(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    (x,) = inputs
    return narrow(tape, x, _infer_slice([Type(x.shape, x.dtype)], attributes).outputs[0].shape)


def _lower_select(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    (x,) = inputs
    return narrow(tape, x, _infer_select([Type(x.shape, x.dtype)], attributes).outputs[0].shape)


def _lower_mean(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    (x,) = inputs
    return mean(tape, x, _infer_mean([Type(x.shape, x.dtype)], attributes).outputs[0].shape)


def _lower_pad(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    (x,) = inputs
    return pad(tape, x, _infer_pad([Type(x.shape, x.dtype)], attributes).outputs[0].shape)


def _lower_learned(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    weight = owned["weight"]
    return expand(tape, weight, (inputs[0].shape[0], *weight.shape[1:])) if inputs else weight


_ABOUT_DIM = "dimension, negative from the end"


def _dim(default: int = 1, name: str = "dim") -> Attribute:
    return Attribute(name, "int", default, _ABOUT_DIM, minimum=-8, maximum=7)


KINDS = (
    Kind(
        "reshape",
        _infer_reshape,
        _lower_reshape,
        (Attribute("shape", "ints", about="new shape, one extent may be -1", minimum=-1, maximum=2**44),),
        about="the same elements in another shape; a view if they are in order, else a copy",
        counted=False,
    ),
    Kind(
        "flatten",
        _infer_flatten,
        _lower_flatten,
        (_dim(name="start"),),
        about="merge the dimensions from 'start' on",
        counted=False,
    ),
    Kind(
        "transpose",
        _infer_transpose,
        _lower_transpose,
        (_dim(1, "a"), _dim(2, "b")),
        about="swap two dimensions; a view",
        counted=False,
    ),
    Kind(
        "concat",
        _infer_concat,
        _lower_concat,
        (_dim(),),
        operands=(2, 1024),
        about="operands side by side along a dimension; a copy",
        counted=False,
    ),
    Kind(
        "split",
        _infer_split,
        _lower_split,
        (
            Attribute("parts", "int", 0, "number of equal parts", maximum=1024),
            Attribute("sizes", "ints", None, "extent of each part", minimum=1),
            _dim(),
        ),
        about="consecutive parts along a dimension, as outputs 0, 1, ...; views",
        counted=False,
    ),
    Kind(
        "slice",
        _infer_slice,
        _lower_slice,
        (_dim(), Attribute("start", "int", 0), Attribute("length", "int", minimum=1)),
        about="part of a dimension; a view",
        counted=False,
    ),
    Kind(
        "select",
        _infer_select,
        _lower_select,
        (_dim(), Attribute("index", "int", 0)),
        about="one index of a dimension, which goes; a view",
        counted=False,
    ),
    Kind(
        "mean",
        _infer_mean,
        _lower_mean,
        (
            Attribute("dims", "ints", about="dimensions to average over", minimum=-8, maximum=7),
            Attribute("keep", "bool", False, "keep them with extent 1"),
        ),
        about="average over dimensions",
    ),
    Kind(
        "pad",
        _infer_pad,
        _lower_pad,
        (Attribute("amounts", "ints", about="before and after, last dimension first"),),
        about="constant padding; a copy",
        counted=False,
    ),
    Kind(
        "learned",
        _infer_learned,
        _lower_learned,
        (Attribute("shape", "ints", about="shape of the parameter", minimum=1, maximum=2**31),),
        operands=(0, 1),
        about="a parameter as a tensor (class token, position table), expanded over the operand's batch",
        counted=False,
    ),
)
