"""Where a prediction leaves a record of gpu_record.py, event by event.

The case is made and captured as it was run, for the card that it ran on. Both streams of events begin with step 1.
They are laid side by side by the sizes that are allocated, in order; where a size is missing or there is one too many,
and where what is live at a malloc is not what was predicted (something was freed earlier or later), that is a
departure: what was recorded, what was predicted, and the op where it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple

BLOCK = 512
"""Bytes in which CUDA's allocator counts."""

NUMBER = 8
"""Bytes of a number that PyTorch wraps on the host for a kernel: these are left out there, of both streams."""


class Malloc(NamedTuple):
    """A malloc: its bytes, what is live after it beyond what was there before step 1, and where it is."""

    nbytes: int
    live: int
    where: str


class Departure(NamedTuple):
    """Mallocs of the record that stand where others were predicted; or a change of what is live, in *held* bytes.

    Attributes:
        number: mallocs of the record before it.
        where: the phase in the record, and the op that was predicted there.
    """

    number: int
    where: str
    recorded: tuple[int, ...]
    predicted: tuple[int, ...]
    held: int = 0

    def __str__(self) -> str:
        if self.held:
            how = "more" if self.held > 0 else "less"
            return f"malloc {self.number:,}, {self.where}: {abs(self.held):,} bytes {how} are live than predicted"
        sizes = [", ".join(f"{size:,}" for size in side[:6]) or "nothing" for side in (self.recorded, self.predicted)]
        return f"malloc {self.number:,}, {self.where}: recorded {sizes[0]}; predicted {sizes[1]}"


def compared(line: dict[str, Any]) -> tuple[list[Departure], int, int]:
    """Return the departures of a case, and its peak beyond what was there before step 1: recorded, predicted."""
    unit = BLOCK if line["device"] == "cuda" else 1
    found, expected = list(recorded(line, unit)), list(predicted(line, unit))
    peaks = [max((one.live for one in side), default=0) for side in (found, expected)]
    return list(departures(found, expected)), peaks[0], peaks[1]


def departures(found: Sequence[Malloc], expected: Sequence[Malloc]) -> Iterator[Departure]:
    """Yield where *found* is not as *expected*, in order."""
    matcher = SequenceMatcher(None, [one.nbytes for one in found], [one.nbytes for one in expected], autojunk=False)
    off = 0
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag != "equal":
            place = expected[min(c, len(expected) - 1)].where if expected else ""
            phase = found[min(a, len(found) - 1)].where if found else ""
            sizes = [tuple(one.nbytes for one in side) for side in (found[a:b], expected[c:d])]
            yield Departure(a, f"{phase} at {place}", sizes[0], sizes[1])
            continue
        for number, (one, other) in enumerate(zip(found[a:b], expected[c:d], strict=True), a):
            if one.live - other.live != off:
                yield Departure(number, f"{one.where} at {other.where}", (), (), one.live - other.live - off)
                off = one.live - other.live


def recorded(line: dict[str, Any], unit: int) -> Iterator[Malloc]:
    """Yield the mallocs of a record from step 1 on."""
    marks = [(name, at) for name, at in line["marks"]]
    live, mark = 0, -1
    for number, change in enumerate(line["events"]):
        while mark + 1 < len(marks) and marks[mark + 1][1] <= number:
            mark += 1
        if mark < 0:
            continue
        size = _counted(change, unit)
        live += size if change > 0 else -size
        if change > 0 and size:
            yield Malloc(size, live, marks[mark][0])


def predicted(line: dict[str, Any], unit: int) -> Iterator[Malloc]:
    """Yield the mallocs of both steps of the case as they are predicted for the card of the record."""
    from graphsim.core.index import NOTHING
    from graphsim.core.simulation import in_succession, simulate

    first, steady = (simulate(step) for step in captured(line))
    trace = in_succession(first, steady).trace
    live = 0
    for block, change in zip(*(column.tolist() for column in trace.stream), strict=True):
        execution = int(trace.execution[block])
        size = _counted(change, unit)
        if execution != NOTHING or change < 0:
            live += size if change > 0 else -size
        if change > 0 and size and execution != NOTHING:
            step = execution - len(first.schedule)
            yield Malloc(size, live, steady.op_at(step).name if step >= 0 else first.op_at(execution).name)


def _counted(change: int, unit: int) -> int:
    """Return the bytes that count: whole units; on the host nothing for a number."""
    return 0 if unit == 1 and abs(change) <= NUMBER else -(-abs(change) // unit) * unit


def captured(line: dict[str, Any]) -> Any:
    """Return both steps of the case, captured.

    Raises:
        LookupError: there is no such case, or the catalogue has no such card.
    """
    from workloads_record import CASES, settings_of, step_of

    from graphsim.core.devices import find_device
    from graphsim.sources import Steps
    from graphsim.sources.torch.capture import capture

    case, target = CASES[line["case"]], line["device"]
    device = find_device(line["card"]) if target == "cuda" else None
    if target == "cuda" and device is None:
        raise LookupError(f"the catalogue has no {line['card']}")
    with settings_of(case):
        made = capture(
            lambda: _formed(case, case.model()),
            lambda: tuple(_formed(case, t) if t.dim() == 4 else t for t in case.batch()),
            optimizer=case.optimizer,
            loss=None,
            step=step_of(case, target),
            device=device,
        )
    return Steps(made.graph(first=True), made.graph())


def _formed(case: Any, value: Any) -> Any:
    import torch

    return value.to(memory_format=torch.channels_last) if "channels_last" in case.settings else value


def report(paths: Sequence[Path], shown: int = 12) -> int:
    """Print for each case of the records how far prediction and record agree; return how many cases depart."""
    from gpu_record import lines_of

    departed = 0
    for line in (line for path in paths for line in lines_of(path)):
        if "failed" in line:
            print(f"{line['case']}: not recorded: {line['failed']}")
            continue
        if "replays" in line:
            departed += _report_replays(line)
            continue
        try:
            found, real, ours = compared(line)
        except Exception as error:  # a case that cannot be predicted is named, and the others go on
            print(f"{line['case']}: not predicted: {type(error).__name__}: {error}"[:300])
            departed += 1
            continue
        departed += bool(found)
        off = f"{ours / real - 1:+.2%}" if real else ""
        print(f"{line['case']} on {line['card']}: peak {real:,} recorded, {ours:,} predicted {off}; ", end="")
        print(f"{len(found)} departures" if found else "every malloc as predicted", flush=True)
        for one in found[:shown]:
            print(f"  {one}")
        if len(found) > shown:
            print(f"  ... {len(found) - shown} more")
    return departed


def _report_replays(line: dict[str, Any]) -> bool:
    """Print what was not replayed as predicted; return whether anything was not."""
    from gpu_record import told

    print(f"{line['case']} on {line['card']}: {told(line)}", flush=True)
    failed = {spec: one["failed"] for spec, one in line["replays"].items() if "failed" in one}
    different = {
        spec: one["first_mismatch"]
        for spec, one in line["replays"].items()
        if spec not in failed and one["matched_used"] < one["events"]
    }
    for spec, reason in (failed | different).items():
        print(f"  {spec}: {reason}")
    return bool(different)


if __name__ == "__main__":
    sys.exit(bool(report([Path(name) for name in sys.argv[1:]])))
