"""Strategies: (Graph, budget) becomes a `Plan`. One file each, one line in the table.

A strategy only chooses the order of executions; what that costs in memory follows by liveness, and
is judged by `plan.judge` alike for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from graphsim.core.graph import Graph
from graphsim.recompute.plan import Plan
from graphsim.registry import Registry


class Strategy(Protocol):
    """Chooses a schedule; options are fields of the strategy."""

    def __call__(self, graph: Graph, /, *, budget: int | None = None) -> Plan:
        """Return a plan for *graph*, within *budget* bytes if the strategy can meet one."""


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

__all__ = ["STRATEGIES", "Plan", "Strategy"]
