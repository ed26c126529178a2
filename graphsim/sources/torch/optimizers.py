"""Optimizers by name, by class or as they are, over hollow parameters."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from graphsim.errors import UnknownNameError, UsageError
from graphsim.sources.torch.prepare import guarded
from graphsim.sources.torch.values import Evaluating, Values

IMPLEMENTATIONS: dict[str, dict[str, Any]] = {
    "": {},
    "forloop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
"""Options that choose an implementation."""

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": partial(torch.optim.SGD, lr=1e-3),
    "momentum": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "nesterov": partial(torch.optim.SGD, lr=1e-3, momentum=0.9, nesterov=True),
    "adam": partial(torch.optim.Adam, lr=1e-3),
    "adamw": partial(torch.optim.AdamW, lr=1e-3),
    "amsgrad": partial(torch.optim.Adam, lr=1e-3, amsgrad=True),
    "adagrad": partial(torch.optim.Adagrad, lr=1e-3),
    "rmsprop": partial(torch.optim.RMSprop, lr=1e-3),
    "adafactor": partial(torch.optim.Adafactor, lr=1e-3),
}


def make_optimizer(optimizer: Any, model: nn.Module, fakes: Mapping[int, torch.Tensor], values: Values) -> Any:
    """Return an optimizer of the hollow parameters of *model*.

    Raises:
        UnknownNameError: no optimizer has that name.
        UsageError: *optimizer* is none of what `from_torch` takes.
    """
    if optimizer is None:
        return None
    if isinstance(optimizer, str):
        optimizer = named(optimizer)
    if isinstance(optimizer, torch.optim.Optimizer):
        return _over_fakes(optimizer, fakes, values)
    if not callable(optimizer):
        raise UsageError(
            f"optimizer must be a name, a function of the parameters or an optimizer, not {optimizer!r:.60}"
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    with Evaluating(values), guarded(values):
        return optimizer(trained if trained else list(model.parameters()))


def _over_fakes(optimizer: Any, fakes: Mapping[int, torch.Tensor], values: Values) -> Any:
    """Return a copy of a user's optimizer over the hollow ones of its parameters; the user's own is left alone."""

    def one(tensor: torch.Tensor) -> torch.Tensor:
        return fakes[id(tensor)] if id(tensor) in fakes else values.move(tensor)

    twin = copy.copy(optimizer)
    twin.param_groups = tree_map_only(torch.Tensor, one, optimizer.param_groups)
    twin.state = defaultdict(dict)
    for parameter, state in optimizer.state.items():
        key = one(parameter) if isinstance(parameter, torch.Tensor) else parameter
        twin.state[key] = tree_map_only(torch.Tensor, lambda t: values.move(t) if t.dim() else values.adopt(t), state)
    return twin


def named(name: str, implementation: str = "") -> Callable[..., Any]:
    """Return the function that makes the optimizer of that name.

    Raises:
        UnknownNameError: there is no such optimizer or implementation.
    """
    if name not in OPTIMIZERS:
        raise UnknownNameError("optimizer of torch.optim", name, OPTIMIZERS)
    if implementation not in IMPLEMENTATIONS:
        raise UnknownNameError("optimizer implementation", implementation, list(IMPLEMENTATIONS)[1:])
    return partial(OPTIMIZERS[name], **IMPLEMENTATIONS[implementation])


def describe(optimizer: Any, *, on_gpu: bool) -> dict[str, str]:
    """Return the fields of `Training` that say which optimizer it is, as far as they can."""
    options = getattr(optimizer, "defaults", {})
    name = type(optimizer).__name__.lower()
    if name == "sgd" and options.get("momentum"):
        name = "nesterov" if options.get("nesterov") else "momentum"
    if name == "adam" and options.get("amsgrad"):
        name = "amsgrad"
    if name not in OPTIMIZERS:
        return {}
    foreach = on_gpu if options.get("foreach") is None else options["foreach"]
    form = "fused" if options.get("fused") else "foreach" if foreach else "forloop"
    return {"optimizer": name, "optimizer_impl": form}


def states(optimizer: Any, model: nn.Module) -> Iterator[tuple[torch.Tensor, str, str]]:
    """Yield each tensor in the optimizer's state, its name, and the module of its parameter."""
    paths = {id(p): path for path, p in model.named_parameters()}
    for parameter, state in (getattr(optimizer, "state", None) or {}).items():
        path = paths.get(id(parameter), "optimizer")
        for key, value in state.items() if isinstance(state, Mapping) else ():
            if isinstance(value, torch.Tensor):
                yield value, f"{path}.{key}", path.rpartition(".")[0]
