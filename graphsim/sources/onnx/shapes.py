"""Nodes that move, select or repeat elements."""

from __future__ import annotations

from collections.abc import Sequence

from graphsim.errors import SpecError
from graphsim.sources.onnx.emitter import Emitter, Handler
from graphsim.sources.onnx.fusion import is_second_factor
from graphsim.sources.onnx.values import Constant, Node, Operand, Result, Stored
from graphsim.units import FLOATING


def _identity(emitter: Emitter, node: Node) -> Sequence[Operand]:
    return [node.required(0)]


def _reshape(emitter: Emitter, node: Node) -> Sequence[Operand]:
    x, shape = node.required(0), node.outputs[0].shape
    return [x if x.type.shape == shape else emitter.emit(node, "reshape", [x], shape=list(shape))]


def _transpose(emitter: Emitter, node: Node) -> Sequence[Operand]:
    x = node.required(0)
    rank = len(x.type.shape)
    order = list(node.get("perm", range(rank)[::-1]))
    if isinstance(x, Stored) and order == [1, 0]:
        return [x.flip()]
    if rank >= 3 and order[-1] != rank - 1 and is_second_factor(emitter, node.proto.output[0]):
        straight = [*order[:-2], order[-1], order[-2]]
        y = _permuted(emitter, node, x, straight)
        return [Result(y.name, y.tensor, y.learned, flipped=True)] if isinstance(y, Result) else [y]
    return [_permuted(emitter, node, x, order)]


def _permuted(emitter: Emitter, node: Node, x: Operand, order: list[int]) -> Operand:
    moved = [i for i, dim in enumerate(order) if i != dim]
    if not moved:
        return x if isinstance(x, Result) else emitter.emit(node, "reshape", [x], shape=list(x.type.shape))
    if len(moved) == 2:
        return emitter.emit(node, "transpose", [x], a=moved[0], b=moved[1])
    return emitter.emit(node, "permute", [x], order=order)


def _concat(emitter: Emitter, node: Node) -> Sequence[Operand]:
    operands = [value for value in node.inputs if value is not None and value.type.size]
    if len(operands) == 1:
        return operands
    return [emitter.emit(node, "concat", operands, dim=node.get("axis", 0))]


def _split(emitter: Emitter, node: Node) -> Sequence[Operand]:
    x, axis = node.required(0), node.get("axis", 0)
    sizes = [type_.shape[axis] for type_ in node.outputs]
    return [x] if len(sizes) == 1 else emitter.layer(node, "split", [x], {}, sizes=sizes, dim=axis)


def _slice(emitter: Emitter, node: Node) -> Sequence[Operand]:
    x, shape = node.required(0), node.outputs[0].shape
    return [x if x.type.shape == shape else emitter.emit(node, "part", [x], shape=list(shape))]


def _gather(emitter: Emitter, node: Node) -> Sequence[Operand]:
    """A lookup in a table of weights is an embedding; one index of a dimension is a view, more are a copy."""
    x, indices = node.required(0), node.required(1)
    rank = len(x.type.shape)
    axis = node.get("axis", 0) % max(1, rank)
    if isinstance(x, Stored) and rank == 2 and axis == 0 and not x.transposed and x.type.dtype in FLOATING:
        rows, width = x.type.shape
        owned = {"weight": (x, x.type.shape)}
        if emitter.tensors[emitter.declare(x)].shape == x.type.shape:
            return emitter.layer(node, "embedding", [indices], owned, rows=rows, width=width)
    if isinstance(indices, Constant) and not indices.type.shape:
        index = int(indices.array) % x.type.shape[axis]
        return [emitter.emit(node, "select", [x], dim=axis, index=index)]
    return [emitter.emit(node, "index_select", [x, indices], dim=axis)]


def _expand(emitter: Emitter, node: Node) -> Sequence[Operand]:
    x, shape = node.required(0), node.outputs[0].shape
    return [x if x.type.shape == shape else emitter.emit(node, "expand", [x], shape=list(shape))]


def _pad(emitter: Emitter, node: Node) -> Sequence[Operand]:
    x = node.required(0)
    rank = len(x.type.shape)
    pads = emitter.integers(node, 1, "pads") or []
    axes = emitter.integers(node, 3)
    dims = list(range(rank)) if axes is None else [axis % rank for axis in axes]
    if len(pads) != 2 * len(dims) or min(pads, default=0) < 0:
        raise SpecError(f"pads {pads[:16]} have no counterpart among our ops", node.where)
    amounts = [0] * (2 * rank)
    for i, dim in enumerate(dims):
        amounts[2 * (rank - 1 - dim)] = pads[i]
        amounts[2 * (rank - 1 - dim) + 1] = pads[i + len(dims)]
    return [emitter.emit(node, "pad", [x], amounts=amounts) if any(pads) else x]


def _resize(emitter: Emitter, node: Node) -> Sequence[Operand]:
    x, shape = node.required(0), node.outputs[0].shape
    if x.type.shape == shape:
        return [x]
    whole = all(new % old == 0 for new, old in zip(shape, x.type.shape, strict=True))
    if not whole or shape[:2] != x.type.shape[:2]:
        raise SpecError("only resizing spatial extents by whole factors has a counterpart among our ops", node.where)
    factor = [new // old for new, old in zip(shape[2:], x.type.shape[2:], strict=True)]
    return [emitter.emit(node, "upsample", [x], factor=factor)]


def _depth_to_space(emitter: Emitter, node: Node) -> Sequence[Operand]:
    """Pixel shuffle: two views and a copy (aten/src/ATen/native/PixelShuffle.cpp)."""
    x, size = node.required(0), node.get("blocksize", 1)
    batch, channels, height, width = x.type.shape
    apart = emitter.emit(node, "reshape", [x], shape=[batch, channels // size**2, size, size, height, width])
    turned = emitter.emit(node, "permute", [apart], order=[0, 1, 4, 2, 5, 3])
    return [emitter.emit(node, "reshape", [turned], shape=list(node.outputs[0].shape))]


HANDLERS: dict[str, Handler] = {
    "Identity": _identity,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Expand": _expand,
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
    "DepthToSpace": _depth_to_space,
}
"""Handlers by op type."""
