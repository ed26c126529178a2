"""The truth for captures: live bytes of a real training step at every dispatched op, counted independently."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Boundary(NamedTuple):
    """Live bytes when an op is entered and when it returns (its operands still live)."""

    op: str
    before: int
    after: int


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of every storage from the moment an op touches it to its end."""

    def __init__(self, existing: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.live = 0
        self.known: dict[int, weakref.ref] = {}
        self.boundaries: list[Boundary] = []
        for tensor in existing:
            self.see(tensor)

    def see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        if key in self.known:
            return

        def gone(_: object) -> None:
            del self.known[key]
            self.live -= nbytes

        self.known[key] = weakref.ref(storage, gone)
        self.live += nbytes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = self.live
        result = func(*args, **(kwargs or {}))
        operands = [] if func is torch.ops.aten.lift_fresh.default else tree_leaves((args, kwargs))
        tensors = [leaf for leaf in (*operands, *tree_leaves(result)) if isinstance(leaf, torch.Tensor)]
        for tensor in tensors:
            self.see(tensor)
        if tensors:
            self.boundaries.append(Boundary(func._schema.name.removeprefix("aten::"), before, self.live))
        return result


def count(step: Callable[[], object], existing: Iterable[torch.Tensor]) -> list[list[Boundary]]:
    """Run *step* twice and return the boundaries of each run. Garbage is collected between them only."""
    gc.collect()
    gc.disable()
    try:
        with LiveStorages(existing) as counter:
            steps = []
            for _ in range(2):
                counter.boundaries = []
                step()
                steps.append(counter.boundaries)
                gc.collect()
    finally:
        gc.enable()
    return steps
