"""Optimizers by name, by class or as they are, over hollow parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from graphsim.errors import UnknownNameError, UsageError
from graphsim.sources.torch.prepare import Exchange
from graphsim.sources.torch.reads import guarded
from graphsim.sources.torch.values import Evaluating

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


def make_optimizer(optimizer: Any, model: nn.Module, exchange: Exchange) -> Any:
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
        return optimizer
    if not callable(optimizer):
        raise UsageError(
            f"optimizer must be a name, a function of the parameters or an optimizer, not {optimizer!r:.60}"
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    with Evaluating(exchange.values), guarded(exchange.values):
        return optimizer(trained if trained else list(model.parameters()))


class Optimizers:
    """The optimizers that step, whoever made them; what they hold is hollow for a while and then as before."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.seen: dict[int, Any] = {}
        self._stepped: dict[int, None] = {}
        self._before: list[tuple[Any, Any, Any]] = []

    def see(self, optimizer: Any) -> None:
        """Exchange the states of an optimizer that is about to be used for the first time."""
        if optimizer is None or id(optimizer) in self.seen:
            return
        self.seen[id(optimizer)] = optimizer
        with _disable_current_modes():
            self._exchange(optimizer)

    def _exchange(self, optimizer: Any) -> None:
        groups = getattr(optimizer, "param_groups", [])
        state = getattr(optimizer, "state", {})
        kept = {key: dict(entry) if isinstance(entry, dict) else entry for key, entry in state.items()}
        self._before.append((optimizer, kept, [dict(group) for group in groups]))
        for group in groups:
            for parameter in group["params"]:
                self.exchange.tensor(parameter)
        values = self.exchange.values
        for entry in state.values():
            for key, value in entry.items() if isinstance(entry, dict) else ():
                if isinstance(value, torch.Tensor):
                    entry[key] = values.move(value) if value.dim() else values.adopt(value)

    def undo(self) -> None:
        """Give every optimizer its states and options back."""
        while self._before:
            optimizer, state, groups = self._before.pop()
            optimizer.state.clear()
            optimizer.state.update(state)
            for group, before in zip(optimizer.param_groups, groups, strict=False):
                group.clear()
                group.update(before)

    def stepped(self, optimizer: Any) -> None:
        """Note that an optimizer, which was seen, steps."""
        self._stepped.setdefault(id(optimizer))

    def names(self) -> tuple[str, ...]:
        """Return the classes of all that stepped, in the order of their first step."""
        return tuple(type(self.seen[key]).__name__ for key in self._stepped)

    def parameters(self) -> set[int]:
        """Return the ids of the parameters of all that stepped."""
        used = [self.seen[key] for key in self._stepped]
        return {id(p) for optimizer in used for group in optimizer.param_groups for p in group["params"]}


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
