"""Models and batches without bytes: built under fake tensors, or real ones whose tensors are exchanged for fakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only


class _NoInitialization(TorchFunctionMode):
    """Calls of ``torch.nn.init`` return their tensor as it is.

    There is nothing to fill, and some (``trunc_normal_``) look at values, which fake tensors do not have.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def without_initialization() -> Iterator[None]:
    """Make every function of ``torch.nn.init`` return its tensor as it is."""
    names = [name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]
    originals = {name: getattr(nn.init, name) for name in names}
    for name in names:
        setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(nn.init, name, original)


def build_module(factory: Callable[..., Any], fake: FakeTensorMode, **parameters: Any) -> Any:
    """Return what *factory* makes, its tensors fake."""
    with fake, without_initialization():
        return factory(**parameters)


def fake_tensors(values: Any, fake: FakeTensorMode) -> Any:
    """Return *values* (nested lists, tuples, dicts) with every real tensor replaced by a fake one."""
    return tree_map_only(torch.Tensor, lambda tensor: as_fake(tensor, fake), values)


def as_fake(tensor: torch.Tensor, fake: FakeTensorMode) -> torch.Tensor:
    """Return the fake of *tensor*, the same each time; its storage is shared as the real one's is."""
    if isinstance(tensor, FakeTensor) and tensor.fake_mode is fake:
        return tensor
    return fake.from_tensor(tensor)


@contextmanager
def faked(module: nn.Module, fake: FakeTensorMode) -> Iterator[dict[int, torch.Tensor]]:
    """Exchange the tensors of *module* for fakes inside; yield the fakes by the id of the tensor they replace.

    Parameters, buffers and tensors that are plain attributes; no data is copied, and the module is
    as before afterwards.
    """
    tables = [table for part in module.modules() for table in (part._parameters, part._buffers, part.__dict__)]
    replaced: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    fakes: dict[int, torch.Tensor] = {}
    try:
        for table in tables:
            for name, value in list(table.items()):
                if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor):
                    replaced.append((table, name, value))
                    fakes[id(value)] = table[name] = as_fake(value, fake)
        yield fakes
    finally:
        for table, name, value in replaced:
            table[name] = value
