"""DDP's reducer, PyTorch's own, over hollow parameters: what it reads of memory is real, all else is observed.

Its buckets are tensors that it makes through the dispatcher and fills in autograd's hooks, so they are observed as
they are: in the order of registration in the first step, in the order in which gradients came from the second on.
That order it writes into small tensors of integers of the host, below the dispatcher, and reads back; which
parameters were used it marks in others, which go to the device from pinned memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves

from graphsim.errors import CaptureError
from graphsim.sources.torch import collectives
from graphsim.sources.torch.hollow import Hollows

aten = torch.ops.aten

_MAKES = frozenset({aten.empty.memory_format, aten.zeros.default})

_PINNED = "_graphsim_pinned"
"""Attribute of a tensor of the host whose memory would be pinned."""


def is_pinned(tensor: torch.Tensor) -> bool:
    """True for a tensor that the reducer asked to be pinned."""
    return getattr(tensor, _PINNED, False)


_TIMED = 10
"""First iterations of a reducer that it times (reducer.hpp, ``should_collect_runtime_stats``)."""


def _needs_driver() -> bool:
    """True if a reducer of CUDA tensors would time itself by events of a GPU that is not there."""
    count = getattr(torch._C, "_cuda_getDeviceCount", None)  # torch.cuda may pretend
    return count is not None and not count()


def _untimed(method: Callable[..., Any]) -> Any:
    """Return ``prepare_for_forward`` of a reducer that has run so often that it is not timed any more."""
    seen: dict[int, Any] = {}

    def call(reducer: Any) -> None:
        if id(reducer) not in seen:
            seen[id(reducer)] = reducer
            for _ in range(_TIMED):
                with suppress(RuntimeError):  # counted before the event is asked for
                    method(reducer)
        method(reducer)

    return call


def _refused(_: Any) -> None:
    raise CaptureError(
        "static_graph of DistributedDataParallel times its first iterations on a GPU: capture it with PyTorch's CPU "
        "build, which knows the target cuda too, or where there is a GPU"
    )


class Bookkeeping:
    """Runs ops on the integers of the reducer.

    Attributes:
        inside: greater than 0 while the reducer works on them.
    """

    def __init__(self, hollows: Hollows) -> None:
        self.hollows = hollows
        self.inside = 0

    def takes(self, func: Any, args: Any, kwargs: Any) -> bool:
        """True if *func* makes such a tensor, or one is among its operands."""
        if kwargs.get("pin_memory"):
            return kwargs.get("dtype") is torch.int32  # marks of used parameters, on their way to the device
        if not self.inside:
            return False
        if func in _MAKES:
            return kwargs.get("dtype") is torch.int32 and kwargs.get("device") in (None, torch.device("cpu"))
        return any(self._is_real(leaf) for leaf in tree_leaves((args, kwargs)))

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of an op that `takes`; what comes from a device is what went there."""
        if collectives.is_in_place(func):
            return collectives.answer(func, args)
        if func is aten.copy_.default and not all(self._is_real(tensor) for tensor in args[:2]):
            return args[0]
        with no_dispatch():
            if not kwargs.get("pin_memory"):
                return func(*args, **kwargs)
            made = func(*args, **{**kwargs, "pin_memory": False})
            setattr(made, _PINNED, True)
            return made

    def _is_real(self, leaf: Any) -> bool:
        return isinstance(leaf, torch.Tensor) and not self.hollows.is_hollow(leaf)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Let the reducer work on real integers inside."""
        untyped: Any = dist
        kind = untyped.Reducer
        with ExitStack() as stack:
            stack.enter_context(patch.object(kind, "_rebuild_buckets", self._within(kind._rebuild_buckets)))
            stack.enter_context(patch.object(dist, "_verify_params_across_processes", lambda *_: None))
            stack.enter_context(patch.object(untyped.Logger, "set_runtime_stats_and_log", lambda _: None))
            if _needs_driver():
                stack.enter_context(patch.object(kind, "prepare_for_forward", _untimed(kind.prepare_for_forward)))
                stack.enter_context(patch.object(kind, "_set_static_graph", _refused))
            yield

    def _within(self, method: Callable[..., Any]) -> Any:
        def call(reducer: Any) -> Any:
            self.inside += 1
            try:
                return method(reducer)
            finally:
                self.inside -= 1

        return call
