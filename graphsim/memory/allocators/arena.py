"""A static arena: one reservation, in which every block has its offset before the step begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphsim.core.index import NOTHING
from graphsim.core.layout import Layout
from graphsim.core.trace import Trace
from graphsim.errors import UsageError, out_of_memory
from graphsim.memory.packing import Instance, Packing, best_greedy, climb, solve

_MODES = ("greedy", "climb", "exact")


@dataclass(frozen=True, slots=True)
class Arena:
    """Packs the live ranges of a whole step, as the compilers that plan memory do.

    Attributes:
        mode: 'greedy' (the best of the family), 'climb' (greedy, then hill climbing) or 'exact'
            (CP-SAT, needs the extra `solver`).
        seconds: time for climbing or solving.
        seed: of the search.
        alignment: offsets are multiples of so many bytes.
        limit: bytes of the arena (None: no limit).

    Raises:
        UsageError: an option is out of its range.
    """

    caches: ClassVar[bool] = False

    mode: str = "greedy"
    seconds: float = 5.0
    seed: int = 0
    alignment: int = 256
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise UsageError(f"mode must be one of {', '.join(_MODES)}, not {self.mode[:40]!r}")
        if not 1 <= self.alignment <= 2**21:
            raise UsageError("alignment must be between 1 and 2097152 bytes")

    def __call__(self, trace: Trace, /) -> Layout:
        """Return the layout: `used` is what is live, rounded up to the alignment; `reserved` the arena.

        Raises:
            OutOfMemoryError: the arena is higher than the limit; `event` allocates the first block beyond.
        """
        size = -(-trace.nbytes // self.alignment) * self.alignment
        end = np.where(trace.free == NOTHING, trace.events_count, trace.free)
        packing = self._pack(Instance(trace.malloc, end, size))
        if self.limit is not None and packing.height > self.limit:
            beyond = np.flatnonzero(packing.offset + size > self.limit)
            event = int(trace.malloc[beyond].min())
            raise out_of_memory(event, packing.height, 0, self.limit)
        blocks, signed = trace.stream
        used = np.cumsum(np.sign(signed) * size[blocks])
        return Layout(
            address=packing.offset,
            segment=np.zeros(len(size), dtype=np.int64),
            used=used,
            reserved=np.full(len(used), packing.height),
        )

    def _pack(self, instance: Instance) -> Packing:
        if self.mode == "exact":
            return solve(instance, capacity=self.limit, seconds=self.seconds, seed=self.seed)
        if self.mode == "climb":
            return climb(instance, seconds=self.seconds, seed=self.seed, goal=self.limit or 0)
        return best_greedy(instance)
