"""Replay: the malloc/free stream of a step, executed for real, against the prediction, event by event."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from graphsim.core.index import NOTHING
from graphsim.core.layout import Layout
from graphsim.core.simulation import Simulation
from graphsim.display import Answer
from graphsim.errors import OutOfMemoryError, UsageError
from graphsim.measured.backends import BACKENDS, Backend
from graphsim.measured.replay.compute import measure
from graphsim.measured.replay.lockstep import lockstep as run_lockstep
from graphsim.memory.allocators import ALLOCATORS
from graphsim.memory.allocators.cupy import reserved_interval
from graphsim.options import configure
from graphsim.version import __version__

SCHEMA = "graphsim-replay/1"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """An event at which the measurement is not what was predicted."""

    event: int
    op: str
    kind: str
    nbytes: int
    predicted_used: int
    measured_used: int
    predicted_total: int
    measured_total: int


@dataclass(frozen=True, slots=True, repr=False)
class Replay(Answer):
    """A prediction and its measurement. Bytes, unless noted.

    Attributes:
        matched_used: events after which the bytes in use are those predicted.
        matched_total: events after which the bytes held from the device are those predicted.
        predicted_peak_bytes, measured_peak_bytes: the most bytes in use, as the allocator rounds them.
        predicted_total_bytes, measured_total_bytes: the most bytes held from the device.
        total_interval: lowest and highest prediction of the latter, where it depends on which of several
            equal free blocks the allocator takes; both are equal where it does not.
        lockstep: the prediction was told which of equal blocks the pool took.
        first_mismatch: where used bytes, or else total bytes, first differ.
        out_of_memory: op at which memory ran out; empty if it did not.
        seconds: time that the replay took.
        compute_seconds: by phase, the time of the arithmetic (see `replay.compute`), if it was asked for.
    """

    spec: str
    backend: str
    device: str
    events: int
    matched_used: int
    matched_total: int
    predicted_peak_bytes: int
    measured_peak_bytes: int
    predicted_total_bytes: int
    measured_total_bytes: int
    total_interval: tuple[int, int]
    lockstep: bool
    first_mismatch: Mismatch | None
    out_of_memory: str
    seconds: float
    compute_seconds: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def matches(self) -> bool:
        """Whether every event was measured as predicted, in bytes used."""
        return not self.out_of_memory and self.matched_used == self.events

    @property
    def headline(self) -> str:
        """The answer in one line."""
        verdict = "equal" if self.matches else "different"
        return f"{self.spec} by {self.backend}: {verdict} at {self.matched_used:,} of {self.events:,} events"

    def to_json(self) -> str:
        """Return one JSON object; its keys are the fields, `schema` names the version."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2)


def replay_run(
    run: Simulation,
    backend: str | Backend = "numpy",
    *,
    options: str = "",
    lockstep: bool = False,
    compute: bool = False,
) -> Replay:
    """Execute the trace of *run* on a backend and compare it with the prediction of the backend's allocator.

    Args:
        run: a simulated schedule.
        backend: a name of `backends.BACKENDS`, or a backend.
        options: of the backend, as text: ``limit=8GiB``.
        lockstep: let CuPy's pool and its model run side by side, and tell the model which of equal free
            chunks the pool took: a difference that remains is an error of the model.
        compute: also execute the arithmetic of every op, and time it.

    Raises:
        GraphSimError: the backend is not available, or an option is wrong.
    """
    plugin: Backend = configure(BACKENDS[backend], options) if isinstance(backend, str) else backend
    if compute and plugin.arrays is None:
        raise UsageError(f"{plugin.model}: arithmetic needs --backend numpy or cupy")
    trace, start = run.trace, time.perf_counter()
    try:
        if lockstep:
            measured, predicted = run_lockstep(trace, plugin)
        else:
            measured, predicted = plugin(trace), ALLOCATORS[plugin.model]()(trace)
    except OutOfMemoryError as error:
        return _ended(run, plugin, error, time.perf_counter() - start)
    seconds = time.perf_counter() - start
    interval = reserved_interval(trace) if plugin.model == "cupy" else (predicted.reserved_peak,) * 2
    used, total = measured.used == predicted.used, measured.reserved == predicted.reserved
    return Replay(
        spec=run.graph.name,
        backend=plugin.model if not isinstance(backend, str) else backend,
        device=plugin.device,
        events=trace.events_count,
        matched_used=int(used.sum()),
        matched_total=int(total.sum()),
        predicted_peak_bytes=predicted.peak,
        measured_peak_bytes=measured.peak,
        predicted_total_bytes=predicted.reserved_peak,
        measured_total_bytes=measured.reserved_peak,
        total_interval=interval,
        lockstep=lockstep,
        first_mismatch=_first_mismatch(run, predicted, measured, used if not used.all() else total),
        out_of_memory="",
        seconds=seconds,
        compute_seconds=measure(run, import_module(plugin.arrays)).by_phase if compute and plugin.arrays else {},
        provenance={"graphsim": __version__, "options": options},
    )


def _first_mismatch(run: Simulation, predicted: Layout, measured: Layout, equal: Any) -> Mismatch | None:
    if equal.all():
        return None
    event = int(np.argmin(equal))
    _, change = run.trace.stream
    return Mismatch(
        event=event,
        op=_op_name(run, event),
        kind="malloc" if change[event] > 0 else "free",
        nbytes=abs(int(change[event])),
        **{
            f"{who}_{what}": int(column[event])
            for who, layout in (("predicted", predicted), ("measured", measured))
            for what, column in (("used", layout.used), ("total", layout.reserved))
        },
    )


def _ended(run: Simulation, plugin: Backend, error: OutOfMemoryError, seconds: float) -> Replay:
    """Return the report of a replay that ran out of memory, with what was in use then."""
    return Replay(
        spec=run.graph.name,
        backend=plugin.model,
        device=plugin.device,
        events=run.trace.events_count,
        matched_used=0,
        matched_total=0,
        predicted_peak_bytes=run.peak,
        measured_peak_bytes=error.reserved,
        predicted_total_bytes=run.peak,
        measured_total_bytes=error.reserved,
        total_interval=(run.peak, run.peak),
        lockstep=False,
        first_mismatch=None,
        out_of_memory=_op_name(run, error.event),
        seconds=seconds,
        provenance={"graphsim": __version__, "error": str(error)},
    )


def _op_name(run: Simulation, event: int) -> str:
    execution = run.trace.execution_of(event)
    return "before the step" if execution == NOTHING else run.op_at(execution).name
