"""Backends: a `Trace` is executed for real and becomes a measured `Layout`. One file each, one line in the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from graphsim.core.layout import Layout
from graphsim.core.trace import Trace
from graphsim.registry import Registry


class Backend(Protocol):
    """Executes the mallocs and frees of a trace; options are fields of the backend."""

    model: ClassVar[str]
    """Name of the allocator whose layout should be equal."""
    arrays: ClassVar[str | None]
    """Array library that executes arithmetic where the blocks are, if there is one."""

    @property
    def device(self) -> str:
        """What is measured, by name."""

    def __call__(self, trace: Trace, /) -> Layout:
        """Return what was measured; everything is freed again, also on an error."""


BACKENDS: Registry[Callable[..., Backend]] = Registry(
    "backends",
    "backend",
    {
        "numpy": "graphsim.measured.backends.numpy:Numpy",
        "cupy": "graphsim.measured.backends.cupy:Cupy",
        "torch": "graphsim.measured.backends.torch:Torch",
    },
)
