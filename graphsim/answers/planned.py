"""The cheapest recompute that fits a budget, and all strategies side by side, for any source."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Unpack

from graphsim.answers.plan import Witness, plan_as_dict, read_budget, witness
from graphsim.answers.plan import compare as all_plans
from graphsim.answers.setting import Setting, asked, spelled_out
from graphsim.core.graph import Graph
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import cost_unit, with_costs
from graphsim.display import Answer
from graphsim.errors import UsageError
from graphsim.options import configure
from graphsim.recompute.case import Case
from graphsim.recompute.plan import Plan, make_plan, name_of
from graphsim.recompute.strategies import STRATEGIES, Progress, Strategy, with_limits
from graphsim.units import format_bytes


@dataclass(frozen=True, slots=True, repr=False)
class Planned(Answer):
    """A plan for a step.

    Attributes:
        graph: the step that is planned.
        plan: its schedule, judged.
        least: what any schedule within the budget costs that keeps the order of ops, see `Case.least_time`.
        witness: why none fits, if none does.
    """

    graph: Graph
    plan: Plan
    least: float
    witness: Witness | None = None

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
        return f"{plan.strategy}: peak {format_bytes(plan.peak_bytes)}, {plan.overhead:+.2%} compute{verdict}"

    def to_json(self) -> str:
        """Return one JSON object."""
        why = {"witness": self.witness.as_dict()} if self.witness else {}
        return json.dumps(plan_as_dict(self.plan) | why, indent=2)


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
    progress: Progress | None = None,
    **setting: Unpack[Setting],
) -> Planned:
    """Return the cheapest schedule of a step of *source* that fits a memory budget.

    >>> plan("lenet5", batch=64, budget="0.9x", strategy="rotor").feasible
    True

    Args:
        source: as `peak` takes it.
        inputs: of a module.
        budget: of live bytes: 8GiB, or 0.8x of the peak without recompute, or a number of bytes.
        strategy: a name of `strategies.STRATEGIES`, or a strategy.
        options: of the strategy, as text: ``seconds=60,seed=1``.
        costs: what an op costs, see `with_costs`; empty: the graph's times, else the GPU's roofline.
        first: plan step 1, which creates the optimizer states, instead of the steady step.
        progress: is told of the search.

    Raises:
        UsageError: there is no budget, and the strategy needs one.
        GraphSimError: the source cannot be read or trained, or an option is wrong.
    """
    if not budget and strategy == "auto":
        raise UsageError("plan needs a --budget, for example 8GiB or 0.8x; or a --strategy that has a way of its own")
    chosen: Strategy = configure(STRATEGIES[strategy], options) if isinstance(strategy, str) else strategy
    if progress:
        chosen = with_limits(chosen, progress=progress)
    graph = _step(source, inputs, setting, costs, first)
    limit, case = _limit(budget, graph), Case(graph)
    best = replace(make_plan(case, chosen, limit), strategy=name_of(strategy))
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
    graph = _step(source, inputs, setting, costs, first)
    limit, case = _limit(budget, graph), Case(graph)
    skipped: list[str] = []

    def watch(text: str) -> None:
        if text.startswith("skipped: "):
            skipped.append(text.removeprefix("skipped: "))
        if progress:
            progress(text)

    plans = tuple(all_plans(case, limit, progress=watch))
    return Comparison(graph, plans, case.least_time(limit), tuple(skipped))


def _step(source: Any, inputs: Any, setting: Setting, costs: str, first: bool) -> Graph:
    question = asked(source, inputs, setting)
    steps = question.source.steps(question.training)
    graph = steps.first if first else steps.steady
    return with_costs(graph, costs) if costs else graph


def _limit(budget: str | int, graph: Graph) -> int | None:
    return None if budget == "" else read_budget(budget, graph)
