"""Models and batches without bytes: made of hollow tensors, or real ones whose tensors are exchanged for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.storage import _StorageBase
from torch.utils._pytree import tree_map_only

from graphsim.errors import CaptureError
from graphsim.sources.torch.values import NEEDS_DATA, Evaluating, Unknown, Values, python_line


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
    with Evaluating(values), guarded(values), without_initialization():
        return factory(**parameters)


def hollow_tensors(given: Any, values: Values) -> Any:
    """Return *given* (nested lists, tuples, dicts) with every tensor replaced by a hollow one on the device."""
    return tree_map_only(torch.Tensor, values.move, given)


@contextmanager
def hollowed(module: nn.Module, values: Values) -> Iterator[dict[int, torch.Tensor]]:
    """Exchange the tensors of *module* for hollow ones on the device; yield these by the id of what they replace.

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
                if isinstance(value, torch.Tensor) and (hollow := values.move(value)) is not value:
                    replaced.append((table, name, value))
                    fakes[id(value)] = table[name] = hollow
        yield fakes
    finally:
        for table, name, value in replaced:
            table[name] = value


@contextmanager
def guarded(values: Values) -> Iterator[None]:
    """Keep Python from reading memory that is not there, where PyTorch does so without dispatching an op."""
    storages: Any = _StorageBase
    tensors: Any = torch.Tensor
    copy_storage, to_list, to_numpy, to_item = storages.__deepcopy__, tensors.tolist, tensors.numpy, tensors.item

    def item(tensor: torch.Tensor) -> Any:
        values.reading, values.read_unknown = values.reading + 1, False
        try:
            number = to_item(tensor)
        finally:
            values.reading -= 1
        return Unknown("nan") if values.read_unknown and not values.reading else number

    def tolist(tensor: torch.Tensor) -> Any:
        return to_list(_content(tensor, values))

    def numpy(tensor: torch.Tensor, **options: Any) -> Any:
        return to_numpy(_content(tensor, values), **options)

    def deepcopy(storage: Any, memo: Any) -> Any:
        if not values.hollows.is_hollow_storage(storage):
            return copy_storage(storage, memo)
        return torch.empty(storage.nbytes(), dtype=torch.uint8).untyped_storage()

    tensors.tolist, tensors.numpy, tensors.item, storages.__deepcopy__ = tolist, numpy, item, deepcopy
    try:
        yield
    finally:
        storages.__deepcopy__ = copy_storage
        del tensors.tolist, tensors.numpy, tensors.item  # the base class has its own


def _content(tensor: torch.Tensor, values: Values) -> torch.Tensor:
    if not values.hollows.is_hollow(tensor):
        return tensor
    try:
        return values.content(tensor)
    except NEEDS_DATA as error:
        reason = "the values of a tensor are read, which are not known without running the model"
        raise CaptureError(reason, values.layer(), python_line()) from error
