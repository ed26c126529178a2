"""Normalization over channels: batch norm, group norm, instance norm.

Source: aten/src/ATen/native/Normalization.cpp and group_norm.cpp; CUDA: cudnn/BatchNorm.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from graphsim.core.graph import Role, Tensor
from graphsim.step.ops.elementwise import like
from graphsim.step.ops.kind import Attribute, Attributes, Kind, Parameter, ShapeError, Signature
from graphsim.step.ops.tape import Gradients, Tape, Type
from graphsim.units import itemsize

Owned = Mapping[str, Tensor]


def group_norm_scratch(batch: int, channels: int, extent: int, groups: int, dtype: str, *, affine: bool) -> int:
    """Return the bytes of what CUDA's kernel computes first: scale and shift per channel, and fp32 statistics.

    Source: aten/src/ATen/native/cuda/group_norm_kernel.cu, ``GroupNormKernelImplInternal``; *extent*: pixels.
    """
    statistics = 2 * batch * groups * 4 if itemsize(dtype) < 4 else 0
    fused = 2 * batch * channels * max(4, itemsize(dtype)) if affine and extent != 1 else 0
    return statistics + fused


def group_norm_backward_scratch(
    batch: int, channels: int, extent: int, groups: int, dtype: str, *, scaled: bool, inputs: bool = True
) -> int:
    """Return the bytes of CUDA's sums per channel and of the factors that follow from them.

    Source: aten/src/ATen/native/cuda/group_norm_kernel.cu, ``GroupNormBackwardKernelImplInternal``.
    """
    factors = 2 * batch * groups if inputs else 0
    scales = batch * channels if inputs and scaled else 0
    sums = 2 * batch * channels
    return (factors if extent == 1 else factors + scales + sums) * max(4, itemsize(dtype))


def batch_norm(tape: Tape, x: Tensor, owned: Owned, *, training: bool) -> Tensor:
    """Normalize each channel of x (batch, channels, ...) by its batch (or running) statistics.

    Autograd saves the input, the weight, and mean and inverse deviation per channel (fp32 under
    autocast). On the CPU the backward kernel holds a second tensor of the input's size. On CUDA
    cuDNN runs it; its reserve is empty for contiguous (NCHW) tensors.
    """
    weight, bias = owned.get("weight"), owned.get("bias")
    affine = [t for t in (weight, bias) if t is not None]
    channels = Type((x.shape[1],), weight.dtype if weight is not None else x.dtype)
    statistics = channels if training else Type((0,), channels.dtype)
    y, mean, deviation = tape.emit_many(
        "batch_norm",
        (x, *affine),
        (like(x), statistics, statistics),
        flops=4 * x.size,
        workspace=2 * channels.nbytes if tape.target == "cpu" else 0,
    )
    buffers = [owned[name] for name in ("running_mean", "running_var") if name in owned]
    if training and buffers:
        # An op of its own: a recompute of the normalization must not update the statistics again.
        tape.emit_many(
            "update_running_stats", (mean, deviation, *buffers), (), mutates=buffers, flops=4 * channels.size
        )
    saved = [x, mean, deviation] if weight is None else [x, weight, mean, deviation]

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        results = tape.emit_many(
            "batch_norm_backward",
            (grad, *saved),
            (like(x), *(like(t) for t in affine)),
            workspace=x.nbytes if tape.target == "cpu" and training else 0,
            flops=8 * x.size,
        )
        return [result if need else None for result, need in zip(results, needs, strict=True)]

    tape.differentiate((x, *affine), y, saved, backward)
    return y


def group_norm(tape: Tape, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Normalize each group of channels of each sample; saves input, weight, mean and inverse deviation."""
    x, *_ = tape.full_precision(x)
    affine = [t for t in (weight, bias) if t is not None]
    statistics = Type((x.shape[0], groups), x.dtype)
    sizes = (x.shape[0], x.shape[1], prod(x.shape[2:]), groups, x.dtype)
    on_cuda = tape.target == "cuda"
    y, mean, deviation = tape.emit_many(
        "group_norm",
        (x, *affine),
        (like(x), statistics, statistics),
        workspace=group_norm_scratch(*sizes, affine=bool(affine)) if on_cuda else 0,
        flops=4 * x.size,
    )
    saved = [x, mean, deviation] if weight is None else [x, weight, mean, deviation]

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        # On the CPU sums of gradient and of gradient * input per channel (group_norm_kernel.cpp).
        on_cpu = 2 * x.shape[0] * x.shape[1] * 4
        results = tape.emit_many(
            "group_norm_backward",
            (grad, *saved),
            (like(x), *(like(t) for t in affine)),
            workspace=group_norm_backward_scratch(*sizes, scaled=weight is not None) if on_cuda else on_cpu,
            flops=8 * x.size,
        )
        return [result if need else None for result, need in zip(results, needs, strict=True)]

    tape.differentiate((x, *affine), y, saved, backward)
    return y


def _owned_parameters(channels: int, attributes: Attributes) -> list[Parameter]:
    return [Parameter("weight", (channels,)), Parameter("bias", (channels,))] if attributes["affine"] else []


def _infer_batch_norm(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    if len(x.shape) < 2:
        raise ShapeError(f"batch_norm needs (batch, channels, ...), not shape {list(x.shape)}")
    parameters = _owned_parameters(x.shape[1], attributes)
    if attributes["track"]:
        parameters += [
            Parameter("running_mean", (x.shape[1],), Role.BUFFER),
            Parameter("running_var", (x.shape[1],), Role.BUFFER),
            Parameter("num_batches_tracked", (), Role.BUFFER, "int64"),
        ]
    return Signature((x,), tuple(parameters))


def _lower_batch_norm(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    return batch_norm(tape, inputs[0], owned, training=tape.training or not attributes["track"])


def _infer_group_norm(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    if len(x.shape) < 2 or x.shape[1] % attributes["groups"]:
        raise ShapeError(f"group_norm: groups = {attributes['groups']} must divide the channels of {list(x.shape)}")
    return Signature((x,), tuple(_owned_parameters(x.shape[1], attributes)))


def _lower_group_norm(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    return group_norm(tape, inputs[0], attributes["groups"], owned.get("weight"), owned.get("bias"))


def _infer_instance_norm(types: Sequence[Type], attributes: Attributes) -> Signature:
    (x,) = types
    if len(x.shape) < 3:
        raise ShapeError(f"instance_norm needs (batch, channels, spatial ...), not shape {list(x.shape)}")
    return Signature((x,), tuple(_owned_parameters(x.shape[1], attributes)))


def _lower_instance_norm(tape: Tape, inputs: Sequence[Tensor], owned: Owned, attributes: Attributes) -> Tensor:
    """Batch norm over a view (1, batch * channels, ...), weight and bias repeated per sample."""
    (x,) = inputs
    folded = tape.view(tape.contiguous(x), (1, x.shape[0] * x.shape[1], *x.shape[2:]))
    repeated = {name: _repeat(tape, owned[name], x.shape[0]) for name in ("weight", "bias") if name in owned}
    return tape.view(batch_norm(tape, folded, repeated, training=True), x.shape)


def _repeat(tape: Tape, parameter: Tensor, times: int) -> Tensor:
    y = tape.emit("repeat", (parameter,), Type((times * parameter.size,), parameter.dtype))

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
        return (tape.emit("sum", (grad,), like(parameter), flops=grad.size),)

    tape.differentiate((parameter,), y, (), backward)
    return y


_AFFINE = Attribute("affine", "bool", True, "learned scale and shift per channel")

KINDS: tuple[Kind, ...] = (
    Kind(
        "batch_norm",
        _infer_batch_norm,
        _lower_batch_norm,
        (_AFFINE, Attribute("track", "bool", True, "keep running statistics (buffers)")),
        about="normalize channels over the batch",
        source="aten/src/ATen/native/Normalization.cpp",
    ),
    Kind(
        "group_norm",
        _infer_group_norm,
        _lower_group_norm,
        (Attribute("groups", "int", about="groups of channels", minimum=1), _AFFINE),
        about="normalize groups of channels per sample",
        source="aten/src/ATen/native/group_norm.cpp",
    ),
    Kind(
        "instance_norm",
        _infer_instance_norm,
        _lower_instance_norm,
        (Attribute("affine", "bool", False, "learned scale and shift per channel"),),
        about="normalize each channel of each sample",
        source="aten/src/ATen/native/Normalization.cpp",
    ),
)
