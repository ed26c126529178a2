"""Allocators: a `Trace` becomes a `Layout`. One file each, one line in the table."""

from __future__ import annotations

from typing import Protocol

from graphsim.layout import Layout
from graphsim.registry import Registry
from graphsim.trace import Trace


class Allocator(Protocol):
    """Places every block of a trace; options are fields of the allocator.

    One that keeps what is freed, so that a later step finds it, says so by a class attribute
    ``caches = True``.
    """

    def __call__(self, trace: Trace, /) -> Layout:
        """Return where each block stands, and what is used and reserved after each event."""


ALLOCATORS = Registry(
    "allocators",
    "allocator",
    {
        "exact": "graphsim.allocators.exact:Exact",
        "cupy": "graphsim.allocators.cupy:CupyPool",
        "torch": "graphsim.allocators.torch:TorchCaching",
        "bfc": "graphsim.allocators.bfc:Bfc",
        "arena": "graphsim.allocators.arena:Arena",
    },
)
