"""A trace for ui.perfetto.dev and chrome://tracing: ops as slices, live bytes by role as counters.

Source: the Trace Event Format (JSON object form; phases X, C and M). One op lasts as long as its time
says; where no op of the graph has a time, each lasts one microsecond.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphsim.core.simulation import Simulation


@dataclass(frozen=True, slots=True)
class Perfetto:
    """Ops in order, by phase, with what is live."""

    suffix: ClassVar[str] = ".json"

    def __call__(self, run: Simulation) -> bytes:
        """Return the trace as JSON."""
        seconds = np.array([op.time for op in run.graph.ops])[run.schedule.ops]
        lasts = seconds * 1e6 if seconds.any() else np.ones(len(run.schedule))
        begins = np.concatenate([[0.0], np.cumsum(lasts)])
        by_role = {role: line.tolist() for role, line in run.timeline_by_role().items() if line.any()}
        events: list[dict[str, Any]] = [
            {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": run.graph.name or "step"}}
        ]
        for execution, op_number in enumerate(run.schedule.ops.tolist()):
            op = run.graph.ops[op_number]
            begin = round(float(begins[execution]), 3)
            events.append(
                {
                    "ph": "X",
                    "pid": 0,
                    "tid": 0,
                    "name": op.name,
                    "cat": str(run.phases[execution]),
                    "ts": begin,
                    "dur": round(float(lasts[execution]), 3),
                    "args": {"layer": op.layer, "kind": op.kind, "live_bytes": int(run.timeline[execution])},
                }
            )
            live = {role: line[execution] for role, line in by_role.items()}
            events.append({"ph": "C", "pid": 0, "name": "live bytes", "ts": begin, "args": live})
        return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode()
