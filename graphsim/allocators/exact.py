"""The lower bound: every block is a reservation of its own, of exactly its size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphsim.layout import Layout
from graphsim.trace import Trace


@dataclass(frozen=True, slots=True)
class Exact:
    """Reserves what is live, nothing else; no allocator can reserve less."""

    def __call__(self, trace: Trace, /) -> Layout:
        """Return a layout whose reserved bytes are the live bytes."""
        _, signed = trace.stream
        live = np.cumsum(signed)
        blocks = len(trace.nbytes)
        return Layout(
            address=np.zeros(blocks, dtype=np.int64), segment=np.arange(blocks), used=live, reserved=live.copy()
        )
