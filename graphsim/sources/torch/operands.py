"""What rules of kernels read of their operands: bytes, dtypes in the words of specs, copies that put them in order."""

from __future__ import annotations

from typing import Any

import torch


def dtype_name(tensor: Any) -> str:
    """Return the dtype of *tensor* as specs call it."""
    return str(tensor.dtype).removeprefix("torch.")


def nbytes(tensor: Any) -> int:
    """Return the bytes that the elements of *tensor* take."""
    return int(tensor.numel()) * int(tensor.itemsize)


def first_in_order(args: Any, result: Any) -> int:
    """The first operand in order.

    Source: ``contiguous`` or ``expect_contiguous`` of it in cuda/layer_norm_kernel.cu, cuda/ReflectionPad.cu,
    cuda/ReplicationPadding.cu, cuda/AveragePool3d.cu, cuda/Col2Im.cu and cudnn/RNN.cpp; of others the same on the CPU.
    """
    return copies(args[0])


def copies(*operands: Any, order: Any = torch.contiguous_format) -> int:
    """Return the bytes of the operands that are not in order, and copied before the kernel proper runs."""
    return sum(
        nbytes(operand)
        for operand in operands
        if operand is not None and not operand.is_contiguous(memory_format=order)
    )
