"""Low-rank adapters (Hu et al., 2021) as peft lays them out and runs them; peft itself is not needed.

Every linear layer gets one but the head of a language model (peft's ``target_modules="all-linear"``), of rank *rank*,
without dropout; all other parameters are frozen. Adapters are in fp32 whatever the model is in
(``autocast_adapter_dtype``, on by default). Sources: peft/tuners/lora/layer.py, bnb.py; peft/tuners/tuners_utils.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from graphsim.errors import UsageError
from graphsim.sources.torch.quantized import Linear4bit, Linear8bit, head_of, linear_sizes, replace_modules


def add_adapters(model: nn.Module, rank: int) -> None:
    """Freeze *model* and add an adapter to each of its linear layers.

    Raises:
        UsageError: it has none.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    head = head_of(model)

    def adapted(module: nn.Module) -> nn.Module | None:
        sizes = linear_sizes(module)
        return None if sizes is None or module is head else LoraLinear(module, *sizes, rank)

    if not replace_modules(model, adapted):
        raise UsageError(f"--lora {rank}: {type(model).__name__} has no linear layer to add an adapter to")


class LoraLinear(nn.Module):
    """A linear layer, and what is added to its output."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inputs, rank, bias=False, dtype=torch.float32)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, outputs, bias=False, dtype=torch.float32)})
        self.scaling = 1.0

    @property
    def weight(self) -> Any:
        """The weight of the base layer, which some models look at."""
        return self.base_layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the base layer's output plus the adapter's."""
        quantized = isinstance(self.base_layer, Linear4bit | Linear8bit)
        return self._beside_quantized(x) if quantized else self._beside_plain(x)

    def _beside_plain(self, x: torch.Tensor) -> torch.Tensor:
        """peft/tuners/lora/layer.py, Linear.forward: the sum is in the wider dtype, then cast."""
        result: torch.Tensor = self.base_layer(x)
        dtype = result.dtype
        lora_a: Any = self.lora_A["default"]
        lora_b: Any = self.lora_B["default"]
        x = x.to(lora_a.weight.dtype)
        result = result + lora_b(lora_a(x)) * self.scaling
        return result.to(dtype)

    def _beside_quantized(self, x: torch.Tensor) -> torch.Tensor:
        """peft/tuners/lora/bnb.py, forward of Linear8bitLt and Linear4bit, which copies the base layer's output."""
        result: torch.Tensor = self.base_layer(x)
        if isinstance(self.base_layer, Linear4bit):
            result = result.clone()
        lora_a: Any = self.lora_A["default"]
        lora_b: Any = self.lora_B["default"]
        convert = not torch.is_autocast_enabled()
        if convert:
            dtype = result.dtype
            x = x.to(lora_a.weight.dtype)
        output: torch.Tensor = lora_b(lora_a(x)) * self.scaling
        if convert:
            output = output.to(dtype)
        return result + output
