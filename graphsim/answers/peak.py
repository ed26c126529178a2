"""Reports: the answer as plain data with its provenance, to and from JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from graphsim.answers.folk import Counts, folk_bytes
from graphsim.core.graph import Graph, Phase, Role
from graphsim.core.index import NOTHING
from graphsim.core.liveness import Policy
from graphsim.core.simulation import LiveTensor, Simulation, in_succession, simulate
from graphsim.display import summary_html
from graphsim.errors import OutOfMemoryError, UsageError
from graphsim.memory.allocators import ALLOCATORS, Allocator
from graphsim.options import configure
from graphsim.step.ops import find_kind
from graphsim.step.training import Training, chosen_training, training_step
from graphsim.units import FLOATING, format_bytes
from graphsim.version import __version__

SCHEMA = "graphsim-report/1"
TIMELINE_COLUMNS = 240
LARGEST = 12


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step: its peak, where it is and what is live there. Bytes, unless noted.

    Attributes:
        peak_op, peak_layer, peak_phase: the op during which the peak is reached.
        phase_peak_bytes: the peak within each phase.
        forward_end_bytes: live bytes when the forward pass has returned its loss.
        by_role_at_peak: live bytes at the peak by role; they add up to the peak.
        largest: the largest live storages at the peak.
        ops: number of ops that run.
        timeline: live bytes over time, the maximum in each of at most 240 equal stretches of ops.
        timeline_phase: the phase in which each stretch begins.
        allocated_peak_bytes: what the allocator counts as in use at most, in whole blocks, if one was
            asked for (PyTorch: ``max_memory_allocated``). Step 1 begins with it holding only what is
            resident; later steps find what step 1 has left in its cache.
        reserved_peak_bytes: what it holds from the device at most (``max_memory_reserved``).
        fragmentation: share of that reservation that no block ever needed.
        out_of_memory: op at which the allocator runs out of its limit ('before the step' if what is
            resident does not fit, 'in step 1' if that does not); empty if it does not.
    """

    peak_bytes: int
    peak_op: str
    peak_layer: str
    peak_phase: str
    phase_peak_bytes: Mapping[str, int]
    forward_end_bytes: int
    by_role_at_peak: Mapping[str, int]
    largest: tuple[LiveTensor, ...]
    ops: int
    timeline: tuple[int, ...]
    timeline_phase: tuple[str, ...]
    allocated_peak_bytes: int | None = None
    reserved_peak_bytes: int | None = None
    fragmentation: float | None = None
    out_of_memory: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The peak of a training step and its explanation.

    `first` is step 1, in which optimizer states are created; `steady` any later step. For a mode
    without an optimizer, and for a graph that is simulated as it stands, they are equal.
    """

    spec: str
    batch: int
    optimizer: str
    optimizer_impl: str
    precision: str
    target: str
    policy: str
    mode: str
    allocator: str
    allocator_options: str
    parameters: int
    parameter_bytes: int
    buffer_bytes: int
    input_bytes: int
    activations: int
    ops: int
    first: StepReport
    steady: StepReport
    folk: Mapping[str, int]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return one JSON object; its keys are the fields, `schema` names the version."""
        data = asdict(self)
        for step in ("first", "steady"):
            data[step]["largest"] = [tensor._asdict() for tensor in getattr(self, step).largest]
        return json.dumps({"schema": SCHEMA, **data}, indent=2)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the peak, the timeline as a sparkline, the composition as a table."""
        step = self.steady
        setting = [f"batch {self.batch}", self.optimizer if self.mode == "train" else self.mode]
        where = f"reached in {step.peak_phase}, by {step.peak_op}" if step.peak_op else "nothing is executed"
        return summary_html(
            f"{self.spec}: peak {format_bytes(step.peak_bytes)} ({step.peak_bytes:,} bytes)",
            [" · ".join([*setting, self.precision, self.target, f"{self.policy} release"]), where],
            step.by_role_at_peak,
            step.timeline,
            step.timeline_phase,
        )


def peak(
    graph: Graph,
    training: Training | None = None,
    *,
    policy: Policy = "eager",
    allocator: str = "",
    allocator_options: str = "",
    largest: int | None = LARGEST,
    **options: Any,
) -> Report:
    """Return the report of a training step of the forward *graph*.

    Args:
        graph: as `load` returns it.
        training: how it is trained; or give the fields of `Training` as keywords.
        policy: 'eager' (when PyTorch eager releases tensors) or 'liveness' (right after last use).
        allocator: a name of `allocators.ALLOCATORS`, to learn what it would reserve; empty: none.
        allocator_options: its options as text, see `options.configure`: ``limit=16GiB``.
        largest: how many of the tensors that are live at the peak to list; None: all.

    Raises:
        GraphSimError: an option is wrong, or the graph cannot be trained.
    """
    chosen = chosen_training(training, options)
    short = chosen.shortened
    steady = simulate(training_step(graph, short), policy=policy)
    first = simulate(training_step(graph, short, first=True), policy=policy) if chosen.mode == "train" else steady
    return _report(graph, chosen, (first, steady), allocator, allocator_options, largest)


def report_step(
    graph: Graph,
    *,
    first: Graph | None = None,
    policy: Policy = "eager",
    allocator: str = "",
    allocator_options: str = "",
    largest: int | None = LARGEST,
) -> Report:
    """Return the report of a *graph* that is a whole step already, simulated as it stands.

    *first* is the graph of step 1, if that is another.
    """
    run = simulate(graph, policy=policy)
    before = run if first is None else simulate(first, policy=policy)
    options = {**Training().as_dict(), **dict(graph.attributes.get("training", {}))}
    return _report(graph, Training(**options), (before, run), allocator, allocator_options, largest)


def _report(
    graph: Graph,
    training: Training,
    runs: tuple[Simulation, Simulation],
    allocator: str,
    allocator_options: str,
    largest: int | None,
) -> Report:
    steady = runs[1]
    held = reservations(*runs, chosen_allocator(allocator, allocator_options))
    first_report, steady_report = (_step_report(run, holds, largest) for run, holds in zip(runs, held, strict=True))
    step = steady.graph
    sources = [t for t in step.tensors.values() if not t.storage]
    count = {role: sum(t.size for t in sources if t.role is role) for role in Role}
    nbytes = {role: sum(t.nbytes for t in sources if t.role is role) for role in Role}
    batch = int(graph.attributes.get("batch", 1))
    inputs = [t for t in graph.tensors.values() if t.role is Role.INPUT]
    counts = Counts(
        activations=activation_count(graph),
        parameters=count[Role.PARAMETER],
        inputs=inputs[0].size // batch if inputs else 0,
        batch=batch,
        states=count[Role.OPTIMIZER_STATE],
    )
    return Report(
        spec=graph.name,
        batch=batch,
        optimizer=training.optimizer,
        optimizer_impl=training.implementation,
        precision=training.precision,
        target=training.target,
        policy=steady.policy,
        mode=training.mode,
        allocator=allocator,
        allocator_options=allocator_options,
        parameters=count[Role.PARAMETER],
        parameter_bytes=nbytes[Role.PARAMETER],
        buffer_bytes=nbytes[Role.BUFFER],
        input_bytes=nbytes[Role.INPUT],
        activations=counts.activations,
        ops=len(step.ops),
        first=first_report,
        steady=steady_report,
        folk=folk_bytes(counts),
        provenance={
            "graphsim": __version__,
            "params": dict(graph.attributes.get("params", {})),
            "training": training.as_dict(),
        },
    )


class Held(NamedTuple):
    """What an allocator has in use and holds at most; None, if there is none or it runs out of memory."""

    allocated: int | None = None
    reserved: int | None = None
    out_of_memory: str = ""

    @property
    def fragmentation(self) -> float | None:
        """Share of what is held that no block ever needed."""
        if self.allocated is None or self.reserved is None:
            return None
        return 1 - self.allocated / self.reserved if self.reserved else 0.0


def chosen_allocator(name: str, options: str = "") -> Allocator | None:
    """Return the allocator *name* with *options*, see `options.configure`; None if the name is empty.

    Raises:
        UnknownNameError, UsageError: there is no such allocator or option.
    """
    if options and not name:
        raise UsageError("allocator options need an allocator: --allocator NAME")
    return configure(ALLOCATORS[name], options) if name else None


def reservations(first: Simulation, steady: Simulation, allocator: Allocator | None) -> tuple[Held, Held]:
    """Return what *allocator* holds in step 1 and in the steady step, which may be the same."""
    return _place(first, allocator), _place_after(first, steady, allocator)


def _step_report(run: Simulation, held: Held, largest: int | None) -> StepReport:
    if not len(run.schedule):
        resident = run.live_ranges.peak
        return StepReport(resident, "", "", "", {}, resident, run.by_role(0), (), 0, (), ())
    at = run.peak_execution
    op = run.op_at(at)
    stretches = np.array_split(np.arange(len(run.schedule)), min(TIMELINE_COLUMNS, len(run.schedule)))
    return StepReport(
        peak_bytes=run.peak,
        peak_op=op.name,
        peak_layer=op.layer,
        peak_phase=str(run.phases[at]),
        phase_peak_bytes=run.phase_peaks(),
        forward_end_bytes=run.phase_end_bytes(Phase.FORWARD),
        by_role_at_peak=run.by_role(at),
        largest=tuple(run.live_at(at)[:largest]),
        ops=len(run.schedule),
        timeline=tuple(int(run.timeline[stretch].max()) for stretch in stretches),
        timeline_phase=tuple(str(run.phases[int(stretch[0])]) for stretch in stretches),
        allocated_peak_bytes=held.allocated,
        reserved_peak_bytes=held.reserved,
        fragmentation=held.fragmentation,
        out_of_memory=held.out_of_memory,
    )


def _place(run: Simulation, allocator: Allocator | None) -> Held:
    """Return what *allocator* holds in a step of its own."""
    if allocator is None:
        return Held()
    try:
        layout = allocator(run.trace)
    except OutOfMemoryError as error:
        execution = run.trace.execution_of(error.event)
        return Held(out_of_memory="before the step" if execution == NOTHING else run.op_at(execution).name)
    return Held(layout.peak, layout.reserved_peak)


def _place_after(first: Simulation, later: Simulation, allocator: Allocator | None) -> Held:
    """Return what *allocator* holds in a step after the *first*, if it is one that keeps what is freed."""
    if allocator is None or first is later or not allocator.caches:
        return _place(later, allocator)
    stream, begin = in_succession(first, later)
    try:
        layout = allocator(stream)
    except OutOfMemoryError as error:
        execution = stream.execution_of(error.event) - len(first.schedule)
        return Held(out_of_memory=later.op_at(execution).name if execution >= 0 else "in step 1")
    return Held(int(layout.used[begin:].max()), int(layout.reserved[begin:].max()))


def activation_count(graph: Graph) -> int:
    """Return the elements per sample of the first input and of each counted layer's outputs.

    This is how the seed question counts: the input and the outputs of convolution, pooling and
    dense layers; activation functions, dropout and residual additions are not counted again.
    """
    inputs = [t for t in graph.tensors.values() if t.role is Role.INPUT]
    total = inputs[0].size if inputs else 0
    for op in graph.ops:
        if (kind := find_kind(op.kind)) and kind.counted:
            total += sum(graph.tensors[name].size for name in op.outputs if graph.tensors[name].dtype in FLOATING)
    return total // int(graph.attributes.get("batch", 1))
