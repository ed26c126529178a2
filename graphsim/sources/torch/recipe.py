"""What a `Training` does to a model of somebody else's: dtypes, quantized weights, adapters, checkpointing, mode.

The model is changed in place, in the order in which people do it (load, quantize, add adapters, turn checkpointing on),
and is as before afterwards.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from graphsim.errors import UsageError
from graphsim.sources.torch.adapters import add_adapters
from graphsim.sources.torch.blocks import checkpoint_blocks
from graphsim.sources.torch.checks import is_wrapped
from graphsim.sources.torch.optimizers import each
from graphsim.sources.torch.parallel import most_states, with_sharded_states, wrapped
from graphsim.sources.torch.prepare import Exchange, build
from graphsim.sources.torch.quantized import quantize
from graphsim.sources.torch.usual import is_lightning
from graphsim.step.precision import precision_of
from graphsim.step.training import Training, option

OF_THE_STEP = (
    "precision", "mode", "accumulation", "zero_grad", "set_to_none", "kv_cache",
)  # fmt: skip
"""Fields of a `Training` that the code of a step decides."""


def check_own_step(training: Training, name: str) -> None:
    """Check that *training* asks for nothing that the user's own step decides.

    Raises:
        UsageError: it does.
    """
    low = precision_of(training.precision)
    own = [f for f in OF_THE_STEP if f != "precision" or low.autocast]
    training.check(name, [f for f in training.as_dict() if f not in own], "its step is your own code; say it there")


def check_own_optimizer(training: Training, name: str, optimizer: Any) -> None:
    """Check that *training* names no other optimizer than the user's own, nor changes the parameters that it has.

    Raises:
        UsageError: it does.
    """
    made = any(isinstance(one, torch.optim.Optimizer) for one in each(optimizer))
    closed = ("optimizer", "optimizer_impl", "lora", "quant", "zero1", *(("fsdp", "tp") if made else ()))
    open_to = [f for f in training.as_dict() if f not in closed]
    training.check(name, open_to, "it has an optimizer of its own over its parameters")


def changed(model: nn.Module, training: Training, exchange: Exchange) -> None:
    """Change *model* as *training* says.

    Raises:
        UsageError: the model has no place for it.
    """
    dtype = low_dtype(training)

    def change() -> None:
        if dtype is not None and any(p.is_floating_point() and p.dtype != dtype for p in model.parameters()):
            model.to(dtype)
        if training.quant:
            quantize(model, training.quant, compute=dtype or autocast_dtype(training))
        if training.lora:
            add_adapters(model, training.lora)
        if training.grad_checkpointing:
            checkpoint_blocks(model, adapted=bool(training.lora))
        if training.mode != "train":
            model.eval()

    changes = [name for name in ("quant", "lora", "grad_checkpointing") if getattr(training, name)]
    if is_wrapped(model) and (changes or dtype is not None):
        name = changes[0] if changes else "precision"
        raise UsageError(
            f"{option(name, getattr(training, name))}: {type(model).__name__} is wrapped for several GPUs already; do "
            "that in your factory, before"
        )
    if training.quant and exchange.values.device is None:
        raise UsageError(f"--quant {training.quant} is for target cuda: bitsandbytes' kernels for the CPU are others")
    if training.quant == "int8":
        exchange.values.policy.note(
            "int8: no feature of an input is taken for an outlier (above 6.0), which adds a copy"
        )
    build(change, exchange.values)
    exchange.module(model)


def parallel(model: nn.Module, training: Training, exchange: Exchange) -> tuple[nn.Module, list[str]]:
    """Return *model* wrapped for several GPUs, and in words what was done; as it is, where *training* asks for nothing.

    Raises:
        UsageError: the model is wrapped already, or says itself how it is trained, or has no place for it.
    """
    asked = [name for name in ("ddp", "fsdp", "tp") if getattr(training, name)]
    if not asked:
        return model, []
    if is_wrapped(model):
        raise UsageError(f"--{asked[0]}: {type(model).__name__} is wrapped for several GPUs already")
    if is_lightning(model):
        raise UsageError(
            f"--{asked[0]}: a LightningModule is wrapped by a strategy of its Trainer, which is not modelled"
        )
    device = exchange.values.device.type if exchange.values.device else "cpu"
    model, said = build(lambda: wrapped(model, training, device), exchange.values)
    exchange.module(model)
    return model, said


def sharded_states(optimizer: Any, training: Training) -> Any:
    """Return the *optimizer*, or what makes it, as it is sharded by *training*.

    Raises:
        UsageError: it cannot be.
    """
    return with_sharded_states(optimizer) if training.zero1 and optimizer is not None else optimizer


def said_of_ranks(wrappers: list[str], training: Training, optimizer: Any) -> dict[str, Any]:
    """Return the attributes of a graph that say how the model was wrapped, and which rank may need most by that."""
    if training.zero1 and optimizer is not None:
        most = most_states(optimizer)
        said = f"zero 1: optimizer states by whole parameters over {training.gpus} ranks, most on rank {most}"
        return {"parallel": [*wrappers, said], "most_states": most}
    return {"parallel": wrappers} if wrappers else {}


def cast_batch(batch: Any, training: Training, exchange: Exchange) -> Any:
    """Return *batch* with floating tensors in the dtype of the parameters, as *training* says."""
    dtype = low_dtype(training)
    if dtype is None:
        return batch

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return build(lambda: tree_map_only(torch.Tensor, cast, batch), exchange.values)


def low_dtype(training: Training) -> torch.dtype | None:
    """Return the dtype to which parameters and inputs are cast; None if they stay as they are."""
    name = precision_of(training.precision).dtype
    return None if name == "float32" else getattr(torch, name)


def autocast_dtype(training: Training) -> torch.dtype | None:
    """Return the dtype of autocast, if it is on."""
    name = precision_of(training.precision).autocast
    return getattr(torch, name) if name else None


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Afterwards the modules of *model*, their tables, flags and hooks are as before; tensors are not looked at.

    Dicts of other kinds (a frozen configuration) are the user's own, and left alone.
    """
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    kept = [
        (module, dict(vars(module)), {k: v.copy() for k, v in vars(module).items() if type(v) in (dict, OrderedDict)})
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, attributes, tables in kept:
            vars(module).clear()
            vars(module).update(attributes)
            for name, table in tables.items():
                attributes[name].clear()
                attributes[name].update(table)
        for parameter, flag in trained:
            parameter.requires_grad_(flag)
