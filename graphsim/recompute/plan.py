"""Plans: a schedule with its judgement, the same for every strategy."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import inf

import numpy as np

from graphsim.core.graph import Graph
from graphsim.core.liveness import Policy, live_ranges, places
from graphsim.core.offload import timing_of
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import time_of
from graphsim.errors import preformatted
from graphsim.recompute.case import Case, case_of
from graphsim.recompute.strategies import STRATEGIES, Proposal, Strategy
from graphsim.units import format_bytes

_SAFE = 1 + 1e-9
"""Sums of costs are rounded."""


@dataclass(frozen=True, slots=True)
class Offloading:
    """What a plan copies to the host and back.

    Attributes:
        count: storages that stay on the host, each time that they do.
        rate: bytes that the link carries each way, by unit of cost.
        copied_bytes: out and back.
        host_peak_bytes: most bytes on the host at a time.
        stalled: of the plan's time, what ops wait for copies.
        recompute_time: the time of the best plan that was found without offload; 0 if none was looked for.
    """

    count: int
    rate: float
    copied_bytes: int
    host_peak_bytes: int
    stalled: float
    recompute_time: float


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule and what it costs.

    Attributes:
        strategy: name of the strategy that made it.
        budget: bytes that were asked for, if any.
        feasible: the peak is within the budget.
        peak_bytes: peak live bytes of the schedule.
        time, base_time: cost of the schedule, and of executing every op once (see `op_costs`).
        memory_bound: bytes that no schedule can do without.
        time_bound: what any schedule within the budget costs, if it first runs the ops in program order; or any of the
            strategy's form, where that is known to be more. Of a plan in another order: what any schedule costs.
        proved_optimal: none that first runs the ops in program order is cheaper; of another order, none at all.
        time_bound_in_any_order: what any schedule within the budget costs, whatever its order.
        seconds: time that the strategy took.
        interrupted: the strategy was told to stop (Ctrl-C): this is its best so far.
        offloading: what is copied to the host, of a strategy that may; bounds of its time are those of any schedule.
    """

    schedule: Schedule
    strategy: str
    budget: int | None
    feasible: bool
    peak_bytes: int
    time: float
    base_time: float
    memory_bound: int
    proved_optimal: bool
    seconds: float
    time_bound: float
    time_bound_in_any_order: float
    interrupted: bool = False
    offloading: Offloading | None = None

    def __repr__(self) -> str:
        fits = "" if self.feasible else ", does not fit"
        return f"<Plan of {self.strategy}: peak {self.peak_bytes:,} bytes, {self.overhead:+.2%} compute{fits}>"

    def _repr_html_(self) -> str:
        within = "" if self.budget is None else f" within {format_bytes(self.budget)}"
        fits = "" if self.feasible else ", does not fit"
        lines = [
            f"{self.strategy}{within}{fits}",
            f"{format_bytes(self.peak_bytes):>12}  peak; no schedule needs less than {format_bytes(self.memory_bound)}",
            f"{self.overhead:>+12.2%}  compute",
            f"{len(self.schedule):>12,}  executions",
        ]
        return preformatted("\n".join(lines))

    @property
    def overhead(self) -> float:
        """Extra cost over executing every op once: time / base_time - 1."""
        return self.time / self.base_time - 1 if self.base_time else 0.0

    @property
    def least_overhead(self) -> float:
        """What the bound of the time is as an overhead."""
        return self.time_bound / self.base_time - 1 if self.base_time else 0.0

    @property
    def gap(self) -> float:
        """How far from optimal it is at most: time / time_bound - 1."""
        return self.time / self.time_bound - 1 if self.time_bound else 0.0


def make_plan(
    graph: Graph | Case, strategy: str | Strategy, budget: int | None = None, *, policy: Policy = "eager"
) -> Plan:
    """Return what *strategy* makes of *graph*: its schedule, timed, simulated, priced and bounded.

    Ctrl-C ends the strategy, not the program: the plan is its best so far, or the schedule that stores all, and says
    that it was `interrupted`.

    Args:
        graph: a graph, or the case of one, of which nothing is then worked out twice.
        strategy: a name, or whatever is called with a case and a budget and returns a `Schedule` or a `Proposal`.
        budget: bytes.
        policy: when storages are released, for the judgement; strategies plan for the eager one.

    Raises:
        UnknownNameError: there is no such strategy.
        ScheduleError: its schedule does not respect the graph.
        UsageError, MissingExtraError: it cannot take this graph, or misses a package.
    """
    case, start = case_of(graph), time.perf_counter()
    proposal = _proposed(case, strategy, budget)
    seconds = time.perf_counter() - start
    return judge(case, proposal, strategy=name_of(strategy), budget=budget, seconds=seconds, policy=policy)


def make_schedule(graph: Graph | Case, strategy: str | Strategy, budget: int | None = None) -> Schedule:
    """Return the schedule of *graph* that *strategy* chooses, not judged: `make_plan` for who asks no more of it.

    Raises:
        KeyboardInterrupt: the strategy was told to stop.
        UnknownNameError, UsageError, MissingExtraError: as `make_plan`.
    """
    case = case_of(graph)
    proposal = _proposed(case, strategy, budget)
    if proposal.interrupted:
        raise KeyboardInterrupt
    return _as_given(case, proposal)


def name_of(strategy: str | Strategy) -> str:
    """Return the name under which *strategy* is known, else that of its function or class."""
    return strategy if isinstance(strategy, str) else STRATEGIES.name_of(strategy)


def judge(
    graph: Graph | Case,
    proposal: Schedule | Proposal,
    *,
    strategy: str,
    budget: int | None,
    seconds: float,
    policy: Policy = "eager",
) -> Plan:
    """Return *proposal* as a plan: simulated, priced, bounded, compared with the budget.

    Raises:
        ScheduleError: the schedule does not respect the graph.
    """
    case = case_of(graph)
    proposal = proposal if isinstance(proposal, Proposal) else Proposal(proposal)
    schedule = _as_given(case, proposal)
    peak = live_ranges(case.given, schedule, policy=policy).peak
    cost = time_of(case.given, schedule, case.given_costs, policy=policy)
    feasible = budget is None or peak <= budget
    bound, proved = _bound(case, proposal, cost, budget, feasible)
    return Plan(
        schedule=schedule,
        strategy=strategy,
        budget=budget,
        feasible=feasible,
        peak_bytes=peak,
        time=cost,
        base_time=case.base_time,
        memory_bound=case.memory_bound,
        proved_optimal=proved,
        seconds=seconds,
        time_bound=bound,
        time_bound_in_any_order=min(_least_in_any_order(case, proposal, budget), cost if feasible else inf),
        interrupted=proposal.interrupted,
        offloading=_offloading(case, proposal, schedule, policy),
    )


def _may_offload(proposal: Proposal) -> bool:
    return bool(proposal.schedule.offloads or proposal.recompute_time)


def _least_in_any_order(case: Case, proposal: Proposal, budget: int | None) -> float:
    return case.base_time if _may_offload(proposal) else case.least_time_in_any_order(budget)


def _offloading(case: Case, proposal: Proposal, schedule: Schedule, policy: Policy) -> Offloading | None:
    """Return what *schedule* copies; None if that was no choice of its strategy."""
    if not _may_offload(proposal):
        return None
    if not schedule.offloads:
        return Offloading(0, 0.0, 0, 0, 0.0, proposal.recompute_time)
    there = places(case.given, schedule, policy=policy)
    return Offloading(
        count=len(schedule.offloads),
        rate=schedule.offloads.rate,
        copied_bytes=there.copies.copied,
        host_peak_bytes=there.host.peak,
        stalled=timing_of(case.given_costs[schedule.ops], there.copies).stalled,
        recompute_time=proposal.recompute_time,
    )


def _proposed(case: Case, strategy: str | Strategy, budget: int | None) -> Proposal:
    chosen: Strategy = STRATEGIES.resolve(strategy)
    try:
        answer = chosen(case, budget)
    except KeyboardInterrupt:
        return Proposal(case.stored.schedule, interrupted=True)
    return answer if isinstance(answer, Proposal) else Proposal(answer)


def _as_given(case: Case, proposal: Proposal) -> Schedule:
    return proposal.schedule if proposal.releases else case.of_given(proposal.schedule)


def _bound(case: Case, proposal: Proposal, cost: float, budget: int | None, feasible: bool) -> tuple[float, bool]:
    """Return the bound of the time, and whether the schedule is proved optimal.

    What is known of schedules that first run the ops in program order says nothing of one that does not.
    """
    own, first = max(case.base_time, proposal.time_bound), ~proposal.schedule.repeats
    if _may_offload(proposal):  # what is known of recompute alone says nothing of it
        return case.base_time, feasible and cost <= case.base_time * _SAFE
    once = feasible and bool(first.all())
    if (np.diff(proposal.schedule.ops[first]) < 0).any():
        least = case.least_time_in_any_order(budget)
        if once or (feasible and cost <= least * _SAFE):
            return cost, True
        return max(own, least), False
    least = case.least_time(budget)
    if once or (feasible and cost <= least * _SAFE):
        return cost, True
    bound = max(own, least)
    return (min(bound, cost) if feasible else bound), False
