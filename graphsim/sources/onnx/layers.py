"""Nodes that own weights: products, convolutions, normalizations, recurrent layers; and pooling."""

from __future__ import annotations

from collections.abc import Sequence

from graphsim.errors import SpecError
from graphsim.sources.onnx.emitter import Emitter, Given, Handler
from graphsim.sources.onnx.fusion import bias_of_product, fused_attention
from graphsim.sources.onnx.values import Node, Operand, Result, Stored


def weight(node: Node, number: int, what: str) -> Given:
    """Return the initializer that operand *number* is, and its shape.

    Raises:
        SpecError: it is computed, or no tensor.
    """
    value = node.required(number)
    if not isinstance(value, Stored) or value.transposed:
        raise SpecError(f"its {what} must be an initializer of more than one element", node.where)
    return value, value.type.shape


def optional_weight(node: Node, number: int, what: str) -> Given | None:
    """Return the initializer that operand *number* is, or None if there is no such operand."""
    return None if node.operand(number) is None else weight(node, number, what)


# -- products --------------------------------------------------------------------------------------


def _matmul(emitter: Emitter, node: Node) -> Sequence[Operand]:
    """With a weight it is a linear layer, whose bias may be added by the next node."""
    a, b = node.required(0), node.required(1)
    if isinstance(b, Stored) and len(b.type.shape) == 2 and len(a.type.shape) >= 2:
        owned = _linear_weight(emitter, b)
        if owned is not None:
            return [_biased(emitter, node, a, owned)]
    if fused := fused_attention(emitter, node):
        return fused
    if min(len(a.type.shape), len(b.type.shape)) < 2:
        raise SpecError("a product with a vector has no counterpart among our ops", node.where)
    if isinstance(b, Result) and b.flipped:
        return [emitter.emit(node, "matmul", [a, emitter.unflipped(b)], transpose=True)]
    if isinstance(b, Stored) and b.transposed:
        return [emitter.emit(node, "matmul", [a, b.flip()], transpose=True)]
    return [emitter.emit(node, "matmul", [a, b])]


def _linear_weight(emitter: Emitter, stored: Stored) -> Given | None:
    """Return the weight (out, in) of x @ stored, unless other uses need it laid out otherwise."""
    if stored.type.shape[0] == 1 == stored.type.shape[1]:
        return None
    shape = stored.type.shape[::-1]
    name = emitter.declare(stored, shape)
    return (stored, shape) if emitter.tensors[name].shape == shape else None


def _linear(emitter: Emitter, node: Node, x: Operand, owned: Given, bias: Given | None) -> Result:
    parameters = {"weight": owned} if bias is None else {"weight": owned, "bias": bias}
    (y,) = emitter.layer(node, "linear", [x], parameters, out=owned[1][0], bias=bias is not None)
    return y


def _biased(emitter: Emitter, node: Node, x: Operand, owned: Given) -> Result:
    """A linear layer, with the bias that is added to the product next."""
    found = bias_of_product(emitter, node, owned[1][0])
    if found is None:
        return _linear(emitter, node, x, owned, None)
    reader, bias = found
    result = _linear(emitter, node, x, owned, (bias, bias.type.shape))
    emitter.fuse([reader], result)
    return result


def _gemm(emitter: Emitter, node: Node) -> Sequence[Operand]:
    a, b, c = node.required(0), node.required(1), node.operand(2)
    if node.get("transA", 0) or node.get("alpha", 1.0) != 1.0 or (c is not None and node.get("beta", 1.0) != 1.0):
        raise SpecError("only transA = 0 and alpha = beta = 1 have a counterpart among our ops", node.where)
    turned = bool(node.get("transB", 0))
    if isinstance(b, Stored):
        owned = _linear_weight(emitter, b.flip() if turned else b)
        if owned is not None and c is None:
            return [_linear(emitter, node, a, owned, None)]
        if owned is not None and isinstance(c, Stored) and c.type.size == c.type.shape[-1] == node.outputs[0].shape[-1]:
            return [_linear(emitter, node, a, owned, (c, (c.type.size,)))]
    product = emitter.emit(node, "matmul", [a, b], transpose=turned)
    return [product if c is None else emitter.emit(node, "add", [product, c])]


# -- convolutions and pools ------------------------------------------------------------------------


def _padding(
    emitter: Emitter, node: Node, x: Operand, kernel: list[int], stride: list[int]
) -> tuple[Operand, list[int]]:
    """Return the operand and a symmetric padding; an asymmetric one is a padding op of its own."""
    rank = len(kernel)
    pads = list(node.get("pads", [0] * (2 * rank)))
    how = node.get("auto_pad", b"NOTSET").decode("ascii", "replace")
    if how.startswith("SAME"):
        dilation = node.get("dilations", [1] * rank)
        total = [
            max(0, (-(-extent // s) - 1) * s + d * (k - 1) + 1 - extent)
            for extent, k, s, d in zip(x.type.shape[2:], kernel, stride, dilation, strict=True)
        ]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = [*small, *large] if how == "SAME_UPPER" else [*large, *small]
    if len(pads) != 2 * rank or min(pads) < 0:
        raise SpecError(f"pads {pads[:8]} do not suit {rank} dimensions", node.where)
    if pads[:rank] == pads[rank:]:
        return x, pads[:rank]
    amounts = [pads[i + side * rank] for i in reversed(range(rank)) for side in (0, 1)]
    return emitter.emit(node, "pad", [x], amounts=amounts), [0] * rank


def _conv(emitter: Emitter, node: Node) -> Sequence[Operand]:
    owned = {"weight": weight(node, 1, "weight")}
    bias = optional_weight(node, 2, "bias")
    shape = owned["weight"][1]
    rank = len(shape) - 2
    if rank not in (1, 2, 3):
        raise SpecError(f"a kernel of shape {list(shape)} is not of 1 to 3 dimensions", node.where)
    kernel, stride = list(shape[2:]), list(node.get("strides", [1] * rank))
    x, padding = _padding(emitter, node, node.required(0), kernel, stride)
    if bias is not None:
        owned["bias"] = bias
    options = {
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": list(node.get("dilations", [1] * rank)),
        "groups": node.get("group", 1),
        "bias": bias is not None,
    }
    if node.op == "Conv":
        return emitter.layer(node, f"conv{rank}d", [x], owned, out=shape[0], **options)
    options["output_padding"] = list(node.get("output_padding", [0] * rank))
    return emitter.layer(node, f"conv_transpose{rank}d", [x], owned, out=shape[1] * options["groups"], **options)


def _pool(kind: str) -> Handler:
    def handle(emitter: Emitter, node: Node) -> Sequence[Operand]:
        kernel = list(node.get("kernel_shape", []))
        stride = list(node.get("strides", [1] * len(kernel)))
        if any(extent != 1 for extent in node.get("dilations", [])):
            raise SpecError("a dilated pool has no counterpart among our ops", node.where)
        x, padding = _padding(emitter, node, node.required(0), kernel, stride)
        ceil = bool(node.get("ceil_mode", 0))
        return [emitter.emit(node, kind, [x], kernel=kernel, stride=stride, padding=padding, ceil=ceil)]

    return handle


# -- normalizations --------------------------------------------------------------------------------


def _batch_norm(emitter: Emitter, node: Node) -> Sequence[Operand]:
    names = ("weight", "bias", "running_mean", "running_var")
    owned = {name: weight(node, number, name) for number, name in enumerate(names, start=1)}
    return emitter.layer(node, "batch_norm", [node.required(0)], {**owned, "num_batches_tracked": None})


def _layer_norm(emitter: Emitter, node: Node) -> Sequence[Operand]:
    x = node.required(0)
    axis = node.get("axis", -1) % max(1, len(x.type.shape))
    if axis != len(x.type.shape) - 1:
        raise SpecError("layer norm over more than the last dimension has no counterpart among our ops", node.where)
    owned = {"weight": weight(node, 1, "scale")}
    if node.op == "RMSNormalization":
        return emitter.layer(node, "rms_norm", [x], owned)
    bias = optional_weight(node, 2, "bias")
    if bias is not None:
        owned["bias"] = bias
    return emitter.layer(node, "layer_norm", [x], owned, bias=bias is not None)


def _group_norm(emitter: Emitter, node: Node) -> Sequence[Operand]:
    owned = {"weight": weight(node, 1, "scale"), "bias": weight(node, 2, "bias")}
    return emitter.layer(node, "group_norm", [node.required(0)], owned, groups=node.get("num_groups", 1))


def _instance_norm(emitter: Emitter, node: Node) -> Sequence[Operand]:
    owned = {"weight": weight(node, 1, "scale"), "bias": weight(node, 2, "bias")}
    return emitter.layer(node, "instance_norm", [node.required(0)], owned, affine=True)


# -- recurrent layers ------------------------------------------------------------------------------


def _recurrent(kind: str, states: int) -> Handler:
    """One layer; its weights are made anew in PyTorch's shapes, which have as many elements."""

    def handle(emitter: Emitter, node: Node) -> Sequence[Operand]:
        x = node.required(0)
        if node.get("layout", 0) or node.operand(4) is not None:
            raise SpecError("layout = 1 and sequence_lens have no counterpart among our ops", node.where)
        both = node.get("direction", b"forward") == b"bidirectional"
        hidden, bias = node.required(2).type.shape[-1], node.operand(3) is not None
        initial = [value for value in node.inputs[5 : 5 + states] if isinstance(value, Result)]
        y, *last = emitter.layer(
            node,
            kind,
            [x, *initial] if len(initial) == states else [x],
            {},
            hidden=hidden,
            bidirectional=both,
            bias=bias,
        )
        steps, batch = x.type.shape[:2]
        if not both:
            return [emitter.emit(node, "reshape", [y], shape=[steps, 1, batch, hidden]), *last]
        split = emitter.emit(node, "reshape", [y], shape=[steps, batch, 2, hidden])
        return [emitter.emit(node, "transpose", [split], a=1, b=2), *last]

    return handle


def _attention(emitter: Emitter, node: Node) -> Sequence[Operand]:
    """The Attention op of opset 23, over heads that are split already."""
    operands = [value for value in node.inputs[:4] if value is not None]
    if len(operands[0].type.shape) != 4 or any(value is not None for value in node.inputs[4:]):
        raise SpecError("only attention over (batch, heads, length, width) has a counterpart among our ops", node.where)
    return [emitter.emit(node, "sdpa", operands)]


HANDLERS: dict[str, Handler] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "MaxPool": _pool("max_pool"),
    "AveragePool": _pool("avg_pool"),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LSTM": _recurrent("lstm", 2),
    "GRU": _recurrent("gru", 1),
    "Attention": _attention,
}
"""Handlers by op type."""
