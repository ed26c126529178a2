"""Sequences of different lengths in one tensor without padding, as PyTorch packs and pads them.

PyTorch reads the lengths below its dispatcher, where hollow tensors have none. The ops are those of
aten/src/ATen/native/PackedSequence.cpp, asked for from here with lengths that are known.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch

RECURRENT = frozenset({torch._VF.lstm, torch._VF.gru, torch._VF.rnn_tanh, torch._VF.rnn_relu})
"""What `torch.nn` calls; of packed sequences the second argument says how many go on at each step."""

PACK, PAD = torch._VF._pack_padded_sequence, torch._VF._pad_packed_sequence


def is_packed(args: Any) -> bool:
    """True if a recurrent layer is called with packed sequences."""
    return isinstance(args[1], torch.Tensor) and args[1].dtype == torch.int64 and args[1].device.type == "cpu"


def sizes_of(lengths: list[int]) -> list[int]:
    """Return how many sequences go on at each step; *lengths* fall."""
    return [sum(length > step for length in lengths) for step in range(lengths[0])]


def pack(x: torch.Tensor, lengths: list[int], batch_first: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `PACK` returns: all steps of all sequences, step by step, and `sizes_of`.

    Raises:
        ValueError: the lengths rise, one is not positive, or there are more or fewer than sequences.
    """
    if min(lengths, default=0) < 1 or lengths != sorted(lengths, reverse=True):
        raise ValueError("lengths of packed sequences are positive and fall, unless enforce_sorted=False")
    if len(lengths) != x.shape[0 if batch_first else 1]:
        raise ValueError(f"{len(lengths)} lengths for {x.shape[0 if batch_first else 1]} sequences")
    sizes = sizes_of(lengths)
    return _packed(x, sizes, batch_first), torch.tensor(sizes)


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, sizes: list[int], batch_first: bool) -> torch.Tensor:
        ctx.shape, ctx.sizes, ctx.batch_first = x.shape, sizes, batch_first
        steps = x.transpose(0, 1) if batch_first else x
        parts = [steps[begin:end, :size].contiguous().view(-1, *x.shape[2:]) for begin, end, size in _runs(sizes)]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (grad,) = grads
        first, second, *rest = ctx.shape
        steps = grad.new_zeros((second, first, *rest) if ctx.batch_first else (first, second, *rest))
        begin = 0
        for step, size in enumerate(ctx.sizes):
            steps[step][:size].copy_(grad[begin : begin + size])
            begin += size
        return steps.transpose(0, 1) if ctx.batch_first else steps, None, None


_packed: Callable[..., torch.Tensor] = _Pack.apply


def pad(
    data: torch.Tensor, sizes: list[int], batch_first: bool, value: float, total: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `PAD` returns: the sequences padded to *total* steps with *value*, and their lengths."""
    padded = data.new_full((max(total, len(sizes)), sizes[0], *data.shape[1:]), value)
    offset = 0
    for begin, end, size in _runs(sizes):
        count = size * (end - begin)
        part = data[offset : offset + count].view(end - begin, size, *data.shape[1:])
        padded[begin:end][:, :size].copy_(part)
        offset += count
    lengths = torch.tensor([sum(size > place for size in sizes) for place in range(sizes[0])])
    return padded.transpose(0, 1) if batch_first else padded, lengths


def _runs(sizes: list[int]) -> list[tuple[int, int, int]]:
    """Return (first step, last step + 1, size) of each run of steps of the same size."""
    runs, begin = [], 0
    for size, steps in groupby(sizes):
        end = begin + len(list(steps))
        runs.append((begin, end, size))
        begin = end
    return runs
