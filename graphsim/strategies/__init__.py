"""Strategies: (Graph, budget) becomes a `Plan`. One file each, one line in the table.

A strategy only chooses the order of executions; what that costs in memory follows by liveness, and
is judged by `plan.judge` alike for all.
"""

from __future__ import annotations

from typing import Protocol

from graphsim.graph import Graph
from graphsim.registry import Registry
from graphsim.strategies.plan import Plan


class Strategy(Protocol):
    """Chooses a schedule; options are fields of the strategy."""

    def __call__(self, graph: Graph, /, *, budget: int | None = None) -> Plan:
        """Return a plan for *graph*, within *budget* bytes if the strategy can meet one."""


STRATEGIES = Registry(
    "strategies",
    "strategy",
    {
        "none": "graphsim.strategies.none:StoreAll",
        "blocks": "graphsim.strategies.blocks:Blocks",
        "every_k": "graphsim.strategies.every_k:EveryK",
        "sqrt": "graphsim.strategies.sqrt:Sqrt",
        "greedy": "graphsim.strategies.greedy:Greedy",
        "revolve": "graphsim.strategies.revolve:Revolve",
        "rotor": "graphsim.strategies.rotor:Rotor",
        "selective": "graphsim.strategies.selective:Selective",
        "dtr": "graphsim.strategies.dtr:Dtr",
        "mincut": "graphsim.strategies.mincut:MinCut",
        "checkmate": "graphsim.strategies.checkmate:Checkmate",
        "checkmate_lp": "graphsim.strategies.checkmate_lp:CheckmateLp",
        "moccasin": "graphsim.strategies.moccasin:Moccasin",
        "auto": "graphsim.strategies.auto:Auto",
    },
)

__all__ = ["STRATEGIES", "Plan", "Strategy"]
