"""Collectives: what each op of a process group returns, overwrites and sends.

Two families arrive at the dispatcher: those of c10d work in place on tensors that the caller made, and return a
`Work`; functional ones make their result (by the fake kernels that PyTorch has for them). In both the data of other
ranks is not known.

Bytes sent are what any algorithm has to send per rank, and what those that are bandwidth-optimal do send. Source: the
factors of nccl-tests (doc/PERFORMANCE.md).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch._C._distributed_c10d import FakeWork
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.utils._pytree import tree_leaves

from graphsim.sources.torch.group import span_of
from graphsim.sources.torch.operands import nbytes

NAMESPACES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor")


class Collective(NamedTuple):
    """What a collective is called, and the factor of its bytes that a rank sends.

    Attributes:
        kind: of the op.
        sends: bytes by those of its operands, of its results and the ranks of its group.
        reads: number of the operand that is sent.
    """

    kind: str
    sends: Callable[[int, int, int], int]
    reads: int = 0


def _gathers(given: int, result: int, ranks: int) -> int:
    return given * (ranks - 1)


def _scatters(given: int, result: int, ranks: int) -> int:
    return given * (ranks - 1) // ranks


def _reduces(given: int, result: int, ranks: int) -> int:
    return 2 * given * (ranks - 1) // ranks


def _passes(given: int, result: int, ranks: int) -> int:
    return given if ranks > 1 else 0


def _nothing(given: int, result: int, ranks: int) -> int:
    return 0


_ALL_REDUCE = Collective("all_reduce", _reduces)
_ALL_GATHER = Collective("all_gather", _gathers)
_REDUCE_SCATTER = Collective("reduce_scatter", _scatters)
_ALL_TO_ALL = Collective("all_to_all", _scatters)
_BROADCAST = Collective("broadcast", _passes)

_BY_NAME = {
    "c10d::allreduce_": _ALL_REDUCE,
    "c10d::allreduce_coalesced_": _ALL_REDUCE,
    "c10d::allgather_": _ALL_GATHER._replace(reads=1),
    "c10d::_allgather_base_": _ALL_GATHER._replace(reads=1),
    "c10d::allgather_into_tensor_coalesced_": _ALL_GATHER._replace(reads=1),
    "c10d::reduce_scatter_": _REDUCE_SCATTER._replace(reads=1),
    "c10d::_reduce_scatter_base_": _REDUCE_SCATTER._replace(reads=1),
    "c10d::reduce_scatter_tensor_coalesced_": _REDUCE_SCATTER._replace(reads=1),
    "c10d::alltoall_": _ALL_TO_ALL._replace(reads=1),
    "c10d::alltoall_base_": _ALL_TO_ALL._replace(reads=1),
    "c10d::broadcast_": _BROADCAST,
    "c10d::reduce_": Collective("reduce", _passes),
    "c10d::gather_": Collective("gather", _passes, reads=1),
    "c10d::scatter_": Collective("scatter", _scatters, reads=1),
    "c10d::send": Collective("send", _passes),
    "c10d::recv_": Collective("recv", _nothing),
    "c10d::recv_any_source_": Collective("recv", _nothing),
    "c10d::barrier": Collective("barrier", _nothing),
    "c10d::monitored_barrier_": Collective("barrier", _nothing),
    **{
        f"{space}::{name}{suffix}": collective
        for space in ("_c10d_functional", "_c10d_functional_autograd")
        for name, collective in (
            ("all_reduce", _ALL_REDUCE),
            ("all_gather_into_tensor", _ALL_GATHER),
            ("reduce_scatter_tensor", _REDUCE_SCATTER),
            ("all_to_all_single", _ALL_TO_ALL),
            ("broadcast", _BROADCAST),
        )
        for suffix in ("", "_", "_out", "_coalesced", "_coalesced_")
    },
    "_dtensor::shard_dim_alltoall": _ALL_TO_ALL,
}

READS_ONLY = frozenset({"c10d::send", "c10d::barrier", "c10d::monitored_barrier_"})
"""Those of c10d that overwrite no operand; all others overwrite the first."""


def written(func: Any, args: Any) -> list[Any]:
    """Return the tensors that an op of c10d overwrites."""
    return tree_leaves(args[0]) if is_in_place(func) and overwrites(func) else []


def overwrites(func: Any) -> bool:
    """True if an op of c10d overwrites its first operand."""
    return str(func._schema.name) not in READS_ONLY


class Sent(NamedTuple):
    """What a rank sends in one collective.

    Attributes:
        kind: of the op.
        ranks: of the group.
        first, stride: its first rank, and the distance from one to the next: the largest, where they differ.
    """

    kind: str
    nbytes: int
    ranks: int
    first: int
    stride: int


def collective_of(func: Any) -> Collective | None:
    """Return what *func* is as a collective, or None."""
    return _BY_NAME.get(func._schema.name)


def is_in_place(func: Any) -> bool:
    """True for the ops of c10d, which work on the tensors of the caller."""
    return bool(func.namespace == "c10d")


def is_answered(func: Any) -> bool:
    """True for ops that make no tensor, and have no fake kernel that says so."""
    return is_in_place(func) or wraps_result(func)


def wraps_result(func: Any) -> bool:
    """True for the op that wraps a functional collective's result, which is to be waited for when it is used."""
    return func is torch.ops._c10d_functional._wrap_tensor_autograd.default


def answer(func: Any, args: Any) -> Any:
    """Return what an op that `is_answered` returns: of c10d the tensors that it was given, where its schema says so,
    and a `Work`.
    """
    if wraps_result(func):
        return AsyncCollectiveTensor(args[0])
    work = _work(func, args)
    return (args[0], work) if len(func._schema.returns) == 2 else work


def _work(func: Any, args: Any) -> Any:
    """Return work that is done, and holds nothing.

    DDP's reducer, which calls from C++, takes the reduced bucket from the work's future
    (torch/csrc/distributed/c10d/reducer.cpp, ``run_allreduce_hook``).
    """
    if func is torch.ops.c10d.allreduce_.default and not _called_from_python():
        future: torch.futures.Future[Any] = torch.futures.Future()
        future.set_result(list(args[0]))
        untyped: Any = torch._C._distributed_c10d
        return untyped._create_work_from_future(future).boxed()
    return FakeWork().boxed()


def _called_from_python() -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != __file__:
        frame = frame.f_back
    while frame is not None and not frame.f_code.co_filename.endswith(("distributed_c10d.py", "autograd/graph.py")):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.endswith("distributed_c10d.py")


def sent(func: Any, collective: Collective, args: Any, kwargs: Any, result: Any) -> Sent:
    """Return what this rank sends."""
    first, stride, ranks = span_of(_group(func, args, kwargs))
    given = sum(nbytes(leaf) for leaf in tree_leaves(args[collective.reads]) if isinstance(leaf, torch.Tensor))
    made = sum(nbytes(leaf) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
    return Sent(collective.kind, collective.sends(given, made, ranks), ranks, first, stride)


def _group(func: Any, args: Any, kwargs: Any) -> Any:
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.name in ("process_group", "group_name"):
            return value
    return kwargs.get("process_group", kwargs.get("group_name"))
