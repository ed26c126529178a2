"""The truth for ranks: real CPU tensors under PyTorch's fake process group, between any two ops and at the peak."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from live_storages import Boundary
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import schedules
from torch.distributed.pipelining import stage as stages
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
from torch.utils._pytree import tree_leaves
from torch_memory import measure

FAKE = torch._C._TorchDispatchModeKey.FAKE


@contextmanager
def fake_group(rank: int, size: int):
    """Be one rank of a group that moves nothing; pipelines take the shapes that their stages were given."""

    def static(_, stages_, *__):
        for one in stages_:
            one._inference_mode = stages.InferenceMode.STATIC

    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    with ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        stack.enter_context(patch.object(schedules._PipelineSchedule, "_warmup_p2p", static))
        yield


class Plain(TorchDispatchMode):
    """Counts the bytes of every storage that an op on plain tensors touches, as they are, until its end."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, weakref.ref] = {}
        self.boundaries: list[Boundary] = []

    def see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.known:
            self.known[key] = weakref.ref(storage, lambda _: self.known.pop(key, None))

    def live(self) -> int:
        return sum(storage.nbytes() for known in self.known.values() if (storage := known()) is not None)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(is_traceable_wrapper_subclass_type(kind) for kind in types):
            return NotImplemented
        if torch._C._get_dispatch_mode(FAKE) is not None:
            return func(*args, **(kwargs or {}))
        before = self.live()
        result = func(*args, **(kwargs or {}))
        operands = [] if func is torch.ops.aten.lift_fresh.default else tree_leaves((args, kwargs))
        tensors = [leaf for leaf in (*operands, *tree_leaves(result)) if isinstance(leaf, torch.Tensor)]
        for tensor in tensors:
            for inner in _local(tensor):
                self.see(inner)
        if tensors:
            self.boundaries.append(Boundary(func._schema.name.removeprefix("aten::"), before, self.live()))
        return result


class Truth(NamedTuple):
    """Of two steps: live bytes around every op, and the profiler's peak, of which everything that lives is a part."""

    boundaries: list[list[Boundary]]
    peaks: list[int]


def truth(make: Callable[[], Any], rank: int, size: int) -> Truth:
    """Run both steps for real, once observed and once not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fake_group(rank, size):
            observed = _observed(make)
        with fake_group(rank, size):
            peaks = profiled(make)
    return Truth(observed, peaks)


def _local(tensor: torch.Tensor) -> list[torch.Tensor]:
    if not is_traceable_wrapper_subclass_type(type(tensor)):
        return [tensor]
    wrapped: Any = tensor
    inner = [getattr(tensor, name) for name in wrapped.__tensor_flatten__()[0]]
    return [leaf for value in inner if isinstance(value, torch.Tensor) for leaf in _local(value)]


def _observed(make: Callable[[], Any]) -> list[list[Boundary]]:
    gc.collect()
    gc.disable()
    steps = []
    try:
        with Plain() as counter:
            made = make()
            for key in _meshes():
                counter.known.pop(key, None)
            gc.collect()
            for _ in range(2):
                counter.boundaries = []
                made["step"](made["model"], made["inputs"], made["optimizer"])
                steps.append(counter.boundaries)
                gc.collect()
    finally:
        gc.enable()
    return steps


def _meshes() -> dict[int, int]:
    """Return the bytes of ranks of all meshes, by their storages."""
    storages = [m._rank_map.untyped_storage() for m in gc.get_objects() if isinstance(m, DeviceMesh)]
    return {storage._cdata: storage.nbytes() for storage in storages}


def profiled(make: Callable[[], Any]) -> list[int]:
    """Return the peaks without what meshes hold: the numbers of their ranks, on the host, are no part of a step."""
    gc.collect()
    before = _meshes()
    meshes = 0

    def run() -> None:
        nonlocal meshes
        made = make()
        gc.collect()
        gc.disable()
        for number in range(2):
            with torch.profiler.record_function(f"##{number}"):
                made["step"](made["model"], made["inputs"], made["optimizer"])
            gc.collect()
        gc.enable()
        meshes = sum(nbytes for key, nbytes in _meshes().items() if key not in before)

    measured = measure(run)
    return [measured[str(number)].peak - meshes for number in range(2)]
