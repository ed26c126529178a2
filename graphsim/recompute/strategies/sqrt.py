"""Chen's sqrt(n): keep only what passes between about sqrt(n) spans of the forward pass.

Source: Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016, section 4.
Right before backward first reads a value from inside a span, the span runs again.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from graphsim.core.schedule import Schedule
from graphsim.errors import UsageError
from graphsim.recompute.case import Case
from graphsim.recompute.spans import ChainPlan, ForwardPass, drop_spans, schedule_passes


@dataclass(frozen=True, slots=True)
class Sqrt:
    """Splits each forward pass into *spans* parts of equally many ops (None: the square root of their number).

    A graph without a backward phase has nothing to recompute for: it runs in program order.

    Raises:
        UsageError: fewer than one span is asked for.
    """

    spans: int | None = None

    def __post_init__(self) -> None:
        if self.spans is not None and self.spans < 1:
            raise UsageError(f"spans must be at least 1, not {self.spans}")

    def __call__(self, case: Case, budget: int | None = None, /) -> Schedule:
        """Return the schedule, whatever the budget."""
        return schedule_passes(case.passes, self._choose, len(case.graph.ops))

    def _choose(self, forward: ForwardPass) -> ChainPlan:
        spans = forward.split(self.spans or isqrt(len(forward.ops)))
        return drop_spans(spans, range(len(spans) - 1))
