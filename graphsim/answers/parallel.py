"""Plans for several GPUs: each way in which PyTorch's wrappers spread a model, what it needs, sends and takes.

Plans are tried of a model that is not wrapped. Where the first of them, `FIRST`, is worst on rank 0, rank 0 stands for
all ranks of the others too: shards are cut so that it never has less than another (but for states of ZeRO-1, where the
rank that has most is looked for).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from graphsim.answers.largest import interpolated, largest
from graphsim.answers.need import outcome_as_stored
from graphsim.answers.processes import processes, submit
from graphsim.answers.unknown import Unknown, outside_of, rooms, unknown_of
from graphsim.core.devices import device_of
from graphsim.core.links import is_collective
from graphsim.core.simulation import Simulation, in_succession, simulate
from graphsim.core.streams import step_seconds
from graphsim.core.trace import Trace
from graphsim.errors import CaptureError, GraphSimError, SpecError
from graphsim.memory.allocators.torch import TorchCaching
from graphsim.sources import Source, Steps
from graphsim.step.training import Training, option

FIRST: dict[str, Any] = {"fsdp": True}
WRAPPERS = ("ddp", "fsdp", "tp")


@dataclass(frozen=True, slots=True)
class ParallelPlan:
    """One way to spread a training over several GPUs. Bytes on one GPU, seconds by the roofline.

    Attributes:
        options: of the command line, that ask for it.
        training: the same as fields of a `Training`.
        rank: the rank of which the rest speaks, which needs most.
        peak_bytes: live at most, in step 1 or a later one.
        need_bytes: what PyTorch's allocator holds at most.
        fits, perhaps: as in `Fit`.
        max_batch: largest batch that fits, by the line through two captured batches; None if it is not known.
        sent_bytes, sent: what a rank sends in a step, in all and by collective.
        compute_seconds, communication_seconds, step_seconds: at least; see `core.streams.step_seconds`.
        samples: of a step, on all GPUs together.
    """

    options: str
    training: Mapping[str, Any]
    rank: int
    peak_bytes: int
    need_bytes: int
    fits: bool
    perhaps: bool
    max_batch: int | None
    sent_bytes: int
    sent: Mapping[str, int]
    compute_seconds: float
    communication_seconds: float
    step_seconds: float
    samples: int

    @property
    def sample_seconds(self) -> float:
        """Seconds for each sample of a step."""
        return self.step_seconds / self.samples


class Room(NamedTuple):
    """What each plan is to fit: bytes of a GPU, and the link between GPUs of one machine."""

    memory: int
    context: tuple[int, int] | None
    link: str


class Tried(NamedTuple):
    """The plans that could be made, and why others could not, by their options."""

    plans: tuple[ParallelPlan, ...]
    refused: tuple[str, ...]


def is_open(training: Training) -> bool:
    """True if *training* is on several GPUs and says no way in which they share the model."""
    return training.gpus > 1 and not any(getattr(training, name) for name in WRAPPERS)


def wraps_itself(steps: Steps) -> bool:
    """True if a training sends something of which nobody asked to be wrapped: its own code spreads it."""
    return any(is_collective(op) for op in steps.steady.ops)


def choices(training: Training) -> Iterator[dict[str, Any]]:
    """Yield the fields of each plan: `FIRST` is the first."""
    inner = [size for size in range(2, training.gpus) if training.gpus % size == 0]
    ways: list[dict[str, Any]] = [
        FIRST,
        {"fsdp": True, "reshard": False},
        {"ddp": True},
        {"ddp": True, "zero1": True},
        *({"fsdp": True, "tp": size} for size in inner),
        {"tp": training.gpus},
    ]
    again = () if training.grad_checkpointing or training.mode != "train" else (True,)
    for checkpointing in (False, *again):
        for way in ways:
            if training.mode == "train" or "zero1" not in way:
                yield {**way, "grad_checkpointing": True} if checkpointing else way


def try_plans(source: Source, training: Training, room: Room, others: int) -> Tried:
    """Return each plan for *source*, in the order of `rank_plans`, worked out here or by *others* processes."""
    first, *rest = choices(training)
    found = [_tried(source, training, room, -1, first)]
    same = isinstance(found[0], ParallelPlan) and found[0].rank == 0
    run = partial(_tried, source.with_params(), training, room, 0 if same else -1)
    found += _each(run, rest, others)
    plans = [one for one in found if isinstance(one, ParallelPlan)]
    return Tried(tuple(sorted(plans, key=_order)), tuple(one for one in found if isinstance(one, str)))


def _order(plan: ParallelPlan) -> tuple[bool, bool, float]:
    return not plan.fits, not plan.perhaps, plan.sample_seconds


def _each(run: Callable[[Any], Any], items: list[Any], others: int) -> list[Any]:
    """Return what *run* makes of each item: *others* processes begin with the first ones, this one with the last."""
    if others < 1:
        return [run(item) for item in items]
    with processes(others) as executor:
        futures = [submit(executor, run, item) for item in items]
        found: dict[int, Any] = {n: run(items[n]) for n in range(len(items) - 1, -1, -1) if futures[n].cancel()}
        for number, future in enumerate(futures):
            if number not in found:
                with suppress(BrokenExecutor):  # out of memory perhaps: here there may be enough
                    found[number] = future.result()
        return [found[number] if number in found else run(item) for number, item in enumerate(items)]


def _tried(source: Source, training: Training, room: Room, rank: int, way: Mapping[str, Any]) -> ParallelPlan | str:
    """Return a plan; or why there is none."""
    if "zero1" in way:  # whole parameters go to one rank each
        rank = -1
    try:
        return plan_of(source, replace(training, rank=rank, **way), room, way)
    except GraphSimError as error:
        return f"{_options(way)}: {error}"


def _options(way: Mapping[str, Any]) -> str:
    return " ".join(option(name, value) for name, value in way.items())


def plan_of(source: Source, training: Training, room: Room, way: Mapping[str, Any]) -> ParallelPlan:
    """Return what a plan needs and takes.

    Raises:
        GraphSimError: the source cannot be wrapped so.
    """
    steps = source.steps(training)
    outcome = outcome_as_stored(steps, TorchCaching())
    unknown = _unknown((outcome.first, outcome.steady), training, room)
    sure, perhaps = rooms(room.memory, unknown)
    row = steps.steady.attributes["ranks"][0]
    rank = int(steps.steady.attributes["rank"])
    seconds = step_seconds(steps.steady, device_of(training.device, "cuda"), room.link)
    outside = sum(one.most for one in unknown if not one.inside)
    batch = int(steps.steady.attributes.get("batch") or 1)
    return ParallelPlan(
        options=_options(way),
        training=dict(way),
        rank=rank,
        peak_bytes=max(outcome.first.peak, outcome.steady.peak),
        need_bytes=outcome.need,
        fits=outcome.need <= sure,
        perhaps=sure < outcome.need <= perhaps,
        max_batch=_largest_batch(source, replace(training, rank=rank), outcome, batch, room.memory - outside),
        sent_bytes=row["sent_bytes"],
        sent=row["sent"],
        compute_seconds=seconds.compute,
        communication_seconds=seconds.communication,
        step_seconds=seconds.step,
        samples=batch * training.shortened.accumulation * training.gpus // max(1, training.tp),
    )


def _unknown(runs: tuple[Simulation, Simulation], training: Training, room: Room) -> tuple[Unknown, ...]:
    inside = (one for one in unknown_of(runs, training.device, training.target, TorchCaching()) if one.inside)
    return (*inside, *outside_of(runs[1].graph, training.device, room.context))


def _largest_batch(source: Source, training: Training, outcome: Any, batch: int, room: int) -> int | None:
    """Return the largest batch that fits, by the line through this batch and twice as much; None if it is unknown."""
    if not source.takes("batch"):
        return None
    known = in_succession(outcome.first, outcome.steady).trace
    # a dimension of one lies in memory unlike all others
    low, high = (batch, 2 * batch) if batch > 1 else (2, 3)
    try:
        ends = (low, known if low == batch else _trace(source, training, low)), (high, _trace(source, training, high))
    except (CaptureError, SpecError):  # there may be none of that size
        return None
    between = interpolated(*ends)
    if between is None or (ends[0][1].nbytes == ends[1][1].nbytes).all():
        return None
    return largest(lambda size: TorchCaching()(between(size)).reserved_peak, start=batch, room=room)[0]


def _trace(source: Source, training: Training, batch: int) -> Trace:
    first, steady = (simulate(step) for step in source.with_params(batch=batch).steps(training))
    return in_succession(first, steady).trace
