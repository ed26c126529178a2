"""Models and batches without bytes: made of hollow tensors, or real ones that are hollow for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from graphsim.errors import CaptureError
from graphsim.sources.torch.checks import only_plain_wrappers
from graphsim.sources.torch.reads import guarded
from graphsim.sources.torch.values import Evaluating, Values
from graphsim.sources.torch.wrappers import local

NO_WRAPPERS = "which a capture cannot follow; for tensors that are sharded say how many GPUs (--gpus N, gpus=N)"
ELSEWHERE = (
    "for target cuda, shard over GPUs where torch.cuda.is_available(), which it is in the capture; or capture with "
    "--target cpu"
)


@contextmanager
def without_initialization() -> Iterator[None]:
    """Make every function of ``torch.nn.init`` return its tensor as it is.

    There is nothing to fill, and some (``trunc_normal_``) look at values, which fake tensors do not have.
    """
    public = [name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]
    inner = [name for name in dir(nn.init) if name.startswith("_no_grad_")]  # for who holds the public ones
    names = public + inner
    originals = {name: getattr(nn.init, name) for name in names}
    for name in names:
        setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(nn.init, name, original)


def build(factory: Callable[..., Any], values: Values, **parameters: Any) -> Any:
    """Return what *factory* makes, its tensors hollow."""
    wrappers = only_plain_wrappers(ranked=values.ranked)
    with Evaluating(values), guarded(values), without_initialization(), wrappers:
        return factory(**parameters)


@contextmanager
def exchanged(values: Values) -> Iterator[Exchange]:
    """Yield an `Exchange`; afterwards everything that it exchanged is as before."""
    exchange = Exchange(values)
    try:
        yield exchange
    finally:
        exchange.undo()


class Exchange:
    """Gives tensors hollow storage on the device in place, as ``Module.to`` moves parameters.

    Whoever holds a tensor (an optimizer, a hook, a closure, another model) goes on holding it. No data is
    copied.
    """

    def __init__(self, values: Values) -> None:
        self.values = values
        self._before: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []
        self._known: set[int] = set()

    def tensor(self, tensor: torch.Tensor, *, move: bool = True) -> torch.Tensor:
        """Make *tensor* hollow, on the device if *move*; return it.

        Raises:
            CaptureError: it is no plain tensor.
        """
        if id(tensor) in self._known:
            return tensor
        if tensor.is_cuda and self.values.hollows.is_hollow(tensor):
            return tensor  # made in the step, as the parameters of an optimizer that is made there
        if is_traceable_wrapper_subclass(tensor):
            self._inside(tensor, move=move)
            return tensor
        _check_strided(tensor)
        gradient = tensor.grad if tensor.is_leaf else None
        self._known.add(id(tensor))
        self._before.append((tensor, tensor.data, gradient))
        hollow = self.values.move(tensor) if move else self.values.adopt(tensor)
        if hollow is not tensor:
            self.values.hollows.become(tensor, hollow)
        if gradient is not None:
            self.tensor(gradient, move=move)
        return tensor

    def _inside(self, tensor: torch.Tensor, *, move: bool) -> None:
        """Make what *tensor* wraps hollow; it stays on the device on which it was sharded."""
        kind = type(tensor).__name__
        if not self.values.ranked:
            raise CaptureError(f"a {kind} wraps other tensors (sharded, quantized, nested), {NO_WRAPPERS}")
        for inner in local(tensor):
            if move and self.values.device is not None and inner.device.type != self.values.device.type:
                raise CaptureError(f"a {kind} is on the {inner.device.type}: {ELSEWHERE}")
            self.tensor(inner, move=False)
        self._known.add(id(tensor))
        if tensor.is_leaf and tensor.grad is not None:
            self.tensor(tensor.grad, move=move)

    def module(self, module: nn.Module) -> None:
        """Exchange parameters and buffers; tensors that are plain attributes become hollow where they are."""
        for part in module.modules():
            for table, move in ((part._parameters, True), (part._buffers, True), (part.__dict__, False)):
                for value in list(table.values()):
                    if isinstance(value, torch.Tensor):
                        self.tensor(value, move=move)

    def batch(self, batch: Any) -> None:
        """Exchange all tensors in *batch*: nested containers, mappings, dataclasses, objects with attributes."""
        for _, tensor in named_tensors(batch):
            self.tensor(tensor)

    def undo(self) -> None:
        """Give everything back what it had."""
        while self._before:
            tensor, data, gradient = self._before.pop()
            tensor.grad = None
            self.values.hollows.restore(tensor, data)
            tensor.grad = gradient


def named_tensors(value: Any, name: str = "", depth: int = 5) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor in a batch with the name of its entry or attribute, '' if it has none."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif depth and not isinstance(value, nn.Module | type | str | bytes):
        if isinstance(value, Mapping):
            entries: Any = [(str(key), entry) for key, entry in value.items()]
        elif isinstance(value, list | tuple | set):
            entries = [(name, entry) for entry in value]
        else:
            entries = getattr(value, "__dict__", {}).items()
        for key, entry in entries:
            yield from named_tensors(entry, key, depth - 1)


def _check_strided(tensor: torch.Tensor) -> None:
    if tensor.layout is not torch.strided:
        raise CaptureError(f"a tensor of layout {tensor.layout} has no storage that a capture can follow")
