"""What an allocator makes of a step, as the page shows it: used and reserved over time, and the map at the peak."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from graphsim.answers.reservation import Stretch
from graphsim.core.index import NOTHING, Ints
from graphsim.core.layout import Layout
from graphsim.core.simulation import Simulation
from graphsim.core.trace import Trace


def allocation_data(step: Stretch, name: str, options: str = "", *, limited: bool = False) -> dict[str, Any]:
    """Return a *step* under the allocator *name* with *options* (text), as JSON can hold it.

    `used` and `reserved` are those while each execution runs. `segments` and `blocks` stand as they
    do at the peak of live bytes; a block's `storage` is a row of the live ranges, -1 for workspace.
    Sizes of segments follow from how the reservation grew: `approximate` says where that may not be
    all, because segments may have been given back in between, as under a limit.
    """
    run, layout = step.run, step.layout
    data: dict[str, Any] = {"name": name, "options": options, "out_of_memory": ""}
    if layout is None:
        outside = step.out_of_memory in ("before the step", "in step 1")
        return {**data, "out_of_memory": step.out_of_memory if outside else f"at {step.out_of_memory}"}
    moment = moments(run)
    event = int(moment[run.peak_execution]) if len(moment) else -1
    there = step.stream.events(moment)
    return {
        **data,
        "used": _at(layout.used, there),
        "reserved": _at(layout.reserved, there),
        "used_peak": step.held.allocated,
        "reserved_peak": step.held.reserved,
        **_map(step, layout, event, approximate=limited),
    }


def moments(run: Simulation) -> Ints:
    """Return the last event before each execution runs: its mallocs and what earlier ones freed are done."""
    executions, ranges, trace = len(run.schedule), run.live_ranges, run.trace
    mallocs = np.bincount(trace.execution + 1, minlength=executions + 1).cumsum()
    dies = ranges.end[~ranges.kept & (ranges.nbytes > 0)]  # freed once execution end - 1 is done
    frees = np.bincount(dies, minlength=executions + 1) + np.bincount(
        np.flatnonzero(ranges.workspace) + 1, minlength=executions + 1
    )
    return np.asarray(mallocs[1:] + frees.cumsum()[:-1] - 1, dtype=np.int64)


def _at(column: Ints, moment: Ints) -> list[int]:
    """The column at each moment; before the first event there is nothing."""
    return [int(value) for value in np.concatenate([[0], column])[moment + 1]]


def _map(step: Stretch, layout: Layout, event: int, *, approximate: bool) -> dict[str, Any]:
    """Return segments and blocks after *event* of the step's own trace."""
    trace = step.run.trace
    live = np.flatnonzero((trace.malloc <= event) & ((trace.free > event) | (trace.free == NOTHING)))
    sizes = segment_sizes(step.stream.trace, layout, int(step.stream.events(np.array([event]))[0]))
    address, home = layout.address[step.stream.rows], layout.segment[step.stream.rows]
    base: dict[int, int] = {}
    for segment, first in zip(layout.segment.tolist(), layout.address.tolist(), strict=True):
        base[segment] = min(first, base.get(segment, first))
    extent: dict[int, int] = defaultdict(int)
    for row in live.tolist():
        segment = int(home[row])
        extent[segment] = max(extent[segment], int(address[row]) - base[segment] + int(trace.nbytes[row]))
    if any(sizes.get(segment, 0) < size for segment, size in extent.items()):
        approximate = True
        sizes = {segment: max(sizes.get(segment, 0), extent.get(segment, 0)) for segment in {*sizes, *extent}}
    segments = [segment for segment in sorted(sizes) if sizes[segment] > 0]
    place = {segment: i for i, segment in enumerate(segments)}
    storage = _storage_of(step.run)
    order = sorted(live.tolist(), key=lambda row: (int(home[row]), int(address[row])))
    return {
        "approximate": approximate,
        "segments": [sizes[segment] for segment in segments],
        "blocks": {
            "segment": [place[int(home[row])] for row in order],
            "offset": [int(address[row]) - base[int(home[row])] for row in order],
            "bytes": [int(trace.nbytes[row]) for row in order],
            "storage": [storage[int(trace.tensor[row]), int(trace.execution[row])] for row in order],
        },
    }


def segment_sizes(trace: Trace, layout: Layout, event: int) -> dict[int, int]:
    """Return the bytes of each segment after *event*: what the reservation grew by is the block's segment."""
    block, _ = trace.stream
    growth = np.diff(layout.reserved[: event + 1], prepend=0)
    sizes: dict[int, int] = defaultdict(int)
    for number in np.flatnonzero(growth).tolist():
        sizes[int(layout.segment[block[number]])] += int(growth[number])
    return sizes


def _storage_of(run: Simulation) -> dict[tuple[int, int], int]:
    """Rows of the live ranges by (tensor, execution that makes it), as blocks of the trace name them."""
    ranges = run.live_ranges
    begin = np.where(ranges.source, NOTHING, ranges.begin)
    rows = {key: row for row, key in enumerate(zip(ranges.tensor.tolist(), begin.tolist(), strict=True))}
    return rows | {(NOTHING, execution): -1 for execution in np.flatnonzero(ranges.workspace).tolist()}
