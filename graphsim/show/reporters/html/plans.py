"""Plans to compare, as the page draws them: the peak and the overhead of every strategy that was asked."""

from __future__ import annotations

from math import isfinite
from typing import Any

from graphsim.answers.plan import Refusal
from graphsim.recompute.plan import Plan


def plan_row(one: Plan | Refusal) -> dict[str, Any]:
    """Return what a strategy's schedule needs and costs within a budget, or why there is none, as JSON can hold it."""
    plan = one if isinstance(one, Plan) else None
    return {
        "strategy": one.strategy,
        "budget": one.budget,
        "peak": plan and plan.peak_bytes,
        "overhead": plan and plan.overhead,
        "bound": plan and plan.memory_bound,
        "least": plan.least_overhead if plan and isfinite(plan.time_bound) else None,
        "feasible": plan is not None and plan.feasible,
        "seconds": plan.seconds if plan else 0.0,
        "problem": one.reason if isinstance(one, Refusal) else "",
    }
