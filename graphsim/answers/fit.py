"""Will it fit? The need of a training beside a GPU's memory, the largest batch, and what would make it fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Unpack

from graphsim.answers.deepspeed import estimates
from graphsim.answers.largest import farthest, interpolated, largest
from graphsim.answers.meanwhile import asking
from graphsim.answers.measures import Measure, Rows, choices_of, measures_of, rows_of
from graphsim.answers.need import Known, Trial, need_of, outcome_of
from graphsim.answers.parallel import ParallelPlan, Room, Tried, is_open, try_plans, wraps_itself
from graphsim.answers.processes import cores
from graphsim.answers.setting import Setting, asked, spelled_out, with_one_name
from graphsim.answers.unknown import Unknown, outside_of, rooms, unknown_of
from graphsim.core.devices import device_of
from graphsim.core.graph import Graph
from graphsim.core.links import link_of
from graphsim.core.simulation import in_succession, simulate
from graphsim.core.trace import Trace
from graphsim.display import Answer
from graphsim.errors import CaptureError, SpecError, UsageError
from graphsim.sources import Source
from graphsim.step.training import Training
from graphsim.units import as_budget, format_bytes
from graphsim.version import __version__

SCHEMA = "graphsim-fit/1"

WORTH_A_PROCESS = 10_000
"""Ops of a captured step from which on another process, which imports PyTorch first, is worth it."""
WORTH_OF_PLANS = 1_000
"""The same where a dozen plans are captured twice each."""


@dataclass(frozen=True, slots=True, repr=False)
class Fit(Answer):
    """The answer.

    Attributes:
        fits: the need fits into the memory, with all that is unknown at its most.
        perhaps: it fits only if less is taken than that.
        memory_bytes: of the GPU; or what PyTorch may use, if that was asked about.
        need_bytes: what PyTorch's allocator holds from the device at most, in step 1 and in later ones, which find
            what step 1 left in its cache: what `peak` with the allocator 'torch' says.
        context_bytes: (least, most) outside of PyTorch's allocator: unknown within this range; zero where the memory is
            PyTorch's.
        unknown: what else is unknown: what PyTorch's allocator may be asked for beside the need, and NCCL's buffers.
        margin_bytes: what is left beside all of these at their most; negative if it does not fit.
        max_batch: largest batch that fits by its need and the most outside, where the next one does not; 0 if none
            does; None if the source takes none. What is unknown inside of PyTorch's allocator does not count.
        max_seq: the same for the sequence, if the model has one; else None.
        simulations: settings that were simulated for the largest batch.
        choices: what each choice that was made of a captured model (adapters, quantized weights, ...) saves, one after
            the other; see `choices_of`.
        measures: what saves memory, first those taken until it fits, then the rest by bytes saved.
        notes: what could not be answered, and why.
        warnings: of the source, see `Report`.
        plans: for several GPUs, of a model that nobody has wrapped: all that were tried, those that fit first, by time
            for each sample. All else speaks of the first of them, and of the rank that needs most.
        deepspeed: bytes for each GPU by DeepSpeed's estimators, of states alone, by stage.
        link: between the GPUs of one machine.
    """

    spec: str
    fits: bool
    perhaps: bool
    memory_bytes: int
    need_bytes: int
    context_bytes: tuple[int, int]
    context_source: str
    unknown: tuple[Unknown, ...]
    margin_bytes: int
    max_batch: int | None
    max_seq: int | None
    simulations: int
    measures: tuple[Measure, ...]
    choices: tuple[Measure, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    plans: tuple[ParallelPlan, ...] = ()
    deepspeed: Mapping[str, int] = field(default_factory=dict)
    link: str = ""

    @property
    def headline(self) -> str:
        """The answer in one line."""
        verdict = "fits" if self.fits else ("may fit" if self.perhaps else "does not fit")
        by = f" by {self.plans[0].options}" if self.plans else ""
        where = f" on each of {self.provenance['training']['gpus']} GPUs{by}" if self.link else ""
        return f"{self.spec}: {verdict} in {format_bytes(self.memory_bytes)}{where}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    def to_json(self) -> str:
        """Return one JSON object; its keys are the fields, `schema` names the version."""
        return json.dumps({"schema": SCHEMA, **self.as_dict()}, indent=2)


@spelled_out
def fit(
    source: Any,
    inputs: Any = None,
    *,
    memory: str | int = "",
    strategy: str = "",
    jobs: int = 1,
    link: str = "",
    **setting: Unpack[Setting],
) -> Fit:
    """Return whether a training of *source* fits on a GPU, the largest batch that does, and what would save most.

    Examples:
        >>> fit("lenet5", memory="2GiB").fits
        True

    Args:
        source: as `peak` takes it.
        inputs: of a module.
        memory: of the GPU, in bytes or as text (``24GiB``); or name the card: ``gpu="t4"``.
        strategy: recompute by this strategy; one that needs a budget gets what fits. Empty: none.
        jobs: 1: in this process; more: so many processes where that is worth it, which import the calling script anew,
            so that it must begin with ``if __name__ == "__main__"``; 0: one per core.
        link: between several GPUs of one machine: 'nvlink', 'pcie' or 'network'; empty: the fastest that the card has.

    Raises:
        UsageError: neither or both of a GPU and a memory are given.
        GraphSimError: the source cannot be read or trained.
    """
    gpu = with_one_name(setting).get("gpu", "")
    if bool(gpu) == bool(memory):
        raise UsageError("say either --gpu NAME or --memory SIZE, for example --gpu a100-80g or --memory 24GiB")
    size = device_of(gpu, "cuda").memory if gpu else as_budget(memory)
    return fit_of(*asked(source, inputs, setting), memory=size, strategy=strategy, jobs=jobs, link=link)


def fit_of(
    source: Source,
    training: Training,
    *,
    memory: int,
    context: tuple[int, int] | None = None,
    strategy: str = "",
    jobs: int = 1,
    link: str = "",
) -> Fit:
    """Return whether *source*, trained as *training* says, fits into *memory* bytes, and what would change that.

    Args:
        context: least and most bytes that are taken outside of PyTorch's allocator; None: see `context_of`.
        jobs, link: see `fit`.

    Raises:
        GraphSimError: the source cannot be read or trained.
    """
    if link and not training.gpus:
        raise UsageError("a link joins several GPUs: say how many (--gpus 8)")
    link = link_of(device_of(training.device, "cuda").name, link) if training.gpus else ""
    whole = source.steps(replace(training, rank=0)) if source.kind == "capture" and is_open(training) else None
    if whole is None or wraps_itself(whole):
        return _fit_one(source, training, memory=memory, context=context, strategy=strategy, jobs=jobs, link=link)
    if strategy:
        raise UsageError("plans for several GPUs are compared without --strategy: say one of them, such as --fsdp")
    worth = isinstance(source.what, str) and len(whole.steady.ops) > WORTH_OF_PLANS
    room = Room(memory, context, link)
    tried = try_plans(source, training, room, (jobs or cores()) if worth and jobs != 1 else 0)
    if not tried.plans:
        raise UsageError(f"no plan for {training.gpus} GPUs: {tried.refused[0]}")
    return _fit_best(source, training, tried, room, whole.steady)


def _fit_best(source: Source, training: Training, tried: Tried, room: Room, whole: Graph) -> Fit:
    """Return the answer for the best of the plans that were *tried*; its largest batch is looked at."""
    best = tried.plans[0]
    chosen = replace(training, rank=best.rank, **best.training)
    answer = _fit_one(
        source, chosen, memory=room.memory, context=room.context, link=room.link, guess=best.max_batch, measured=False
    )
    plans = (replace(best, max_batch=answer.max_batch), *tried.plans[1:])
    refused = tuple(f"not tried: {text}" for text in tried.refused)
    deepspeed = estimates(whole, training.gpus)
    return replace(answer, plans=plans, deepspeed=deepspeed, notes=(*answer.notes, *refused))


def _fit_one(
    source: Source,
    training: Training,
    *,
    memory: int,
    context: tuple[int, int] | None,
    strategy: str = "",
    jobs: int = 1,
    link: str = "",
    guess: int | None = None,
    measured: bool = True,
) -> Fit:
    """Return the answer for one training: see `fit_of`.

    Args:
        guess: of the largest batch, if there is one.
        measured: also work out what would save memory.
    """
    step = source.steps(training).steady
    worth = source.kind == "capture" and isinstance(source.what, str) and len(step.ops) > WORTH_A_PROCESS
    outside = outside_of(step, training.device, context)
    question = _Question(source, training, strategy, memory - sum(one.most for one in outside), {})
    trial = Trial(source, training, strategy)
    with asking(question.room, (jobs or cores()) - 1 if worth else 0) as ask:
        rows = rows_of(trial, question.room, ask) if measured else Rows(trial, [], [])
        batch, simulations, notes = question.largest_batch(int(step.attributes.get("batch") or 1), guess)
        sequence = question.largest_sequence()
        outcome = outcome_of(trial, question.room, question.known)  # last, as now most schedules are known
        measures = tuple(measures_of(rows, outcome, question.room))
        choices = tuple(choices_of(rows))
    need = outcome.need
    unknown = unknown_of((outcome.first, outcome.steady), allocator=trial.allocator)
    inside = tuple(one for one in unknown if one.inside)
    sure, perhaps = rooms(memory, (*outside, *inside))
    return Fit(
        spec=step.name,
        fits=need <= sure,
        perhaps=sure < need <= perhaps,
        memory_bytes=memory,
        need_bytes=need,
        context_bytes=(outside[0].least, outside[0].most),
        context_source=outside[0].source,
        unknown=(*inside, *outside[1:]),
        margin_bytes=sure - need,
        max_batch=batch,
        max_seq=sequence,
        simulations=simulations,
        measures=measures,
        choices=choices,
        notes=(*notes, *_depends(need, question.room, inside)),
        warnings=tuple(str(text) for text in step.attributes.get("warnings", ())),
        provenance={"graphsim": __version__, "params": dict(source.params), "training": training.as_dict()},
        link=link,
    )


def _depends(need: int, room: int, inside: tuple[Unknown, ...]) -> tuple[str, ...]:
    """Say whose bytes decide whether *need* fits *room*."""
    return tuple(f"whether it fits depends on the {one.what}" for one in inside if need <= room < need + one.most)


@dataclass(frozen=True)
class _Question:
    source: Source
    training: Training
    strategy: str
    room: int
    known: Known

    def need(self, source: Source, plan: bool = True) -> int:
        return need_of(source, self.training, self.strategy, self.room, known=self.known, plan=plan)

    def largest_batch(self, start: int, guess: int | None = None) -> tuple[int | None, int, tuple[str, ...]]:
        """Return the largest batch that fits, the settings that were simulated for it, and what is to be said of it.

        Where there is a *guess*, it is looked for from there.
        """
        source = self.source
        if not source.takes("batch"):
            factory = "let the factory take a parameter 'batch'" if source.frontend.takes else "the inputs are as given"
            why = {"capture": factory, "model": "it has no param 'batch'", "step": "it is a step as it stands"}
            return None, 0, (f"the largest batch is unknown: {why[source.kind]}",)
        guess, looks = (max(1, guess), 0) if guess is not None else self._guess("batch", start)
        if guess is None:
            return None, looks, ("the largest batch is unknown: a larger 'batch' takes no more memory",)
        refused: list[str] = []
        found, simulations = self._search("batch", guess, start, refused)
        notes = (f"it may be larger: of larger batches no step can be made ({refused[-1]})",) if refused else ()
        return found, looks + simulations, notes

    def largest_sequence(self) -> int | None:
        """Return the longest sequence that fits, if the model has one."""
        sequence = self.source.get("seq")
        if not isinstance(sequence, int):
            return None
        guess, _ = self._guess("seq", sequence)
        return None if guess is None else self._search("seq", guess, sequence, [])[0]

    def _search(self, name: str, start: int, sure: int, refused: list[str]) -> tuple[int, int]:
        """Return the largest size that fits, and the looks.

        Of sizes up to *sure* there is a step; *refused* gets why there is none of a larger one, which the model's
        positions may not allow.
        """

        def held(size: int, plan: bool = True) -> int:
            try:
                return self.need(self.source.with_params(**{name: size}), plan)
            except (CaptureError, SpecError) as error:
                if size <= sure:
                    raise
                refused.append(str(error))
                return self.room + 1

        found, simulations = largest(held, start=start, room=self.room)
        if self.strategy and found:
            return farthest(held, lambda size: held(size, plan=False), found, simulations, self.room)
        return found, simulations

    def _guess(self, name: str, start: int) -> tuple[int | None, int]:
        """Return where the boundary may be, and the steps made for it; None if a larger size takes no more.

        Of a captured model, whose steps take seconds to make, by the traces of two sizes.
        """
        if self.source.kind != "capture" or self.strategy:
            return start, 0
        sizes = (start, 2 * start) if start > 1 else (2, 3)  # a dimension of one lies in memory unlike all others
        try:
            ends = [(size, self._trace(name, size)) for size in sizes]
        except (CaptureError, SpecError):  # there may be none of the larger size
            return start, 2
        between = interpolated(*ends)
        if between is None:
            return start, 2
        allocator = Trial(self.source, self.training).allocator
        if (ends[0][1].nbytes == ends[1][1].nbytes).all():
            return None, 2
        found, _ = largest(lambda size: allocator(between(size)).reserved_peak, start=start, room=self.room)
        return max(1, found), 2

    def _trace(self, name: str, size: int) -> Trace:
        first, steady = (simulate(step) for step in self.source.with_params(**{name: size}).steps(self.training))
        return in_succession(first, steady).trace
