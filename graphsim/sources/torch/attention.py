"""``scaled_dot_product_attention`` on CUDA: which kernel runs, asked for in Python where a CPU build cannot ask.

PyTorch chooses the kernel in C++ code of the CUDA build. Sources: aten/src/ATen/native/transformers/attention.cpp
(``scaled_dot_product_attention``, ``preprocess_mask``, ``pad_last_dim``) and cuda/sdp_utils.cpp (the constraints).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import sqrt
from typing import Any
from unittest.mock import patch

import torch
from torch.backends import cuda as enabled
from torch.nn import functional
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from graphsim.sources.torch.cudnn_rnn import acceptable, recur

aten = torch.ops.aten

Capability = tuple[int, int]

FLASH_WIDTH = 8
"""Head widths of flash attention are padded to a multiple of this."""

MASK_ALIGNMENT = 16
"""Rows of a mask for memory-efficient attention begin at a multiple of this, in elements."""


class CudaAttention(TorchFunctionMode):
    """Answers attention and recurrent layers of CUDA tensors with the kernel that a device would run."""

    def __init__(self, capability: Capability) -> None:
        super().__init__()
        self.capability = capability

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            return self._answer(*args, **kwargs)
        if acceptable(func, args):
            return recur(func, args)
        if func is functional.multi_head_attention_forward:  # it calls attention where the mode is off
            with patch.object(functional, "scaled_dot_product_attention", self._answer):
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _answer(self, query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if query.is_cuda:
            return attend(self.capability, query, *args, **kwargs)
        result: torch.Tensor = scaled_dot_product_attention(query, *args, **kwargs)
        return result

    @contextmanager
    def in_backward(self) -> Iterator[None]:
        """Keep the mode on while the engine runs: there a checkpoint runs forward code.

        ``backward`` is a function that modes answer, and while a mode answers it is off.
        """
        engine: Any = torch.autograd
        original = engine._engine_run_backward

        def run(*args: Any, **kwargs: Any) -> Any:
            with self:
                return original(*args, **kwargs)

        with patch.object(engine, "_engine_run_backward", run):
            yield


def attend(
    capability: Capability,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Return what scaled_dot_product_attention returns, computed by the kernel of `choose`."""
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = (t.to(dtype) if t.is_floating_point() else t for t in (query, key, value))
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(dtype)
    with torch.autocast("cuda", enabled=False):
        kernel = choose(capability, query, key, value, attn_mask, enable_gqa)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.where(attn_mask, 0.0, -torch.inf).to(query.dtype)
        if kernel == "flash":
            return _flash(query, key, value, dropout_p, is_causal, scale)
        if kernel == "efficient":
            bias = None if attn_mask is None else _aligned(attn_mask).expand(*query.shape[:3], key.shape[2])
            differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
            result: torch.Tensor = aten._scaled_dot_product_efficient_attention(
                query, key, value, bias, differentiated, dropout_p, is_causal, scale=scale
            )[0]
        else:
            result = aten._scaled_dot_product_attention_math(
                query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
            )[0]
        return result


def choose(
    capability: Capability,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    grouped: bool,
) -> str:
    """Return 'flash', 'efficient' or 'math'. cuDNN's kernel saves what flash attention saves.

    Flash: 16 bit, sm80 or later, no mask, one head width of at most 256. Memory-efficient: as many heads
    of keys as of queries, no bf16 before sm80. Both: four dimensions, the last one in order, not empty.
    """
    fused = query.dim() == 4 and all(t.stride(-1) == 1 and t.numel() for t in (query, key, value))
    half = query.dtype in (torch.float16, torch.bfloat16)
    same_heads = query.shape[1] == key.shape[1] == value.shape[1] if query.dim() == 4 else False
    width = query.shape[-1]
    ampere = capability >= (8, 0)
    flash = half and ampere and mask is None and width == value.shape[-1] <= 256 and (same_heads or grouped)
    if fused and flash and enabled.flash_sdp_enabled():
        return "flash"
    efficient = same_heads and query.dtype != torch.float64 and (ampere or query.dtype != torch.bfloat16)
    learned = mask is not None and mask.requires_grad and capability < (8, 0) and query.dtype == torch.bfloat16
    allowed = enabled.mem_efficient_sdp_enabled()
    return "efficient" if fused and efficient and not learned and allowed else "math"


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, p: float, causal: bool, scale: float | None
) -> torch.Tensor:
    width = query.shape[-1]
    extra = -width % FLASH_WIDTH
    if extra:
        query, key, value = (pad(t, (0, extra)) for t in (query, key, value))
    scale = 1 / sqrt(width) if scale is None else scale
    result: torch.Tensor = aten._scaled_dot_product_flash_attention(query, key, value, p, causal, False, scale=scale)[0]
    return result[..., :width] if extra else result


def _aligned(mask: torch.Tensor) -> torch.Tensor:
    """Copy a mask whose rows are not aligned into one whose rows are, and return the part that counts."""
    columns = mask.shape[-1]
    aligned = all(stride % MASK_ALIGNMENT == 0 for stride in mask.stride()[:-1]) and mask.stride(-1) == 1
    return mask if aligned else pad(mask, (0, -columns % MASK_ALIGNMENT))[..., :columns]
