"""Checkpointing of a model's blocks: by the model's own switch, or each of the modules that repeat."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from graphsim.errors import UsageError


def checkpoint_blocks(model: Any, *, adapted: bool = False) -> None:
    """Run each block of *model* again in its backward pass.

    Models of transformers have a switch (``gradient_checkpointing_enable``); peft then makes the embeddings' output
    require a gradient (peft/peft_model.py, ``_prepare_model_for_gradient_checkpointing``), for *adapted* models.

    Raises:
        UsageError: the model has neither the switch nor blocks that repeat.
    """
    if getattr(model, "supports_gradient_checkpointing", False):
        model.gradient_checkpointing_enable()
        if adapted and hasattr(model, "enable_input_require_grads"):
            model.enable_input_require_grads()
        return
    found = blocks(model)
    if not found:
        name = type(model).__name__
        raise UsageError(f"--grad-checkpointing: {name} has no list of blocks of one class; checkpoint in its forward")
    for block in found:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the modules that repeat: those of one class, with modules of their own, in one list or sequence.

    The model itself may be that. Blocks inside of blocks are left out.
    """
    if isinstance(model, nn.ModuleList | nn.Sequential) and (repeated := _repeated(model)):
        return repeated
    return [block for child in model.children() for block in blocks(child)]


def _repeated(container: nn.Module) -> list[nn.Module]:
    children = [child for child in container.children() if next(child.children(), None) is not None]
    kinds = [type(child) for child in children]
    return [child for child in children if kinds.count(type(child)) > 1]
