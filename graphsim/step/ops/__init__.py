"""The table of op kinds, one file per family.

Each family module ends with ``KINDS``, its entries. To add an op, add an entry there; where its kernels multiply
matrices or reduce, `graphsim.core.kernels` says so. Other packages add theirs by an entry point of group
``graphsim.ops``, whose value is such a tuple.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from graphsim.errors import UnknownNameError
from graphsim.step.ops.kind import Kind

FAMILIES = (
    "elementwise",
    "arithmetic",
    "linear",
    "matmul",
    "embedding",
    "conv",
    "norm",
    "layernorm",
    "rmsnorm",
    "pool",
    "shape",
    "attention",
    "position",
    "movement",
    "recurrent",
    "routing",
    "loss",
    "chunked_loss",
)


@cache
def _ours() -> dict[str, Kind]:
    return {kind.name: kind for family in FAMILIES for kind in import_module(f"graphsim.step.ops.{family}").KINDS}


@cache
def _others() -> dict[str, Kind]:
    from importlib.metadata import entry_points  # slow to import, seldom needed

    return {kind.name: kind for entry in entry_points(group="graphsim.ops") for kind in entry.load()}


def kinds() -> dict[str, Kind]:
    """Return all op kinds by name, ours first."""
    return _ours() | {name: kind for name, kind in _others().items() if name not in _ours()}


def find_kind(name: str) -> Kind | None:
    """Return the op kind *name*, or None where there is none."""
    return _ours().get(name) or _others().get(name)


def kind_of(name: str) -> Kind:
    """Return the op kind *name*.

    Raises:
        UnknownNameError: there is none; the message lists the close ones.
    """
    if (kind := find_kind(name)) is None:
        raise UnknownNameError("op", name, kinds())
    return kind
