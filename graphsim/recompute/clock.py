"""When a search stops: at a time, or when it is told to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

_LATE = 0.1
"""By how much of its way a search may be late before it hurries."""


@dataclass(slots=True)
class Clock:
    """A search stops at *until* (as time.perf_counter shows it), or as soon as *stopped* is set."""

    until: float
    stopped: bool = field(default=False, init=False)

    def is_over(self) -> bool:
        """Return whether it is time to stop."""
        return self.stopped or time.perf_counter() >= self.until

    def progress(self, done: float, begin: float) -> float:
        """Return how far a search is that began at *begin* and has taken the share *done* of its steps.

        That is *done*, so that a seed finds the same on any machine, unless time runs out much faster.
        """
        passed = (time.perf_counter() - begin) / max(1e-9, self.until - begin)
        return passed if passed > done + _LATE else done
