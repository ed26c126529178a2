"""A PyTorch memory snapshot of a simulated step, for pytorch.org/memory_viz.

Source: torch/csrc/cuda/Module.cpp (the dictionary that torch.cuda.memory._snapshot returns) and
torch/utils/viz/MemoryViz.js (what is read of it): plain objects, pickle protocol 4.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar

from graphsim.core.index import NOTHING
from graphsim.core.simulation import Simulation
from graphsim.memory.allocators.torch import Block, TorchCaching, TorchPool

Frames = list[dict[str, Any]]
_BEFORE: Frames = [{"filename": "before the step", "line": 0, "name": "resident"}]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The step in PyTorch's caching allocator: every event with its op and layer as frames, phases as annotations.

    Attributes:
        options: of the allocator.
    """

    options: TorchCaching = field(default_factory=TorchCaching)
    suffix: ClassVar[str] = ".pickle"

    def __call__(self, run: Simulation) -> bytes:
        """Return the pickled snapshot.

        Raises:
            OutOfMemoryError: the options have a limit that the step passes.
        """
        return pickle.dumps(snapshot(run, self.options), protocol=4)


def snapshot(run: Simulation, options: TorchCaching) -> dict[str, Any]:
    """Return the snapshot as plain dictionaries. Times are numbers of events."""
    pool, frames = TorchPool(options), _Frames(run)
    entries: list[dict[str, Any]] = []
    live: dict[int, tuple[int, Frames]] = {}
    blocks: dict[int, Block] = {}
    for time, event in enumerate(run.trace.events()):
        cause = frames.of_event(time, event.block)
        if event.kind == "malloc":
            blocks[event.block] = pool.malloc(event.nbytes)
            address = blocks[event.block].address
            actions = [*pool.history, ("alloc", address, event.nbytes)]
            live[address] = (event.nbytes, cause)
        else:
            address = blocks[event.block].address
            pool.free(blocks.pop(event.block))
            del live[address]
            actions = [("free_requested", address, event.nbytes), ("free_completed", address, event.nbytes)]
        pool.history.clear()
        entries += [
            {"action": action, "addr": address, "size": size, "stream": 0, "time_us": time, "frames": cause}
            for action, address, size in actions
        ]
    return {
        "segments": list(_segments(pool, live, expandable=options.expandable_segments)),
        "device_traces": [entries],
        "allocator_settings": {
            "PYTORCH_CUDA_ALLOC_CONF": "",
            "expandable_segments": options.expandable_segments,
            "garbage_collection_threshold": options.garbage_collection_threshold,
        },
        "external_annotations": list(_annotations(run)),
    }


class _Frames:
    """Stack frames of an event: the tensor, its op, its layer from the inside out."""

    def __init__(self, run: Simulation) -> None:
        self.run = run
        self.names = list(run.graph.tensors)

    def of_event(self, event: int, block: int) -> Frames:
        """Return the frames of what happens to *block* at *event*: those of its allocation."""
        execution, tensor = int(self.run.trace.execution[block]), int(self.run.trace.tensor[block])
        name = "workspace" if tensor == NOTHING else self.names[tensor]
        if execution == NOTHING:
            return [{"filename": "tensor", "line": 0, "name": name}, *_BEFORE]
        op = self.run.op_at(execution)
        layers = op.layer.split(".") if op.layer else []
        paths = [".".join(layers[:depth]) for depth in range(len(layers), 0, -1)]
        return [
            {"filename": "tensor", "line": execution, "name": name},
            {"filename": str(self.run.phases[execution]), "line": execution, "name": op.name},
            *({"filename": "layer", "line": 0, "name": path} for path in paths),
        ]


def _segments(pool: TorchPool, live: dict[int, tuple[int, Frames]], *, expandable: bool) -> Iterator[dict[str, Any]]:
    """Yield the final segments with their blocks in order of address; of expandable ones, each mapped range."""
    blocks = sorted(pool.blocks.values(), key=lambda block: block.address)
    for (_, mapped, _), group in groupby(_ranges(blocks), key=lambda item: item[0]):
        if not mapped:
            continue
        members = [block for _, block in group]
        held = sum(block.size for block in members if not block.free)
        yield {
            "device": 0,
            "address": members[0].address,
            "total_size": sum(block.size for block in members),
            "allocated_size": held,
            "active_size": held,
            "requested_size": sum(live[block.address][0] for block in members if not block.free),
            "stream": 0,
            "segment_type": "small" if members[0].small else "large",
            "segment_pool_id": (0, 0),
            "is_expandable": expandable,
            "frames": [],
            "blocks": [_block(block, live) for block in members],
        }


def _ranges(blocks: list[Block]) -> Iterator[tuple[tuple[int, bool, int], Block]]:
    """Yield each block with a key that changes where a contiguous mapped range ends."""
    number = 0
    for i, block in enumerate(blocks):
        number += i > 0 and (block.mapped, block.segment) != (blocks[i - 1].mapped, blocks[i - 1].segment)
        yield (block.segment, block.mapped, number), block


def _block(block: Block, live: dict[int, tuple[int, Frames]]) -> dict[str, Any]:
    requested, frames = (0, []) if block.free else live[block.address]
    return {
        "address": block.address,
        "size": block.size,
        "requested_size": requested,
        "state": "inactive" if block.free else "active_allocated",
        "frames": frames,
    }


def _annotations(run: Simulation) -> Iterator[dict[str, Any]]:
    """Yield the start and the end of each stretch of a phase, in event numbers."""
    trace = run.trace
    begins: dict[int, int] = {}
    for execution, event in zip(trace.execution.tolist(), trace.malloc.tolist(), strict=True):
        if execution != NOTHING:
            begins[execution] = min(event, begins.get(execution, event))
    times = sorted(begins.items())
    for phase, group in groupby(times, key=lambda item: str(run.phases[item[0]])):
        stretch = [event for _, event in group]
        for stage, time in (("START", stretch[0]), ("END", stretch[-1])):
            yield {"device": 0, "time_us": time, "name": phase, "stage": stage}
