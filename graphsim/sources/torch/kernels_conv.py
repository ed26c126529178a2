"""Convolutions on the CPU: which implementation PyTorch takes, and what it allocates beside the results.

fp32 goes to oneDNN, low precision too where the processor computes in it; all else, and a single small image, to loops
over im2col and gemm. What oneDNN does follows from the vectors of the processor on which the capture runs, as in the
real step: `graphsim.step.ops.conv` has its blocked layouts. Channels last is taken as it is. Found by the allocations
that the profiler sees, beside the sources that are named.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch

from graphsim.core.graph import Tensor
from graphsim.sources.torch.operands import dtype_name, nbytes
from graphsim.step.ops.conv import BLOCK, THREADS, WIDEST_KERNEL, OneDnn
from graphsim.step.ops.tape import Type

WIDE = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Vectors of this machine's processor hold 16 numbers of 32 bits, not 8."""

PER_CALL = 12464
"""What oneDNN keeps for a call on channels last, for two threads."""

SMALL = 20480
"""Elements of a single image that oneDNN is not asked for (Convolution.cpp, ``ConvParams::use_mkldnn``)."""


class _Call(NamedTuple):
    """A convolution: its operands, and its output or the gradient of it."""

    x: Any
    weight: Any
    y: Any
    stride: Any
    padding: Any
    dilation: Any
    transposed: bool
    groups: int

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.x.shape[1] == self.y.shape[1]


def forward(args: Any, result: Any) -> int:
    """Return the scratch of convolution(input, weight, bias, stride, padding, dilation, transposed, ..., groups)."""
    x, weight, _, stride, padding, dilation, transposed, _, groups = args
    call = _Call(x, weight, result, stride, padding, dilation, transposed, groups)
    if not _by_one_dnn(call):
        columns = _columns(call, whole=True)
        return _by_groups(call, nbytes(result)) if groups > 1 else columns + _unordered(x, weight)
    if _is_channels_last(call):
        return nbytes(weight) + (0 if call.depthwise else PER_CALL) + _unordered(x, weight, channels_last=True)
    sizes = _one_dnn(call)
    peak = sizes.backward_data() if transposed else sizes.forward()
    if _odd_groups(call):
        peak = max(2 * nbytes(result), nbytes(result) + _gemm(call, 512))
    return max(0, peak - nbytes(result)) + _unordered(x, weight)


def backward(args: Any, result: Any) -> int:
    """Return the scratch of convolution_backward(grad, input, weight, bias sizes, stride, ..., groups, mask)."""
    grad, x, weight, _, stride, padding, dilation, transposed, _, groups, needs = args
    call = _Call(x, weight, grad, stride, padding, dilation, transposed, groups)
    made = sum(nbytes(tensor) for tensor in result if tensor is not None)
    if not _by_one_dnn(call):
        scratch = _columns(call, whole=not transposed) if any(needs[:2]) else 0
        summed = needs[2] and grad.itemsize < 4 and max(dilation) == 1  # in fp32, before the weight's is made
        bias = 2 * nbytes(grad) if summed else 0
        scratch = max(scratch, bias - (nbytes(weight) if needs[1] else 0))
        if groups > 1:  # each by itself, and then all that they made in one tensor
            return max(made, (scratch + nbytes(x) + nbytes(grad)) // int(groups))
        return scratch + _unordered(grad, x, weight)
    if _is_channels_last(call):
        return _backward_channels_last(call, made, needs) + _unordered(grad, x, weight, channels_last=True)
    sizes = _one_dnn(call)
    data = sizes.forward() if transposed else sizes.backward_data()
    weights = _backward_weights(call, sizes, needs[2]) if any(needs[1:]) else 0
    peak = max(data, nbytes(x) + weights) if needs[0] else weights
    return max(0, peak - made) + _unordered(grad, x, weight)


# -- oneDNN ------------------------------------------------------------------------------------------


def _by_one_dnn(call: _Call) -> bool:
    """Source: aten/src/ATen/native/Convolution.cpp, ``ConvParams::use_mkldnn``."""
    x, weight = call.x, call.weight
    if x.dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if x.dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    large = x.shape[0] > 1 or prod(x.shape[:4]) > SMALL or (weight.dim() > 3 and min(weight.shape[-2:]) > 3)
    return bool(x.dtype is torch.float32 and (call.groups > 1 or large))


def _one_dnn(call: _Call) -> OneDnn:
    wide, narrow = (call.y, call.x) if call.transposed else (call.x, call.y)
    weight = Tensor("", tuple(call.weight.shape), dtype_name(call.weight))
    source = Tensor("", tuple(wide.shape), dtype_name(wide))
    block = BLOCK if WIDE else BLOCK // 2
    target = Type(tuple(narrow.shape), dtype_name(narrow))
    strided = max(call.stride) > 1 and not call.depthwise
    return OneDnn(source, weight, target, call.groups, strided, block=block)


def _backward_weights(call: _Call, sizes: OneDnn, bias: bool) -> int:
    """Without vectors of 16 some have no kernel of their own, and are gemm of columns as the operands are."""
    if WIDE or not _has_no_kernel(call):
        return sizes.backward_weights(bias)
    weight = nbytes(call.weight)
    return weight + (sizes.bias if bias else 0) + _gemm(call, 256, 4 * weight)


def _has_no_kernel(call: _Call) -> bool:
    """Source: oneDNN src/cpu/x64/jit_avx2_conv_kernel_f32.cpp and jit_uni_dw_conv_kernel_utils.hpp, ``init_conf``."""
    kernel, wide = call.weight.shape[2:], call.y if call.transposed else call.x
    if len(kernel) > 1 and kernel[-2] > wide.shape[-2]:
        return True
    if call.depthwise:
        return bool(max(kernel) > 3)
    volume = len(kernel) == 3 and max(call.padding) > 0
    return bool(max(call.dilation) > 1 or kernel[-1] >= WIDEST_KERNEL or volume) or _odd_groups(call)


def _odd_groups(call: _Call) -> bool:
    block = BLOCK if WIDE else BLOCK // 2
    channels = (call.x.shape[1] // call.groups, call.y.shape[1] // call.groups)
    return call.groups > 1 and not call.depthwise and any(count % block for count in channels)


def _gemm(call: _Call, threshold: int, per_image: int = 0) -> int:
    """Columns of one image of one group, of a slice where there is depth; of two where that suits two threads better.

    Source: oneDNN src/cpu/gemm_convolution_utils.cpp, ``init_conf``, ``outer_threading``.
    """
    narrow = call.x if call.transposed else call.y
    spatial = prod(narrow.shape[-2:]) if narrow.dim() > 3 else narrow.shape[-1]
    columns = prod(call.weight.shape[1:]) * spatial * call.x.itemsize
    outer = spatial // THREADS < threshold and (call.x.shape[0] > 1 or call.groups > 2)
    return (THREADS if outer else 1) * int(columns + per_image) + (256 if per_image else 128)


def _backward_channels_last(call: _Call, made: int, needs: Any) -> int:
    """The weight is put in blocks for the input's gradient; its own gradient is there twice more at the end."""
    weight = nbytes(call.weight)
    others = made - (nbytes(call.x) if needs[0] else 0)
    data = weight + (0 if call.depthwise else PER_CALL) - others if needs[0] else 0
    weights = 2 * weight if any(needs[1:]) else 0
    if any(needs[1:]) and not WIDE and call.depthwise and max(call.weight.shape[2:]) > 3:
        weights += nbytes(call.x)
    elif any(needs[1:]) and not WIDE and max(call.dilation) > 1:
        image = nbytes(call.x) // call.x.shape[0]
        weights = max(weights, _gemm(call, 256, 4 * weight + image))
    return max(data, weights, 0)


# -- im2col and gemm ---------------------------------------------------------------------------------


def _columns(call: _Call, *, whole: bool) -> int:
    """Columns of all images; of one where the kernel is dilated, or a transposed one goes back.

    Source: aten/src/ATen/native/ConvolutionMM2d.cpp, ConvolutionMM3d.cpp, NaiveDilatedConvolution.cpp,
    NaiveConvolutionTranspose2d.cpp, NaiveConvolutionTranspose3d.cpp.
    """
    kernel = call.weight.shape[2:]
    narrow = call.x if call.transposed else call.y
    if len(kernel) < 3 and prod(kernel) == 1 and max(*call.stride, 1) == 1 and not max(call.padding):
        return 0
    channels = call.weight.shape[1] * (1 if call.transposed else call.groups)
    dilated = max(call.dilation) > 1 and not call.transposed
    one = dilated or not whole or (call.transposed and len(kernel) == 3)
    images = 1 if one else narrow.shape[0]
    return int(channels * prod(kernel) * prod(narrow.shape[2:]) * images * call.x.itemsize)


def _by_groups(call: _Call, nbytes_out: int) -> int:
    """Each group by itself, and then all that they made in one tensor."""
    one = (_columns(call, whole=True) + nbytes(call.x)) // call.groups
    return max(nbytes_out, one)


# -- operands in order -------------------------------------------------------------------------------


def _is_channels_last(call: _Call) -> bool:
    """Source: aten/src/ATen/native/ConvUtils.h, ``mkldnn_conv_use_channels_last``."""
    return _suggests_channels_last(call.x) or _suggests_channels_last(call.weight)


def _suggests_channels_last(tensor: Any) -> bool:
    """Source: c10/core/MemoryFormat.h, ``is_channels_last_strides_2d``; never of one dimension (Convolution.cpp)."""
    shape, stride = tensor.shape, tensor.stride()
    if len(shape) == 3 or stride[1] == 0:
        return False
    least = 0
    for dim in (1, *range(len(shape) - 1, 1, -1), 0):
        if not shape[dim] or stride[dim] < least or (dim == 0 and least == stride[1]):
            return False
        least = stride[dim] * max(shape[dim], 1)
    return True


def _unordered(*operands: Any, channels_last: bool = False) -> int:
    """Return the bytes of operands that are copied first, to be in order."""
    return sum(nbytes(operand) for operand in operands if not _is_ordered(operand, channels_last))


def _is_ordered(tensor: Any, channels_last: bool) -> bool:
    if not channels_last:
        return bool(tensor.is_contiguous())
    expected = 1
    for dim in (1, *range(tensor.dim() - 1, 1, -1), 0):
        if tensor.shape[dim] != 1 and tensor.stride(dim) != expected:
            return False
        expected *= tensor.shape[dim]
    return True
