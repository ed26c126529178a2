"""The cheapest recompute that fits a budget, and all strategies side by side, for any source."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import Any, Unpack

from graphsim.answers.need import SECONDS, Outcome, Recompute, outcome_as_stored, outcome_of_steps
from graphsim.answers.plan import Witness, plan_as_dict, read_budget, witness
from graphsim.answers.plan import compare as all_plans
from graphsim.answers.reservation import chosen_allocator
from graphsim.answers.setting import Setting, asked, spelled_out
from graphsim.core.graph import Graph
from graphsim.core.links import OF_THE_GPU
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import cost_unit, simulate, with_costs
from graphsim.display import Answer
from graphsim.errors import UsageError
from graphsim.memory.allocators import Allocator
from graphsim.options import configure
from graphsim.recompute.case import Case
from graphsim.recompute.emittable import Make, make_emittable
from graphsim.recompute.plan import Plan, judge, make_plan, name_of
from graphsim.recompute.reordered import make_reordered
from graphsim.recompute.strategies import STRATEGIES, Progress, Proposal, Searching, Strategy, with_limits
from graphsim.recompute.strategies.auto import Auto
from graphsim.recompute.strategies.offload import Offload
from graphsim.sources import Steps
from graphsim.units import as_budget, format_bytes

_ROUNDS = 8
"""Rooms that are tried for step 1 and a later step alone, so that both in a row fit what an allocator may hold."""


@dataclass(frozen=True, slots=True, repr=False)
class Planned(Answer):
    """A plan for a step.

    Attributes:
        graph: the step that is planned.
        plan: its schedule, judged.
        least: what any schedule within the budget costs that keeps the order of ops, see `Case.least_time`.
        witness: why none fits, if none does.
        allocator: of which the budget is what it may hold, if one was named.
        reserved_bytes: what it holds at most, in step 1 and in later steps, both planned.
    """

    graph: Graph
    plan: Plan
    least: float
    witness: Witness | None = None
    allocator: str = ""
    reserved_bytes: int | None = None

    @property
    def schedule(self) -> Schedule:
        """The order of executions; an op that stands twice runs again."""
        return self.plan.schedule

    @property
    def peak_bytes(self) -> int:
        """Peak live bytes of the schedule."""
        return self.plan.peak_bytes

    @property
    def overhead(self) -> float:
        """Extra cost over running every op once: 0.04 is 4 %."""
        return self.plan.overhead

    @property
    def feasible(self) -> bool:
        """Whether the peak is within the budget."""
        return self.plan.feasible

    @property
    def headline(self) -> str:
        """The answer in one line."""
        plan = self.plan
        verdict = "" if plan.feasible else ", which does not fit"
        held = "" if self.reserved_bytes is None else f", {format_bytes(self.reserved_bytes)} held by {self.allocator}"
        extra = f"{plan.overhead:+.2%} {'time' if plan.offloading else 'compute'}"
        return f"{plan.strategy}: peak {format_bytes(plan.peak_bytes)}{held}, {extra}{verdict}"

    def to_json(self) -> str:
        """Return one JSON object."""
        why = {"witness": self.witness.as_dict()} if self.witness else {}
        held = {"allocator": self.allocator, "reserved_bytes": self.reserved_bytes} if self.allocator else {}
        return json.dumps(plan_as_dict(self.plan) | held | why, indent=2)


@dataclass(frozen=True, slots=True, repr=False)
class Comparison(Answer):
    """What every strategy makes of a step.

    Attributes:
        graph: the step.
        plans: one for each strategy that can take it.
        least: as of `Planned`.
        skipped: strategies that cannot, and why.
    """

    graph: Graph
    plans: tuple[Plan, ...]
    least: float
    skipped: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """What times are counted in."""
        return cost_unit(self.graph)

    @property
    def headline(self) -> str:
        """The answer in one line."""
        low = min(self.plans, key=lambda plan: plan.peak_bytes)
        return f"{len(self.plans)} strategies; the lowest peak {format_bytes(low.peak_bytes)}: {low.strategy}"

    def to_json(self) -> str:
        """Return a JSON list of plans."""
        return json.dumps([plan_as_dict(plan) for plan in self.plans], indent=2)


@spelled_out
def plan(
    source: Any,
    inputs: Any = None,
    *,
    budget: str | int = "",
    strategy: str | Strategy = "auto",
    options: str = "",
    costs: str = "",
    first: bool = False,
    reorder: bool = False,
    emittable: bool = False,
    allocator: str = "",
    allocator_options: str = "",
    offload: bool = False,
    link: str = "",
    progress: Progress | None = None,
    **setting: Unpack[Setting],
) -> Planned:
    """Return the cheapest schedule of a step of *source* that fits a memory budget.

    Examples:
        >>> plan("lenet5", batch=64, budget="0.9x", strategy="rotor").feasible
        True

    Args:
        source: as `peak` takes it.
        inputs: of a module.
        budget: of live bytes: 8GiB, or 0.8x of the peak without recompute, or a number of bytes; with an *allocator*,
            of what it holds in any step.
        strategy: a name of `strategies.STRATEGIES`, or a strategy.
        options: of the strategy, as text: ``seconds=60,seed=1``.
        costs: what an op costs, see `with_costs`; empty: the graph's times, else the GPU's roofline.
        first: plan step 1, which creates the optimizer states, instead of the steady step.
        reorder: ops may run in any order that the data allow; what overwrites, draws random numbers or talks to
            other processes keeps its place among its like.
        emittable: nothing runs again once the backward pass is over, as in a file of ``--emit torch``.
        allocator: fit the plan to what this one holds, as `peak` names it: 'torch', ...; some searches of a second each
            find how many live bytes that allows, before the strategy gets its time.
        allocator_options: its options: ``expandable_segments=True``.
        offload: tensors may move to host memory and back, where that is faster than recompute; the search takes up to
            twice its seconds.
        link: over which they do: ``pcie4x16``, ``16GB/s``, see `graphsim.core.links`; empty: that of the GPU. Naming
            one asks for *offload*.
        progress: is told of the search.

    Raises:
        UsageError: there is no budget, and the strategy needs one.
        GraphSimError: the source cannot be read or trained, or an option is wrong.
    """
    if not budget and strategy == "auto":
        raise UsageError("plan needs a --budget, for example 8GiB or 0.8x; or a --strategy that has a way of its own")
    chosen: Strategy = configure(STRATEGIES[strategy], options) if isinstance(strategy, str) else strategy
    name = name_of(strategy)
    if offload or link:
        if reorder or emittable:
            raise UsageError("offload keeps the order of ops, and is not emitted: leave --reorder and --emittable out")
        chosen, name = _offloading(chosen, link, allocator), f"{name} with offload"
    if progress:
        chosen = with_limits(chosen, progress=progress)
    steps = _steps(source, inputs, setting, costs)
    graph = steps.step(first=first)
    if placing := _budgeted(allocator, allocator_options):
        if reorder or emittable:
            raise UsageError("--allocator fits plans in the order of ops: leave --reorder and --emittable out")
        return _reserved(steps, graph, chosen, budget, placing, (name, allocator))
    limit, case = _limit(budget, graph), Case(graph)
    make: Make = make_reordered if reorder else make_plan
    made = make_emittable(case, chosen, limit, make=make) if emittable else make(case, chosen, limit)
    best = replace(made, strategy=name)
    why = witness(case, [best], limit) if limit is not None and not best.feasible else None
    return Planned(graph, best, case.least_time(limit), why)


@spelled_out
def compare(
    source: Any,
    inputs: Any = None,
    *,
    budget: str | int = "",
    costs: str = "",
    first: bool = False,
    progress: Progress | None = None,
    **setting: Unpack[Setting],
) -> Comparison:
    """Return what every strategy makes of a step of *source*: its peak, its time, its extra compute.

    Args:
        source: as `peak` takes it.
        inputs: of a module.
        budget, costs, first, progress: as of `plan`.

    Raises:
        GraphSimError: the source cannot be read or trained, or an option is wrong.
    """
    steps = _steps(source, inputs, setting, costs)
    graph = steps.step(first=first)
    limit, case = _limit(budget, graph), Case(graph)
    skipped: list[str] = []

    def watch(text: str) -> None:
        if text.startswith("skipped: "):
            skipped.append(text.removeprefix("skipped: "))
        if progress:
            progress(text)

    plans = tuple(all_plans(case, limit, progress=watch))
    return Comparison(graph, plans, case.least_time(limit), tuple(skipped))


def _offloading(strategy: Strategy, link: str, allocator: str) -> Strategy:
    """Return *strategy*, which may offload over *link*."""
    if allocator:
        raise UsageError("offload plans for live bytes: leave the --allocator out")
    if not isinstance(strategy, Auto):
        raise UsageError("offload is a choice of --strategy auto alone")
    return Offload(strategy, link or OF_THE_GPU)


def _steps(source: Any, inputs: Any, setting: Setting, costs: str) -> Steps:
    question = asked(source, inputs, setting)
    steps = question.source.steps(question.training)
    if not costs:
        return steps
    priced = {id(step): with_costs(step, costs) for step in steps}
    return Steps(*(priced[id(step)] for step in steps))


def _budgeted(name: str, options: str) -> Allocator | None:
    """Return the allocator that a budget is for, if one is named."""
    chosen = chosen_allocator(name, options)
    if getattr(chosen, "limit", None) is not None:
        raise UsageError("--allocator-options limit: the --budget is the limit of the allocator")
    return chosen


def _reserved(
    steps: Steps, graph: Graph, strategy: Strategy, budget: str | int, allocator: Allocator, names: tuple[str, str]
) -> Planned:
    """Return a plan of *graph*, one of *steps*, with which *allocator* holds no more than *budget* in either."""
    start, case = time.perf_counter(), Case(graph)
    limit = None if budget == "" else as_budget(budget, lambda: outcome_as_stored(steps, allocator).need)
    interrupted = False
    try:
        best = Recompute(with_limits(strategy, seconds=SECONDS), allocator, rounds=_ROUNDS).within(steps, limit)
        if limit is not None and best.need <= limit and isinstance(strategy, Searching):
            best, interrupted = _improved(case, steps, strategy, limit, allocator, best)
    except KeyboardInterrupt:
        best, interrupted = outcome_as_stored(steps, allocator), True
    run = best.first if graph is steps.first else best.steady
    proposal = Proposal(run.schedule, interrupted=interrupted, releases=True)
    made = judge(case, proposal, strategy=names[0], budget=limit, seconds=time.perf_counter() - start)
    fits = limit is None or best.need <= limit
    made = replace(made, feasible=fits, proved_optimal=fits and made.proved_optimal)
    why = None if limit is None or fits else replace(witness(case, [made], limit), reserved=best.need)
    return Planned(graph, made, case.least_time(limit), why, names[1], best.need)


def _improved(
    case: Case, steps: Steps, strategy: Strategy, limit: int, allocator: Allocator, best: Outcome
) -> tuple[Outcome, bool]:
    """Return a cheaper outcome that fits too, if *strategy* finds one in its time; and whether it was interrupted.

    It plans for the live bytes with which *best* would hold *limit*, and if that is too bold, for those of *best*.
    """
    first = case.given is steps.first
    run = best.first if first else best.steady
    for budget in dict.fromkeys((run.peak * limit // best.need, run.peak)):
        more = make_plan(case, strategy, budget)
        other = simulate(case.given, more.schedule)
        chosen = {id(steps.first): best.first, id(steps.steady): best.steady, id(case.given): other}
        outcome = outcome_of_steps(steps, chosen, allocator)
        if outcome.need <= limit and more.time < case.given_costs[run.schedule.ops].sum():
            return outcome, more.interrupted
        if more.interrupted:
            return best, True
    return best, False


def _limit(budget: str | int, graph: Graph) -> int | None:
    return None if budget == "" else read_budget(budget, graph)
