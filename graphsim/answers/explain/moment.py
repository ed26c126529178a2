"""The moment at which memory ran out, as PyTorch tells it: in words of its error, of any version, or in a snapshot.

Source of the words: c10/cuda/CUDACachingAllocator.cpp and CUDAMallocAsyncAllocator.cpp of PyTorch 1.0 to 2.13, which
print sizes to two decimals of their unit. Until 1.3 "cached" is what the allocator holds and nobody uses; from 1.4 on
"reserved" is all that it holds; from 2.1 on the message says what is "reserved but unallocated", and since then what
is "allocated" includes private pools.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from graphsim.errors import UsageError
from graphsim.units import parse_bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """Live bytes of a snapshot, under the name of the tensor or the place in the code that asked for them."""

    name: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A segment that cannot be given back: *idle* of its bytes are unused, and *kept_by* lives in it."""

    segment_bytes: int
    idle_bytes: int
    kept_by: str


@dataclass(frozen=True, slots=True)
class Moment:
    """What is known of the moment, in bytes; None: not said.

    Attributes:
        told_by: what says so.
        requested: what was asked for: of the device, so in a message 20 MiB stand for any request of 1 to 10 MiB.
        precision: by how much the sizes of a message may be off, of the last digit of what was requested.
        capacity, free: of the device.
        allocated, reserved: by this process, in PyTorch's allocator.
        process: held by this process, with its CUDA context.
        allowed: what the process may reserve.
        private: of what is allocated, in private pools, as of CUDA graphs.
        expandable: whether segments are expandable.
        where: what asked.
        live: what is live, largest first.
        gaps: segments with unused bytes that something keeps, the most first.
        hole: the largest unused piece.
    """

    told_by: str
    requested: int | None = None
    precision: int = 0
    capacity: int | None = None
    free: int | None = None
    allocated: int | None = None
    reserved: int | None = None
    process: int | None = None
    allowed: int | None = None
    private: int | None = None
    expandable: bool | None = None
    where: str = ""
    live: tuple[Piece, ...] = ()
    gaps: tuple[Gap, ...] = ()
    hole: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def idle(self) -> int:
        """What the allocator holds and nobody uses."""
        return (self.reserved or 0) - (self.allocated or 0)

    @property
    def room(self) -> int | None:
        """What the allocator may come to hold: what it has, and what the device has left."""
        if self.reserved is None or self.free is None:
            return None
        return min(self.reserved + self.free, self.reserved + self.free if self.allowed is None else self.allowed)

    @property
    def outside(self) -> int | None:
        """What neither is free nor held by this allocator: the CUDA context, libraries, other processes."""
        if self.capacity is None or self.free is None or self.reserved is None:
            return None
        return self.capacity - self.free - self.reserved


LIBRARY = "a message of a CUDA library"
"""What tells that memory ran out, and no figures."""

_SIZE = r"(\d{1,20}(?:\.\d{1,4})? (?:bytes|[KMGT]iB))"
_BEGIN = re.compile(
    r"(?:CUDA|HIP) out of memory|Allocation on device|"
    r"(?:CUDA|HIP) error: out of memory|(?:CUBLAS|CUDNN|HIPBLAS)_STATUS_(?:ALLOC_FAILED|NOT_INITIALIZED)"
)
_FIELDS = {
    "requested": rf"Tried to allocate {_SIZE}|Requested(?: size)? ?: {_SIZE}",
    "capacity": rf"{_SIZE} total capacity|total capaci?ty of {_SIZE}|Device limit : {_SIZE}",
    "free": rf"{_SIZE} free[;)]|of which {_SIZE} is free|Free \(according to CUDA\) ?: {_SIZE}",
    "allocated": rf"{_SIZE} already allocated|{_SIZE} is allocated by PyTorch|Currently allocated : {_SIZE}",
    "reserved": rf"{_SIZE} reserved in total",
    "idle": rf"{_SIZE} cached|{_SIZE} is reserved by PyTorch but unallocated",
    "process": rf"this process has {_SIZE} memory in use",
    "allowed": rf"{_SIZE} allowed;",
    "private": rf"{_SIZE} allocated in private pools",
}
_UNKNOWN = 1 << 63
"""PyTorch prints 2^64 - 1 bytes, 17179869184.00 GiB, where the driver did not say."""


def read_message(text: str) -> Moment:
    """Return what an out-of-memory message says; *text* may hold a whole log around it.

    Raises:
        UsageError: there is no such message in *text*.
    """
    words = " ".join(text.split())
    begins = [match.start() for match in _BEGIN.finditer(words)]
    if not begins:
        if "MPS backend out of memory" in words:
            raise UsageError("this is PyTorch's message for Apple's MPS, whose allocator is not modelled")
        raise UsageError(
            "there is no CUDA out-of-memory message in it: paste the line that says 'CUDA out of memory. Tried to "
            "allocate ...', or name a file of torch.cuda.memory._dump_snapshot"
        )
    messages = [words[begin:end] for begin, end in zip(begins, [*begins[1:], len(words)], strict=True)]
    message = next((one for one in messages if re.search(_FIELDS["requested"], one)), messages[0])
    said = {name: _size_in(pattern, message) for name, pattern in _FIELDS.items()}
    if said["requested"] is None:
        return Moment(told_by=LIBRARY)
    notes = (f"there are {len(messages)} messages; this is the first",) if len(messages) > 1 else ()
    return Moment(
        told_by="a message",
        requested=said["requested"],
        precision=_precision(message),
        capacity=said["capacity"],
        free=said["free"],
        allocated=said["allocated"],
        reserved=_reserved(said, message),
        process=said["process"],
        allowed=said["allowed"],
        private=said["private"],
        notes=notes,
    )


def _reserved(said: dict[str, int | None], message: str) -> int | None:
    allocated, idle = said["allocated"], said["idle"]
    if allocated is not None and idle is not None:
        return allocated + idle
    if message.startswith("Allocation on device"):  # the driver's own pool: PyTorch keeps nothing back
        return allocated
    return said["reserved"]


def _size_in(pattern: str, message: str) -> int | None:
    match = re.search(pattern, message)
    if not match:
        return None
    size = parse_bytes(next(group for group in match.groups() if group).removesuffix(" bytes"))
    return size if size < _UNKNOWN else None


def _precision(message: str) -> int:
    """Return the half of the last digit of the requested size."""
    unit = re.search(rf"(?:Tried to allocate|Requested(?: size)? ?:) {_SIZE}", message)
    power = "bKMGT".index(unit[1].split()[1][0]) if unit else 0
    return 1024**power // 200 + 1 if power else 0
