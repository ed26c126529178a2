"""The table of op kinds, one file per family.

Each family module ends with ``KINDS``, its entries. To add an op, add an entry there.
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
def kinds() -> dict[str, Kind]:
    """Return all op kinds by name."""
    return {kind.name: kind for family in FAMILIES for kind in import_module(f"graphsim.step.ops.{family}").KINDS}


def kind_of(name: str) -> Kind:
    """Return the op kind *name*.

    Raises:
        UnknownNameError: there is none; the message lists the close ones.
    """
    try:
        return kinds()[name]
    except KeyError:
        raise UnknownNameError("op", name, kinds()) from None
