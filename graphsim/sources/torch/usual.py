"""What one training step does where the user wrote none: the usual one, or that of a LightningModule."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from graphsim.errors import CaptureError
from graphsim.sources.torch.optimizers import each
from graphsim.step.precision import precision_of
from graphsim.step.training import Training


class UsualStep:
    """The usual step of *training*. The model's output goes when the loss is known; the loss stays to the end.

    A LightningModule says its loss itself, and a Trainer resets the gradients before the backward pass.
    """

    def __init__(self, training: Training, loss: Callable[..., Any] | None, *, lightning: bool = False) -> None:
        self.training, self.loss, self.lightning = training, loss, lightning
        self.arity = 1 if loss is None else _arity(loss)
        self.zero_grad = "before-backward" if lightning else training.zero_grad
        self.precision = precision_of(training.precision)
        self.scaler: Any = None  # made in the first step: on which device is then known

    def __call__(self, model: Any, batch: Any, optimizer: Any) -> Any:
        """Do one step; without an optimizer there is no update."""
        if self.training.mode == "inference":
            with torch.no_grad():
                return call(model, batch)
        device = next(model.parameters()).device.type if self.precision.autocast else ""
        if self.precision.loss_scaling and self.scaler is None:
            self.scaler = torch.amp.GradScaler(device)
        self._reset("before-forward", model, optimizer)
        for micro in range(self.training.accumulation):
            with self._autocast(device):
                value = self._forward(model, batch)
            if self.training.mode == "evaluation":
                return value
            if self.training.accumulation > 1:
                value = value / self.training.accumulation
            if micro == 0:
                self._reset("before-backward", model, optimizer)
            (self.scaler.scale(value) if self.scaler else value).backward()
        self._update(optimizer)
        self._reset("after-step", model, optimizer)
        return None

    def _autocast(self, device: str) -> Any:
        low = self.precision.autocast
        return torch.autocast(device, dtype=getattr(torch, low)) if low else nullcontext()

    def _forward(self, model: Any, batch: Any) -> Any:
        if self.lightning:
            return _lightning_loss(model, batch)
        output = call(model, batch)
        if self.loss is None:
            return _plain_loss(output)
        return self.loss(output) if self.arity == 1 else self.loss(output, batch)

    def _reset(self, place: str, model: Any, optimizer: Any) -> None:
        if place == self.zero_grad:
            for owner in each(optimizer) or [model]:
                owner.zero_grad(set_to_none=self.training.set_to_none)

    def _update(self, optimizer: Any) -> None:
        for one in each(optimizer):
            if self.scaler:
                self.scaler.step(one)
            else:
                one.step()
        if self.scaler:
            self.scaler.update()


def call(model: Any, batch: Any) -> Any:
    """Return what *model* makes of *batch*: keyword arguments, arguments or the one argument."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, list | tuple) else model(batch)


def _arity(function: Callable[..., Any]) -> int:
    """Return how many operands a loss function wants: the output, or output and batch."""
    if isinstance(function, nn.Module):
        return 2
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        wanted = inspect.signature(function).parameters.values()
    except ValueError:  # a function written in C, such as torch.sum
        return 1
    return min(2, sum(p.kind in kinds and p.default is p.empty for p in wanted)) or 1


def _plain_loss(output: Any) -> torch.Tensor:
    """Return the output's loss; else the output if it is a scalar; else the mean of its first floating tensor."""
    named: torch.Tensor | None = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if named is not None:
        return named
    tensor = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point())
    return tensor if tensor.dim() == 0 else tensor.mean()


def is_lightning(model: Any) -> bool:
    """True for a model with a training step and optimizers of its own, as a LightningModule has."""
    return callable(getattr(model, "training_step", None)) and callable(getattr(model, "configure_optimizers", None))


def configured(model: Any) -> Any:
    """Return the optimizer of ``model.configure_optimizers()``, or a list of several, in any form that Lightning takes.

    Raises:
        CaptureError: there are several, and the model leaves it to a Trainer to step them.
    """
    made = model.configure_optimizers()
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], list | tuple):
        made = made[0]
    made = [made] if isinstance(made, Mapping) or not isinstance(made, list | tuple) else list(made)
    made = [one["optimizer"] if isinstance(one, Mapping) else one for one in made]
    if len(made) != 1 and getattr(model, "automatic_optimization", True):
        reason = "several optimizers need automatic_optimization = False, as in Lightning itself"
        raise CaptureError(f"{type(model).__name__}: {reason}")
    return made[0] if len(made) == 1 else made


def manual_step(model: Any, batch: Any, optimizer: Any) -> None:
    """Run the training step of a LightningModule that steps its optimizers itself (``automatic_optimization = False``).

    ``self.optimizers()``, ``self.manual_backward(loss)`` and the toggles, which ask a Trainer, answer for it.
    """
    made = each(optimizer)
    stand_in: dict[str, Any] = {
        "optimizers": lambda *_, **__: made[0] if len(made) == 1 else made,
        "manual_backward": lambda loss, *given, **named: loss.backward(*given, **named),
        "toggle_optimizer": lambda one: _toggle(model, one, made),
        "untoggle_optimizer": lambda one: _toggle(model, None, made),
        "lr_schedulers": lambda: None,
    }
    with patch.multiple(model, create=True, **stand_in):
        model.training_step(batch, 0)


def _toggle(model: Any, one: Any, made: list[Any]) -> None:
    """Let only the parameters of *one* require gradients; of all, if it is None."""
    for other in made:
        for parameter in (p for group in other.param_groups for p in group["params"]):
            parameter.requires_grad_(one is None or other is one)


def _lightning_loss(model: Any, batch: Any) -> Any:
    result = model.training_step(batch, 0)
    loss = result["loss"] if isinstance(result, Mapping) else result
    if loss is None:
        raise CaptureError(f"{type(model).__name__}.training_step returns no loss")
    return loss
