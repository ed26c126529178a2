"""Why memory ran out, by the figures of a moment, and what helps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from graphsim.answers.explain.moment import LIBRARY, Moment
from graphsim.core.context import CONTEXT
from graphsim.units import format_bytes


class Kind(StrEnum):
    """Why a request failed."""

    LIBRARY = "outside of PyTorch's allocator"
    TOO_LARGE = "one request larger than the card"
    LIMITED = "a limit of the process"
    REFUSED = "refused though free"
    FRAGMENTED = "fragmentation"
    OTHERS = "others hold the card"
    FULL = "the card is full"
    UNKNOWN = "too little is said"
    NONE = "no error"


@dataclass(frozen=True, slots=True)
class Cause:
    """A kind, what the figures say, and what helps."""

    kind: Kind
    because: str
    change: str


EXPANDABLE = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
_MUCH = 0.05
"""Share of what is reserved, or of the card, from which on it is worth a word."""


def cause_of(now: Moment) -> Cause:
    """Return why *now* came, judged by its figures alone."""
    if now.told_by == LIBRARY:
        return Cause(
            Kind.LIBRARY,
            "the driver or a library of CUDA found no memory; PyTorch's allocator was not asked, or holds too much",
            "leave memory to them: torch.cuda.set_per_process_memory_fraction(0.9), or end other processes on the card",
        )
    if now.requested is None:
        return _at_ease(now)
    asked = format_bytes(now.requested)
    if now.capacity is not None and now.requested > now.capacity:
        return Cause(
            Kind.TOO_LARGE,
            f"one request of {asked} is more than the whole card, {format_bytes(now.capacity)}",
            "make that one tensor smaller: fused attention in place of a matrix of scores, a loss in chunks, a smaller "
            "batch or sequence; no option of the allocator helps",
        )
    if now.free is None or now.reserved is None:
        return Cause(
            Kind.UNKNOWN,
            f"{asked} were asked for; what was free or held is not said",
            "paste the whole message, or give a snapshot: torch.cuda.memory._dump_snapshot",
        )
    return _refused(now, now.requested, now.free, now.reserved)


def _refused(now: Moment, asked: int, free: int, reserved: int) -> Cause:
    """Return why *asked* bytes were refused with *free* on the device and *reserved* in the allocator."""
    left = free if now.allowed is None else min(free, now.allowed - reserved)
    others = _others(now)
    if left >= asked:
        return Cause(
            Kind.REFUSED,
            f"{format_bytes(free)} were free when the message was written, more than the {format_bytes(asked)} asked "
            "for: something gave memory back between the two, or the driver counts what it does not give",
            "look who else uses the card (nvidia-smi), also threads and processes of your own, and under Windows its "
            "display; then run again",
        )
    if others >= max(asked - free, now.idle + 1, _MUCH * (now.capacity or 0)):
        return Cause(
            Kind.OTHERS,
            f"{format_bytes(others)} of the card are held by others than this process; it holds "
            f"{format_bytes(reserved)} and was short of {format_bytes(asked - free)}",
            "end them, or take another card: nvidia-smi shows who they are",
        )
    if now.idle + left >= asked and now.idle >= _MUCH * reserved and not now.expandable:
        enough = "more than" if now.idle >= asked else f"with the {format_bytes(left)} left enough for"
        return Cause(
            Kind.FRAGMENTED,
            f"{format_bytes(now.idle)} are reserved and not in use, {enough} the {format_bytes(asked)} asked for, but "
            "in pieces that are too small",
            f"{EXPANDABLE} (PyTorch 2.1 and later, Linux; max_split_size_mb before)",
        )
    if free >= asked:
        return Cause(
            Kind.LIMITED,
            f"the process may hold {format_bytes(now.allowed or 0)} and holds {format_bytes(reserved)}; "
            f"{format_bytes(free)} of the card are free",
            "raise or drop torch.cuda.set_per_process_memory_fraction (vLLM: gpu_memory_utilization)",
        )
    return Cause(
        Kind.FULL,
        f"{format_bytes(asked)} were asked for, {format_bytes(free)} free, {format_bytes(now.allocated or 0)} in use",
        "the step must need less: a smaller batch with accumulation, recompute, lower precision",
    )


def _at_ease(now: Moment) -> Cause:
    reserved = now.reserved or 0
    because = f"{format_bytes(now.allocated or 0)} of {format_bytes(reserved)} reserved are in use"
    if now.idle >= _MUCH * reserved and not now.expandable:
        change = f"{EXPANDABLE}: up to {format_bytes(now.idle)} less are reserved"
        return Cause(Kind.NONE, f"{because}; the largest idle piece has {format_bytes(now.hole or 0)}", change)
    return Cause(Kind.NONE, because, "what is live must need less; the largest stand below")


def _others(now: Moment) -> int:
    """Return what other processes hold, as far as it is known that they do."""
    if now.outside is None:
        return 0
    if now.process is not None:
        return (now.capacity or 0) - (now.free or 0) - now.process
    return now.outside - CONTEXT[1]


def notes_of(now: Moment) -> tuple[str, ...]:
    """Return what else the figures say."""
    notes = list(now.notes)
    if now.precision and now.requested in (2 << 20, 20 << 20):
        size = "of at most 1 MiB" if now.requested == 2 << 20 else "of 1 to 10 MiB"
        notes.append(
            f"PyTorch takes {format_bytes(now.requested)} from the device for any request {size}: the last straw"
        )
    if now.capacity is not None and (now.allocated or 0) > now.capacity:
        notes.append("more is allocated than the card has: the driver of Windows moves memory to the host, slowly")
    if now.private is not None and now.private >= _MUCH * (now.allocated or 0):
        notes.append(
            f"{format_bytes(now.private)} are in private pools, as of CUDA graphs: only theirs is what is idle there"
        )
    return tuple(notes)
