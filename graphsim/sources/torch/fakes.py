"""Outputs whose fake has another size or layout than the kernel's: what runs in place of the fake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._prims_common import suggest_memory_format

from graphsim.sources.torch import cudnn_rnn
from graphsim.sources.torch.kernels import lstm_sizes
from graphsim.step.ops.onednn import lstm_workspace

aten = torch.ops.aten

Fake = Callable[..., Any]


# -- storages that stay larger than the tensor over them ---------------------------------------------


def _whole_loss(func: Any, reduction: int = 2) -> Fake:
    """The scalar stands in a storage of the size of the elementwise losses, which is resized, not replaced.

    *reduction* is the number of that argument. Source: aten/src/ATen/native/BinaryOps.cpp,
    TORCH_META_FUNC(mse_loss) and (smooth_l1_loss); Loss.cpp and cuda/Loss.cu, ``binary_cross_entropy_cpu``,
    ``soft_margin_loss``.
    """

    def run(x: Any, target: Any, *rest: Any, **kwargs: Any) -> Any:
        how = rest[reduction - 2] if len(rest) > reduction - 2 else 1
        if not how:
            return func(x, target, *rest, **kwargs)
        return torch.empty_like(x + target).as_strided((), ())

    return run


def _col2im(columns: Any, *rest: Any) -> Any:
    """The image stands in a storage of the size of the columns (Col2Im.cpp, cuda/Col2Im.cu: ``empty_like(input)``)."""
    image = aten.col2im.default(columns, *rest)
    whole = columns.new_empty(max(columns.numel(), image.numel()))
    return whole.as_strided(image.shape, image.stride())


def _embedding_bag(*args: Any, **kwargs: Any) -> Any:
    """The bag of each index is counted with one index more (EmbeddingBag.cpp, ``make_offset2bag_out``)."""
    y, bags, *others = aten._embedding_bag.default(*args, **kwargs)
    if bags.numel():
        bags = bags.new_empty(bags.numel() + 1)[: bags.numel()]
    return (y, bags, *others)


# -- layouts -----------------------------------------------------------------------------------------


def _in_order(func: Any) -> Fake:
    """The result, of several the first, is contiguous, whatever the operands are.

    Source: Loss.cpp, ``mse_loss_backward`` and its like (``zeros_like`` in the legacy format); UnaryOps.cpp and
    Pow.cpp, TORCH_META_FUNC2(pow, Scalar); layer_norm.cpp and cuda/layer_norm_kernel.cu
    (LEGACY_CONTIGUOUS_MEMORY_FORMAT); group_norm.cpp (``memory_format``).
    """

    def ordered(tensor: Any) -> Any:
        if tensor is None or tensor.is_contiguous():
            return tensor
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)

    def run(*args: Any, **kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        return ordered(result) if isinstance(result, torch.Tensor) else (ordered(result[0]), *result[1:])

    return run


def _as_gradient(grad: Any, x: Any, *_: Any, **__: Any) -> Any:
    """The result lies as TensorIterator has it of gradient and input, in this order (Activation.cpp)."""
    return grad + x


def _log_sigmoid(x: Any) -> Any:
    """Both results are in order (Activation.cpp, ``log_sigmoid_forward_cpu``)."""
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))


# -- normalization -----------------------------------------------------------------------------------


def _layer_norm(x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    """Mean and inverse deviation have the dtype of the weight (layer_norm.cpp, ``layer_norm_cpu``)."""
    y, mean, deviation = aten.native_layer_norm.default(x, shape, weight, bias, eps)
    if weight is not None and weight.dtype != mean.dtype:
        mean, deviation = (torch.empty_like(t, dtype=weight.dtype) for t in (mean, deviation))
    return y, mean, deviation


def _batch_norm(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, *rest: Any) -> Any:
    """The result is in order, or channels last; statistics have the dtype of parameters that are wider than the input.

    Source: aten/src/ATen/native/Normalization.cpp, ``batch_norm_cpu``.
    """
    y, *statistics = aten.native_batch_norm.default(x, weight, bias, mean, variance, *rest)
    y = torch.empty_like(x, memory_format=_dense_format(x))
    wide = next((t.dtype for t in (weight, bias, mean, variance) if t is not None), x.dtype)
    return (y, *(torch.empty_like(t, dtype=wide) for t in statistics))


def _batch_norm_backward(grad: Any, x: Any, weight: Any, *rest: Any) -> Any:
    """No gradient is made that is not asked for; that of the input lies as the input's format (Normalization.cpp)."""
    wanted = rest[-1]
    parameter = x if weight is None else weight
    return (
        torch.empty_like(x, memory_format=suggest_memory_format(x)) if wanted[0] else None,
        parameter.new_empty(x.shape[1]) if wanted[1] else None,
        parameter.new_empty(x.shape[1]) if wanted[2] else None,
    )


def _padding_backward(grad: Any, x: Any, *_: Any) -> Any:
    """The gradient lies as the input's format (ReflectionPad.cpp, ReplicationPadding.cpp)."""
    return torch.empty_like(x, memory_format=suggest_memory_format(x))


def _dense_format(x: Any) -> torch.memory_format:
    suggested = suggest_memory_format(x)
    return suggested if x.is_contiguous(memory_format=suggested) else torch.contiguous_format


# -- outputs that fakes do not have ------------------------------------------------------------------


def _lstm_layer(*args: Any, **kwargs: Any) -> Any:
    """The fourth output is oneDNN's workspace; the fake kernel says that it is empty."""
    result = aten.mkldnn_rnn_layer.default(*args, **kwargs)
    if args[-1]:
        return (*result[:3], result[3].new_empty(lstm_sizes(args, lstm_workspace), dtype=torch.uint8))
    return result


def _lstm_layer_backward(*args: Any, **kwargs: Any) -> Any:
    """The gradients of the two biases are a tensor and its clone; the fake kernel returns one tensor twice."""
    result = list(aten.mkldnn_rnn_layer_backward.default(*args, **kwargs))
    result[4] = torch.empty_like(result[3])
    return tuple(result)


def _grouped_mm(a: Any, b: Any, offs: Any = None, bias: Any = None, out_dtype: Any = None) -> Any:
    """A product per group. The fake kernel knows the GPU's fast path only; any dtype will do elsewhere.

    Source: aten/src/ATen/native/GroupedMMUtils.h, ``create_grouped_gemm_output_tensor``.
    """
    rows = (offs.shape[0], a.shape[0]) if a.dim() == b.dim() == 2 else (a.shape[0],) if a.dim() == 2 else a.shape[:2]
    if a.dim() == 3 and b.dim() == 2:
        rows = (a.shape[1],)
    return a.new_empty((*rows, b.shape[-1]), dtype=out_dtype or a.dtype)


def _softmax_backward(grad: Any, output: Any, dim: int, dtype: Any) -> Any:
    """The result is in order (SoftMax.cpp, TORCH_META_FUNC(log_softmax_backward_cpu_out))."""
    return grad.new_empty(grad.shape, dtype=dtype)


def _as_input(grad: Any, x: Any, *_: Any, **__: Any) -> Any:
    """The gradient is made as large as the input, in order; no fake kernel says so.

    Source: cuda/MultiMarginLoss.cu, cuda/MultiLabelMarginCriterion.cu, cuda/FractionalMaxPool3d.cu.
    """
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_BOTH: dict[Any, Fake] = {
    torch.ops._c10d_functional.wait_tensor.default: lambda tensor: tensor,  # the fake kernel makes another
    aten.mse_loss.default: _whole_loss(aten.mse_loss.default),
    aten.smooth_l1_loss.default: _whole_loss(aten.smooth_l1_loss.default),
    aten.soft_margin_loss.default: _whole_loss(aten.soft_margin_loss.default),
    aten.binary_cross_entropy.default: _whole_loss(aten.binary_cross_entropy.default, reduction=3),
    aten.col2im.default: _col2im,
    aten.pow.Scalar: _in_order(aten.pow.Scalar),
    **{
        func: _in_order(func)
        for func in (
            aten.mse_loss_backward.default,
            aten.smooth_l1_loss_backward.default,
            aten.huber_loss_backward.default,
        )
    },
    **dict.fromkeys(
        (
            aten.elu_backward.default,
            aten.softplus_backward.default,
            aten.hardswish_backward.default,
            aten.hardsigmoid_backward.default,
            aten.hardtanh_backward.default,
        ),
        _as_gradient,
    ),
    aten._softmax_backward_data.default: _softmax_backward,
    aten._log_softmax_backward_data.default: _softmax_backward,
    aten._grouped_mm.default: _grouped_mm,
}

_CPU: dict[Any, Fake] = {
    aten.mkldnn_rnn_layer.default: _lstm_layer,
    aten.mkldnn_rnn_layer_backward.default: _lstm_layer_backward,
    aten._embedding_bag.default: _embedding_bag,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _in_order(aten.native_layer_norm_backward.default),
    aten.native_batch_norm.default: _batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    aten.log_sigmoid_forward.default: _log_sigmoid,
    aten.reflection_pad2d_backward.default: _padding_backward,
    aten.replication_pad2d_backward.default: _padding_backward,
}

_CUDA: dict[Any, Fake] = {
    **cudnn_rnn.FAKES,
    **{
        func: _in_order(func)
        for func in (
            aten.native_layer_norm.default,
            aten.native_layer_norm_backward.default,
            aten._fused_rms_norm.default,
            aten._fused_rms_norm_backward.default,
            aten.native_group_norm.default,
            aten.native_group_norm_backward.default,
        )
    },
    **dict.fromkeys(
        (
            aten.multi_margin_loss_backward.default,
            aten.multilabel_margin_loss_backward.default,
            aten.fractional_max_pool3d_backward.default,
        ),
        _as_input,
    ),
}

FAKES = {"cpu": _BOTH | _CPU, "cuda": _BOTH | _CUDA}
"""Ops for which something else runs under fake tensors, by the type of the device."""
