"""Offload: storages that stay in host memory for a while. What is copied when, and how long the step takes with it.

A storage that stays on the host is copied out, freed, allocated again and copied back. When, the schedule says, in
executions; so memory follows by order alone, as all else does, and no time decides whether a schedule fits. Time
follows from order: copies run beside the ops, one at a time each way, and an op waits for a copy where it must:

- the copy out begins when execution `out` is reached and the link is free that way;
- execution `free` waits until the copy out is done; from there on the bytes are not on the device;
- at execution `back` they are allocated again, and the copy back begins when the link is free that way;
- the first execution that reads them waits until the copy back is done.

Until the copy out is done the bytes stay on the device: that is what `free` waits for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from graphsim.core.index import NOTHING, Bools, Floats, Ints


@dataclass(frozen=True, eq=False)
class Offloads:
    """Stays of storages in host memory: columns, one row for each; of two that stand alike, the first is copied first.

    Attributes:
        tensor: the tensor (number in `Graph.tensors`) that owns the storage: the latest that is live there.
        out: the execution before which the copy to the host begins; `NOTHING`: the host still has the copy of an
            earlier stay, and the bytes have not changed since.
        free, back: the bytes are on the host alone during executions [free, back).
        rate: bytes that the link carries each way, by unit of cost of the ops (seconds).
    """

    tensor: Ints
    out: Ints
    free: Ints
    back: Ints
    rate: float

    def __len__(self) -> int:
        return len(self.tensor)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Offloads) and self.rate == other.rate and self.rows() == other.rows()

    def rows(self) -> list[tuple[int, ...]]:
        """Return (tensor, out, free, back) of each."""
        columns = (self.tensor, self.out, self.free, self.back)
        return list(zip(*(column.tolist() for column in columns), strict=True))


class Uses(NamedTuple):
    """Who touches each storage instance: columns sorted by instance, then by execution.

    Attributes:
        row: of the live ranges.
        at: the execution that makes, reads or overwrites it.
        changes: it makes or overwrites it.
    """

    row: Ints
    at: Ints
    changes: Bools

    def of(self, row: int) -> tuple[list[int], list[int]]:
        """Return the executions that touch *row*, and those of them that change it."""
        low, high = np.searchsorted(self.row, [row, row + 1])
        at = self.at[low:high]
        return at.tolist(), at[self.changes[low:high]].tolist()


@dataclass(frozen=True, eq=False)
class Copies:
    """Offloads by storage instance: columns.

    Attributes:
        row: of the live ranges without offloads.
        out, free, back: as of `Offloads`.
        need: the first execution that touches it once it is back; the number of executions, where none does.
        nbytes: of the storage.
        rate: as of `Offloads`.
    """

    row: Ints
    out: Ints
    free: Ints
    back: Ints
    need: Ints
    nbytes: Ints
    rate: float

    @property
    def copied(self) -> int:
        """Bytes that are copied out, and back."""
        return int(self.nbytes.sum() + self.nbytes[self.out != NOTHING].sum())


class InvalidOffload(Exception):  # noqa: N818 - it becomes a ScheduleError, where tensors have names
    """Why stay number *number* cannot be, in words that follow the name of its tensor."""

    def __init__(self, number: int, reason: str) -> None:
        self.number, self.reason = number, reason
        super().__init__(f"offload {number} {reason}")


def copies_of(offloads: Offloads, tensor: Ints, born: Ints, end: Ints, nbytes: Ints, uses: Uses) -> Copies:
    """Return what *offloads* copy, of storage instances that are *tensor*: made by *born*, and live until *end*.

    Raises:
        InvalidOffload: a storage is not there to be copied, or is touched while it is not on the device.
    """
    held: dict[int, list[tuple[int, int]]] = {}
    found = np.empty(len(offloads), dtype=np.int64)
    need = np.empty(len(offloads), dtype=np.int64)
    order = np.lexsort((offloads.free, offloads.tensor))
    for number in order.tolist():
        stay = tuple(int(column[number]) for column in (offloads.out, offloads.free, offloads.back))
        live = np.flatnonzero(tensor == offloads.tensor[number])
        live = live[(born[live] < stay[1]) & (stay[2] < end[live])]
        if not len(live):
            raise InvalidOffload(number, f"is not there before execution {stay[1]}, or not used after {stay[2]}")
        row = int(live[-1])
        earlier = held.setdefault(row, [])
        found[number] = row
        need[number] = _need(number, stay, int(born[row]), int(end[row]), uses.of(row), earlier)
    return Copies(found, offloads.out, offloads.free, offloads.back, need, nbytes[found], offloads.rate)


def _need(
    number: int,
    stay: tuple[int, ...],
    born: int,
    end: int,
    uses: tuple[list[int], list[int]],
    held: list[tuple[int, int]],
) -> int:
    """Return the execution that waits for the copy back, and note in *held* from when to when the host has a copy."""
    (out, free, back), (touched, changed) = stay, uses
    need = next((at for at in touched if at >= back), end)
    if not 0 <= free < back:
        raise InvalidOffload(number, f"is freed before execution {free} and is back before {back}")
    if touching := [at for at in touched if free <= at < back]:
        raise InvalidOffload(number, f"is read by execution {touching[0]}, and on the host in {free} ... {back - 1}")
    if held and held[-1][1] > free:
        raise InvalidOffload(number, f"is freed before execution {free}, but on its way back until {held[-1][1]}")
    if out == NOTHING:
        if not held or any(held[-1][0] <= at < free for at in changed):
            raise InvalidOffload(number, "is freed without a copy on the host")
        held.append((held[-1][0], need))
        return need
    if born >= out:
        raise InvalidOffload(number, f"is copied out before execution {out}, but execution {born} makes it")
    if not 0 <= out <= free or any(out <= at < free for at in changed):
        raise InvalidOffload(number, f"changes while it is copied out, between executions {out} and {free}")
    if held and held[-1][1] > out:
        raise InvalidOffload(number, f"is copied out before execution {out}, but on its way back until {held[-1][1]}")
    held.append((out, need))
    return need


class Pieces(NamedTuple):
    """Stretches of live ranges: the row that each is of, and [begin, end)."""

    row: Ints
    begin: Ints
    end: Ints


def on_device(copies: Copies, begin: Ints, end: Ints) -> Pieces:
    """Return the stretches of the live ranges [*begin*, *end*) on the device: first one of each row, then the others.

    The first is empty where a storage that exists before the step goes before anything is executed.
    """
    order = np.lexsort((copies.free, copies.row))
    row, free, back = copies.row[order], copies.free[order], copies.back[order]
    rows = np.concatenate([np.arange(len(begin)), row])
    begins, ends = np.concatenate([begin, back]), np.concatenate([end, end[row]])
    follows = np.flatnonzero(row[1:] == row[:-1])  # a stay after another: the stretch between them ends with it
    ends[len(begin) + follows] = free[follows + 1]
    first = np.flatnonzero(np.concatenate([[True], row[1:] != row[:-1]])) if len(row) else np.empty(0, dtype=np.int64)
    ends[row[first]] = free[first]
    return Pieces(rows, begins, ends)


def on_host(copies: Copies, executions: int) -> Pieces:
    """Return for how long the host has the copies: from the beginning of one out to the end of the last one back.

    One that goes out as the last one is back takes its place.
    """
    order = np.lexsort((copies.free, copies.row))
    copied = copies.out[order] != NOTHING
    group = np.cumsum(copied) - 1
    end = np.zeros(int(copied.sum()), dtype=np.int64)
    np.maximum.at(end, group, np.minimum(copies.need[order] + 1, executions))
    row, begin = copies.row[order][copied], copies.out[order][copied]
    again = np.flatnonzero(row[1:] == row[:-1])
    end[again] = np.minimum(end[again], begin[again + 1])
    return Pieces(row, begin, end)


class Timing(NamedTuple):
    """How long a step takes with its copies, in units of cost.

    Attributes:
        start: when each execution starts.
        total: when all is done.
        stalled: of that, what executions wait for copies.
        out_done, back_done: when each copy is done; of a copy that the host has already, when it was.
    """

    start: Floats
    total: float
    stalled: float
    out_done: Floats
    back_done: Floats


_OUT, _FREE, _BACK, _NEED = range(4)
"""What may be due at an execution, in the order in which it is seen to."""


def timing_of(costs: Floats, copies: Copies) -> Timing:
    """Return the timing of executions that take *costs* each, with *copies* beside them."""
    reached = np.concatenate([[0.0], np.cumsum(costs)])
    seconds = (copies.nbytes / copies.rate).tolist()
    kinds = ((_OUT, copies.out), (_FREE, copies.free), (_BACK, copies.back), (_NEED, copies.need))
    due = sorted(
        (at, kind, number)
        for kind, column in kinds
        for number, at in enumerate(column.tolist())
        if at != NOTHING and not (kind == _FREE and copies.out[number] == NOTHING)
    )
    out_done, back_done = [0.0] * len(seconds), [0.0] * len(seconds)
    last_back: dict[int, float] = {}
    out_free = back_free = late = 0.0
    stops: list[tuple[int, float]] = []
    row = copies.row.tolist()
    for at, kind, number in due:
        now = float(reached[at]) + late
        if kind == _OUT:
            out_free = max(now, out_free, last_back.get(row[number], 0.0)) + seconds[number]
            out_done[number] = out_free
        elif kind == _BACK:
            back_free = max(now, back_free) + seconds[number]
            back_done[number] = last_back[row[number]] = back_free
        elif (wait := (out_done if kind == _FREE else back_done)[number] - now) > 0:
            late += wait
            stops.append((at, wait))
    delay = np.zeros(len(costs) + 1)
    for at, wait in stops:
        delay[at] += wait
    start = reached + np.cumsum(delay)
    return Timing(start[:-1], float(start[-1]), late, np.array(out_done), np.array(back_done))
