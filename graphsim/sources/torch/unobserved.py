"""Backward formulas that PyTorch leaves for others while a dispatch mode is active, asked for as in the real step.

Source: torch/csrc/autograd/FunctionsManual.cpp, where ``areAnyTensorSubclassLike`` chooses. Names keep alive what C++
keeps to the end of an expression or of the function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Tensor = torch.Tensor


class _Cumprod(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        product = torch.cumprod(x, dim)
        ctx.save_for_backward(x, product)
        ctx.dim = dim
        return product

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """``cumprod_backward``."""
        (grad,), (x, product), dim = grads, ctx.saved_tensors, ctx.dim
        if x.numel() <= 1:
            return grad, None
        weighted = product * grad
        zeros = x == 0
        zeros.any()
        flipped = weighted.flip(dim)
        sums = flipped.cumsum(dim)
        reversed_sums = sums.flip(dim)
        del flipped, sums
        return reversed_sums.div(x), None


class _Extreme(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        value = reduce(x)
        ctx.save_for_backward(x, value)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """``evenly_distribute_backward`` on the CPU; on CUDA it is the same with and without a mode."""
        (grad,), (x, value) = grads, ctx.saved_tensors
        value.isnan()
        mask = x == value
        return grad.new_zeros(x.shape).masked_fill_(mask, grad / mask.sum()), None


def _cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Any:
    apply: Callable[..., Any] = _Cumprod.apply
    return apply(x if dtype is None else x.to(dtype), dim)


def _reduced(reduce: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Tensor, *args: Any, **options: Any) -> Any:
        if args or options or x.is_cuda or not (x.requires_grad and torch.is_grad_enabled()):
            return reduce(x, *args, **options)
        apply: Callable[..., Any] = _Extreme.apply
        return apply(x, reduce)

    return run


ANSWERS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((torch.cumprod, Tensor.cumprod), _cumprod),
    **{getattr(place, name): _reduced(getattr(torch, name)) for place in (torch, Tensor) for name in ("max", "min")},
    **{place.median: _reduced(torch.median) for place in (torch, Tensor)},
}
"""Functions of PyTorch, and what answers for them."""

ASSUMED: dict[Any, str] = {
    **dict.fromkeys((torch.cumprod, Tensor.cumprod), "cumprod is differentiated as for factors without a zero"),
    **dict.fromkeys((torch.prod, Tensor.prod), "prod is differentiated as for factors with a zero"),
}
"""What is assumed where the way back depends on the numbers."""
