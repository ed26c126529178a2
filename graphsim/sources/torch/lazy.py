"""Lazy modules (``nn.LazyLinear``): their parameters get a shape in the model's first call, before the optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from graphsim.errors import CaptureError
from graphsim.sources.torch.prepare import build
from graphsim.sources.torch.values import Values


def lazy_modules(model: nn.Module) -> list[str]:
    """Return the paths of the modules of *model* that wait for their first call."""
    return [
        path
        for path, module in model.named_modules()
        if any(is_lazy(t) for t in chain(module.parameters(recurse=False), module.buffers(recurse=False)))
    ]


def hollow_copy(model: nn.Module, values: Values) -> nn.Module:
    """Return a copy of *model* over hollow tensors, lazy where it is: the first call changes the module itself."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        lazy: Any = type(tensor)
        options = {"requires_grad": tensor.requires_grad, "device": tensor.device, "dtype": tensor.dtype}
        memo[id(tensor)] = lazy(**options) if is_lazy(tensor) else values.adopt(tensor)
    return copy.deepcopy(model, memo)


def initialize(model: nn.Module, call: Callable[[], Any], values: Values) -> None:
    """Give the parameters of lazy modules their shapes by *call*, which calls *model* with the batch.

    Raises:
        CaptureError: the call does not reach one of them.
    """

    def first_call() -> None:
        with torch.no_grad():
            call()

    build(first_call, values)
    waiting = lazy_modules(model)
    if waiting:
        reason = "a lazy module that a call of the model with the batch does not reach: its parameters have no shape"
        raise CaptureError(reason, waiting[0])
