"""Ops and tensors: what a graph is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod
from typing import Any

from graphsim.units import itemsize

MAX_BYTES = 2**62
"""Sums of bytes fit the 64-bit integers of the simulation."""

HOLD = "hold"
"""Kind of the zero-cost op by which a framework keeps tensors beyond their last use in data."""

RELEASE = "release"
"""Kind of such an op in the log of a runtime that may evict what only a name keeps: a schedule may leave it out, and
plans do."""

KEEPS = frozenset({HOLD, RELEASE})


class Phase(StrEnum):
    """The part of a training step in which an op runs."""

    FORWARD = "forward"
    BACKWARD = "backward"
    RECOMPUTE = "recompute"
    OPTIMIZER = "optimizer"


class Role(StrEnum):
    """What the bytes of a tensor are for."""

    PARAMETER = "parameters"
    GRADIENT = "gradients"
    OPTIMIZER_STATE = "optimizer_state"
    ACTIVATION = "activations"
    INPUT = "inputs"
    BUFFER = "buffers"
    TEMPORARY = "temporaries"
    LIBRARY = "libraries"


RESIDENT = frozenset({Role.PARAMETER, Role.OPTIMIZER_STATE, Role.INPUT, Role.BUFFER, Role.LIBRARY})
"""Roles of a source tensor that live for the whole step."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array of *shape* (elements) and *dtype*, over its own storage or another tensor's.

    ``storage`` names the tensor that owns the bytes; empty means this one does. A view or an
    in-place result names its base and is free.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    role: Role = Role.ACTIVATION
    storage: str = ""

    @property
    def base(self) -> str:
        """Name of the tensor that owns the bytes."""
        return self.storage or self.name

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements (the bytes of the storage, for a tensor that owns it)."""
        return prod(self.shape) * itemsize(self.dtype)


@dataclass(frozen=True, slots=True)
class Op:
    """One operation: reads *inputs*, writes *outputs*, overwrites the bytes of *mutates*.

    ``workspace`` is scratch memory in bytes that lives while the op runs; ``flops`` and ``moved``
    (bytes read and written) are its work; ``time`` is a cost in any unit, if one is known.
    ``forward_of`` of a backward op names the forward op that it differentiates.
    """

    name: str
    kind: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    phase: Phase = Phase.FORWARD
    layer: str = ""
    workspace: int = 0
    flops: int = 0
    moved: int = 0
    time: float = 0.0
    mutates: tuple[str, ...] = ()
    forward_of: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
