"""The slow twin of `graphsim.core.offload`: one execution at a time, what is where, and what the clock shows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from reference import InvalidScheduleError, Run, Storage, interpret, is_hold

from graphsim.core.graph import Graph


class Stay(NamedTuple):
    """One row of `Offloads`, its tensor by name, `out` None where the host has the bytes already."""

    tensor: str
    out: int | None
    free: int
    back: int


class Step(NamedTuple):
    """Bytes on the device and on the host during each execution; when each starts, and when all is done."""

    device: list[int]
    host: list[int]
    starts: list[float]
    total: float


def step_of(
    graph: Graph, order: Sequence[int], stays: Sequence[Stay], costs: Sequence[float], rate: float, policy: str
) -> Step:
    """Execute *order* with *stays* on the host, over a link of *rate*; *costs* are those of the executions.

    Raises:
        InvalidScheduleError: it cannot be.
    """
    storages = lives_of(graph, order, policy)
    placed = place(stays, storages)
    during = range(len(order))
    device = [
        graph.ops[position].workspace
        + sum(
            storage.nbytes
            for storage in storages
            if storage.begin <= at < storage.end
            and not any(stay.free <= at < stay.back for stay, its in placed if its is storage)
        )
        for at, position in enumerate(order)
    ]
    host = [sum(storage.nbytes for storage in storages if _is_on_host(at, storage, placed)) for at in during]
    return Step(device, host, *clock(placed, costs, rate))


def place(stays: Sequence[Stay], storages: Sequence[Life]) -> list[tuple[Stay, Life]]:
    """Return each stay with the storage of which it is.

    Raises:
        InvalidScheduleError: it cannot be.
    """
    placed = [(stay, _storage_of(stay, storages)) for stay in stays]
    for stay, storage in placed:
        _check(stay, storage, [other for other, its in placed if its is storage and other is not stay])
    return placed


class Life(NamedTuple):
    """A storage: live in [begin, end)."""

    tensor: str
    nbytes: int
    made: int
    begin: int
    end: int
    touched: tuple[int, ...]
    changed: tuple[int, ...]


def gaps(graph: Graph, order: Sequence[int], policy: str) -> list[Stay]:
    """Return the longest stays that can be: each storage between each two executions that touch it.

    Raises:
        InvalidScheduleError: it does not do what program order does.
    """
    found = []
    for life in lives_of(graph, order, policy):
        for last, following in pairwise(life.touched):
            if following - last > 1 and life.nbytes:
                changed = max((at for at in life.changed if at <= last), default=-1)
                found.append(Stay(life.tensor, changed + 1, last + 1, following))
    return found


def lives_of(graph: Graph, order: Sequence[int], policy: str) -> list[Life]:
    """Return when each storage is made, touched and changed.

    Raises:
        InvalidScheduleError: it does not do what program order does.
    """
    interpret(graph, order, policy)
    run = Run(graph, {})
    for position in order:
        run.execute(graph.ops[position])
    for name in graph.outputs:
        run.values[name].kept = True
    names = {storage: name for name, storage in run.sources.items()}
    made = dict.fromkeys(run.sources.values(), -1)
    touched: dict[Storage, set[int]] = {storage: set() for storage in made}
    changed: dict[Storage, set[int]] = {storage: set() for storage in made}
    for at, execution in enumerate(run.executions):
        own = [name for name in execution.op.outputs if graph.tensors[name].base == name]
        for name, storage in zip(own, execution.allocated, strict=True):
            names[storage], made[storage], touched[storage], changed[storage] = name, at, {at}, {at}
        if is_hold(execution.op) and policy == "liveness":
            continue
        for name, storage in zip(execution.op.inputs, execution.inputs, strict=True):
            touched[storage].add(at)
            if name in execution.op.mutates:
                changed[storage].add(at)
    lives = []
    for storage, name in names.items():
        end = len(order) if storage.kept else max(touched[storage], default=-1) + 1
        columns = tuple(sorted(touched[storage])), tuple(sorted(changed[storage]))
        lives.append(Life(name, storage.nbytes, made[storage], max(0, made[storage]), end, *columns))
    return lives


def _storage_of(stay: Stay, storages: Sequence[Life]) -> Life:
    """The latest that is there when the stay begins and needed when it is over."""
    there = [life for life in storages if life.tensor == stay.tensor and life.made < stay.free and stay.back < life.end]
    if not there:
        raise InvalidScheduleError("there is nothing to offload")
    return max(there, key=lambda life: life.made)


def _check(stay: Stay, life: Life, others: list[Stay]) -> None:
    if not 0 <= stay.free < stay.back or any(stay.free <= at < stay.back for at in life.touched):
        raise InvalidScheduleError("it is used while it is on the host")
    before = [other for other in others if other.free <= stay.free]
    if any(_need(other, life) > stay.free for other in before):
        raise InvalidScheduleError("it has not come back yet")
    if stay.out is None:
        copied = [other.out for other in before if other.out is not None]
        if not copied or any(max(copied) <= at < stay.free for at in life.changed):
            raise InvalidScheduleError("the host does not have it")
        return
    if not max(0, life.made + 1) <= stay.out <= stay.free or any(stay.out <= at < stay.free for at in life.changed):
        raise InvalidScheduleError("it is not there, or changes, while it is copied")
    if any(_need(other, life) > stay.out for other in before):
        raise InvalidScheduleError("it has not come back when it is copied")


def _need(stay: Stay, life: Life) -> int:
    return next((at for at in life.touched if at >= stay.back), life.end)


def _is_on_host(at: int, life: Life, placed: list[tuple[Stay, Life]]) -> bool:
    """Whether some copy out has begun of which some copy back is not done."""
    own = sorted((stay for stay, its in placed if its is life), key=lambda stay: stay.free)
    for number, stay in enumerate(own):
        if stay.out is None:
            continue
        last = stay
        for later in own[number + 1 :]:
            if later.out is not None:
                break
            last = later
        if stay.out <= at <= _need(last, life):
            return True
    return False


def clock(placed: list[tuple[Stay, Life]], costs: Sequence[float], rate: float) -> tuple[list[float], float]:
    """Let the clock run: at each execution what begins, what is waited for, and then the op."""
    now, out_free, back_free = 0.0, 0.0, 0.0
    done_out: dict[Stay, float] = {}
    done_back: dict[Stay, float] = {}
    starts = []
    for at in range(len(costs) + 1):
        for stay, life in placed:
            if stay.out == at:
                home = [done_back[other] for other, its in placed if its is life and other in done_back]
                out_free = done_out[stay] = max([now, out_free, *home]) + life.nbytes / rate
        now = max([now, *(done_out[stay] for stay, _ in placed if stay.free == at and stay.out is not None)])
        for stay, life in placed:
            if stay.back == at:
                back_free = done_back[stay] = max(now, back_free) + life.nbytes / rate
        now = max([now, *(done_back[stay] for stay, life in placed if _need(stay, life) == at)])
        starts.append(now)
        if at < len(costs):
            now += costs[at]
    return starts[:-1], starts[-1]
