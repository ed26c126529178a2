"""When a search stops: at a time, or when it is told to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Clock:
    """A search stops at *until* (as time.perf_counter shows it), or as soon as *stopped* is set."""

    until: float
    stopped: bool = field(default=False, init=False)

    def is_over(self) -> bool:
        """Return whether it is time to stop."""
        return self.stopped or time.perf_counter() >= self.until

    def passed(self, begin: float) -> float:
        """Return the share of the time from *begin* that has passed."""
        return (time.perf_counter() - begin) / max(1e-9, self.until - begin)
