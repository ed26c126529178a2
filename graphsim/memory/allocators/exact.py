"""The lower bound: every block is a reservation of its own, of exactly its size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphsim.core.layout import Layout
from graphsim.core.trace import Trace
from graphsim.errors import out_of_memory


@dataclass(frozen=True, slots=True)
class Exact:
    """Reserves what is live, nothing else, within *limit* bytes; no allocator can reserve less."""

    caches: ClassVar[bool] = False

    limit: int | None = None

    def __call__(self, trace: Trace, /) -> Layout:
        """Return a layout whose reserved bytes are the live bytes.

        Raises:
            OutOfMemoryError: more is live than the limit allows.
        """
        _, signed = trace.stream
        live = np.cumsum(signed)
        if self.limit is not None and (live > self.limit).any():
            event = int((live > self.limit).argmax())
            raise out_of_memory(event, int(signed[event]), int(live[event] - signed[event]), self.limit)
        blocks = len(trace.nbytes)
        return Layout(
            address=np.zeros(blocks, dtype=np.int64), segment=np.arange(blocks), used=live, reserved=live.copy()
        )
