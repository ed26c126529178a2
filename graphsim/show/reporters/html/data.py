"""The data of the page: columns of plain integers and names, from which the page derives the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from graphsim.answers.plan import Refusal
from graphsim.core.graph import Phase
from graphsim.core.simulation import Simulation, cost_unit, op_costs
from graphsim.display import PHASE_COLORS, ROLE_COLORS
from graphsim.recompute.plan import Plan
from graphsim.show.reporters.html.plans import plan_row
from graphsim.version import __version__

SCHEMA = "graphsim-page/1"
_ROLES = tuple(ROLE_COLORS)
_PHASES = tuple(str(phase) for phase in Phase)


def page_data(
    run: Simulation,
    *,
    facts: Mapping[str, str],
    allocation: Mapping[str, Any] | None = None,
    plans: Sequence[Plan | Refusal] = (),
) -> dict[str, Any]:
    """Return what the page shows, as JSON can hold it. Bytes are integers; ranges are half-open.

    A storage is live in the executions from `begin` to before `end`; the bytes live while execution
    t runs are those of the storages live at t and the workspace of t. Names stand once, in tables;
    columns refer to them by number. `order` is null where each op runs once, in program order.
    """
    layers, kinds = _Names(), _Names()
    ops = run.graph.ops
    in_order = np.array_equal(run.schedule.ops, np.arange(len(ops)))
    return {
        "schema": SCHEMA,
        "graphsim": __version__,
        "title": run.graph.name or "step",
        "facts": [[label, text] for label, text in facts.items()],
        "policy": run.policy,
        "roles": [[role, color] for role, color in ROLE_COLORS.items()],
        "phases": [[phase, PHASE_COLORS[phase]] for phase in _PHASES],
        "peak": _peak(run),
        "ops": {
            "name": [op.name for op in ops],
            "kind": [kinds.number(op.kind) for op in ops],
            "layer": [layers.number(op.layer) for op in ops],
        },
        "order": None if in_order else run.schedule.ops.tolist(),
        "costs": _costs(run),
        "phase": [_PHASES.index(phase) for phase in run.phases],
        "storages": _storages(run, layers),
        "workspace": _workspace(run),
        "layers": layers.names,
        "kinds": kinds.names,
        "allocation": allocation,
        "plans": [plan_row(plan) for plan in plans],
    }


class _Names:
    """A table of names, each with its number."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._number = {name: i for i, name in enumerate(names)}

    def number(self, name: str) -> int:
        return self._number.setdefault(name, len(self._number))

    @property
    def names(self) -> list[str]:
        return list(self._number)


def _peak(run: Simulation) -> dict[str, Any]:
    at = run.peak_execution
    op = run.op_at(at) if len(run.schedule) else None
    return {
        "bytes": run.peak,
        "execution": at,
        "op": op.name if op else "",
        "layer": op.layer if op else "",
        "phase": str(run.phases[at]) if op else "",
        "by_role": run.by_role(at),
    }


def _costs(run: Simulation) -> dict[str, Any]:
    """What each op costs, to four digits: more cannot be seen."""
    return {"unit": cost_unit(run.graph), "of": [float(f"{cost:.4g}") for cost in op_costs(run.graph).tolist()]}


def _storages(run: Simulation, layers: _Names) -> dict[str, list[Any]]:
    ranges = run.live_ranges
    return {
        "name": [storage.name for storage in run.storages],
        "bytes": ranges.nbytes.tolist(),
        "role": [_ROLES.index(storage.role) for storage in run.storages],
        "layer": [layers.number(storage.layer) for storage in run.storages],
        "op": run.graph.index.maker[ranges.tensor].tolist(),
        "begin": ranges.begin.tolist(),
        "end": ranges.end.tolist(),
    }


def _workspace(run: Simulation) -> dict[str, list[int]]:
    """The executions that have one: most have none."""
    scratch = run.live_ranges.workspace
    at = np.flatnonzero(scratch)
    return {"execution": at.tolist(), "bytes": scratch[at].tolist()}
