"""Checkmate's R and S matrices, to and from schedules.

Source: Jain et al., "Checkmate: breaking the memory wall with optimal tensor rematerialization", MLSys
2020, section 4.2. Time is cut into n stages; stage t computes op t for the first time. R[t, i] says
that op i is computed in stage t, S[t, i] that what it made earlier is still stored when stage t
begins. Within a stage, ops run in program order, and none runs twice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graphsim.core.graph import Graph
from graphsim.core.index import Bools, Ints
from graphsim.core.schedule import Schedule
from graphsim.errors import ScheduleError
from graphsim.recompute.case import without_releases


def schedule_of_matrices(r: npt.ArrayLike, s: npt.ArrayLike | None = None, *, graph: Graph | None = None) -> Schedule:
    """Return the schedule that the matrix *r* executes, stage by stage.

    Args:
        r: n by n, zeros and ones (or floats near them, as solvers return them).
        s: if given with *graph*: every op of a stage must find its inputs, stored or computed there.
        graph: what the ops read; one op per row, but for those of kind `release`, which have none.

    Raises:
        ScheduleError: a matrix has the wrong shape or entries, a stage does not compute its op or
            computes a later one, or an input is neither stored nor computed.
    """
    computed = _binary(r, "R")
    n = len(computed)
    bare, ops = without_releases(graph) if graph else (None, np.arange(n))
    if np.triu(computed, 1).any():
        stage, op = (int(i[0]) for i in np.nonzero(np.triu(computed, 1)))
        raise ScheduleError(f"R computes op {op} in stage {stage}, before its own")
    missing = np.flatnonzero(~np.diagonal(computed))
    if len(missing):
        raise ScheduleError(f"R does not compute op {missing[0]} in its own stage")
    if s is not None:
        stored = _binary(s, "S")
        if stored.shape != computed.shape:
            raise ScheduleError(f"R is {n} by {n}, S {stored.shape[0]} by {stored.shape[1]}")
        _check_stored(computed, stored, bare)
    return Schedule(ops[np.nonzero(computed)[1]])


def matrices_of_schedule(graph: Graph, schedule: Schedule) -> tuple[Bools, Bools]:
    """Return R and S of *schedule*; ops of kind `release` have no row.

    Each first execution of an op, in program order, ends a stage. S stores what an op of the stage,
    or a later one, reads before it is computed again.

    Raises:
        ScheduleError: ops are first executed in another order, or one twice in a stage.
    """
    graph, ops = without_releases(graph)
    n, order = len(ops), np.searchsorted(ops, schedule.ops[np.isin(schedule.ops, ops)])
    first = ~Schedule(order).repeats
    if not np.array_equal(order[first], np.arange(n)) or (len(order) and not first[-1]):
        raise ScheduleError("only a schedule that first executes the ops in program order, and ends so, has stages")
    stage: Ints = np.cumsum(first) - first
    computed = np.zeros((n, n), dtype=bool)
    computed[stage, order] = True
    if computed.sum() != len(order):
        raise ScheduleError("an op is executed twice within one stage")
    if ((stage[1:] == stage[:-1]) & (order[1:] < order[:-1])).any():
        raise ScheduleError("the ops of a stage are not in program order")
    stored = np.zeros((n, n), dtype=bool)
    reads = _reads(graph)
    for t in range(n - 1, 0, -1):  # needed at the start of t: read in t before it is computed, or needed later
        needed = stored[t + 1] & ~computed[t] if t + 1 < n else np.zeros(n, dtype=bool)
        for op in np.flatnonzero(computed[t]):
            for source in reads[op]:
                needed[source] |= not computed[t, source]
        stored[t] = needed
    return computed, stored


def _reads(graph: Graph) -> list[list[int]]:
    producer = {name: i for i, op in enumerate(graph.ops) for name in op.outputs}
    return [sorted({producer[name] for name in op.inputs if name in producer}) for op in graph.ops]


def _binary(matrix: npt.ArrayLike, name: str) -> Bools:
    values = np.asarray(matrix, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise ScheduleError(f"{name} is not a square matrix")
    if not np.isclose(values, np.round(values), atol=1e-4).all() or ((values < -0.5) | (values > 1.5)).any():
        raise ScheduleError(f"{name} has entries other than 0 and 1")
    return values > 0.5


def _check_stored(computed: Bools, stored: Bools, graph: Graph | None) -> None:
    available = np.zeros(len(computed), dtype=bool)
    reads = _reads(graph) if graph else []
    for t in range(len(computed)):
        lost = np.flatnonzero(stored[t] & ~available)
        if len(lost):
            raise ScheduleError(f"S stores op {lost[0]} at stage {t}, which was neither stored nor computed before")
        available = stored[t] | computed[t]
        for op in np.flatnonzero(computed[t]) if graph else ():
            for source in reads[op]:
                if not available[source]:
                    raise ScheduleError(f"stage {t} computes op {op}, but its input {source} is not there")
