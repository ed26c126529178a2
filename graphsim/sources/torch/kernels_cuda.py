"""Scratch of CUDA kernels beside inputs and outputs.

Each rule names its source under aten/src/ATen/native; docs/hooks.py writes the page of all of them from what they say
here. kernels_cuda_none names the kernels that have none, and those of which it is not known.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from graphsim.sources.torch import cudnn_rnn, kernels_cuda_reduce
from graphsim.sources.torch.kernels_cuda_reduce import staging
from graphsim.sources.torch.operands import copies, dtype_name, first_in_order, nbytes
from graphsim.step.ops.attention import efficient_scratch, flash_scratch
from graphsim.step.ops.embedding import embedding_backward_scratch
from graphsim.step.ops.layernorm import affine_sums_scratch
from graphsim.step.ops.matmul import softmax_backward_scratch
from graphsim.step.ops.norm import group_norm_backward_scratch, group_norm_scratch

aten = torch.ops.aten


# -- attention and softmax ---------------------------------------------------------------------------


def _flash_backward(args: Any, result: Any) -> int:
    """Sums in fp32, and the gradients of repeated heads: graphsim.step.ops.attention, `flash_scratch`."""
    _, q, k = args[:3]
    batch, heads, rows, width = q.shape
    return flash_scratch(batch, heads, rows, width, k.shape[1], k.shape[2], q.itemsize)


def _efficient_backward(args: Any, result: Any) -> int:
    """Sums in fp32, and a number for each row: graphsim.step.ops.attention, `efficient_scratch`."""
    _, q = args[:2]
    batch, heads, rows, width = q.shape
    return efficient_scratch(batch, heads, rows, width, q.itemsize)


def _softmax_backward(args: Any, result: Any) -> int:
    """Source: graphsim.step.ops.matmul, `softmax_backward_scratch`; the product lies as the gradient does."""
    grad, output = args[:2]
    product = softmax_backward_scratch("cuda", grad.numel(), dtype_name(output))
    return product * (1 if grad.is_contiguous() else 2) + copies(output)


# -- normalization -----------------------------------------------------------------------------------


def _layer_norm_backward(args: Any, result: Any) -> int:
    """Gradient and input in order, and sums in parts: cuda/layer_norm_kernel.cu, graphsim.step.ops.layernorm.

    native_layer_norm_backward(grad, input, shape, mean, rstd, weight, bias, mask).
    """
    return copies(*args[:2]) + _affine_sums(args[1], args[2], sum(args[7][1:]))


def _rms_norm_backward(args: Any, result: Any) -> int:
    """Gradient and input in order, and sums in parts: cuda/layer_norm_kernel.cu, graphsim.step.ops.layernorm.

    _fused_rms_norm_backward(grad, input, shape, rstd, weight, mask).
    """
    return copies(*args[:2]) + _affine_sums(args[1], args[2], sum(args[5][1:]))


def _affine_sums(x: Any, shape: Any, gradients: int) -> int:
    columns = prod(int(extent) for extent in shape)
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    return gradients * affine_sums_scratch(x.numel() // columns, columns, x.itemsize, processors)


def _group_norm(args: Any, result: Any) -> int:
    """The input in order, and factors by channel: cuda/group_norm_kernel.cu, graphsim.step.ops.norm.

    native_group_norm(input, weight, bias, N, C, HxW, groups, eps).
    """
    x, weight, bias, batch, channels, extent, groups = args[:7]
    affine = weight is not None or bias is not None
    return copies(x) + group_norm_scratch(batch, channels, extent, groups, dtype_name(x), affine=affine)


def _group_norm_backward(args: Any, result: Any) -> int:
    """Gradient and input in order, sums by channel and group: cuda/group_norm_kernel.cu, graphsim.step.ops.norm.

    native_group_norm_backward(grad, input, mean, rstd, weight, N, C, HxW, groups, mask).
    """
    grad, x, _, _, weight, batch, channels, extent, groups = args[:9]
    scratch = group_norm_backward_scratch(
        batch, channels, extent, groups, dtype_name(x), scaled=weight is not None, inputs=bool(args[9][0])
    )
    return copies(grad, x) + scratch


def _batch_norm_backward(args: Any, result: Any) -> int:
    """The gradient is put in the order of the input (cudnn/BatchNorm.cpp, ``cudnn_batch_norm_backward``)."""
    grad, x = args[:2]
    return copies(grad, order=_order(x))


# -- products ----------------------------------------------------------------------------------------


def _product(first: int) -> Any:
    """Return the scratch of a product of two matrices, or batches of them, from operand number *first* on."""

    def scratch(args: Any, result: Any) -> int:
        """cuBLAS takes rows or columns that lie one after another; other operands, an expanded gradient, are copied.

        Source: cuda/cuBlasCommonArgs.h, ``prepare_matrix_for_cublas``, ``prepare_batch_matrix_for_cublas``.
        """
        return sum(nbytes(matrix) for matrix in args[first : first + 2] if not _takes(matrix))

    return scratch


def _takes(matrix: Any) -> bool:
    rows, columns = matrix.shape[-2:]
    down, across = matrix.stride()[-2:]
    by_rows = across == 1 and down >= max(1, columns)
    by_columns = down == 1 and across >= max(1, rows)
    return bool(by_rows or by_columns or matrix.is_contiguous())


# -- convolution and pooling -------------------------------------------------------------------------


def _order(*operands: Any) -> Any:
    """Return the memory format that cuDNN works in: channels last if an operand lies so (ConvUtils.h)."""
    dims = operands[0].dim()
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(dims)
    if last is None:
        return torch.contiguous_format
    ordered = any(t.is_contiguous(memory_format=last) and not t.is_contiguous() for t in operands)
    return last if ordered else torch.contiguous_format


def _convolution(args: Any, result: Any) -> int:
    """Operands in one order (Convolution.cpp, ``_convolution``); the workspace is cuDNN's choice."""
    x, weight = args[:2]
    return copies(x, weight, order=_order(x, weight))


def _convolution_backward(args: Any, result: Any) -> int:
    """See `_convolution`; a bias's gradient is a sum, afterwards (Convolution.cpp, ``convolution_backward``).

    Of a gradient in order that sum takes a few KiB, which are left out.
    """
    grad, x, weight = args[:3]
    inner = copies(grad, x, weight, order=_order(x, weight))
    if not args[10][2] or grad.is_contiguous():
        return inner
    reduced = [dim for dim in range(grad.dim()) if dim != 1]
    return max(inner, staging(grad, reduced, grad.itemsize, max(4, grad.itemsize)))


def _pool(args: Any, result: Any) -> int:
    """The first operand in the order that it suggests.

    Source: cuda/DilatedMaxPool2d.cu, AveragePool2d.cu, AdaptiveAveragePooling.cu, UpSampleNearest2d.cu,
    UpSampleBilinear2d.cu.
    """
    return copies(args[0], order=_order(args[0]))


def _pool_backward(args: Any, result: Any) -> int:
    """Gradient and input in the order of the input (cuda/DilatedMaxPool2d.cu, cuda/AveragePool2d.cu)."""
    return copies(*args[:2], order=_order(args[1]))


def _in_order(*numbers: int) -> Any:
    """Return the scratch of a loss that puts operands of these numbers in order."""

    def scratch(args: Any, result: Any) -> int:
        """Operands and labels in order (cuda/Loss.cu, cuda/NLLLoss2d.cu)."""
        return copies(*(args[number] for number in numbers if number < len(args)))

    return scratch


# -- indexing ----------------------------------------------------------------------------------------


def _embedding_backward(args: Any, result: Any) -> int:
    """More than 3,072 indices are sorted, and segments summed in parts: graphsim.step.ops.embedding.

    embedding_dense_backward(grad, indices, rows, padding_idx, scale_grad_by_freq).
    """
    grad, indices, rows, _, by_frequency = args
    scratch = embedding_backward_scratch(
        indices.numel(), rows, grad.shape[-1], dtype_name(grad), indices.itemsize, counts=bool(by_frequency)
    )
    return scratch + copies(grad, indices)


SCRATCH: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
    aten._softmax_backward_data.default: _softmax_backward,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten._fused_rms_norm.default: first_in_order,
    aten._fused_rms_norm_backward.default: _rms_norm_backward,
    aten.native_group_norm.default: _group_norm,
    aten.native_group_norm_backward.default: _group_norm_backward,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    aten.mm.default: _product(0),
    aten.bmm.default: _product(0),
    aten.addmm.default: _product(1),
    aten.baddbmm.default: _product(1),
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.max_pool2d_with_indices.default: _pool,
    aten.max_pool2d_with_indices_backward.default: _pool_backward,
    aten.avg_pool2d.default: _pool,
    aten.avg_pool2d_backward.default: _pool_backward,
    aten.embedding_dense_backward.default: _embedding_backward,
    **dict.fromkeys(
        (
            aten._adaptive_avg_pool2d.default,
            aten.max_pool3d_with_indices.default,
            aten.upsample_nearest2d.default,
            aten.upsample_nearest2d_backward.default,
            aten.upsample_bilinear2d.default,
            aten.upsample_bilinear2d_backward.default,
        ),
        _pool,
    ),
    aten._adaptive_avg_pool2d_backward.default: _pool_backward,
    **dict.fromkeys(
        (
            aten.reflection_pad1d.default,
            aten.reflection_pad1d_backward.default,
            aten.reflection_pad2d.default,
            aten.reflection_pad2d_backward.default,
            aten.replication_pad2d.default,
            aten.replication_pad2d_backward.default,
            aten.avg_pool3d.default,
            aten.avg_pool3d_backward.default,
        ),
        first_in_order,
    ),
    **dict.fromkeys((aten.nll_loss_forward.default, aten.nll_loss2d_forward.default), _in_order(0, 1)),
    **dict.fromkeys((aten.nll_loss_backward.default, aten.nll_loss2d_backward.default), _in_order(2)),
    **cudnn_rnn.SCRATCH,
    **kernels_cuda_reduce.SCRATCH,
}
"""(arguments, result) -> bytes of scratch."""
