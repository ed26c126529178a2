"""Plans as answers: the cheapest schedule within a budget, all strategies side by side, and why nothing fits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any

from graphsim.core.graph import Graph
from graphsim.core.liveness import Policy
from graphsim.core.simulation import simulate
from graphsim.errors import GraphSimError, InfeasibleError
from graphsim.recompute.bounds import pinning_op
from graphsim.recompute.case import Case, case_of
from graphsim.recompute.plan import Offloading, Plan, make_plan
from graphsim.recompute.strategies import STRATEGIES, Progress, Strategy
from graphsim.units import as_budget, format_bytes

LARGEST = 12
"""Live values that a witness names at most."""


def read_budget(budget: str | int, graph: Graph) -> int:
    """Return the bytes of a budget for *graph*: ``8GiB``, or ``0.8x`` for that share of its peak without recompute.

    Raises:
        UsageError: see `units.parse_budget`.
    """
    return as_budget(budget, lambda: simulate(graph).peak)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A strategy that made no plan, and why, in one line."""

    strategy: str
    budget: int | None
    reason: str


def plans_of(
    graph: Graph | Case,
    budgets: Sequence[int | None] = (None,),
    strategies: Iterable[str] = STRATEGIES,
    *,
    policy: Policy = "eager",
    progress: Progress | None = None,
) -> Iterator[Plan | Refusal]:
    """Yield what each of *strategies* makes of the graph within each of *budgets* (None: without one).

    A strategy that cannot serve is a refusal: the others still count. Ctrl-C ends it after the plan that it
    interrupts.

    Args:
        graph: a graph, or the case of one.
        budgets: bytes.
        strategies: names; all by default.
        policy: under which release policy plans are judged.
        progress: told whose turn it is.

    Raises:
        UnknownNameError: there is no such strategy.
    """
    case = case_of(graph)
    for name in strategies:
        strategy: Strategy = STRATEGIES[name]()
        for budget in budgets:
            if progress:
                progress(f"planning: {name}")
            try:
                plan = replace(make_plan(case, strategy, budget, policy=policy), strategy=name)
            except GraphSimError as error:
                yield Refusal(name, budget, " ".join(str(error).split()))
                continue
            yield plan
            if plan.interrupted:
                return


def compare(graph: Graph | Case, budget: int | None = None, *, progress: Progress | None = None) -> list[Plan]:
    """Return the plan of every strategy, up to one that is interrupted.

    *progress* is told of those that cannot take this graph, or miss an extra.
    """
    plans = []
    for one in plans_of(graph, [budget], progress=progress):
        if isinstance(one, Plan):
            plans.append(one)
        elif progress:
            progress(f"skipped: {one.strategy}: {one.reason}")
    return plans


def pareto(plans: Sequence[Plan]) -> list[bool]:
    """Return for each plan whether no other needs less of memory or time, and no more of the other."""

    def beats(a: Plan, b: Plan) -> bool:
        return (a.peak_bytes <= b.peak_bytes and a.time <= b.time) and (a.peak_bytes, a.time) != (b.peak_bytes, b.time)

    return [not any(beats(other, plan) for other in plans) for plan in plans]


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain data; its schedule only by length, and null for a bound that is infinite."""
    return {
        "strategy": plan.strategy,
        "budget_bytes": plan.budget,
        "peak_bytes": plan.peak_bytes,
        "feasible": plan.feasible,
        "time": plan.time,
        "base_time": plan.base_time,
        "overhead": plan.overhead,
        "lower_bound": plan.time_bound if isfinite(plan.time_bound) else None,
        "lower_bound_in_any_order": plan.time_bound_in_any_order if isfinite(plan.time_bound_in_any_order) else None,
        "lower_bound_bytes": plan.memory_bound,
        "proved_optimal": plan.proved_optimal,
        "seconds": plan.seconds,
        "schedule_length": len(plan.schedule),
        "interrupted": plan.interrupted,
        **({} if plan.offloading is None else {"offload": _offload_as_dict(plan.offloading)}),
    }


def _offload_as_dict(offloading: Offloading) -> dict[str, Any]:
    """Return what is offloaded as plain data; null for the time of recompute alone, where none fits."""
    alone = offloading.recompute_time
    return {
        "stays": offloading.count,
        "link_bytes_per_second": offloading.rate,
        "copied_bytes": offloading.copied_bytes,
        "host_peak_bytes": offloading.host_peak_bytes,
        "stalled_time": offloading.stalled,
        "recompute_alone_time": alone if isfinite(alone) else None,
    }


@dataclass(frozen=True, slots=True)
class Place:
    """An op, and the values that are live while it runs, largest first: name, bytes, role."""

    op: str
    layer: str
    live: tuple[tuple[str, int, str], ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        live = [{"name": name, "bytes": size, "role": role} for name, size, role in self.live]
        return {"op": self.op, "layer": self.layer, "live": live}


@dataclass(frozen=True, slots=True)
class Witness:
    """Why no plan fits.

    Attributes:
        smallest_peak: the smallest budget known feasible, and whose plan needs it.
        memory_bound: bytes that no schedule can do without: *pin* is the op that sets it, with what it touches.
        proved: there is none that first runs the ops in program order.
        peak: where the smallest plan peaks, and what is live there.
        reserved: what an allocator holds with the smallest plan, if the budget is for that.
    """

    budget: int
    smallest_peak: int
    strategy: str
    memory_bound: int
    proved: bool
    pin: Place
    peak: Place
    reserved: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "smallest_peak_bytes": self.smallest_peak,
            "strategy": self.strategy,
            "lower_bound_bytes": self.memory_bound,
            "proved": self.proved,
            "op": self.pin.op,
            "pinned_by": self.pin.as_dict(),
            "peak_at": self.peak.as_dict(),
            **({} if self.reserved is None else {"reserved_bytes": self.reserved}),
        }

    def error(self) -> InfeasibleError:
        """Return it as an error of one line."""
        proof = "not proved impossible"
        if self.proved:
            order = "" if self.budget < self.memory_bound else " that keeps the order of ops"
            proof = f"proved: no schedule{order} fits"
        held = "" if self.reserved is None else f", for which the allocator holds {self.reserved:,}"
        place = self.pin if self.budget < self.memory_bound else self.peak
        live = ", ".join(f"{name} {format_bytes(size)}" for name, size, _ in place.live[:3])
        return InfeasibleError(
            f"no plan within {format_bytes(self.budget)} ({self.budget:,} bytes); {proof}. Smallest peak known: "
            f"{self.smallest_peak:,} bytes ({self.strategy}){held}; lower bound: {self.memory_bound:,} bytes; "
            f"pinned by op '{place.op}'" + (f" with {live}" if live else ""),
            budget=self.budget,
            memory_bound=self.memory_bound,
        )


def witness(graph: Graph | Case, plans: Sequence[Plan], budget: int) -> Witness:
    """Return why none of *plans* fits *budget*."""
    case, smallest = case_of(graph), min(plans, key=lambda plan: (plan.peak_bytes, plan.time))
    run = simulate(case.given, smallest.schedule)
    op = run.op_at(run.peak_execution) if len(run.schedule) else None
    live = tuple((t.name, t.nbytes, t.role) for t in run.live_at(run.peak_execution)[:LARGEST])
    return Witness(
        budget=budget,
        smallest_peak=smallest.peak_bytes,
        strategy=smallest.strategy,
        memory_bound=smallest.memory_bound,
        proved=budget < smallest.memory_bound or case.least_time(budget) == inf,
        pin=_pin(case.given),
        peak=Place(op.name if op else "", op.layer if op else "", live),
    )


def _pin(graph: Graph) -> Place:
    pinning = pinning_op(graph)
    if pinning is None:
        return Place("", "", ())
    op, storages = pinning
    live = [(t.name, t.nbytes, str(t.role)) for t in storages]
    live += [("workspace", op.workspace, "workspace")] * bool(op.workspace)
    return Place(op.name, op.layer, tuple(sorted(live, key=lambda entry: -entry[1])[:LARGEST]))
