"""Optimizers of other packages, by what their update allocates: they run on hollow tensors, not on numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from graphsim.errors import UsageError
from graphsim.step.optimizers.eightbit import BLOCK, SMALLEST


@torch.library.custom_op("graphsim::optimizer_update", mutates_args=("parameter", "states"))
def optimizer_update(parameter: torch.Tensor, grad: torch.Tensor, states: list[torch.Tensor]) -> None:
    """Stand for a kernel of bitsandbytes that updates a parameter and its states in registers."""
    raise NotImplementedError


@optimizer_update.register_fake
def _(parameter: Any, grad: Any, states: Any) -> None:
    return None


class _Own(torch.optim.Optimizer):
    """An optimizer whose states are made in its first step."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update each parameter that has a gradient."""
        loss = None if closure is None else closure()
        for parameter in self._with_gradients():
            self.update(parameter, self.state[parameter])
        return loss

    def _with_gradients(self) -> Iterator[Any]:
        for group in self.param_groups:
            yield from (p for p in group["params"] if p.grad is not None)

    def update(self, parameter: Any, state: dict[str, Any]) -> None:
        """Update one parameter; *state* is empty in the first step."""
        raise NotImplementedError


class Lion(_Own):
    """lion-pytorch 0.2, lion_pytorch/lion_pytorch.py, ``update_fn`` (Chen et al., 2023)."""

    def update(self, parameter: Any, state: dict[str, Any]) -> None:
        """Update by the sign of an average of gradients."""
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        average = state["exp_avg"]
        parameter.mul_(1 - 1e-5)
        change = average.clone().mul_(0.9).add(parameter.grad, alpha=0.1).sign_()
        parameter.add_(change, alpha=-1e-3)
        average.mul_(0.99).add_(parameter.grad, alpha=0.01)


class Adam8bit(_Own):
    """bitsandbytes 0.50, optim/optimizer.py, Optimizer2State on CUDA; see `graphsim.step.optimizers.eightbit`."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters)
        self._books: list[torch.Tensor] = []

    def update(self, parameter: Any, state: dict[str, Any]) -> None:
        """Update in one kernel; parameters of few elements have fp32 states."""
        if not parameter.is_cuda:
            raise UsageError(
                "adam8bit of a captured model is for target cuda: bitsandbytes' code for the CPU is another"
            )
        small = parameter.numel() < SMALLEST
        if not small and not self._books:
            self._books = [torch.empty(256, device=parameter.device) for _ in range(2)]
        if not state:
            dtype = torch.float32 if small else torch.uint8
            blocks = -(-parameter.numel() // BLOCK)
            for number in (1, 2):
                state[f"state{number}"] = torch.zeros_like(parameter, dtype=dtype)
                if not small:
                    state[f"absmax{number}"] = torch.zeros(blocks, dtype=torch.float32, device=parameter.device)
        optimizer_update(parameter, parameter.grad, [*state.values(), *([] if small else self._books)])
