"""The timeline as a table: one row per execution."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import ClassVar

from graphsim.core.simulation import ROLES, Simulation
from graphsim.display import defused

COLUMNS = ("execution", "op", "kind", "phase", "layer", "live_bytes", *ROLES)


@dataclass(frozen=True, slots=True)
class Csv:
    """Columns: execution, op, kind, phase, layer, live_bytes, and the live bytes of each role."""

    suffix: ClassVar[str] = ".csv"

    def __call__(self, run: Simulation) -> bytes:
        """Return the table as CSV in UTF-8."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        by_role = run.timeline_by_role()
        live = [run.timeline.tolist(), *(by_role[role].tolist() for role in ROLES)]
        for execution, row in enumerate(zip(*live, strict=True)):
            op = run.op_at(execution)
            names = (defused(name) for name in (op.name, op.kind, str(run.phases[execution]), op.layer))
            writer.writerow([execution, *names, *row])
        return text.getvalue().encode("utf-8", "replace")
