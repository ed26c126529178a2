"""Plans in the order of ops that needs least: what fits without recompute does, and recompute begins from less."""

from __future__ import annotations

import time

from graphsim.core.graph import Graph
from graphsim.core.schedule import Schedule
from graphsim.recompute.case import Case, case_of
from graphsim.recompute.order import least_peak_order
from graphsim.recompute.plan import Plan, judge, make_plan, name_of
from graphsim.recompute.strategies import Proposal, Strategy


def make_reordered(graph: Graph | Case, strategy: str | Strategy, budget: int | None = None) -> Plan:
    """Return what *strategy* makes of *graph* in the order of the lowest peak found, or as it is if that costs less.

    Raises:
        GraphSimError: as `make_plan`.
    """
    case, start = case_of(graph), time.perf_counter()
    found = least_peak_order(case.given)
    if found.peak >= case.stored.peak:
        return make_plan(case, strategy, budget)
    order = found.schedule.ops
    ops = [case.given.ops[op] for op in order.tolist()]
    other = Graph(ops, case.given.tensors.values(), outputs=case.given.outputs, attributes=case.given.attributes)
    made = make_plan(Case(other), strategy, budget)
    proposal = Proposal(Schedule(order[made.schedule.ops]), interrupted=made.interrupted, releases=True)
    seconds = time.perf_counter() - start
    plan = judge(case, proposal, strategy=name_of(strategy), budget=budget, seconds=seconds)
    if plan.interrupted or (budget is not None and found.peak <= budget):
        return plan
    return min(plan, make_plan(case, strategy, budget), key=lambda one: _rank(one, budget))


def _rank(plan: Plan, budget: int | None) -> tuple[bool, float, float]:
    by_peak = budget is None or not plan.feasible
    return (not plan.feasible, plan.peak_bytes, plan.time) if by_peak else (False, plan.time, plan.peak_bytes)
