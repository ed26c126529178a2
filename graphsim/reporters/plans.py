"""Plans as a person reads them in a terminal."""

from __future__ import annotations

from graphsim.strategies import Plan
from graphsim.units import format_bytes


def plan_text(plan: Plan, least: float) -> str:
    """Return a plan that fits in a few lines; *least* bounds the time of any (see `planning.least_time`)."""
    within = "" if plan.budget is None else f" within {format_bytes(plan.budget)}"
    lines = [
        f"{plan.strategy}: peak {format_bytes(plan.peak_bytes)} ({plan.peak_bytes:,} bytes){within}, "
        f"{plan.overhead:+.2%} compute"
    ]
    if plan.budget is not None:
        lines.append(f"  {_optimality(plan, least)}")
    lines.append(
        f"  no schedule needs less than {format_bytes(plan.lower_bound)}; {len(plan.schedule):,} executions; "
        f"planned in {plan.seconds:.2f} s"
    )
    return "\n".join(lines) + "\n"


def _optimality(plan: Plan, least: float) -> str:
    """How much cheaper a plan could be: none, or none of the form that the strategy's own bound is about."""
    if not plan.schedule.repeats.any():
        return "optimal: it runs no op twice"
    if plan.proved_optimal:
        return "proved optimal: no plan that keeps the order of ops costs less"
    kind = "that keeps the order of ops" if plan.time_bound <= least * (1 + 1e-9) else f"of {plan.strategy}'s form"
    if plan.gap <= 1e-9:
        floor = least / plan.base_time - 1 if plan.base_time else 0.0
        return f"the cheapest {kind}; no plan that keeps the order of ops costs less than {floor:+.2%}"
    return f"at most {plan.gap:.2%} from optimal: no plan {kind} costs less than {plan.least_overhead:+.2%}"
