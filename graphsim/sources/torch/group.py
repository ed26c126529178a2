"""A process group of any size in one process: PyTorch's fake one, which moves nothing.

The code of a rank runs as it would under ``torchrun``: ``torch.distributed`` is initialised, says rank and world
size, and so do the environment's variables. Every rank sees one GPU, number 0, as if each were on a machine of its
own. Afterwards all is as before, a group of the user's too, whatever happened inside.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed import device_mesh
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from graphsim.errors import CaptureError, UsageError

c10d: Any = dist.distributed_c10d

MAX_RANKS = 2**20
"""Processes of the largest group that is made: its ranks are lists in Python."""

_TABLES = ("_pg_map", "_pg_names", "_pg_group_ranks", "_pg_backend_config", "_tags_to_pg", "_pg_to_tag")
"""The dicts of ``distributed_c10d`` that know the groups."""


@dataclass(frozen=True, slots=True)
class Rank:
    """Which process of how many.

    Raises:
        UsageError: there is no such rank.
    """

    number: int
    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_RANKS:
            raise UsageError(f"a process group has 1 to {MAX_RANKS} ranks, not {self.size}")
        if not 0 <= self.number < self.size:
            raise UsageError(f"there is no rank {self.number} of {self.size}: the last is {self.size - 1}")

    @property
    def environment(self) -> dict[str, str]:
        """The variables that ``torchrun`` sets, with one process on each machine."""
        return {
            "RANK": str(self.number),
            "WORLD_SIZE": str(self.size),
            "GROUP_RANK": str(self.number),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29500",
        }


@contextmanager
def process_group(rank: Rank) -> Iterator[None]:
    """Be *rank* inside."""
    with ExitStack() as stack:
        stack.enter_context(_set_aside())
        stack.enter_context(patch.dict(os.environ, rank.environment))
        stack.callback(_forget_shardings)
        _forget_shardings()
        _initialize(rank)
        stack.callback(_destroy)
        stack.enter_context(_group_is_there())
        stack.enter_context(_meshes_are_real())
        stack.enter_context(_stages_know_shapes())
        yield


def _initialize(rank: Rank) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank.number, world_size=rank.size, store=FakeStore())


_destroy = dist.destroy_process_group


@contextmanager
def _set_aside() -> Iterator[None]:
    """Take the groups that exist, if there are any, out of PyTorch's tables, and put them back."""
    tables: list[dict[Any, Any]] = [getattr(c10d, name) for name in _TABLES]
    kept = [dict(table) for table in tables]
    world, count, coalesced = c10d._world.default_pg, c10d._world.group_count, dict(c10d._world.pg_coalesce_state)
    for table in (*tables, c10d._world.pg_coalesce_state):
        table.clear()
    c10d._update_default_pg(None)
    c10d._unregister_all_process_groups()
    try:
        yield
    finally:
        for table, content in zip(tables, kept, strict=True):
            table.clear()
            table.update(content)
        c10d._world.pg_coalesce_state.update(coalesced)
        c10d._world.group_count = count
        c10d._update_default_pg(world)
        for group, name in kept[1].items():
            c10d._register_process_group(name, group)


@contextmanager
def _group_is_there() -> Iterator[None]:
    """Let code that makes the group, or ends it, find that done."""
    with ExitStack() as stack:
        for name in ("init_process_group", "destroy_process_group"):
            stub = _Done(getattr(c10d, name))
            stack.callback(setattr, stub, "inside", False)
            for module in (dist, c10d):
                stack.enter_context(patch.object(module, name, stub))
        yield


class _Done:
    """Does nothing while *inside*, later what the original does: a module imported inside may keep it for good."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original
        self.inside = True

    def __call__(self, *operands: Any, **options: Any) -> Any:
        return None if self.inside else self.original(*operands, **options)


@dataclass(frozen=True)
class _Numbers:
    """The content of a small tensor of integers."""

    content: Any
    dtype: torch.dtype

    @staticmethod
    def of(tensor: torch.Tensor) -> _Numbers:
        return _Numbers(tensor.tolist(), tensor.dtype)

    def tensor(self) -> torch.Tensor:
        return torch.tensor(self.content, dtype=self.dtype)


@contextmanager
def _meshes_are_real() -> Iterator[None]:
    """A mesh holds numbers of ranks in small tensors of the host, which it reads: they are no part of the step."""
    names = ("__init__", "__getitem__", "_flatten", "_unflatten", "_get_all_submeshes")
    mesh = device_mesh.DeviceMesh
    with ExitStack() as stack:
        for name in names:
            if name in vars(mesh):
                stack.enter_context(patch.object(mesh, name, _unobserved(getattr(mesh, name))))
        yield


@contextmanager
def _stages_know_shapes() -> Iterator[None]:
    """Stages of a pipeline take the shapes that they were given: there is nobody to ask for others.

    Real ones vote on it (torch/distributed/pipelining/schedules.py, ``_warmup_p2p``): all of them know, or all ask.
    """
    from torch.distributed.pipelining import schedules

    if not hasattr(schedules._PipelineSchedule, "_warmup_p2p"):
        yield
        return
    untyped: Any = schedules
    modes = untyped.InferenceMode

    def static(_: Any, stages: Any, has_backward: bool, *__: Any, **___: Any) -> None:
        for stage in stages:
            if modes.needs_dynamic(stage._user_meta, has_backward):
                raise CaptureError(
                    f"stage {stage.stage_index} of the pipeline asks its neighbours for shapes when it runs, and "
                    "there are none: give PipelineStage input_args and output_args"
                )
            stage._inference_mode = modes.STATIC

    with patch.object(schedules._PipelineSchedule, "_warmup_p2p", static):
        yield


def _unobserved(method: Callable[..., Any]) -> Any:
    def call(self: Any, *operands: Any, **options: Any) -> Any:
        numbers = tree_map_only(torch.Tensor, _Numbers.of, (operands, options))
        with _disable_current_modes():
            operands, options = tree_map_only(_Numbers, _Numbers.tensor, numbers)
            return method(self, *operands, **options)

    return call


def _forget_shardings() -> None:
    """DTensor keeps what it found out by meshes that are equal for all ranks, and differ in where this rank stands."""
    from torch.distributed.tensor import _random
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache

    _clear_sharding_prop_cache()
    _random._rng_tracker = None
    for name, module in list(sys.modules.items()):
        if name.startswith("torch.distributed.tensor"):
            for value in list(vars(module).values()):
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()


def span_of(group: Any) -> tuple[int, int, int]:
    """Return the first rank of a process group, the largest distance from one rank to the next, and their number.

    Args:
        group: as such, as a ScriptObject, or its name.
    """
    if isinstance(group, str):
        group = c10d._resolve_process_group(group)
    if isinstance(group, torch.ScriptObject):
        group = dist.ProcessGroup.unbox(group)
    ranks = sorted(dist.get_process_group_ranks(group))
    return ranks[0], max((after - before for before, after in pairwise(ranks)), default=1), len(ranks)
