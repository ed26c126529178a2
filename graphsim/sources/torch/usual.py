"""What one training step does where the user wrote none: the usual one, or that of a LightningModule."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from graphsim.errors import CaptureError


def default_step(loss: Callable[..., Any] | None) -> Any:
    """Return the usual step. The model's output goes when the loss is known; the loss stays to the end."""
    arity = 1 if loss is None else _arity(loss)

    def forward(model: Any, batch: Any) -> Any:
        output = call(model, batch)
        return _plain_loss(output) if loss is None else loss(output) if arity == 1 else loss(output, batch)

    def run(model: Any, batch: Any, optimizer: Any) -> None:
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
        else:
            model.zero_grad(set_to_none=True)
        value = forward(model, batch)
        value.backward()
        if optimizer is not None:
            optimizer.step()

    return run


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
    """Return the optimizer of ``model.configure_optimizers()``, in any of the forms that Lightning takes.

    Raises:
        CaptureError: there are several, which the model's own code steps.
    """
    made = model.configure_optimizers()
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], list | tuple):
        made = made[0]
    made = [made] if isinstance(made, Mapping) or not isinstance(made, list | tuple) else list(made)
    if len(made) != 1 or not getattr(model, "automatic_optimization", True):
        reason = "its optimizers are stepped by its own code through a Trainer: write step(model, batch, optimizer)"
        raise CaptureError(f"{type(model).__name__}: {reason}")
    return made[0]["optimizer"] if isinstance(made[0], Mapping) else made[0]


def lightning_step(model: Any, batch: Any, optimizer: Any) -> None:
    """Do what a Trainer does for each batch: the closure of ``optimizer.step`` in automatic optimization."""
    result = model.training_step(batch, 0)
    loss = result["loss"] if isinstance(result, Mapping) else result
    if loss is None:
        raise CaptureError(f"{type(model).__name__}.training_step returns no loss")
    if optimizer is not None:
        optimizer.zero_grad()
    loss.backward()
    if optimizer is not None:
        optimizer.step()
