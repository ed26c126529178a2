"""Strategies: (case, budget) becomes a schedule. One file each, one line in the table.

A strategy only chooses the order of executions; what that costs in memory follows by liveness. It is timed, judged
and bounded by `plan.make_plan`, alike for all: those of other packages, and any function of the user's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from graphsim.core.schedule import Schedule
from graphsim.registry import Registry

if TYPE_CHECKING:
    from graphsim.recompute.case import Case

Progress = Callable[[str], None]
"""Told, in words, how far a search is."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a strategy answers that knows more than a schedule.

    Attributes:
        schedule: of the ops of the case's graph.
        time_bound: what any schedule of the strategy's form within the budget costs; 0: nothing is known.
        interrupted: it was told to stop (Ctrl-C): this is its best so far.
        releases: the schedule is of the graph as given, and keeps what only names keep.
        recompute_time: the time of the best schedule that does not offload, of a strategy that may; 0: it may not.
    """

    schedule: Schedule
    time_bound: float = 0.0
    interrupted: bool = False
    releases: bool = False
    recompute_time: float = 0.0


class Strategy(Protocol):
    """Chooses a schedule; options are fields of the strategy."""

    def __call__(self, case: Case, budget: int | None = None, /) -> Schedule | Proposal:
        """Return a schedule of the ops of `case.graph`, within *budget* bytes if the strategy can meet one."""


@runtime_checkable
class Searching(Strategy, Protocol):
    """A strategy that takes time, and may have something to tell meanwhile."""

    def with_limits(self, *, seconds: float | None = None, progress: Progress | None = None) -> Self:
        """Return the strategy with so many *seconds*, unless None, and who is told of *progress*."""


STRATEGIES: Registry[Callable[..., Strategy]] = Registry(
    "strategies",
    "strategy",
    {
        "none": "graphsim.recompute.strategies.none:StoreAll",
        "blocks": "graphsim.recompute.strategies.blocks:Blocks",
        "every_k": "graphsim.recompute.strategies.every_k:EveryK",
        "sqrt": "graphsim.recompute.strategies.sqrt:Sqrt",
        "greedy": "graphsim.recompute.strategies.greedy:Greedy",
        "revolve": "graphsim.recompute.strategies.revolve:Revolve",
        "rotor": "graphsim.recompute.strategies.rotor:Rotor",
        "selective": "graphsim.recompute.strategies.selective:Selective",
        "dtr": "graphsim.recompute.strategies.dtr:Dtr",
        "mincut": "graphsim.recompute.strategies.mincut:MinCut",
        "checkmate": "graphsim.recompute.strategies.checkmate:Checkmate",
        "checkmate_lp": "graphsim.recompute.strategies.checkmate_lp:CheckmateLp",
        "moccasin": "graphsim.recompute.strategies.moccasin:Moccasin",
        "auto": "graphsim.recompute.strategies.auto:Auto",
    },
)


def with_limits(strategy: Strategy, *, seconds: float | None = None, progress: Progress | None = None) -> Strategy:
    """Return *strategy* with these limits if it is one that searches, else as it is."""
    return strategy.with_limits(seconds=seconds, progress=progress) if isinstance(strategy, Searching) else strategy


__all__ = ["STRATEGIES", "Progress", "Proposal", "Searching", "Strategy", "with_limits"]
