"""Exports: a `Simulation` in a file format of other tools. One file each, one line in the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from graphsim.core.simulation import Simulation
from graphsim.registry import Registry


class Export(Protocol):
    """Writes a simulation in a format; options are fields of the export."""

    suffix: ClassVar[str]
    """File suffix by which the format is chosen."""

    def __call__(self, run: Simulation, /) -> bytes:
        """Return the file's content."""


EXPORTS: Registry[Callable[..., Export]] = Registry(
    "exports",
    "export format",
    {
        "snapshot": "graphsim.show.exports.snapshot:Snapshot",
        "perfetto": "graphsim.show.exports.perfetto:Perfetto",
        "csv": "graphsim.show.exports.csv:Csv",
    },
)
