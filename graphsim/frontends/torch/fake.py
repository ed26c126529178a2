"""Models and batches without bytes: built under fake tensors, or real ones whose tensors are exchanged for fakes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map_only

from graphsim.frontends.torch.values import Evaluating, Values, as_fake


@contextmanager
def without_initialization() -> Iterator[None]:
    """Make every function of ``torch.nn.init`` return its tensor as it is.

    There is nothing to fill, and some (``trunc_normal_``) look at values, which fake tensors do not have.
    """
    names = [name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]
    originals = {name: getattr(nn.init, name) for name in names}
    for name in names:
        setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(nn.init, name, original)


def build(factory: Callable[..., Any], values: Values, **parameters: Any) -> Any:
    """Return what *factory* makes, its tensors fake."""
    with values.fake, Evaluating(values), without_initialization():
        return factory(**parameters)


def fake_tensors(given: Any, values: Values) -> Any:
    """Return *given* (nested lists, tuples, dicts) with every real tensor replaced by a fake one."""
    return tree_map_only(torch.Tensor, lambda tensor: valued_fake(tensor, values), given)


def valued_fake(tensor: torch.Tensor, values: Values) -> torch.Tensor:
    """Return the fake of *tensor*, the same each time, with its content if that is small."""
    fake = as_fake(tensor, values.fake)
    if fake is not tensor:
        values.remember(fake, tensor)
    return fake


@contextmanager
def faked(module: nn.Module, values: Values) -> Iterator[dict[int, torch.Tensor]]:
    """Exchange the tensors of *module* for fakes inside; yield the fakes by the id of the tensor they replace.

    Parameters, buffers and tensors that are plain attributes; no data is copied, and the module is
    as before afterwards.
    """
    tables: list[dict[str, Any]] = []
    for part in module.modules():
        tables += [part._parameters, part._buffers, part.__dict__]
    replaced: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    fakes: dict[int, torch.Tensor] = {}
    try:
        for table in tables:
            for name, value in list(table.items()):
                if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor):
                    replaced.append((table, name, value))
                    fakes[id(value)] = table[name] = valued_fake(value, values)
        yield fakes
    finally:
        for table, name, value in replaced:
            table[name] = value


@contextmanager
def plain_transformers() -> Iterator[None]:
    """Let transformers take the way of a real step: it builds other masks if it sees fake tensors.

    Source: transformers/utils/import_utils.py, ``is_tracing``.
    """
    module = sys.modules.get("transformers.utils.import_utils")
    original = getattr(module, "is_fake_tensor", None)
    if module is None or original is None:
        yield
        return
    module.is_fake_tensor = lambda tensor: False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.is_fake_tensor = original  # type: ignore[attr-defined]
