"""Convolutions and transposed convolutions of one, two and three dimensions.

CPU: PyTorch hands fp32 convolutions to oneDNN (aten/src/ATen/native/mkldnn/Conv.cpp). The primitive
works on blocked layouts, channels padded to whole AVX-512 vectors of 16 (oneDNN
src/cpu/x64/jit_avx512_*conv*), so operands are reordered into temporaries that PyTorch's allocator
sees, and the result is reordered back. A first layer (fewer than 16 input channels, one group) reads
its source in place. CUDA: cuDNN chooses the algorithm, and with it the workspace, at run time; none is
counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from graphsim.core.graph import Tensor
from graphsim.step.ops.elementwise import like
from graphsim.step.ops.kind import Attribute, Attributes, Kind, Parameter, ShapeError, Signature
from graphsim.step.ops.tape import Gradients, Tape, Type
from graphsim.units import itemsize

BLOCK = 16
"""Channels in a block of oneDNN's AVX-512 layouts."""

THREADS = 2
"""Threads whose scratch is counted, where a kernel keeps some per thread."""

WIDEST_KERNEL = 14
"""Wider kernels have no direct backward-weights kernel and use im2col and gemm."""


# -- shapes ----------------------------------------------------------------------------------------


def per_dimension(value: Any, rank: int, name: str) -> tuple[int, ...]:
    """Return an attribute as one integer per spatial dimension.

    Raises:
        ShapeError: it is a list of another length.
    """
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank:
        raise ShapeError(f"'{name}' needs one integer, or {rank}, not {list(values)}")
    return values


def check_spatial(x: Type, rank: int, name: str) -> None:
    """Raise a ShapeError unless *x* is (batch, channels, *rank* spatial extents)."""
    if len(x.shape) != rank + 2:
        raise ShapeError(f"{name} needs (batch, channels, {rank} spatial extents), not shape {list(x.shape)}")


def _geometry(attributes: Attributes, rank: int) -> list[tuple[int, int, int, int]]:
    """Return (kernel, stride, padding, dilation) of each dimension."""
    kernel, stride, dilation = (per_dimension(attributes[n], rank, n) for n in ("kernel", "stride", "dilation"))
    padding = per_dimension(attributes["padding"], rank, "padding")
    if attributes.get("same"):
        if any(s != 1 for s in stride) or any(d * (k - 1) % 2 for k, d in zip(kernel, dilation, strict=True)):
            raise ShapeError("'same' needs stride 1 and a kernel of odd extent")
        padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    return list(zip(kernel, stride, padding, dilation, strict=True))


def _infer_conv(rank: int, types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    check_spatial(x, rank, f"conv{rank}d")
    out, groups = attributes["out"], attributes["groups"]
    if x.shape[1] % groups or out % groups:
        raise ShapeError(f"conv{rank}d: groups = {groups} must divide {x.shape[1]} input and {out} output channels")
    extents = []
    for extent, (kernel, stride, padding, dilation) in zip(x.shape[2:], _geometry(attributes, rank), strict=True):
        size = (extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        if size < 1:
            raise ShapeError(
                f"conv{rank}d: kernel {kernel} (dilation {dilation}) is larger than extent {extent} + padding"
            )
        extents.append(size)
    kernels = per_dimension(attributes["kernel"], rank, "kernel")
    parameters = [Parameter("weight", (out, x.shape[1] // groups, *kernels))]
    if attributes["bias"]:
        parameters.append(Parameter("bias", (out,)))
    return Signature((Type((x.shape[0], out, *extents), x.dtype),), tuple(parameters))


def _infer_transposed(rank: int, types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    check_spatial(x, rank, f"conv_transpose{rank}d")
    out, groups = attributes["out"], attributes["groups"]
    if x.shape[1] % groups or out % groups:
        raise ShapeError(f"groups = {groups} must divide {x.shape[1]} input and {out} output channels")
    extra = per_dimension(attributes["output_padding"], rank, "output_padding")
    extents = tuple(
        (extent - 1) * stride - 2 * padding + dilation * (kernel - 1) + more + 1
        for extent, (kernel, stride, padding, dilation), more in zip(
            x.shape[2:], _geometry(attributes, rank), extra, strict=True
        )
    )
    if min(extents) < 1:
        raise ShapeError(f"conv_transpose{rank}d: the output would have extents {list(extents)}")
    kernels = per_dimension(attributes["kernel"], rank, "kernel")
    parameters = [Parameter("weight", (x.shape[1], out // groups, *kernels))]
    if attributes["bias"]:
        parameters.append(Parameter("bias", (out,)))
    return Signature((Type((x.shape[0], out, *extents), x.dtype),), tuple(parameters))


# -- oneDNN ----------------------------------------------------------------------------------------


def _padded(channels: int, block: int) -> int:
    return -(-channels // block) * block


class OneDnn:
    """Bytes of the temporaries of one convolution; *x* is the wider side of the strided relation.

    For a transposed convolution input and output change places: its forward is the backward-data of
    the convolution. *block* is how many channels stand together in a blocked layout.
    """

    def __init__(self, x: Tensor, weight: Tensor, y: Type, groups: int, strided: bool, *, block: int = BLOCK) -> None:
        size = itemsize(x.dtype)
        self.strided = strided
        self.x, self.y, self.weight = x.nbytes, y.nbytes, weight.nbytes
        self.first = groups == 1 and x.shape[1] < block
        self.x_blocked = self.x // x.shape[1] * _padded(x.shape[1], block)
        self.y_blocked = self.y // y.shape[1] * _padded(y.shape[1], block)
        self.weight_blocked = self.weight_padded = weight.nbytes
        if groups == 1:
            kernels = _padded(y.shape[1], block) * prod(weight.shape[2:]) * size
            self.weight_padded = kernels * _padded(x.shape[1], block)
            self.weight_blocked = kernels * x.shape[1] if self.first else self.weight_padded
        self.bias = _padded(y.shape[1], block) * size
        self.columns = prod(weight.shape[1:]) * prod(y.shape[2:]) * size
        self.im2col = self.first and max(weight.shape[2:]) > WIDEST_KERNEL
        self.images = min(x.shape[0], THREADS)

    def forward(self) -> int:
        """Peak of the forward pass: reordered source and weight, blocked and plain result."""
        source = 0 if self.first else self.x_blocked
        return max(source + self.weight_blocked + self.y_blocked, self.y_blocked + self.y)

    def backward_data(self) -> int:
        """Peak of the gradient of the source; strided ones pass through a third layout."""
        plain = 2 * self.x if self.strided else self.x
        return max(self.y_blocked + self.weight_padded + self.x_blocked, self.x_blocked + plain)

    def backward_weights(self, bias: bool) -> int:
        """Peak of the gradients of weight and bias; then both stand in blocked and plain layout."""
        blocked = self.weight_blocked + (self.bias if bias else 0)
        if self.im2col:
            scratch = self.images * (self.columns + 4 * self.weight + 256)
            return max(blocked + scratch, blocked + self.weight)
        source = 0 if self.first else self.x_blocked
        return max(self.y_blocked + source + blocked, blocked + self.weight)


# -- lowering --------------------------------------------------------------------------------------


def convolution(
    tape: Tape,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Type,
    *,
    groups: int = 1,
    strided: bool = False,
    transposed: bool = False,
) -> Tensor:
    """One convolution node; autograd saves input and weight, whatever gradients are needed.

    Source: tools/autograd/derivatives.yaml, convolution_overrideable and convolution_backward.
    """
    operands = tape.low_precision(x, weight) if bias is None else tape.low_precision(x, weight, bias)
    x, weight = operands[0], operands[1]
    output = Type(output.shape, x.dtype)
    per_output = prod(weight.shape[1:]) if not transposed else weight.shape[0] // groups * prod(weight.shape[2:])
    flops = 2 * output.size * per_output
    kind = "conv_transpose" if transposed else "convolution"
    y = tape.emit(
        kind,
        operands,
        output,
        workspace=_forward_workspace(tape, x, weight, output, groups, strided, transposed),
        flops=flops,
    )

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        grad = tape.contiguous(grad)
        wanted = [t for t, need in zip(operands, needs, strict=True) if need]
        workspace = _backward_workspace(tape, x, weight, output, groups, strided, transposed, needs)
        results = iter(
            tape.emit_many(
                f"{kind}_backward",
                (grad, x, weight),
                [like(t) for t in wanted],
                workspace=max(0, workspace - sum(t.nbytes for t in wanted)),
                flops=flops * (needs[0] + needs[1]),
            )
        )
        return [next(results) if need else None for need in needs]

    tape.differentiate(operands, y, (x, weight), backward)
    return y


def _forward_workspace(
    tape: Tape, x: Tensor, weight: Tensor, y: Type, groups: int, strided: bool, transposed: bool
) -> int:
    if tape.target == "cuda":
        return 0
    if transposed:
        wide = Tensor("y", y.shape, y.dtype)
        peak = OneDnn(wide, weight, Type(x.shape, x.dtype), groups, strided).backward_data()
    else:
        peak = OneDnn(x, weight, y, groups, strided).forward()
    return max(0, peak - y.nbytes)


def _backward_workspace(
    tape: Tape,
    x: Tensor,
    weight: Tensor,
    y: Type,
    groups: int,
    strided: bool,
    transposed: bool,
    needs: tuple[bool, ...],
) -> int:
    """Peak of live bytes of the whole backward call, its results included."""
    if tape.target == "cuda":
        return 0
    if transposed:
        sizes = OneDnn(Tensor("y", y.shape, y.dtype), weight, Type(x.shape, x.dtype), groups, strided)
        data = sizes.forward()
    else:
        sizes = OneDnn(x, weight, y, groups, strided)
        data = sizes.backward_data()
    weights = sizes.backward_weights(len(needs) > 2 and needs[2]) if any(needs[1:]) else 0
    return max(data, x.nbytes + weights) if needs[0] else weights


def _lower(
    rank: int,
    transposed: bool,
    tape: Tape,
    inputs: Sequence[Tensor],
    owned: Mapping[str, Tensor],
    attributes: Attributes,
) -> Tensor:
    (x,) = inputs
    infer = _infer_transposed if transposed else _infer_conv
    output = infer(rank, [Type(x.shape, x.dtype)], attributes).outputs[0]
    return convolution(
        tape,
        x,
        owned["weight"],
        owned.get("bias"),
        output,
        groups=attributes["groups"],
        strided=max(per_dimension(attributes["stride"], rank, "stride")) > 1,
        transposed=transposed,
    )


def _attributes(transposed: bool) -> tuple[Attribute, ...]:
    last = (
        Attribute("output_padding", "pair", 0, "extra extent of the output")
        if transposed
        else Attribute("same", "bool", False, "pad so that the extent stays (stride 1, odd kernels)")
    )
    return (
        Attribute("out", "int", about="output channels", minimum=1),
        Attribute("kernel", "pair", about="extent of the kernel", minimum=1, maximum=2**20),
        Attribute("stride", "pair", 1, minimum=1, maximum=2**20),
        Attribute("padding", "pair", 0, "on both sides", maximum=2**20),
        Attribute("dilation", "pair", 1, minimum=1, maximum=2**20),
        Attribute("groups", "int", 1, "blocks of channels that see only each other", minimum=1),
        Attribute("bias", "bool", True),
        last,
    )


def _kind(rank: int, transposed: bool) -> Kind:
    name = f"conv_transpose{rank}d" if transposed else f"conv{rank}d"
    infer = _infer_transposed if transposed else _infer_conv
    return Kind(
        name,
        lambda types, attributes: infer(rank, types, attributes),
        lambda tape, inputs, owned, attributes: _lower(rank, transposed, tape, inputs, owned, attributes),
        _attributes(transposed),
        about=f"{'transposed ' if transposed else ''}convolution over (batch, channels, {rank} spatial extents)",
        source="aten/src/ATen/native/Convolution.cpp",
    )


KINDS = tuple(_kind(rank, transposed) for transposed in (False, True) for rank in (1, 2, 3))
