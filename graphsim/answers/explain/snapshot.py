"""A snapshot of torch.cuda.memory._dump_snapshot, read without running what it may hold, and wound back to its moment.

Source: torch/csrc/cuda/Module.cpp: `segments` with their blocks as they are at the end, and `device_traces`, what
happened before. The moment is that of the last `oom` of the trace; without one, when most was in use.
"""

from __future__ import annotations

import io
import pickle
import struct
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import accumulate
from operator import itemgetter
from typing import Any, ClassVar

from graphsim.answers.explain.moment import Gap, Moment, Piece
from graphsim.core.graph import MAX_BYTES
from graphsim.errors import UsageError, printable

LIMIT = 1 << 28
"""Bytes of a snapshot that are read at most."""
_BLOCKS, _EVENTS, _DEVICES = 1 << 20, 1 << 22, 256
"""Segments with their blocks, events and devices that are read at most: a small file can name one many times."""
_SHOWN = 8

_CODES = (
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
    *("BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT"),
    *("SETITEM", "SETITEMS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "MEMOIZE", "BINPUT", "LONG_BINPUT"),
    *("BINGET", "LONG_BINGET"),
)
"""What a pickle of plain containers and scalars is made of: nothing that imports, calls or builds objects."""


class _Plain(pickle._Unpickler):  # the one in Python: its opcodes can be chosen
    """Reads plain containers and scalars, keys of which are text or numbers."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in _CODES)
    }

    def load_setitems(self) -> None:
        """Set items of a dictionary."""
        items = self.pop_mark()
        self._set(self.stack[-1], items[::2], items[1::2])

    def load_setitem(self) -> None:
        """Set one item of a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [key], [value])

    def _set(self, table: Any, keys: list[Any], values: list[Any]) -> None:
        if type(table) is not dict or any(type(key) not in (str, int) for key in keys):
            raise pickle.UnpicklingError("a key is neither text nor a number")
        table.update(zip(keys, values, strict=True))

    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.SETITEM[0]] = load_setitem


def read_snapshot(content: bytes) -> Moment:
    """Return the moment that a pickled snapshot shows.

    Raises:
        UsageError: *content* is no snapshot, or holds more than plain data.
    """
    try:
        snapshot = _Plain(io.BytesIO(content)).load()
    except KeyError as error:
        code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
        raise UsageError(f"a snapshot holds plain data only; this pickle has the opcode {code:#04x}") from None
    except (
        *(pickle.UnpicklingError, struct.error, EOFError, ValueError, TypeError, AttributeError, IndexError),
        *(OverflowError, RecursionError),
    ) as error:
        raise UsageError(f"no snapshot of torch.cuda.memory: {str(error)[:120] or 'it ends early'}") from None
    try:
        return _moment(snapshot)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"no snapshot of torch.cuda.memory: {type(error).__name__} {str(error)[:120]}") from None


def _moment(snapshot: Mapping[str, Any]) -> Moment:
    traces = list(snapshot.get("device_traces") or [])
    if len(traces) > _DEVICES or any(len(events) > _EVENTS for events in traces):
        raise UsageError(f"the snapshot holds more than {_EVENTS:,} events, or {_DEVICES} devices")
    device = _device(snapshot["segments"], traces)
    events = traces[device] if device < len(traces) else []
    state = _State.at_the_end(snapshot["segments"], device)
    in_use, reserved = _timelines(state, events)
    last = max((i for i, event in enumerate(events) if event["action"] == "oom"), default=None)
    at = last if last is not None else max(range(len(in_use)), key=in_use.__getitem__) - 1
    for event in reversed(events[at + 1 :]):
        state.undo(event)
    gaps, hole = state.gaps()
    refused = events[last] if last is not None else None
    settings = snapshot.get("allocator_settings") or {}
    return Moment(
        told_by="a snapshot" if refused else "a snapshot without an error, when most was in use",
        requested=_size(refused["size"]) if refused else None,
        free=_size(refused["device_free"]) if refused and "device_free" in refused else None,
        allocated=in_use[at + 1],
        reserved=reserved[at + 1],
        expandable=bool(settings.get("expandable_segments")) if settings else None,
        where=_label(refused.get("frames")) if refused else "",
        live=tuple(Piece(_label(f), n) for n, f in nlargest(_SHOWN, state.live.values(), key=itemgetter(0))),
        gaps=gaps,
        hole=hole,
    )


def _device(segments: list[Mapping[str, Any]], traces: list[Any]) -> int:
    """Return the device that ran out of memory, else the one that holds most."""
    for device, events in enumerate(traces):
        if any(event["action"] == "oom" for event in events):
            return device
    held: Counter[int] = Counter()
    for segment in segments[:_BLOCKS]:
        held[segment.get("device", 0)] += _size(segment["total_size"])
    return max(held, key=held.__getitem__, default=0)


def _timelines(state: _State, events: list[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """Return the bytes in use and reserved before the first event and after each."""
    used = {"alloc": 1, "free_completed": -1}
    held = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}
    lines = []
    for end, weights in ((sum(n for n, _ in state.live.values()), used), (state.reserved, held)):
        steps = [weights[a] * _size(e["size"]) if (a := e["action"]) in weights else 0 for e in events]
        lines.append(list(accumulate(steps, initial=end - sum(steps))))
    return lines[0], lines[1]


@dataclass
class _State:
    """Live blocks by address, and the reserved ranges: where their number rises and falls."""

    live: dict[int, tuple[int, Any]] = field(default_factory=dict)
    edges: Counter[int] = field(default_factory=Counter)
    starts: Counter[int] = field(default_factory=Counter)
    reserved: int = 0

    @staticmethod
    def at_the_end(segments: list[Mapping[str, Any]], device: int) -> _State:
        """Return what the segments of a snapshot say."""
        state, seen = _State(), 0
        for segment in segments:
            seen += 1 + len(segment["blocks"])
            if seen > _BLOCKS:
                raise UsageError(f"the snapshot holds more than {_BLOCKS:,} segments and blocks")
            if segment.get("device", 0) != device:
                continue
            address = _size(segment["address"])
            state.reserve(address, _size(segment["total_size"]), 1, expandable=bool(segment.get("is_expandable")))
            for block in segment["blocks"]:
                size = _size(block["size"])
                if str(block["state"]).startswith("active"):
                    place = _size(block.get("address", address))
                    state.live[place] = (_size(block.get("requested_size", size)), block.get("frames"))
                address += size
        return state

    def reserve(self, address: int, size: int, sign: int, *, expandable: bool) -> None:
        """Add or take away a reserved range."""
        self.reserved += sign * size
        self.edges[address] += sign
        self.edges[address + size] -= sign
        if not expandable:  # neighbours in address are two segments all the same
            self.starts[address] += sign

    def undo(self, event: Mapping[str, Any]) -> None:
        """Go back to before *event*."""
        action = event["action"]
        if action == "alloc":
            self.live.pop(event["addr"], None)
        elif action == "free_completed":
            self.live[_size(event["addr"])] = (_size(event["size"]), event.get("frames"))
        elif action in ("segment_alloc", "segment_free", "segment_map", "segment_unmap"):
            sign = -1 if action in ("segment_alloc", "segment_map") else 1
            self.reserve(_size(event["addr"]), _size(event["size"]), sign, expandable=action.endswith("map"))

    def gaps(self) -> tuple[tuple[Gap, ...], int]:
        """Return the segments with most idle bytes that live blocks keep, and the largest idle piece of all."""
        segments = list(self._segments())
        begins = [begin for begin, _ in segments]
        tenants: dict[int, list[tuple[int, int, Any]]] = defaultdict(list)
        for address, (size, frames) in sorted(self.live.items()):
            tenants[bisect_right(begins, address) - 1].append((address, size, frames))
        gaps, hole = [], 0
        for number, (begin, end) in enumerate(segments):
            at, idle = begin, 0
            for address, size, _ in tenants[number]:
                idle, hole, at = idle + address - at, max(hole, address - at), address + size
            idle, hole = idle + end - at, max(hole, end - at)
            if tenants[number] and idle > 0:
                gaps.append((idle, end - begin, max(tenants[number], key=itemgetter(1))[2]))
        most = nlargest(_SHOWN, gaps, key=itemgetter(0))
        return tuple(Gap(size, idle, _label(frames)) for idle, size, frames in most), hole

    def _segments(self) -> Iterator[tuple[int, int]]:
        count, begin = 0, 0
        for place in sorted({*self.edges, *self.starts}):
            if count > 0 and (count + self.edges[place] <= 0 or self.starts[place] > 0):
                yield begin, place
                begin = place
            if count <= 0:
                begin = place
            count += self.edges[place]


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_BYTES:
        raise ValueError(f"{str(value)[:40]!r} is no size")
    return value


def _label(frames: Any) -> str:
    """Return the tensor of frames that we export, or the innermost place outside of PyTorch."""
    frames = [frame for frame in (frames or [])[:200] if isinstance(frame, dict)]
    if not frames:
        return "unknown (record_memory_history was off)"
    if frames[0].get("filename") == "tensor":
        return printable(str(frames[0].get("name"))[:200], keep="")
    own = (f for f in frames if str(f.get("filename", "")).endswith(".py") and "/torch/" not in str(f["filename"]))
    frame = next(own, frames[0])
    place = str(frame.get("filename", "?")).rpartition("/")[2]
    return printable(f"{str(frame.get('name', '?'))[:120]} ({place[-80:]}:{str(frame.get('line', '?'))[:12]})", keep="")
