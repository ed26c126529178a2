"""What is computed for one point; this is what runs in the workers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from graphsim.answers.plan import read_budget
from graphsim.answers.reservation import chosen_allocator, reservations
from graphsim.answers.sweep.points import Point
from graphsim.answers.sweep.table import RESULTS, SCHEMA
from graphsim.answers.unknown import rooms, unknown_of
from graphsim.core.devices import device_of, op_seconds
from graphsim.core.graph import Role
from graphsim.core.liveness import parse_policy
from graphsim.core.simulation import Simulation, simulate
from graphsim.errors import GraphSimError, MissingExtraError, UsageError
from graphsim.memory.allocators import Allocator
from graphsim.memory.allocators.torch import TorchCaching
from graphsim.recompute.plan import make_schedule
from graphsim.recompute.strategies import STRATEGIES, Strategy
from graphsim.recompute.strategies.none import StoreAll
from graphsim.sources import Source, Steps, source_of
from graphsim.sources.spec.expression import Value
from graphsim.step.training import MICRO_BATCHES, Training
from graphsim.version import __version__

FOUND = ("batch", "seq", *RESULTS)
"""What `evaluate` finds of a point, the rest of a row says what was asked."""

Found = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A point with its source, read where it can be, so that it can go to any machine.

    Attributes:
        source: without params; None if it cannot be read.
        stamp: tells one state of the source from another.
        unreadable: why there is no source.
    """

    point: Point
    source: Source | None = field(repr=False)
    stamp: str = ""
    unreadable: str = ""

    @cached_property
    def key(self) -> str:
        """What tells this result from any other: the point, the source's state, the version of graphsim."""
        point = asdict(self.point) | {"params": dict(self.point.params)}
        said = json.dumps([__version__, self.stamp, self.unreadable, point], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:32]


def tasks_of(points: Iterable[Point]) -> list[Task]:
    """Return a task per point; each source is read once, so that all of its points see the same."""
    read: dict[str, tuple[Source | None, str, str]] = {}
    for point in points:
        if point.source not in read:
            read[point.source] = _read(point.source)
    return [Task(point, *read[point.source]) for point in points]


def _read(name: str) -> tuple[Source | None, str, str]:
    """Return a source, the digest of its state and, if it cannot be read, why."""
    try:
        source = source_of(name).pinned()
        return source, hashlib.sha256(source.stamp()).hexdigest(), ""
    except OSError as error:
        return None, "", f"{name}: {error.strerror}"
    except GraphSimError as error:
        return None, "", str(error)


def check(tasks: Iterable[Task]) -> None:
    """Check that some task can be evaluated: that its options exist and its step can be made.

    Raises:
        GraphSimError: what is wrong with the first one, if something is wrong with all.
    """
    refused: GraphSimError | None = None
    for task in tasks:
        try:
            _prepare(task)
        except GraphSimError as error:
            refused = refused or error
        else:
            return
    if refused:
        raise refused


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found of a point: the columns `FOUND`, of which `error` says why there are no others.

    Attributes:
        lasting: it would be found again. What failed for another reason than the point (a package that is
            missing, the user's own code, a lack of memory) is worth another try.
    """

    found: Found
    lasting: bool = True


def evaluate(task: Task) -> Outcome:
    """Return what is found of a point. One bad point must not end a sweep, whatever is wrong with it.

    Raises:
        MemoryError: the worker has too little; no property of the point.
    """
    try:
        return Outcome(dict.fromkeys(FOUND) | {"graphsim": __version__, "schema": SCHEMA} | _found(task))
    except MemoryError:
        raise
    except GraphSimError as error:
        lasting = not isinstance(error, MissingExtraError) and not _runs_code(task)
        return failed(str(error), lasting=lasting)
    except Exception as error:  # a torch: source runs the user's code, and plug-ins are others'
        return failed(f"{type(error).__name__}: {error}")


def _runs_code(task: Task) -> bool:
    """Whether the source is the user's own code, which may find another answer tomorrow."""
    return task.source is not None and task.source.frontend.kind == "capture"


def failed(reason: str, *, lasting: bool = False) -> Outcome:
    """Return the outcome of a point of which nothing is found."""
    error = {"error": " ".join(reason.split()), "graphsim": __version__, "schema": SCHEMA}
    return Outcome(dict.fromkeys(FOUND) | error, lasting)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Step 1 and the steady step in program order (the same, where there is no update), and who acts on them."""

    first: Simulation
    steady: Simulation
    strategy: Strategy
    allocator: Allocator | None
    budget: int | None


def _prepare(task: Task) -> _Prepared:
    """Return what will be simulated; nothing is yet, but for a budget that is a share of the peak.

    Raises:
        GraphSimError: an option is wrong, or the model cannot be loaded or trained.
    """
    if task.source is None:
        raise UsageError(task.unreadable)
    point = task.point
    training = point.training()
    if point.gpu and point.target != "cuda":
        raise UsageError(f"gpu {point.gpu} is for target cuda, not {point.target}")
    strategy = STRATEGIES[point.strategy]()
    allocator = chosen_allocator(point.allocator, point.allocator_options)
    steps = _steps(task.stamp, _Hashed(task.source), point.params, training.shortened)
    steady = simulate(steps.steady, policy=parse_policy(point.policy))
    first = steady if steps.first is steps.steady else simulate(steps.first, policy=steady.policy)
    budget = read_budget(point.budget, steady.graph) if point.budget else None
    return _Prepared(first, steady, strategy, allocator, budget)


class _Hashed(NamedTuple):
    """A source that is what its stamp says."""

    source: Source

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and self.source.name == other.source.name

    def __hash__(self) -> int:
        return hash(self.source.name)


@lru_cache(maxsize=2)  # points that differ in their gpu, strategy or budget only stand together
def _steps(stamp: str, hashed: _Hashed, params: tuple[tuple[str, Value], ...], training: Training) -> Steps:
    """Return step 1 and the steady step."""
    return hashed.source.with_params(**dict(params)).steps(training)


def _found(task: Task) -> Found:
    point = task.point
    prepared = _prepare(task)
    steady = _scheduled(prepared.steady, prepared)
    first = steady if prepared.first.graph is prepared.steady.graph else _scheduled(prepared.first, prepared)
    held_first, held = reservations(first, steady, prepared.allocator)
    graph, base = steady.graph, prepared.steady.time
    params = graph.attributes.get("params", {})
    found = {
        "batch": params.get("batch", graph.attributes.get("batch")),
        "seq": params.get("seq"),
        "parameters": sum(t.size for t in graph.tensors.values() if t.role is Role.PARAMETER and not t.storage),
        "peak_bytes": steady.peak,
        "peak_phase": str(steady.phases[steady.peak_execution]),
        "peak_op": steady.op_at(steady.peak_execution).name,
        "first_peak_bytes": first.peak,
        "reserved_peak_bytes": held.reserved,
        "first_reserved_peak_bytes": held_first.reserved,
        "out_of_memory": held.out_of_memory,
        "overhead": steady.time / base - 1 if base else 0.0,
    }
    if prepared.budget is not None:
        found |= {"budget_bytes": prepared.budget, "feasible": steady.peak <= prepared.budget}
    if point.gpu:
        found |= _fits(point.gpu, (first, steady)) | {"step_seconds": _seconds(task, prepared, steady)}
    return found


def _scheduled(run: Simulation, prepared: _Prepared) -> Simulation:
    if isinstance(prepared.strategy, StoreAll):
        return run
    return replace(run, schedule=make_schedule(run.graph, prepared.strategy, prepared.budget))


def _fits(gpu: str, runs: tuple[Simulation, Simulation]) -> Found:
    memory = device_of(gpu, "cuda").memory
    need = max(held.reserved or 0 for held in reservations(*runs, TorchCaching()))
    sure, perhaps = rooms(memory, unknown_of(runs, gpu, allocator=TorchCaching()))
    return {"memory_bytes": memory, "need_bytes": need, "fits": need <= sure, "perhaps": sure < need <= perhaps}


def _seconds(task: Task, prepared: _Prepared, steady: Simulation) -> float:
    """Return the seconds of the steady step; each micro-batch after the third takes as long as the third."""
    device, more = device_of(task.point.gpu, "cuda"), task.point.accumulation - MICRO_BATCHES
    seconds = float(op_seconds(steady.graph, device)[steady.schedule.ops].sum())
    if more <= 0:
        return seconds
    shorter = _prepare(replace(task, point=replace(task.point, accumulation=MICRO_BATCHES - 1))).steady
    two = _scheduled(shorter, prepared)
    return seconds + more * (seconds - float(op_seconds(two.graph, device)[two.schedule.ops].sum()))
