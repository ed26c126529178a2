"""No recompute: every op runs once, in program order."""

from __future__ import annotations

from dataclasses import dataclass

from graphsim.core.schedule import Schedule
from graphsim.recompute.case import Case
from graphsim.recompute.strategies import Proposal


@dataclass(frozen=True, slots=True)
class StoreAll:
    """Stores everything that backward reads, and all that names keep; the baseline."""

    def __call__(self, case: Case, budget: int | None = None, /) -> Proposal:
        """Return program order, whatever the budget."""
        return Proposal(Schedule.of(case.given), releases=True)
