"""Reductions on CUDA: where threads of several blocks sum one output, they meet in a buffer of the allocator.

Source: aten/src/ATen/native/cuda/Reduce.cuh, ``setReduceConfig`` and ``ReduceConfig::global_memory_size``. The buffer
has a place for every output and block that shares it, once for each output of a row of the block's threads: where
threads stand side by side on outputs (a bias's gradient, summed over rows) it may be larger than what is summed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod
from typing import NamedTuple

from graphsim.core.graph import Tensor
from graphsim.step.ops.tape import Tape, Type
from graphsim.units import itemsize

THREADS = 512
"""Of a block, at most (``mnt_wrapper::MAX_NUM_THREADS``)."""

WARP = 32
MIN_VALUES, MAX_VALUES = 16, 256
"""Values that a thread sums before blocks share an output (``min_values_per_thread``, ``max_values_per_thread``)."""

_FEWER_THREADS = {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536, (12, 0): 1536, (12, 1): 1536}


def resident_threads(capability: tuple[int, int]) -> int:
    """Return the threads that a multiprocessor holds (CUDA C++ Programming Guide, specifications by capability)."""
    return _FEWER_THREADS.get(capability, 2048)


class Dimension(NamedTuple):
    """A dimension of what is reduced: its extent and its stride in elements."""

    extent: int
    stride: int


def strides_in_order(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a tensor in order."""
    return tuple(prod(shape[number + 1 :]) for number in range(len(shape)))


def reduction_scratch(
    shape: Sequence[int],
    strides: Sequence[int],
    reduced: Collection[int],
    width: int,
    accumulator: int,
    processors: int,
    threads: int,
) -> int:
    """Return the bytes of the buffer; 0 where none is needed.

    The counters by which the last block is known, 4 bytes each, lie in a small block of their own, and are not counted.

    Args:
        reduced: the dimensions that are summed.
        width: bytes of an element of the operand.
        accumulator: bytes of what a thread carries (``arg_t``).
        processors: multiprocessors of the device.
        threads: what each of them holds, see `resident_threads`.
    """
    dimensions = [(n in reduced, Dimension(shape[n], strides[n])) for n in reversed(range(len(shape)))]
    summed = _merged(sorted((one for gone, one in dimensions if gone), key=lambda one: one.stride))
    kept = _merged([one for gone, one in dimensions if not gone])
    outputs, inputs = prod(d.extent for d in kept), prod(d.extent for d in summed)
    if inputs < MAX_VALUES or not outputs:
        return 0
    along = not kept or summed[0].stride < kept[0].stride
    wide, high, vector = (inputs, outputs, 1) if along else (outputs, inputs, 1)
    if (summed[0] if along else kept[0]).stride == 1:
        if along and wide >= 128 and len(summed) == 1:
            wide //= 8 if width == 2 else 4
        elif not along:
            vector = _vector(summed, kept)
            wide //= vector
    across, up = _block(wide, high, THREADS // vector)
    blocks_along, sharing = (1, across) if along else (across, 1)
    values = -(-inputs // sharing)
    if values < min(up * 16, MAX_VALUES):
        return 0
    values = -(-values // up)
    grid = -(-(outputs // vector) // blocks_along)
    target = processors * (threads // (across * up))
    if values < MAX_VALUES or grid > target:
        return 0
    shared = max(min(-(-target // grid), -(-values // MIN_VALUES)), -(-values // MAX_VALUES))
    if shared == 1:
        return 0
    return accumulator * outputs * shared * (1 if along else across * vector)


def _block(wide: int, high: int, most: int) -> tuple[int, int]:
    """Return the extents of a block of at most so many threads (``set_block_dimension``)."""
    wide, high = (_power(extent) if extent < most else most for extent in (wide, high))
    across = min(wide, WARP)
    up = min(high, most // across)
    return min(wide, most // up), up


def _power(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1)


def _vector(summed: Sequence[Dimension], kept: Sequence[Dimension]) -> int:
    """Return the neighbouring outputs of a thread (``get_output_vec_size``)."""
    numbers = [kept[0].extent, *(d.stride for d in (*summed, *kept[1:]))]
    return next(size for size in (4, 2, 1) if all(number % size == 0 for number in numbers))


def _merged(dimensions: Sequence[Dimension]) -> list[Dimension]:
    """Return *dimensions*, innermost first, with those that lie one after the other made one."""
    merged: list[Dimension] = []
    for one in dimensions:
        if one.extent == 1:
            continue
        if merged and merged[-1].extent * merged[-1].stride == one.stride:
            merged[-1] = Dimension(merged[-1].extent * one.extent, merged[-1].stride)
        else:
            merged.append(one)
    return merged


def staging(tape: Tape, shape: tuple[int, ...], result: Type) -> int:
    """Return the scratch of a sum or mean of a tensor in order over the dimensions that *result* lacks or has as 1."""
    if tape.target != "cuda":
        return 0
    threads = resident_threads(tape.capability)
    width, reduced = itemsize(result.dtype), _reduced(shape, result.shape)
    return reduction_scratch(shape, strides_in_order(shape), reduced, width, max(4, width), tape.processors, threads)


def _reduced(shape: tuple[int, ...], left: tuple[int, ...]) -> frozenset[int]:
    """Return the dimensions of *shape* that are not *left*, matched from the last one on."""
    kept, reduced = list(left), set()
    for number in reversed(range(len(shape))):
        if kept and kept[-1] == shape[number]:
            kept.pop()
        else:
            reduced.add(number)
            if kept and kept[-1] == 1 and len(kept) > number:
                kept.pop()
    return frozenset(reduced)


def emit_sum(tape: Tape, x: Tensor, type_: Type) -> Tensor:
    """Sum *x*, a tensor in order, over the dimensions that *type_* lacks or has as 1."""
    return tape.emit("sum", (x,), type_, flops=x.size, workspace=staging(tape, x.shape, type_))
