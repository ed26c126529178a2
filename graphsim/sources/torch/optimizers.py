"""Optimizers by name, by class or as they are, over hollow parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes, is_traceable_wrapper_subclass

from graphsim.errors import UnknownNameError, UsageError
from graphsim.sources.torch.own_optimizers import Adam8bit, Lion
from graphsim.sources.torch.prepare import Exchange
from graphsim.sources.torch.quantized import head_of
from graphsim.sources.torch.reads import guarded
from graphsim.sources.torch.values import Evaluating
from graphsim.step.optimizers import TORCH, implementation_of

IMPLEMENTATIONS: dict[str, dict[str, Any]] = {
    "": {},
    "forloop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
"""Options that choose an implementation."""


def _is_plain(cls: Any) -> bool:
    """Whether *cls* is an optimizer that `graphsim.step.optimizers.TORCH` names: one that is made of parameters."""
    return isinstance(cls, type) and cls.__name__.lower() in TORCH


@dataclass(frozen=True)
class ByModel:
    """Makes the optimizers of a model, by the places that its parameters have."""

    make: Callable[[nn.Module], Any]


def muon_and_adamw(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of hidden layers and AdamW for all else, as ``torch.optim.Muon`` is documented.

    Embeddings, the layer that makes the logits, biases and norms are all else.
    """
    outer = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = head_of(model)
    outer |= {id(p) for p in head.parameters()} if head is not None else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    hidden = [p for p in trained if p.dim() == 2 and id(p) not in outer]
    rest = [p for p in trained if p.dim() != 2 or id(p) in outer]
    if not hidden:
        raise UsageError(f"muon: {type(model).__name__} has no matrix in a hidden layer")
    return [torch.optim.Muon(hidden, lr=1e-3), *([torch.optim.AdamW(rest, lr=1e-3)] if rest else [])]


OPTIMIZERS: dict[str, Callable[..., Any] | ByModel] = {
    "sgd": partial(torch.optim.SGD, lr=1e-3),
    "momentum": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "nesterov": partial(torch.optim.SGD, lr=1e-3, momentum=0.9, nesterov=True),
    "adam": partial(torch.optim.Adam, lr=1e-3),
    "adamw": partial(torch.optim.AdamW, lr=1e-3),
    "amsgrad": partial(torch.optim.Adam, lr=1e-3, amsgrad=True),
    "adagrad": partial(torch.optim.Adagrad, lr=1e-3),
    "rmsprop": partial(torch.optim.RMSprop, lr=1e-3),
    "adafactor": partial(torch.optim.Adafactor, lr=1e-3),
    "lion": Lion,
    "adam8bit": Adam8bit,
    **{cls.__name__.lower(): cls for name in dir(torch.optim) if _is_plain(cls := getattr(torch.optim, name))},
    "muon": ByModel(muon_and_adamw),
}
"""By name. What has a name of `graphsim.step.optimizers.TORCH` is torch's own, as far as it is installed."""


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
    if isinstance(optimizer, list | tuple):
        return [make_optimizer(one, model, exchange) for one in optimizer]
    if isinstance(optimizer, Mapping):
        return {name: make_optimizer(one, model, exchange) for name, one in optimizer.items()}
    if isinstance(optimizer, ByModel):
        with Evaluating(exchange.values), guarded(exchange.values):
            return optimizer.make(model)
    if not callable(optimizer):
        raise UsageError(
            f"optimizer must be a name, a function of the parameters or an optimizer, not {optimizer!r:.60}"
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    with Evaluating(exchange.values), guarded(exchange.values):
        return optimizer(_groups(trained if trained else list(model.parameters())))


def _groups(parameters: list[nn.Parameter]) -> list[Any]:
    """Return *parameters*, in two groups where some are sharded: no foreach or fused kernel takes both kinds."""
    plain, sharded = ([p for p in parameters if is_traceable_wrapper_subclass(p) is wraps] for wraps in (False, True))
    return [{"params": plain}, {"params": sharded}] if plain and sharded else parameters


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


def each(optimizer: Any) -> list[Any]:
    """Return the optimizers that *optimizer* is: one, a list or dict of several, or none."""
    if optimizer is None:
        return []
    if isinstance(optimizer, Mapping):
        return list(optimizer.values())
    return list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]


def named(name: str, implementation: str = "") -> Callable[..., Any] | ByModel:
    """Return what makes the optimizer of that name.

    Raises:
        UnknownNameError: there is no such optimizer or implementation.
        UsageError: the optimizer has no such implementation.
    """
    if name not in OPTIMIZERS:
        raise UnknownNameError("optimizer of torch.optim", name, OPTIMIZERS)
    if implementation not in IMPLEMENTATIONS:
        raise UnknownNameError("optimizer implementation", implementation, list(IMPLEMENTATIONS)[1:])
    made, options = OPTIMIZERS[name], IMPLEMENTATIONS[implementation]
    takes = () if isinstance(made, ByModel) else inspect.signature(made).parameters
    if isinstance(made, ByModel) or not options.keys() <= set(takes):
        if implementation in ("", "forloop"):  # the only one that it has
            return made
        raise UsageError(f"{name} has no {implementation} form")
    return partial(made, **options)


def describe(optimizer: Any, *, on_gpu: bool) -> dict[str, str]:
    """Return the fields of `Training` that say which optimizer it is, as far as they can."""
    optimizer = getattr(optimizer, "optim", optimizer)  # of ZeroRedundancyOptimizer
    options = getattr(optimizer, "defaults", {})
    name = type(optimizer).__name__.lower()
    if name == "sgd" and options.get("momentum"):
        name = "nesterov" if options.get("nesterov") else "momentum"
    if name == "adam" and options.get("amsgrad"):
        name = "amsgrad"
    if name not in OPTIMIZERS:
        return {}
    if options.get("fused"):
        form = "fused"
    elif options.get("foreach") is None:
        form = implementation_of(name, "", "cuda" if on_gpu else "cpu")
    else:
        form = "foreach" if options["foreach"] else "forloop"
    return {"optimizer": name, "optimizer_impl": form}


def states(optimizer: Any, model: nn.Module) -> Iterator[tuple[torch.Tensor, str, str]]:
    """Yield each tensor in the optimizer's state, its name, and the module of its parameter."""
    paths = {id(p): path for path, p in model.named_parameters()}
    entries = (entry for one in each(optimizer) for entry in (getattr(one, "state", None) or {}).items())
    for parameter, state in entries:
        path = paths.get(id(parameter), "optimizer")
        for key, value in state.items() if isinstance(state, Mapping) else ():
            if isinstance(value, torch.Tensor):
                yield value, f"{path}.{key}", path.rpartition(".")[0]
