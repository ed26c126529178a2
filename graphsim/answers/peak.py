"""Reports: the answer as plain data with its provenance, to and from JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Unpack

import numpy as np

from graphsim.answers.folk import Counts, folk_bytes
from graphsim.answers.reservation import Held, History, chosen_allocator, history_of, reservations
from graphsim.answers.setting import Setting, asked, spelled_out
from graphsim.answers.unknown import Unknown, unknown_of
from graphsim.core.graph import Graph, Phase, Role
from graphsim.core.liveness import Policy
from graphsim.core.simulation import LiveTensor, Simulation, simulate
from graphsim.display import Answer, summary_html
from graphsim.errors import UsageError
from graphsim.memory.allocators import Allocator
from graphsim.sources import Source, source_of
from graphsim.sources.spec.expression import read_value
from graphsim.step.ops import find_kind
from graphsim.step.training import Training
from graphsim.units import FLOATING, SHORT_NAMES, format_bytes
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
        out_of_memory_bytes: bytes that this op asks for beyond the limit.
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
    out_of_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class RankReport:
    """Ranks of a training on several GPUs that are equal. Bytes.

    Attributes:
        ranks: those that were captured.
        first_peak_bytes, peak_bytes: the peaks of step 1 and of later ones.
        sent_bytes: what each sends in a step, in all.
        sent: the same by collective.
    """

    ranks: tuple[int, ...]
    first_peak_bytes: int
    peak_bytes: int
    sent_bytes: int
    sent: Mapping[str, int]


@dataclass(frozen=True, slots=True, repr=False)
class Report(Answer):
    """The peak of a training step and its explanation.

    `first` is step 1, in which optimizer states are created; `steady` any later step. For a mode
    without an optimizer, and for a graph that is simulated as it stands, they are equal.

    Attributes:
        kind: of the source: 'model', 'capture' or 'step'.
        after: what ran before in the same process.
        precision: as asked; of a capture, the dtypes of its parameters and its autocast.
        activations: elements per sample, counted as the folk formulas count; None where there is no forward graph.
        folk: bytes by folk formula; empty where there is no forward graph.
        unknown: what a step may take beside what is said here, on a GPU; see `graphsim.answers.unknown`.
        warnings: what was noticed, or had to be assumed, and may make the number another.
        rank: of several GPUs, the one of which all else speaks; None: there is one.
        ranks: those that were captured, worst first.
        parallel: in words, how the model was wrapped for them.
    """

    spec: str
    kind: str
    batch: int
    optimizer: str
    optimizer_impl: str
    precision: str
    target: str
    policy: str
    mode: str
    allocator: str
    allocator_options: str
    after: tuple[str, ...]
    parameters: int
    parameter_bytes: int
    buffer_bytes: int
    input_bytes: int
    activations: int | None
    ops: int
    first: StepReport
    steady: StepReport
    folk: Mapping[str, int]
    unknown: tuple[Unknown, ...] = ()
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    rank: int | None = None
    ranks: tuple[RankReport, ...] = ()
    parallel: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """The answer in one line."""
        where = "" if self.rank is None else f", rank {self.rank}"
        return f"{self.spec}{where}: peak {format_bytes(self.steady.peak_bytes)} ({self.steady.peak_bytes:,} bytes)"

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
            self.headline,
            [" · ".join([*setting, self.precision, self.target, f"{self.policy} release"]), where],
            step.by_role_at_peak,
            step.timeline,
            step.timeline_phase,
        )


@spelled_out
def peak(
    source: Any,
    inputs: Any = None,
    *,
    policy: Policy = "eager",
    allocator: str = "",
    allocator_options: str = "",
    largest: int | None = LARGEST,
    after: Sequence[Any] = (),
    **setting: Unpack[Setting],
) -> Report:
    """Return the peak memory of a training step of *source*: how much, where, and what is live there.

    Examples:
        >>> peak("lenet5", batch=64, optimizer="adam").steady.peak_bytes
        21901368

    Args:
        source: a shipped spec's name, a spec file, ``torch:module:function``, ``hf:config.json``, an .onnx file, a
            graph's .json file, a `Graph`, a networkx DAG, or an ``nn.Module`` with *inputs*; see `source_of`.
        inputs: of a module: a tensor, a tuple of arguments, a dict of keyword arguments; see `from_torch`.
        policy: 'eager' (when PyTorch eager releases tensors) or 'liveness' (right after last use).
        allocator: a name of `allocators.ALLOCATORS`, to learn what it would reserve; empty: none.
        allocator_options: its options as text, see `options.configure`: ``limit=16GiB``.
        largest: how many of the tensors that are live at the peak to list; None: all.
        after: sources that were trained before in the same process, in this order, as this one is: the allocator has
            their segments in its cache. Each may say its params: ``"bert_base batch=8 seq=128"``.

    Raises:
        GraphSimError: an option is wrong, or the source cannot be read or trained.
    """
    return report_of(
        *asked(source, inputs, setting),
        policy=policy,
        allocator=chosen_allocator(allocator, allocator_options),
        shown=(allocator, allocator_options),
        largest=largest,
        after=after,
    )


def report_of(
    source: Source,
    training: Training,
    *,
    policy: Policy = "eager",
    allocator: Allocator | None = None,
    shown: tuple[str, str] = ("", ""),
    largest: int | None = LARGEST,
    after: Sequence[Any] = (),
) -> Report:
    """Return the report of *source*, trained as *training* says; *shown* names the *allocator* and its options.

    Args:
        after: as `peak` takes it.
    """
    if after and allocator is None:
        raise UsageError("what ran before matters to an allocator that caches: --allocator torch")
    steps = source.steps(training)
    steady = simulate(steps.steady, policy=policy)
    first = steady if steps.first is steps.steady else simulate(steps.first, policy=policy)
    held = reservations(first, steady, allocator, _history(after, training, policy))
    step_reports = [_step_report(run, holds, largest) for run, holds in zip((first, steady), held, strict=True)]
    facts = _facts(source, training, steps.steady)
    return Report(
        policy=policy,
        allocator=shown[0],
        allocator_options=shown[1],
        unknown=unknown_of((first, steady), training.device, training.target, allocator),
        after=tuple(source_of_words(one).name for one in after),
        ops=len(steps.steady.ops),
        first=step_reports[0],
        steady=step_reports[1],
        **facts,
    )


def _history(after: Sequence[Any], training: Training, policy: Policy) -> History | None:
    """Return the stream of the sources *after* which a step is asked about."""

    def runs(source: Source) -> tuple[Simulation, Simulation]:
        first, steady = source.steps(training)
        later = simulate(steady, policy=policy)
        return (later if first is steady else simulate(first, policy=policy)), later

    return history_of(runs(source_of_words(one)) for one in after)


def source_of_words(what: Any) -> Source:
    """Return the source *what*; text may go on with params: ``"gpt2 batch=4 seq=128"``.

    Raises:
        UsageError: there is no such source, or a word is no NAME=VALUE.
    """
    if not isinstance(what, str) or " " not in what:
        return source_of(what)
    name, *settings = what.split()
    params = {}
    for setting in settings:
        param, equals, text = setting.partition("=")
        if not equals or not param:
            raise UsageError(f"{setting[:60]!r} after {name[:60]}: write NAME=VALUE, for example batch=8")
        params[param] = read_value(text)
    return source_of(name, **params)


def _facts(source: Source, training: Training, step: Graph) -> dict[str, Any]:
    """Return what a report says of the model and of how it is trained, as the *step* itself has it."""
    sources = [t for t in step.tensors.values() if not t.storage]
    count = {role: sum(t.size for t in sources if t.role is role) for role in Role}
    nbytes = {role: sum(t.nbytes for t in sources if t.role is role) for role in Role}
    forward = source.forward(training.mode) if source.kind == "model" else None
    activations = None if forward is None else activation_count(forward)
    said = {**training.as_dict(), **dict(step.attributes.get("training", {}))}
    optimizer, implementation = _optimizers(source, step, said)
    return {
        "spec": step.name,
        "kind": source.kind,
        "batch": _integer(source.params.get("batch", step.attributes.get("batch"))) or 1,
        "optimizer": optimizer,
        "optimizer_impl": implementation,
        "precision": training.precision if source.kind == "model" else precision_words(step),
        "target": str(said["target"]),
        "mode": str(said["mode"]),
        "parameters": count[Role.PARAMETER],
        "parameter_bytes": nbytes[Role.PARAMETER],
        "buffer_bytes": nbytes[Role.BUFFER],
        "input_bytes": nbytes[Role.INPUT],
        "activations": activations,
        "folk": {} if forward is None else _folk(forward, activations or 0, count),
        "warnings": tuple(str(text) for text in step.attributes.get("warnings", ())),
        "rank": step.attributes.get("rank"),
        "ranks": tuple(RankReport(**{**row, "ranks": tuple(row["ranks"])}) for row in step.attributes.get("ranks", ())),
        "parallel": tuple(step.attributes.get("parallel", ())),
        "provenance": {
            "graphsim": __version__,
            "params": {**dict(step.attributes.get("params", {})), **source.params},
            "training": said,
        },
    }


def _implementation(said: Mapping[str, Any]) -> str:
    return Training(**{name: said[name] for name in ("optimizer", "optimizer_impl", "target")}).implementation


def _folk(forward: Graph, activations: int, count: Mapping[Role, int]) -> dict[str, int]:
    batch = int(forward.attributes.get("batch", 1))
    inputs = [t for t in forward.tensors.values() if t.role is Role.INPUT]
    counts = Counts(
        activations=activations,
        parameters=count[Role.PARAMETER],
        inputs=inputs[0].size // batch if inputs else 0,
        batch=batch,
        states=count[Role.OPTIMIZER_STATE],
    )
    return folk_bytes(counts)


def precision_words(step: Graph) -> str:
    """Return the dtypes of the parameters of a captured step, most bytes first, and its autocast: 'bf16, fp32'."""
    sizes: dict[str, int] = {}
    for tensor in step.tensors.values():
        if tensor.role is Role.PARAMETER and not tensor.storage and tensor.dtype in FLOATING:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    words = [SHORT_NAMES.get(dtype, dtype) for dtype in sorted(sizes, key=lambda dtype: -sizes[dtype])]
    casts = [SHORT_NAMES.get(str(dtype), str(dtype)) for dtype in step.attributes.get("autocast", ())]
    return ", ".join(words) + (f" with autocast {', '.join(casts)}" if casts else "")


def _optimizers(source: Source, step: Graph, said: Mapping[str, Any]) -> tuple[str, str]:
    """Return the optimizer and its implementation: as asked for a model, else what the step itself is known to run."""
    named = str(said["optimizer"]), _implementation(said)
    if source.kind == "model" or (source.kind == "step" and "optimizers" not in step.attributes):
        return named if "training" in step.attributes else ("", "")
    own = [str(name) for name in step.attributes.get("optimizers", ())]
    if not any(op.phase is Phase.OPTIMIZER for op in step.ops):
        return "", ""
    known = "optimizer" in step.attributes.get("training", {})  # one of those that we know by name
    return named if known else (", ".join(own), "")


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


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
        out_of_memory_bytes=held.short,
    )


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
