"""One graph under one schedule and one release policy, and the questions people ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from graphsim.core.devices import DEVICES, device_of, find_device, op_seconds
from graphsim.core.graph import KEEPS, Graph, Op, Phase, Role
from graphsim.core.index import NOTHING, Ints
from graphsim.core.liveness import LiveRanges, Places, Policy, live_ranges, parse_policy, places
from graphsim.core.offload import timing_of
from graphsim.core.schedule import Schedule
from graphsim.core.trace import Joined, Trace, join, trace
from graphsim.errors import UnknownNameError, preformatted
from graphsim.units import format_bytes


class Part(StrEnum):
    """A part of a breakdown: the role of a storage, told apart by what it does to the peak.

    An activation is *saved* if a backward op reads what forward made; workspace is the scratch memory of kernels, of
    the optimizer, and what libraries keep (cuBLAS).
    """

    PARAMETERS = "parameters"
    GRADIENTS = "gradients"
    OPTIMIZER_STATE = "optimizer_state"
    SAVED_ACTIVATIONS = "saved_activations"
    TRANSIENT_ACTIVATIONS = "transient_activations"
    WORKSPACE = "workspace"
    INPUTS = "inputs"
    BUFFERS = "buffers"


ROLES = tuple(part.value for part in Part)
"""Names of the parts, as results and files have them."""


class LiveTensor(NamedTuple):
    """A storage that is live at some execution."""

    name: str
    nbytes: int
    role: str
    op: str
    layer: str


@dataclass(frozen=True, eq=False)
class Simulation:
    """A graph under a schedule; everything else is derived, once, on demand."""

    graph: Graph
    schedule: Schedule
    policy: Policy = "eager"

    def __repr__(self) -> str:
        return f"<Simulation of {self.graph!r}, {self.policy} release: peak {self.peak:,} bytes>"

    def _repr_html_(self) -> str:
        parts = self.by_role(self.peak_execution) if len(self.schedule) else {}
        where = (
            f"reached in {self.phases[self.peak_execution]}, by {self.op_at(self.peak_execution).name}" if parts else ""
        )
        rows = sorted(((size, role.replace("_", " ")) for role, size in parts.items() if size), reverse=True)
        lines = [f"{self.graph.name}: peak {format_bytes(self.peak)} ({self.peak:,} bytes)", where]
        lines = [*filter(None, lines), *(f"{format_bytes(size):>12}  {role}" for size, role in rows)]
        return preformatted("\n".join(lines))

    @cached_property
    def live_ranges(self) -> LiveRanges:
        """When each storage is live, on the device."""
        return live_ranges(self.graph, self.schedule, policy=self.policy)

    @cached_property
    def trace(self) -> Trace:
        """The malloc/free stream."""
        return trace(self.live_ranges)

    @property
    def timeline(self) -> Ints:
        """Live bytes while each execution runs."""
        return self.live_ranges.timeline

    @property
    def peak(self) -> int:
        """Peak live bytes."""
        return self.live_ranges.peak

    @property
    def peak_execution(self) -> int:
        """First execution at which the peak is reached."""
        return self.live_ranges.peak_execution

    @property
    def time(self) -> float:
        """Sum of the costs of all executions, see `op_costs`, and of what they wait for copies to and from the host."""
        return time_of(self.graph, self.schedule, op_costs(self.graph), policy=self.policy)

    @cached_property
    def places(self) -> Places | None:
        """What lives where, and what is copied; None if nothing is offloaded."""
        return places(self.graph, self.schedule, policy=self.policy) if self.schedule.offloads else None

    @property
    def host_timeline(self) -> Ints:
        """Bytes that are offloaded to the host while each execution runs."""
        return np.zeros(len(self.schedule), dtype=np.int64) if self.places is None else self.places.host.timeline

    def op_at(self, execution: int) -> Op:
        """Return the op that *execution* runs."""
        return self.graph.ops[int(self.schedule.ops[execution])]

    @cached_property
    def phases(self) -> list[Phase]:
        """The phase of each execution; a forward op that runs again is in phase recompute."""
        repeats = self.schedule.repeats
        return [
            Phase.RECOMPUTE if again else self.graph.ops[op].phase
            for op, again in zip(self.schedule.ops.tolist(), repeats.tolist(), strict=True)
        ]

    def phase_peaks(self) -> dict[str, int]:
        """Return the peak bytes within each phase that occurs."""
        phase = np.array([str(p) for p in self.phases])
        return {str(p): int(self.timeline[phase == p].max()) for p in Phase if (phase == p).any()}

    def phase_end_bytes(self, phase: Phase) -> int:
        """Return the live bytes once the last execution of *phase* is done (0 if it does not occur)."""
        last = max((i for i, p in enumerate(self.phases) if p is phase), default=None)
        return 0 if last is None else self.live_ranges.live_after(last)

    @cached_property
    def tensor_roles(self) -> list[str]:
        """The part of the breakdown to which each tensor's storage belongs."""
        return storage_roles(self.graph)

    def by_role(self, execution: int) -> dict[str, int]:
        """Return the live bytes of each role while *execution* runs; they add up to the timeline."""
        sums = dict.fromkeys(ROLES, 0)
        ranges = self.live_ranges
        for row in ranges.live_at(execution).tolist():
            sums[self.tensor_roles[ranges.tensor[row]]] += int(ranges.nbytes[row])
        if len(ranges.workspace):
            sums[Part.WORKSPACE] += int(ranges.workspace[execution])
        return sums

    def timeline_by_role(self) -> Mapping[str, Ints]:
        """Return the timeline of each role; they add up to the timeline."""
        ranges = self.live_ranges
        code = np.array([ROLES.index(role) for role in self.tensor_roles], dtype=np.int64)[ranges.tensor]
        parts = {role: ranges.sum_over_time(ranges.nbytes * (code == i)) for i, role in enumerate(ROLES)}
        parts[Part.WORKSPACE] = parts[Part.WORKSPACE] + ranges.workspace
        return parts

    def live_at(self, execution: int) -> list[LiveTensor]:
        """Return what is live while *execution* runs, largest first (workspace included)."""
        ranges = self.live_ranges
        live = [self.storages[row] for row in ranges.live_at(execution).tolist()]
        if len(ranges.workspace) and ranges.workspace[execution]:
            op = self.op_at(execution)
            live.append(LiveTensor("workspace", int(ranges.workspace[execution]), "workspace", op.name, op.layer))
        return sorted(live, key=lambda tensor: -tensor.nbytes)

    @cached_property
    def storages(self) -> list[LiveTensor]:
        """What each row of the live ranges is: its name, its role, the op and the layer that made it."""
        ranges, names = self.live_ranges, list(self.graph.tensors)
        layers = {op.layer for op in self.graph.ops}
        columns = (ranges.tensor, ranges.nbytes, self.graph.index.maker[ranges.tensor])
        made = []
        for number, nbytes, producer in zip(*(column.tolist() for column in columns), strict=True):
            op = None if producer == NOTHING else self.graph.ops[producer]
            name = self._display_names.get(names[number], names[number])
            layer = op.layer if op else _owner(name, layers)
            made.append(LiveTensor(name, nbytes, self.tensor_roles[number], op.name if op else "", layer))
        return made

    @cached_property
    def _display_names(self) -> dict[str, str]:
        """A gradient is best known by its alias ``<parameter>.grad``."""
        return {t.storage: t.name for t in self.graph.tensors.values() if t.role is Role.GRADIENT and t.storage}


def _owner(name: str, layers: set[str]) -> str:
    """Return the layer to which a source belongs: the longest part of its name that is one, else all but the last."""
    outer = name.rpartition(".")[0]
    layer = outer
    while layer and layer not in layers:
        layer = layer.rpartition(".")[0]
    return layer or outer


def op_costs(graph: Graph) -> npt.NDArray[np.float64]:
    """Return the cost of each op.

    It is the time of the op, if any op of the graph has one; else its seconds on the GPU that the step
    is made for (`devices.op_seconds`); else its flops; else 1.
    """
    return _priced(graph)[0]


def cost_unit(graph: Graph) -> str:
    """Return what `op_costs` counts: 'seconds', 'flops', 'ops', or '' if only the maker of the graph knows."""
    return _priced(graph)[1]


def _priced(graph: Graph) -> tuple[npt.NDArray[np.float64], str]:
    """The one place that decides what an op costs, and in what unit."""
    times = np.array([op.time for op in graph.ops], dtype=np.float64)
    if times.any():
        return times, str(graph.attributes.get("cost_unit", ""))
    training = graph.attributes.get("training")
    if isinstance(training, Mapping) and training.get("target") == "cuda":
        return op_seconds(graph, device_of(str(training.get("device", "")), "cuda")), "seconds"
    flops = np.array([op.flops for op in graph.ops], dtype=np.float64)
    return (flops, "flops") if flops.any() else (_unit_costs(graph), "ops")


def with_costs(graph: Graph, costs: str | Mapping[str, float]) -> Graph:
    """Return *graph* with other op times.

    Args:
        graph: any graph.
        costs: 'unit' (1 for every op), 'flops', the name of a GPU (its roofline), or a table of measured
            times by op name or by kind; an op in neither costs nothing.

    Raises:
        UnknownNameError: *costs* is no such name.
    """
    unit = ""
    if isinstance(costs, Mapping):
        times = np.array([costs.get(op.name, costs.get(op.kind, 0.0)) for op in graph.ops], dtype=np.float64)
    elif costs == "unit":
        times, unit = _unit_costs(graph), "ops"
    elif costs == "flops":
        times, unit = np.array([op.flops for op in graph.ops], dtype=np.float64), "flops"
    elif device := find_device(costs):
        times, unit = op_seconds(graph, device), "seconds"
    else:
        raise UnknownNameError("costs", costs, ["unit", "flops", *DEVICES])
    ops = [replace(op, time=time) for op, time in zip(graph.ops, times.tolist(), strict=True)]
    attributes = {**graph.attributes, "cost_unit": unit}
    return Graph(ops, graph.tensors.values(), outputs=graph.outputs, name=graph.name, attributes=attributes)


def _unit_costs(graph: Graph) -> npt.NDArray[np.float64]:
    return np.array([float(op.kind not in KEEPS) for op in graph.ops], dtype=np.float64)


def time_of(graph: Graph, schedule: Schedule, costs: npt.NDArray[np.float64], *, policy: Policy = "eager") -> float:
    """Return the time of *schedule*, whose ops have these *costs*: theirs, and what they wait for copies.

    Raises:
        ScheduleError: something is offloaded that cannot be, see `Offloads`.
    """
    own = costs[schedule.ops]
    if not schedule.offloads:
        return float(own.sum())
    return timing_of(own, places(graph, schedule, policy=policy).copies).total


def storage_roles(graph: Graph) -> list[str]:
    """Return, for each tensor, the part of the breakdown (see `ROLES`) of its storage."""
    read_in_backward: set[str] = set()
    made_in_forward: set[str] = set()
    for op in graph.ops:
        if op.phase is Phase.FORWARD:
            made_in_forward.update(op.outputs)
        elif op.phase is Phase.BACKWARD:
            read_in_backward.update(graph.tensors[name].base for name in op.inputs)
    roles = []
    for tensor in graph.tensors.values():
        base = graph.tensors[tensor.base]
        if base.role is Role.ACTIVATION:
            saved = base.name in read_in_backward and base.name in made_in_forward
            roles.append((Part.SAVED_ACTIVATIONS if saved else Part.TRANSIENT_ACTIVATIONS).value)
        else:
            roles.append(base.role.value if base.role in ROLES else Part.WORKSPACE.value)
    return roles


def in_succession(first: Simulation, later: Simulation, stream: Joined | None = None, executions: int = 0) -> Joined:
    """Return the traces of *first* and then *later* as one.

    What *later* starts with is what *first* leaves behind under the same name and of the same size. If *first* itself
    is the end of a *stream* (see `join`), the whole stream is returned; so many *executions* come before *first*.
    """
    names = [list(run.graph.tensors) for run in (first, later)]
    left, starts = first.trace, later.trace
    rows = np.arange(len(left.nbytes)) if stream is None else stream.rows
    survivors = {names[0][left.tensor[row]]: int(row) for row in np.flatnonzero(left.free == NOTHING)}
    same = {
        int(row): int(rows[survivors[name]])
        for row in np.flatnonzero(starts.execution == NOTHING)
        if (name := names[1][starts.tensor[row]]) in survivors and left.nbytes[survivors[name]] == starts.nbytes[row]
    }
    return join(left if stream is None else stream.trace, starts, same, executions + len(first.schedule))


def simulate(graph: Graph, schedule: Schedule | None = None, *, policy: Policy = "eager") -> Simulation:
    """Return *graph* simulated under *schedule* (program order by default).

    Raises:
        UnknownNameError: *policy* is not 'eager' or 'liveness'.
        ScheduleError: on first use, if the schedule does not respect the graph.
    """
    return Simulation(graph, Schedule.of(graph) if schedule is None else schedule, parse_policy(policy))
