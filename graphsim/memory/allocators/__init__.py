"""Allocators: a `Trace` becomes a `Layout`. One file each, one line in the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from graphsim.core.layout import Layout
from graphsim.core.trace import Trace
from graphsim.registry import Registry


class Allocator(Protocol):
    """Places every block of a trace; options are fields of the allocator."""

    caches: ClassVar[bool]
    """Whether it keeps what is freed, so that a later step finds it."""

    def __call__(self, trace: Trace, /) -> Layout:
        """Return where each block stands, and what is used and reserved after each event."""


ALLOCATORS: Registry[Callable[..., Allocator]] = Registry(
    "allocators",
    "allocator",
    {
        "exact": "graphsim.memory.allocators.exact:Exact",
        "cupy": "graphsim.memory.allocators.cupy:CupyPool",
        "torch": "graphsim.memory.allocators.torch:TorchCaching",
        "bfc": "graphsim.memory.allocators.bfc:Bfc",
        "arena": "graphsim.memory.allocators.arena:Arena",
    },
)
