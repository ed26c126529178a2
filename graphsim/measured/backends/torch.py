"""Replay on a GPU through PyTorch's caching allocator."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphsim.core.layout import Layout
from graphsim.core.trace import Trace
from graphsim.errors import MissingExtraError, UsageError, out_of_memory


@dataclass(frozen=True, slots=True)
class Torch:
    """Allocates each block with torch.empty and drops it at its free; one thread, one stream."""

    model: ClassVar[str] = "torch"
    """The allocator that predicts it."""
    arrays: ClassVar[str | None] = None

    @property
    def device(self) -> str:
        """Name of the current GPU."""
        return str(_torch().cuda.get_device_name())

    def __call__(self, trace: Trace, /) -> Layout:
        """Return the measured layout: device addresses; `used` is memory_allocated(), `reserved` memory_reserved().

        Raises:
            MissingExtraError: PyTorch is not installed.
            UsageError: it finds no GPU.
            OutOfMemoryError: the device is exhausted; everything is freed.
        """
        torch = _torch()
        gc.collect()
        torch.cuda.empty_cache()
        blocks: list[Any] = [None] * len(trace.nbytes)
        address = np.zeros(len(trace.nbytes), dtype=np.int64)
        used, reserved = np.zeros((2, trace.events_count), dtype=np.int64)
        numbers, changes = (column.tolist() for column in trace.stream)
        before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        try:
            for event, (block, change) in enumerate(zip(numbers, changes, strict=True)):
                if change < 0:
                    blocks[block] = None
                else:
                    try:
                        blocks[block] = torch.empty(change, dtype=torch.uint8, device="cuda")
                    except torch.cuda.OutOfMemoryError:
                        raise out_of_memory(event, change, torch.cuda.memory_allocated()) from None
                    address[block] = blocks[block].data_ptr()
                used[event], reserved[event] = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        finally:
            blocks.clear()
            torch.cuda.empty_cache()
        return Layout(
            address=address,
            segment=np.zeros(len(address), dtype=np.int64),
            used=used - before[0],
            reserved=reserved - before[1],
        )


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MissingExtraError("PyTorch built for CUDA", "torch") from None
    if not torch.cuda.is_available():
        raise UsageError("PyTorch finds no CUDA device here; --backend numpy replays on the host")
    return torch
