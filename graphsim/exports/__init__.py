"""Exports: a `Simulation` in a file format of other tools. One file each, one line in the table."""

from __future__ import annotations

from typing import ClassVar, Protocol

from graphsim.registry import Registry
from graphsim.simulation import Simulation


class Export(Protocol):
    """Writes a simulation in a format; options are fields of the export."""

    suffix: ClassVar[str]
    """File suffix by which the format is chosen."""

    def __call__(self, run: Simulation, /) -> bytes:
        """Return the file's content."""


EXPORTS = Registry(
    "exports",
    "export format",
    {
        "snapshot": "graphsim.exports.snapshot:Snapshot",
        "perfetto": "graphsim.exports.perfetto:Perfetto",
        "csv": "graphsim.exports.csv:Csv",
    },
)
