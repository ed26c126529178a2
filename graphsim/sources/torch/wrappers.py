"""Tensors that wrap others (`DTensor`, asynchronous results of collectives): what lies inside, and when to step aside.

An observer has its turn before a subclass has. It declines (`passes_on`), the subclass does its work, the
redistribution of shards among it, and what it does on local tensors arrives at the observer as plain ops.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch._C import _TorchDispatchModeKey
from torch.utils._python_dispatch import is_traceable_wrapper_subclass, is_traceable_wrapper_subclass_type

_FAKE = _TorchDispatchModeKey.FAKE


def passes_on(types: Any) -> bool:
    """True if an operand of an op, whose special *types* are given, wraps other tensors and is to be asked first."""
    return any(is_traceable_wrapper_subclass_type(kind) for kind in types)


def asks_for_shapes() -> bool:
    """True if the op is run on fake tensors of somebody else, as DTensor does to learn the shape of a whole result."""
    return torch._C._get_dispatch_mode(_FAKE) is not None


def local(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the plain tensors in *tensor*: itself, or what it wraps."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for inner in (getattr(tensor, name) for name in names):
        if isinstance(inner, torch.Tensor):  # the mesh is another
            yield from local(inner)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return the first plain tensor in *tensor*."""
    return next(local(tensor))
