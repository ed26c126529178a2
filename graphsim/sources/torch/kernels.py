"""What fake kernels do not tell: temporaries inside of kernels, and outputs whose fake has the wrong size."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch

from graphsim.core.graph import Tensor
from graphsim.step.ops.attention import efficient_scratch, flash_scratch
from graphsim.step.ops.conv import OneDnn
from graphsim.step.ops.layernorm import THREADS
from graphsim.step.ops.matmul import softmax_backward_scratch
from graphsim.step.ops.onednn import lstm_backward_scratch, lstm_forward_scratch, lstm_workspace
from graphsim.step.ops.tape import Type

aten = torch.ops.aten

Workspace = Callable[[Any, Any], int]
"""(arguments, result) -> bytes of scratch beside inputs and outputs."""


# -- outputs that fakes get wrong ------------------------------------------------------------------


def _lstm_layer(*args: Any, **kwargs: Any) -> Any:
    """The fourth output is oneDNN's workspace; the fake kernel says that it is empty."""
    result = aten.mkldnn_rnn_layer.default(*args, **kwargs)
    if args[-1]:
        return (*result[:3], result[3].new_empty(_lstm_sizes(args, lstm_workspace), dtype=torch.uint8))
    return result


def _lstm_layer_backward(*args: Any, **kwargs: Any) -> Any:
    """The gradients of the two biases are a tensor and its clone; the fake kernel returns one tensor twice."""
    result = list(aten.mkldnn_rnn_layer_backward.default(*args, **kwargs))
    result[4] = torch.empty_like(result[3])
    return tuple(result)


def _lstm_sizes(args: Any, size: Callable[..., int], **options: Any) -> int:
    """Return *size* of (steps, batch, input width, hidden width, dtype)."""
    x, w_ih, w_hh = args[:3]
    return size(x.shape[0], x.shape[1], w_ih.shape[1], w_hh.shape[1], _dtype(x), **options)


def _whole_loss(func: Any) -> Callable[..., Any]:
    """The scalar stands in a storage of the size of the elementwise losses, which is resized, not replaced.

    Source: aten/src/ATen/native/BinaryOps.cpp, TORCH_META_FUNC(mse_loss) and (smooth_l1_loss).
    """

    def run(x: Any, target: Any, reduction: int = 1, *rest: Any, **kwargs: Any) -> Any:
        if not reduction:
            return func(x, target, reduction, *rest, **kwargs)
        return torch.empty_like(x + target).as_strided((), ())

    return run


def _layer_norm(x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    """Mean and inverse deviation have the dtype of the weight (layer_norm.cpp, ``layer_norm_cpu``)."""
    y, mean, deviation = aten.native_layer_norm.default(x, shape, weight, bias, eps)
    if weight is not None and weight.dtype != mean.dtype:
        mean, deviation = (torch.empty_like(t, dtype=weight.dtype) for t in (mean, deviation))
    return y, mean, deviation


def _ordered_layer_norm_backward(grad: Any, x: Any, *rest: Any) -> Any:
    """The gradient of the input is in order, whatever the incoming one is (layer_norm.cpp)."""
    dx, *others = aten.native_layer_norm_backward.default(grad, x, *rest)
    if dx is not None:
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return (dx, *others)


def _softmax_backward(grad: Any, output: Any, dim: int, dtype: Any) -> Any:
    """The result is in order (SoftMax.cpp, TORCH_META_FUNC(log_softmax_backward_cpu_out))."""
    return grad.new_empty(grad.shape, dtype=dtype)


def _grouped_mm(a: Any, b: Any, offs: Any = None, bias: Any = None, out_dtype: Any = None) -> Any:
    """A product per group. The fake kernel knows the GPU's fast path only; any dtype will do elsewhere.

    Source: aten/src/ATen/native/GroupedMMUtils.h, ``create_grouped_gemm_output_tensor``.
    """
    rows = (offs.shape[0], a.shape[0]) if a.dim() == b.dim() == 2 else (a.shape[0],) if a.dim() == 2 else a.shape[:2]
    if a.dim() == 3 and b.dim() == 2:
        rows = (a.shape[1],)
    return a.new_empty((*rows, b.shape[-1]), dtype=out_dtype or a.dtype)


_BOTH: dict[Any, Callable[..., Any]] = {
    aten.mse_loss.default: _whole_loss(aten.mse_loss.default),
    aten.smooth_l1_loss.default: _whole_loss(aten.smooth_l1_loss.default),
    aten._softmax_backward_data.default: _softmax_backward,
    aten._log_softmax_backward_data.default: _softmax_backward,
    aten._grouped_mm.default: _grouped_mm,
}

_CPU: dict[Any, Callable[..., Any]] = {
    aten.mkldnn_rnn_layer.default: _lstm_layer,
    aten.mkldnn_rnn_layer_backward.default: _lstm_layer_backward,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _ordered_layer_norm_backward,
}

FAKES = {"cpu": _BOTH | _CPU, "cuda": _BOTH}
"""Ops for which something else runs under fake tensors, by the type of the device."""


# -- temporaries -----------------------------------------------------------------------------------


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _bytes(tensor: Any) -> int:
    return int(tensor.numel()) * int(tensor.itemsize)


def _copies(*operands: Any) -> int:
    """Operands that are not in order are copied before the kernel proper runs."""
    return sum(_bytes(operand) for operand in operands if not operand.is_contiguous())


def _tensor(tensor: Any) -> Tensor:
    return Tensor("", tuple(tensor.shape), _dtype(tensor))


def _type(tensor: Any) -> Type:
    return Type(tuple(tensor.shape), _dtype(tensor))


def _one_dnn(x: Any, weight: Any, y: Any, stride: Any, groups: int, transposed: bool) -> OneDnn:
    wide, narrow = (y, x) if transposed else (x, y)
    return OneDnn(_tensor(wide), _tensor(weight), _type(narrow), groups, max(stride) > 1)


def _convolution(args: Any, result: Any) -> int:
    """Source: graphsim.step.ops.conv. convolution(input, weight, bias, stride, padding, dilation, transposed, ...)."""
    x, weight, _, stride, _, _, transposed, _, groups = args
    sizes = _one_dnn(x, weight, result, stride, groups, transposed)
    peak = sizes.backward_data() if transposed else sizes.forward()
    return max(0, peak - _bytes(result)) + _copies(x, weight)


def _convolution_backward(args: Any, result: Any) -> int:
    """convolution_backward(grad, input, weight, bias sizes, stride, padding, dilation, transposed, ...)."""
    grad, x, weight, _, stride, _, _, transposed, _, groups, needs = args
    sizes = _one_dnn(x, weight, grad, stride, groups, transposed)
    data = sizes.forward() if transposed else sizes.backward_data()
    weights = sizes.backward_weights(needs[2]) if any(needs[1:]) else 0
    peak = max(data, _bytes(x) + weights) if needs[0] else weights
    return max(0, peak - sum(_bytes(tensor) for tensor in result if tensor is not None)) + _copies(grad, x, weight)


def _batch_norm(args: Any, result: Any) -> int:
    """Sums per channel. Source: graphsim.step.ops.norm."""
    return 2 * int(args[0].shape[1]) * 4


def _batch_norm_backward(args: Any, result: Any) -> int:
    """A second tensor of the input's size, in training. Source: graphsim.step.ops.norm."""
    return _bytes(args[1]) if args[7] else 0


def _group_norm_backward(args: Any, result: Any) -> int:
    """Sums of gradient and of gradient * input per channel. Source: graphsim.step.ops.norm."""
    return 2 * int(args[1].shape[0]) * int(args[1].shape[1]) * 4


def _layer_norm_backward(args: Any, result: Any) -> int:
    """Gradients of weight and bias are summed per thread. Source: graphsim.step.ops.layernorm."""
    partial = 2 * THREADS * prod(int(extent) for extent in args[2]) * 4 if any(args[7][1:]) else 0
    return partial + _copies(*args[:2])


def _softmax_operands(args: Any, result: Any) -> int:
    """What the kernel reads is put in order first: aten/src/ATen/native/SoftMax.cpp and cuda/SoftMax.cu."""
    return _copies(*(operand for operand in args[:2] if isinstance(operand, torch.Tensor)))


def _softmax_backward_on_cuda(args: Any, result: Any) -> int:
    """Source: graphsim.step.ops.matmul, `softmax_backward_scratch`; the product lies as the gradient does."""
    grad, output = args[:2]
    product = softmax_backward_scratch("cuda", grad.numel(), _dtype(output))
    return product * (1 if grad.is_contiguous() else 2) + _copies(output)


def _mse_loss(args: Any, result: Any) -> int:
    """The squares before they are reduced. Source: graphsim.step.ops.loss."""
    reduction = args[2] if len(args) > 2 else 1
    return _bytes(args[0]) if reduction else 0


def _lstm_forward(args: Any, result: Any) -> int:
    return _lstm_sizes(args, lstm_forward_scratch, training=bool(args[-1]))


def _lstm_backward(args: Any, result: Any) -> int:
    return _lstm_sizes(args, lstm_backward_scratch)


def _flash_backward(args: Any, result: Any) -> int:
    _, q, k = args[:3]
    batch, heads, rows, width = q.shape
    return flash_scratch(batch, heads, rows, width, k.shape[1], k.shape[2], q.itemsize)


def _efficient_backward(args: Any, result: Any) -> int:
    _, q = args[:2]
    batch, heads, rows, width = q.shape
    return efficient_scratch(batch, heads, rows, width, q.itemsize)


_CPU_SCRATCH: dict[Any, Workspace] = {
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    aten.native_group_norm_backward.default: _group_norm_backward,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.mse_loss.default: _mse_loss,
    aten._softmax.default: _softmax_operands,
    aten._log_softmax.default: _softmax_operands,
    aten._softmax_backward_data.default: _softmax_operands,
    aten._log_softmax_backward_data.default: _softmax_operands,
    aten.mkldnn_rnn_layer.default: lambda args, result: _lstm_sizes(
        args, lstm_forward_scratch, training=bool(args[-1])
    ),
    aten.mkldnn_rnn_layer_backward.default: lambda args, result: _lstm_sizes(args, lstm_backward_scratch),
}

_CUDA_SCRATCH: dict[Any, Workspace] = {
    aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
    aten._softmax.default: _softmax_operands,
    aten._log_softmax.default: _softmax_operands,
    aten._softmax_backward_data.default: _softmax_backward_on_cuda,
    aten._log_softmax_backward_data.default: _softmax_operands,
}

WORKSPACE = {"cpu": _CPU_SCRATCH, "cuda": _CUDA_SCRATCH}
"""Scratch of kernels by the type of the device, as graphsim.step.ops models it (the sources are named there)."""
