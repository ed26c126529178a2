"""Scratch: temporaries inside of kernels, of which neither fakes nor observers know."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from torch._prims_common import suggest_memory_format

from graphsim.core.graph import Tensor
from graphsim.sources.torch import kernels_conv, kernels_cuda
from graphsim.sources.torch.kernels_cuda_none import scratch_unknown
from graphsim.sources.torch.kernels_cuda_reduce import SUMS, mask_indices
from graphsim.sources.torch.operands import copies, dtype_name, first_in_order, nbytes
from graphsim.step.ops.attention import cpu_flash_scratch
from graphsim.step.ops.layernorm import THREADS
from graphsim.step.ops.onednn import lstm_backward_scratch, lstm_forward_scratch
from graphsim.step.ops.tape import Type

aten = torch.ops.aten

Workspace = Callable[[Any, Any], int]
"""(arguments, result) -> bytes of scratch beside inputs and outputs."""


def _argument(args: Any, number: int, default: Any) -> Any:
    """Return an argument, which the dispatcher leaves out where it is the default and the last."""
    return args[number] if len(args) > number else default


def _tensor(tensor: Any) -> Tensor:
    return Tensor("", tuple(tensor.shape), dtype_name(tensor))


def _type(tensor: Any) -> Type:
    return Type(tuple(tensor.shape), dtype_name(tensor))


def _batch_norm(args: Any, result: Any) -> int:
    """Sums per channel; where the input is in no order, a wide copy if it is narrow.

    Source: graphsim.step.ops.norm; Normalization.cpp, ``batch_norm_cpu_update_stats_template``.
    """
    x = args[0]
    if _image_in_order(args, result):
        return int(x.numel()) * 4 if x.itemsize < 4 else 0
    return 2 * int(x.shape[1]) * 4


def _batch_norm_backward(args: Any, result: Any) -> int:
    """A second tensor of the input's size, in training; sums per channel where gradient and input lie differently.

    Source: graphsim.step.ops.norm; Normalization.cpp, ``batch_norm_backward_cpu_template``.
    """
    grad, x = args[:2]
    form = suggest_memory_format(x)
    together = suggest_memory_format(grad) == form and all(t.is_contiguous(memory_format=form) for t in (grad, x))
    if not together:
        return int(x.shape[1]) * 4 + (int(x.numel()) * 4 if x.itemsize < 4 else 0)
    return nbytes(x) if args[7] and args[9][0] else 0


def _group_norm_backward(args: Any, result: Any) -> int:
    """Sums of gradient and of gradient * input per channel. Source: graphsim.step.ops.norm."""
    return 2 * int(args[1].shape[0]) * int(args[1].shape[1]) * 4


def _layer_norm_backward(args: Any, result: Any) -> int:
    """Gradients of weight and bias are summed per thread. Source: graphsim.step.ops.layernorm."""
    partial = 2 * THREADS * prod(int(extent) for extent in args[2]) * 4 if any(args[7][1:]) else 0
    return partial + copies(*args[:2])


def _softmax_operands(args: Any, result: Any) -> int:
    """What the kernel reads is put in order first: aten/src/ATen/native/SoftMax.cpp and cuda/SoftMax.cu."""
    return copies(*(operand for operand in args[:2] if isinstance(operand, torch.Tensor)))


def _safe_softmax(args: Any, result: Any) -> int:
    """Truth values: of what is masked, and of which rows are (transformers/attention.cpp, ``_safe_softmax``)."""
    return int(result.numel()) + int(result.numel()) // max(1, int(result.shape[args[1]]))


# -- losses ------------------------------------------------------------------------------------------


def _before_reduction(args: Any, result: Any) -> int:
    """The losses of the elements before they are reduced. Source: graphsim.step.ops.loss; Loss.cpp."""
    return nbytes(args[0]) if _argument(args, 2, 1) else 0


def _loss_with_logits(args: Any, result: Any, *, on_cpu: bool) -> int:
    """The sigmoid's logarithm, on the CPU with its buffer while it is made; then beside it the losses.

    Source: Loss.cpp, ``binary_cross_entropy_with_logits``; Activation.cpp, ``log_sigmoid_forward_cpu``.
    """
    x, reduction = args[0], _argument(args, 4, 1)
    peak = 2 * nbytes(x) + (copies(x) if on_cpu else 0)
    return peak - (0 if reduction else nbytes(x))


def _soft_margin_backward(args: Any, result: Any) -> int:
    """An exponential of a product of a negative, each a tensor (Loss.cpp, ``soft_margin_loss_backward_out``)."""
    return 2 * nbytes(args[1])


def _ctc_backward(args: Any, result: Any) -> int:
    """What goes back through the states, as large as what went forward. Source: LossCTC.cpp, cuda/LossCTC.cu."""
    return nbytes(next(t for t in reversed(args) if isinstance(t, torch.Tensor)))


# -- operands in order, of another dtype, or as indices ------------------------------------------------


def _image_in_order(args: Any, result: Any) -> int:
    """Pooling copies an input that is contiguous in no format (AdaptiveAveragePooling.cpp, AveragePool2d.cpp)."""
    return copies(args[0], order=suggest_memory_format(args[0]))


def _pooling_backward(args: Any, result: Any) -> int:
    """The kernel is chosen by the gradient's format, in which it puts indices, and works on a result.

    Source: cpu/MaxPoolKernel.cpp, AvgPoolKernel.cpp, AdaptiveAvgPoolKernel.cpp and PaddingKernel.cpp.
    """
    indices = (value for value in args[2:] if isinstance(value, torch.Tensor))
    return copies(args[0], result, *indices, order=suggest_memory_format(args[0]))


def _adaptive_max_backward(args: Any, result: Any) -> int:
    """The gradient is put in the input's format (AdaptiveMaxPooling2d.cpp)."""
    return copies(args[0], order=suggest_memory_format(args[1]))


def _result_in_order(args: Any, result: Any) -> int:
    """The kernel works on a result that is in order (cpu/UpSampleMoreKernel.cpp)."""
    return copies(result)


def _antialiased_backward(args: Any, result: Any) -> int:
    """Gradient and result are put in order (cpu/UpSampleKernel.cpp)."""
    return copies(args[0], result)


def _antialiased(args: Any, result: Any) -> int:
    """One dimension after the other, the last one first: what is between them (cpu/UpSampleKernel.cpp)."""
    x = args[0]
    between = x.numel() // x.shape[-1] * result.shape[-1] * x.itemsize
    return between if x.shape[-1] != result.shape[-1] and x.shape[-2] != result.shape[-2] else 0


def _norm_in_order(args: Any, result: Any) -> int:
    """Input, weight and bias. Source: layer_norm.cpp and cuda/layer_norm_kernel.cu, ``expect_contiguous``."""
    x, _, *affine = args[:4]
    return copies(x, *affine)


def _distance_operands(args: Any, result: Any) -> int:
    """Source: Distance.cpp, ``cdist_impl`` and ``_cdist_backward``."""
    return copies(*(t for t in args[:3] if isinstance(t, torch.Tensor)))


def _rolled(args: Any, result: Any) -> int:
    """One dimension after the other, each into a tensor of its own, of the operand in order.

    Source: TensorTransformations.cpp, ``roll``, cuda/TensorTransformations.cu, ``roll_cuda``; TensorTransformations.h,
    ``roll_common``.
    """
    x, dims = args[0], args[2] if len(args) > 2 else []
    return max(0, len(dims) - 1) * nbytes(x) + copies(x)


def _columns(args: Any, result: Any) -> int:
    """The output is made as large as the input, then grown, while the smaller one is there (Im2Col.cpp)."""
    return nbytes(args[0]) if result.numel() > args[0].numel() else 0


def _cast_to_result(args: Any, result: Any) -> int:
    """A reduction to another dtype casts all that it reads.

    Source: aten/src/ATen/native/ReduceOpsUtils.h, ``make_reduction_from_out_ty``; ReduceOps.cpp, ``impl_func_cum_ops``.
    """
    return 0 if args[0].dtype == result.dtype else int(args[0].numel()) * int(result.itemsize)


def _cast_to_bool(args: Any, result: Any) -> int:
    """``any`` and ``all``. Source: ReduceOps.cpp, ``get_allany_iter``."""
    return int(args[0].numel()) if args[0].dtype not in (torch.bool, torch.uint8) else 0


def _log_sum_exp(args: Any, result: Any) -> int:
    """Exponentials of differences to the maxima. Source: ReduceOps.cpp, ``logsumexp_out_impl``."""
    return nbytes(args[0]) + nbytes(result)


def _selected(args: Any, result: Any) -> int:
    """The mask is summed as integers, and its running sum made where elements are selected in parallel.

    Source: aten/src/ATen/native/TensorAdvancedIndexing.cpp, ``masked_select_out_impl_cpu``.
    """
    x, mask = torch.broadcast_tensors(*args[:2])
    serial = x.numel() < 32768 and x.is_contiguous() and mask.is_contiguous()
    return max(0, 8 * int(x.numel()) - nbytes(result)) if serial else 16 * int(x.numel())


def _kth_value(args: Any, result: Any) -> int:
    """Copies of values and of indices are partitioned. Source: Sorting.cpp, ``kthvalue_out_impl_cpu``."""
    return int(args[0].numel()) * int(args[0].itemsize + 8)


def _median(args: Any, result: Any) -> int:
    """A copy is partitioned. Source: Sorting.cpp, ``median_impl``."""
    return nbytes(args[0])


def _multinomial(args: Any, result: Any) -> int:
    """An exponential for each weight: the fast path of Distributions.cpp, ``multinomial_out``."""
    return nbytes(args[0]) if args[1] == 1 or not _argument(args, 2, False) else 0


def _promoted(args: Any, result: Any) -> int:
    """An elementwise kernel on the CPU casts operands of another dtype first, and results in place last.

    Source: aten/src/ATen/TensorIterator.cpp, ``compute_types``.
    """
    tensors = [value for value in args if isinstance(value, torch.Tensor)]
    if not isinstance(result, torch.Tensor) or all(t.dtype == result.dtype for t in tensors):
        return 0
    inplace = any(t is result for t in tensors)
    if result.dtype is torch.bool or inplace:
        common = torch.result_type(*args[:2]) if len(args) > 1 and _is_operand(args[1]) else tensors[0].dtype
    else:
        common = result.dtype
    if common.is_complex or any(t.is_complex() for t in tensors):
        return 0
    cast = sum(int(t.numel()) * common.itemsize for t in tensors if t.dtype != common)
    return cast + (int(result.numel()) * common.itemsize if inplace and result.dtype != common else 0)


def _with_number(args: Any, result: Any) -> int:
    """A number in the place of the second tensor becomes one of its own type, which is cast as others are.

    Source: torch/csrc/utils/python_arg_parser.cpp, ``PythonArgs::tensor_slow``; TensorIterator.cpp, ``compute_types``.
    """
    scratch = _promoted(args, result)
    number = args[1] if len(args) > 1 else None
    if isinstance(number, bool) or not isinstance(number, int | float):
        return scratch
    own = torch.float64 if isinstance(number, float) else torch.int64
    common = torch.result_type(args[0], number)
    return scratch + own.itemsize + (common.itemsize if common != own else 0)


def _modulus(args: Any, result: Any) -> int:
    """Of complex numbers a complex result, of which the real part is copied.

    Source: UnaryOps.cpp, ``unary_op_impl_with_complex_to_float_out``.
    """
    return nbytes(args[0]) if args[0].is_complex() else 0


def _is_operand(value: Any) -> bool:
    return isinstance(value, torch.Tensor | int | float)


def _chosen(args: Any, result: Any) -> int:
    """``where`` casts what it chooses from, not the condition."""
    return _promoted(args[1:], result)


def _no_scratch(args: Any, result: Any) -> int:
    return 0


def _flash(args: Any, result: Any) -> int:
    return _flash_tiles(*args[:2])[0]


def _flash_backward(args: Any, result: Any) -> int:
    """The gradient's heads are put behind its rows (cpu/FlashAttentionKernel.cpp)."""
    return _flash_tiles(*args[1:3])[1] + copies(args[0].transpose(1, 2))


def _flash_tiles(query: Any, key: Any) -> tuple[int, int]:
    return cpu_flash_scratch(query.shape[2], key.shape[2], query.shape[3], query.itemsize)


def lstm_sizes(args: Any, size: Callable[..., int], **options: Any) -> int:
    """Return *size* of (steps, batch, input width, hidden width, dtype)."""
    x, w_ih, w_hh = args[:3]
    return size(x.shape[0], x.shape[1], w_ih.shape[1], w_hh.shape[1], dtype_name(x), **options)


def _lstm_forward(args: Any, result: Any) -> int:
    return lstm_sizes(args, lstm_forward_scratch, training=bool(args[-1]))


def _lstm_backward(args: Any, result: Any) -> int:
    """Gradients that come in are put in order, zeros where there is none; the second bias's is cloned after all else.

    Source: aten/src/ATen/native/mkldnn/RNN.cpp, ``mkldnn_rnn_layer_backward``.
    """
    hidden, cell, y, grads = args[5], args[6], args[7], args[10:13]
    incoming = sum(nbytes(t) if g is None else copies(g) for g, t in zip(grads, (y, hidden, cell), strict=True))
    return incoming + lstm_sizes(args, lstm_backward_scratch) - nbytes(result[4])


_REDUCTIONS = (*SUMS, aten.cumsum.default, aten.cumprod.default)

_BOTH_SCRATCH: dict[Any, Workspace] = {
    aten._softmax.default: _softmax_operands,
    aten._log_softmax.default: _softmax_operands,
    aten._safe_softmax.default: _safe_softmax,
    aten._log_softmax_backward_data.default: _softmax_operands,
    aten.native_layer_norm.default: _norm_in_order,
    aten.mse_loss.default: _before_reduction,
    aten.smooth_l1_loss.default: _before_reduction,
    aten.huber_loss.default: _before_reduction,
    aten.soft_margin_loss_backward.default: _soft_margin_backward,
    aten._ctc_loss_backward.default: _ctc_backward,
    aten._ctc_loss_backward.Tensor: _ctc_backward,
    aten.im2col.default: _columns,
    aten.col2im.default: first_in_order,
    aten.logsumexp.default: _log_sum_exp,
    aten.abs.default: _modulus,
    aten.angle.default: _modulus,
    aten.index.Tensor: mask_indices,
    aten.index_put.default: mask_indices,
    aten.index_put_.default: mask_indices,
    aten.multinomial.default: _multinomial,
    aten._cdist_forward.default: _distance_operands,
    aten._cdist_backward.default: _distance_operands,
    aten.roll.default: _rolled,
}

_CPU_SCRATCH: dict[Any, Workspace] = {
    aten.convolution.default: kernels_conv.forward,
    aten.convolution_backward.default: kernels_conv.backward,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    aten.native_group_norm_backward.default: _group_norm_backward,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten._softmax_backward_data.default: _softmax_operands,
    aten.binary_cross_entropy_with_logits.default: partial(_loss_with_logits, on_cpu=True),
    aten.log_sigmoid_forward.default: first_in_order,
    **dict.fromkeys(
        (
            aten._adaptive_avg_pool2d.default,
            aten.adaptive_max_pool2d.default,
            aten.avg_pool2d.default,
            aten.max_pool2d_with_indices.default,
            aten.max_pool3d_with_indices.default,
        ),
        _image_in_order,
    ),
    **dict.fromkeys(
        (
            aten._adaptive_avg_pool2d_backward.default,
            aten.avg_pool2d_backward.default,
            aten.max_pool2d_with_indices_backward.default,
            aten.max_pool3d_with_indices_backward.default,
            aten.reflection_pad2d_backward.default,
            aten.replication_pad2d_backward.default,
        ),
        _pooling_backward,
    ),
    aten.adaptive_max_pool2d_backward.default: _adaptive_max_backward,
    **dict.fromkeys(
        (
            aten.avg_pool3d.default,
            aten.avg_pool3d_backward.default,
            aten.grid_sampler_2d_backward.default,
            aten.upsample_bicubic2d_backward.default,
        ),
        first_in_order,
    ),
    aten.upsample_nearest3d_backward.default: _result_in_order,
    **dict.fromkeys((aten._upsample_bilinear2d_aa.default, aten._upsample_bicubic2d_aa.default), _antialiased),
    **dict.fromkeys(
        (aten._upsample_bilinear2d_aa_backward.default, aten._upsample_bicubic2d_aa_backward.default),
        _antialiased_backward,
    ),
    **dict.fromkeys(_REDUCTIONS, _cast_to_result),
    **dict.fromkeys((aten.any.default, aten.any.dim, aten.all.default, aten.all.dim), _cast_to_bool),
    aten.masked_select.default: _selected,
    aten.kthvalue.default: _kth_value,
    aten.median.default: _median,
    aten.floor_divide.default: _promoted,
    aten.where.self: _chosen,
    aten.masked_fill.Scalar: _no_scratch,
    aten.masked_fill.Tensor: _no_scratch,
    aten._linalg_svd.default: lambda args, result: nbytes(args[0]),  # overwritten by LAPACK (BatchLinearAlgebra.cpp)
    aten._scaled_dot_product_flash_attention_for_cpu.default: _flash,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _flash_backward,
    aten.mkldnn_rnn_layer.default: _lstm_forward,
    aten.mkldnn_rnn_layer_backward.default: _lstm_backward,
}

_CUDA_SCRATCH: dict[Any, Workspace] = {
    **kernels_cuda.SCRATCH,
    aten.binary_cross_entropy_with_logits.default: partial(_loss_with_logits, on_cpu=False),
}

WORKSPACE = {"cpu": _BOTH_SCRATCH | _CPU_SCRATCH, "cuda": _BOTH_SCRATCH | _CUDA_SCRATCH}
"""Scratch of kernels by the type of the device, as graphsim.step.ops models it (the sources are named there)."""


UNCOUNTED = frozenset({aten._trilinear.default, aten.linalg_matrix_exp.default})
"""Ops with large temporaries for which there is no rule here: nn.Bilinear, torch.matrix_exp."""


def uncounted(func: Any, device: str) -> bool:
    """Return whether *func* has temporaries on that type of device for which there is no rule here."""
    return func in UNCOUNTED or (device == "cuda" and scratch_unknown(func))


def scratch(func: Any, device: str) -> Workspace | None:
    """Return what says the scratch of an op on that type of device; None if it has none."""
    known = WORKSPACE[device].get(func)
    if known is None and device == "cpu" and torch.Tag.pointwise in func.tags:
        return _promoted if func._overloadname != "Tensor" else _with_number
    return known
