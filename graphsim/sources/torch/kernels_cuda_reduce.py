"""Scratch of CUDA kernels that reduce, scan, sort and scatter.

Each rule names its source under aten/src/ATen/native.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch

from graphsim.sources.torch.operands import copies, nbytes
from graphsim.step.ops.reduction import reduction_scratch, resident_threads

aten = torch.ops.aten

RADIX_BITS = 8
"""That cub sorts in one pass (cub/device/dispatch/tuning/tuning_radix_sort.cuh)."""

INDEX = 8
"""Bytes of an index, or of an index and a row of 4 bytes each."""

SMALL_SORT, LONG_SORT, FULL_SORT = 4096, 1_000_000, 128
"""Keys that a block sorts; keys of a row that are sorted alone; from so many rows on they are sorted as segments."""

CHUNK = 65536
"""Elements of a tensor that a block of a foreach kernel takes (cuda/MultiTensorApply.cuh, ``kChunkSize``)."""


# -- reductions --------------------------------------------------------------------------------------


def staging(x: Any, dims: Any, width: int, accumulator: int) -> int:
    """Return the scratch of a reduction of *x* over *dims*, or all: see graphsim.step.ops.reduction."""
    if not x.dim():
        return 0
    dims = [dims] if isinstance(dims, int) else dims
    reduced = {int(dim) % x.dim() for dim in dims} if dims else set(range(x.dim()))
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    threads = resident_threads(torch.cuda.get_device_capability(0))
    return reduction_scratch(tuple(x.shape), x.stride(), reduced, width, accumulator, processors, threads)


def _dims(args: Any, number: int = 1) -> Any:
    return args[number] if len(args) > number else None


def _sum(args: Any, result: Any) -> int:
    """The buffer where blocks meet (cuda/Reduce.cuh), of sums in fp32 at least; casts, low precision to fp32 excepted.

    Source: cuda/ReduceSumProdKernel.cu, cuda/ReduceMomentKernel.cu; ReduceOpsUtils.h, ``make_reduction_from_out_ty``.
    """
    x = args[0]
    low = x.dtype in (torch.float16, torch.bfloat16) and result.dtype is torch.float32
    cast = 0 if x.dtype == result.dtype or low else int(x.numel()) * result.itemsize
    return cast + staging(x, _dims(args), x.itemsize if low else result.itemsize, max(4, result.itemsize))


def _norm(args: Any, result: Any) -> int:
    """The buffer where blocks meet, of sums in fp32 at least (cuda/ReduceNormKernel.cu). norm(x, order, dim, ...)."""
    x = args[0]
    return staging(x, _dims(args, 2), x.itemsize, max(4, result.itemsize))


def _extreme(args: Any, result: Any) -> int:
    """The buffer where blocks meet, of values (cuda/ReduceMaxValuesKernel.cu, cuda/ReduceMinValuesKernel.cu)."""
    return staging(args[0], _dims(args), args[0].itemsize, args[0].itemsize)


def _extreme_where(args: Any, result: Any) -> int:
    """The buffer where blocks meet, of values with indices: 16 bytes (cuda/ReduceArgMaxKernel.cu and its like)."""
    return staging(args[0], _dims(args), args[0].itemsize, 16)


def _moments(args: Any, result: Any) -> int:
    """The buffer where blocks meet, of mean, squares and two counts (cuda/ReduceMomentKernel.cu, ``WelfordData``)."""
    x = args[0]
    return staging(x, _dims(args), x.itemsize, 32 if x.itemsize > 4 else 16)


def _logic(args: Any, result: Any) -> int:
    """A copy as truth values, and the buffer where blocks meet.

    Source: cuda/ReduceLogicKernel.cu; ReduceOps.cpp, ``get_allany_iter``.
    """
    x = args[0]
    cast = int(x.numel()) if x.dtype not in (torch.bool, torch.uint8) else 0
    return cast + staging(x, _dims(args), 1, 1)


def _log_sum_exp(args: Any, result: Any) -> int:
    """Exponentials of differences to the maxima, and the buffer of their sum: ReduceOps.cpp, ``logsumexp_out_impl``."""
    x = args[0]
    return nbytes(x) + nbytes(result) + staging(x, _dims(args), x.itemsize, max(4, x.itemsize))


def _norms(args: Any, result: Any) -> int:
    """A number for each chunk of the longest of the tensors, for all of them.

    Source: cuda/ForeachReduceOp.cu, ``foreach_tensor_norm_cuda``.
    """
    (tensors, *_) = args
    chunks = max((-(-tensor.numel() // CHUNK) for tensor in tensors), default=0)
    return int(len(tensors) * chunks * max(4, *(tensor.itemsize for tensor in tensors)))


def _scan(args: Any, result: Any) -> int:
    """The operand in order, and cast (cuda/ScanUtils.cuh, ``scan_dim``; ReduceOps.cpp, ``impl_func_cum_ops``)."""
    x = args[0]
    return copies(x) if x.dtype == result.dtype else int(x.numel()) * int(result.itemsize)


# -- sorting -----------------------------------------------------------------------------------------


def _sort(args: Any, result: Any) -> int:
    """None for up to 4,096 keys in a row, which a block sorts in place. sort(x, dim), sort(x, stable=, dim=).

    More are sorted by cub, which keeps a second buffer of keys and indices, from indices that are counted up; up to
    127 rows as one, with the number of the row beside each index. Not along the last dimension all are copied.
    Source: cuda/Sort.cpp, ``sort_cuda_kernel``; cuda/Sort.cu, ``launch_stable_sort_kernel``.
    """
    x = args[0]
    dim = int(args[1] if len(args) > 1 and isinstance(args[1], int) else -1) % max(1, x.dim())
    return _sorted(x, dim)


def _sorted(x: Any, dim: int) -> int:
    length = x.shape[dim] if x.dim() else 1
    if length <= SMALL_SORT:
        return 0
    rows, key = x.numel() // length, x.itemsize
    if rows == 1 or length >= LONG_SORT:
        scratch = length * (2 * INDEX + key)
    elif rows < FULL_SORT:
        scratch = x.numel() * (3 * INDEX + 2 * key)
    else:
        scratch = x.numel() * (2 * INDEX + key)
    if x.stride(dim) != 1:
        scratch += x.numel() * (2 * key + INDEX)
    return int(scratch)


def _top_k(args: Any, result: Any) -> int:
    """What is found is sorted in place, or where it is long, as `_sort` does (cuda/TensorTopK.cpp)."""
    values, indices = result
    dim = int(args[2] if len(args) > 2 else -1) % max(1, values.dim())
    if not values.dim() or values.shape[dim] <= SMALL_SORT:
        return 0
    return nbytes(values) + nbytes(indices) + _sorted(values, dim)


# -- indices -----------------------------------------------------------------------------------------


def _index_put(args: Any, result: Any) -> int:
    """With accumulation the indices are made one number each and sorted with their order: six vectors of them, four
    where one pass of the sort is enough. Masks become indices first; what is added is put in order.

    index_put(x, indices, values, accumulate). Source: cuda/Indexing.cu, ``index_put_with_sort_kernel``; cub keeps a
    second buffer of keys and values (dispatch_radix_sort.cuh, ``InvokeOnesweep``); IndexingUtils.h, ``expandTensors``.
    """
    x, indices, values = args[:3]
    scratch = mask_indices(args, result)
    if len(args) < 4 or not args[3]:
        return scratch
    given = [index for index in indices if index is not None]
    first = next(number for number, index in enumerate(indices) if index is not None)
    if any(_is_mask(index) for index in given):
        count = int(values.shape[first]) if values.dim() > first else 1
    else:
        count = prod(torch.broadcast_shapes(*(tuple(index.shape) for index in given)))
    dims = sum(index.dim() if _is_mask(index) else 1 for index in given)
    rows = prod(x.shape[first : first + dims])
    passes = -(-max(1, int(rows).bit_length()) // RADIX_BITS)
    slices = x.numel() // max(1, rows)
    added = count * slices * x.itemsize if values.numel() < count * slices else copies(values)
    return scratch + 8 * count * (6 if passes > 1 else 4) + added + copies(x)


def mask_indices(args: Any, result: Any) -> int:
    """Masks become a vector of indices for each of their dimensions. Source: IndexingUtils.h, ``expandTensors``.

    How many there are is the extent of what is read, or written, where the indices stand.
    """
    masks = [index for index in args[1] if index is not None and _is_mask(index)]
    if not masks:
        return 0
    first = next(number for number, index in enumerate(args[1]) if index is not None)
    values = args[2] if len(args) > 2 else result
    return sum(int(mask.dim()) for mask in masks) * int(values.shape[first]) * 8 if values.dim() > first else 0


def _is_mask(index: Any) -> bool:
    return bool(index.dtype in (torch.bool, torch.uint8))


def _masked_select(args: Any, result: Any) -> int:
    """A vector of indices for each dimension (cuda/IndexKernel.cpp, ``masked_select_out_cuda_impl``)."""
    x, mask = args[:2]
    return int(8 * max(x.dim(), mask.dim()) * result.numel())


SUMS = (
    aten.sum.default,
    aten.sum.dim_IntList,
    aten.nansum.default,
    aten.mean.default,
    aten.mean.dim,
    aten.prod.default,
    aten.prod.dim_int,
)

SCRATCH: dict[Any, Callable[[Any, Any], int]] = {
    **dict.fromkeys(SUMS, _sum),
    **dict.fromkeys((aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim), _norm),
    **dict.fromkeys((aten.amax.default, aten.amin.default, aten.max.default, aten.min.default), _extreme),
    **dict.fromkeys((aten.argmax.default, aten.argmin.default, aten.max.dim, aten.min.dim), _extreme_where),
    **dict.fromkeys(
        (aten.var.correction, aten.std.correction, aten.var_mean.correction, aten.std_mean.correction), _moments
    ),
    **dict.fromkeys((aten.any.default, aten.any.dim, aten.all.default, aten.all.dim), _logic),
    **dict.fromkeys((aten.cumsum.default, aten.cumprod.default), _scan),
    aten.logsumexp.default: _log_sum_exp,
    aten._foreach_norm.Scalar: _norms,
    aten.sort.default: _sort,
    aten.topk.default: _top_k,
    aten.index_put.default: _index_put,
    aten.index_put_.default: _index_put,
    aten.masked_select.default: _masked_select,
}
"""(arguments, result) -> bytes of scratch."""
