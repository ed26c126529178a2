"""Strategies by name, with little time for those that search."""

from __future__ import annotations

from typing import Any

from graphsim.recompute.strategies import STRATEGIES

OPTIONS: dict[str, dict[str, Any]] = {
    "auto": {"seconds": 0.2},
    "moccasin": {"seconds": 0.5},
    "checkmate": {"seconds": 0.5},
    "checkmate_lp": {"seconds": 0.5},
}


def quick(name: str) -> Any:
    """Return the strategy *name*."""
    return STRATEGIES[name](**OPTIONS.get(name, {}))
