"""Weights in 4 and 8 bits as bitsandbytes (0.50) lays them out and multiplies with them; it is not needed itself.

What stands in for its kernels are ops that have a shape and no code: a capture runs nothing. Which modules are
quantized is transformers' rule (quantizers/base.py, ``get_keys_to_not_convert``): linear layers but the head, those
whose weight is shared, and the owner of the last parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from graphsim.errors import UsageError

BLOCK, OUTER = 64, 256
"""Weights that share a scale, and scales that do where they are quantized too (functional.py, ``quantize_4bit``)."""
FUSED_ROWS = 4
"""Up to so many rows of input, the product never makes the whole weight (backends/cuda/ops.py, ``gemm_4bit``).

Up to 1536 rows it depends on card and shape; the weight is then taken to be made, which is the most that it needs.
"""


@torch.library.custom_op("graphsim::dequantize_4bit", mutates_args=())
def dequantize_4bit(packed: torch.Tensor, absmax: torch.Tensor, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """Stand for ``bitsandbytes::dequantize_4bit``: one kernel that writes its result and nothing else."""
    raise NotImplementedError


@torch.library.custom_op("graphsim::gemm_4bit", mutates_args=())
def gemm_4bit(x: torch.Tensor, packed: torch.Tensor, absmax: torch.Tensor, outputs: int) -> torch.Tensor:
    """Stand for ``bitsandbytes::gemm_4bit`` where it is one kernel."""
    raise NotImplementedError


@torch.library.custom_op("graphsim::dequantize_blockwise", mutates_args=())
def dequantize_blockwise(codes: torch.Tensor, absmax: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """Stand for ``bitsandbytes::dequantize_blockwise`` to fp32."""
    raise NotImplementedError


@torch.library.custom_op("graphsim::int8_quantize_rows", mutates_args=())
def int8_quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Stand for the kernel ``cint8_vector_quant``: values in 8 bits, and a scale for each row."""
    raise NotImplementedError


@torch.library.custom_op("graphsim::int8_linear_matmul", mutates_args=())
def int8_linear_matmul(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Stand for ``bitsandbytes::int8_linear_matmul``: sums in int32."""
    raise NotImplementedError


@torch.library.custom_op("graphsim::int8_mm_dequant", mutates_args=())
def int8_mm_dequant(sums: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Stand for the kernel ``cdequant_mm_int32_fp16``: its result is in fp16."""
    raise NotImplementedError


@dequantize_4bit.register_fake
def _(packed: Any, absmax: Any, shape: Any, dtype: Any) -> Any:
    return packed.new_empty(shape, dtype=dtype)


@gemm_4bit.register_fake
def _(x: Any, packed: Any, absmax: Any, outputs: int) -> Any:
    return x.new_empty((*x.shape[:-1], outputs))


@dequantize_blockwise.register_fake
def _(codes: Any, absmax: Any, book: Any) -> Any:
    return codes.new_empty(codes.shape, dtype=torch.float32)


@int8_quantize_rows.register_fake
def _(x: Any) -> Any:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[:1], dtype=torch.float32)


@int8_linear_matmul.register_fake
def _(x: Any, weight: Any) -> Any:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=torch.int32)


@int8_mm_dequant.register_fake
def _(sums: Any, rows: Any, columns: Any) -> Any:
    return sums.new_empty(sums.shape, dtype=torch.float16)


def quantize(model: nn.Module, kind: str, *, compute: torch.dtype | None) -> None:
    """Exchange the linear layers of *model* for quantized ones.

    Args:
        kind: 'int8', 'nf4' or 'nf4-double'.
        compute: the dtype in which 4-bit layers multiply (``bnb_4bit_compute_dtype``); None: that of their input.

    Raises:
        UsageError: there is none.
    """
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    head, last = head_of(model), list(model.parameters())[-1:]

    def quantized(module: nn.Module) -> nn.Module | None:
        sizes = linear_sizes(module)
        if sizes is None or module is head or uses[id(module.weight)] > 1 or any(module.weight is p for p in last):
            return None
        bias: Any = module.bias
        weight: Any = module.weight
        if kind == "int8":
            return Linear8bit(*sizes, bias)
        return Linear4bit(*sizes, bias, weight.dtype, compute, double=kind == "nf4-double")

    if not replace_modules(model, quantized):
        raise UsageError(f"--quant {kind}: {type(model).__name__} has no linear layer that bitsandbytes would quantize")


class Linear4bit(nn.Module):
    """``bitsandbytes.nn.Linear4bit``: two weights in a byte, a scale in fp32 for each 64.

    With *double*, scales are 8-bit codes with a scale in fp32 for each 256 (``compress_statistics``).
    """

    def __init__(
        self, inputs: int, outputs: int, bias: Any, dtype: torch.dtype, compute: torch.dtype | None, *, double: bool
    ) -> None:
        super().__init__()
        self.shape, self.dtype, self.compute, self.nested = (outputs, inputs), dtype, compute, double
        packed, scales = -(-inputs * outputs // 2), -(-inputs * outputs // BLOCK)
        self.weight = nn.Parameter(torch.empty(packed, 1, dtype=torch.uint8), requires_grad=False)
        self.bias = bias
        self.register_buffer("absmax", torch.empty(scales, dtype=torch.uint8 if double else torch.float32))
        self.register_buffer("code", torch.empty(16))
        if double:
            self.register_buffer("outer_absmax", torch.empty(-(-scales // OUTER)))
            self.register_buffer("outer_code", torch.empty(256))
            self.register_buffer("offset", torch.empty(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """bitsandbytes/nn/modules.py, Linear4bit.forward, and autograd/_functions.py, matmul_4bit."""
        given = x.dtype
        x = x if self.compute is None else x.to(self.compute)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            product: torch.Tensor = _with_backward(_MatMul4Bit)(x, bias, self)
            return product.to(given)
        return self.product(x, bias).to(given)

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """backends/cuda/ops.py, ``gemm_4bit``, an op below autocast."""
        with torch.autocast(x.device.type, enabled=False):
            if x.numel() // x.shape[-1] <= FUSED_ROWS and x.shape[-1] % BLOCK == 0:
                fused: torch.Tensor = gemm_4bit(x, self.weight, self.absmax, self.shape[0])
                return fused
            return functional.linear(x, self.dequantized(x.dtype), bias)

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight: backends/cuda/ops.py, ``_dequant_linear_fallback``."""
        absmax: Any = self.absmax
        if self.nested:
            absmax = dequantize_blockwise(absmax, self.outer_absmax, self.outer_code) + self.offset
        weight: torch.Tensor = dequantize_4bit(self.weight, absmax, list(self.shape), dtype)
        return weight


def _with_backward(function: Any) -> Callable[..., Any]:
    apply: Callable[..., Any] = function.apply
    return apply


class _MatMul4Bit(torch.autograd.Function):
    """bitsandbytes/autograd/_functions.py, MatMul4Bit: the input is not saved, the weight is made again in backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bias: torch.Tensor | None, layer: Linear4bit) -> torch.Tensor:
        """Return the product."""
        ctx.layer, ctx.bias_dtype = layer, None if bias is None else bias.dtype
        return layer.product(x, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Return the gradients of input and bias. The weight is dequantized to the dtype that it was loaded in."""
        inputs, bias, _ = ctx.needs_input_grad
        layer = ctx.layer
        grad_bias = grad.sum(0, dtype=ctx.bias_dtype) if bias else None
        return torch.matmul(grad, layer.dequantized(layer.dtype).to(grad.dtype)) if inputs else None, grad_bias, None


class Linear8bit(nn.Module):
    """``bitsandbytes.nn.Linear8bitLt`` with 8-bit weights (transformers' ``load_in_8bit``): a scale for each row."""

    def __init__(self, inputs: int, outputs: int, bias: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=torch.int8), requires_grad=False)
        self.bias = bias
        self.register_buffer("SCB", torch.empty(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """bitsandbytes/nn/modules.py, Linear8bitLt.forward."""
        bias = self.bias if self.bias is None or self.bias.dtype == x.dtype else self.bias.to(x.dtype)
        product: torch.Tensor = _with_backward(_MatMul8bit)(x, bias, self)
        return product


class _MatMul8bit(torch.autograd.Function):
    """bitsandbytes/autograd/_functions.py, MatMul8bitLt; no feature of the input is an outlier (above 6.0)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bias: torch.Tensor | None, layer: Linear8bit) -> torch.Tensor:
        """Return the product: values in 8 bits, sums in int32, then fp16, then the input's dtype."""
        shape = x.shape
        x = x.reshape(-1, shape[-1]) if x.dim() == 3 else x
        with torch.autocast(x.device.type, enabled=False):
            codes, rows = _quantized_rows(x.to(torch.float16))
            sums = int8_linear_matmul(codes, layer.weight)
            output = _scaled(sums, rows, layer, bias, x.dtype)
        ctx.layer, ctx.shape, ctx.dtype, ctx.bias_dtype = layer, shape, x.dtype, None if bias is None else bias.dtype
        ctx.x = x if ctx.needs_input_grad[0] else None
        return output.reshape(*shape[:-1], output.shape[-1]) if len(shape) == 3 else output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Return the gradients of input and bias; the weight is made in the input's dtype."""
        inputs, bias, _ = ctx.needs_input_grad
        grad_bias = grad.sum(0, dtype=ctx.bias_dtype) if bias else None
        grad = grad.reshape(-1, grad.shape[-1]).contiguous() if grad.dim() == 3 else grad
        if not inputs:
            return None, grad_bias, None
        layer = ctx.layer
        weight = layer.weight.to(ctx.dtype, copy=True).mul_(layer.SCB.unsqueeze(1).mul(1.0 / 127.0))
        return torch.matmul(grad.to(ctx.dtype), weight).view(ctx.shape), grad_bias, None


def _quantized_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """backends/cuda/ops.py, ``int8_vectorwise_quant``: it first looks for outliers, and finds none."""
    outliers = x.abs() >= 6.0  # noqa: F841 - it lives on while the kernel runs
    made: tuple[torch.Tensor, torch.Tensor] = int8_quantize_rows(x)
    return made


def _scaled(
    sums: torch.Tensor, rows: torch.Tensor, layer: Linear8bit, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """backends/cuda/ops.py, ``int8_mm_dequant``: a bias in another dtype than fp16 is added by a kernel of its own."""
    output: torch.Tensor = int8_mm_dequant(sums, rows, layer.SCB)
    if bias is not None and bias.dtype != torch.float16:
        output.add_(bias)
    return output.to(dtype)


def linear_sizes(module: Any) -> tuple[int, int] | None:
    """Return inputs and outputs of a linear layer (``nn.Linear``, GPT-2's ``Conv1D``, a quantized one), else None."""
    if isinstance(module, Linear4bit):
        return module.shape[1], module.shape[0]
    if isinstance(module, nn.Linear | Linear8bit):
        return module.weight.shape[1], module.weight.shape[0]
    if type(module).__name__ == "Conv1D" and getattr(module, "nf", None):
        return module.weight.shape[0], module.weight.shape[1]
    return None


def head_of(model: Any) -> nn.Module | None:
    """Return the layer of a language model that makes the logits, if it says which that is."""
    found = getattr(model, "get_output_embeddings", None)
    return found() if callable(found) else None


def replace_modules(model: nn.Module, other: Callable[[nn.Module], nn.Module | None]) -> int:
    """Exchange each module for what *other* makes of it, if anything; return how many were.

    What is exchanged is not looked into. ``nn.MultiheadAttention`` reads the weights of its output layer and does not
    call it, so it is left alone.
    """
    count = 0
    for name, child in list(model.named_children()):
        new = other(child)
        if new is not None:
            setattr(model, name, new)
            count += 1
        elif not isinstance(child, nn.MultiheadAttention):
            count += replace_modules(child, other)
    return count
