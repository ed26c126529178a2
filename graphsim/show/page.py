"""One page on a training step of any source, for people who look rather than query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from graphsim.answers.plan import plans_of
from graphsim.answers.reservation import chosen_allocator, placed
from graphsim.answers.setting import Setting, asked, spelled_out
from graphsim.core.liveness import Policy
from graphsim.core.simulation import Simulation, simulate
from graphsim.recompute.plan import make_schedule
from graphsim.show.reporters.html import allocation_data, html_page
from graphsim.sources import Source, Steps
from graphsim.step.training import Training
from graphsim.units import as_budget


class Page(str):
    """HTML that needs no network: `write` it to a file, or let a notebook show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<Page of {len(self):,} characters>"

    def _repr_html_(self) -> str:
        from html import escape

        return f'<iframe srcdoc="{escape(self)}" width="100%" height="900" style="border:0"></iframe>'

    @property
    def content(self) -> bytes:
        """The bytes of the file."""
        return self.encode("utf-8", "replace")


@spelled_out
def report(
    source: Any,
    inputs: Any = None,
    *,
    policy: Policy = "eager",
    first: bool = False,
    allocator: str = "torch",
    allocator_options: str = "",
    strategy: str = "",
    compare: bool = False,
    budgets: Sequence[str | int] = (),
    **setting: Unpack[Setting],
) -> Page:
    """Return a page on a training step of *source*: timeline, live tensors, modules, allocator, strategies.

    Args:
        source: as `peak` takes it.
        inputs: of a module.
        policy: as of `peak`.
        first: step 1, which creates the optimizer states, instead of the steady step.
        allocator: whose reservation to show; 'none': no one's.
        allocator_options: its options as text.
        strategy: show the step as this strategy schedules it, within the first of *budgets* if there is one.
        compare: compare all strategies, without a budget and within each of *budgets*.
        budgets: bytes, as numbers or as text.

    Raises:
        GraphSimError: the source cannot be read or trained, or an option is wrong.
    """
    question = asked(source, inputs, setting)
    steps = question.source.steps(question.training)
    shown = steps.first if first else steps.steady
    limits = [as_budget(budget, lambda: simulate(shown).peak) for budget in budgets]
    before, run = _scheduled(steps, strategy, limits[0] if limits else None, policy, first)
    allocation = None
    chosen = chosen_allocator("" if allocator == "none" else allocator, allocator_options)
    if chosen is not None:
        limited = getattr(chosen, "limit", None) is not None
        allocation = allocation_data(placed(before, run, chosen)[1], allocator, allocator_options, limited=limited)
    plans = list(plans_of(run.graph, [None, *limits], policy=policy)) if compare else []
    facts = _facts(run, first, strategy, question.source, question.training)
    return Page(html_page(run, facts=facts, allocation=allocation, plans=plans))


def _scheduled(
    steps: Steps, strategy: str, budget: int | None, policy: Policy, first: bool
) -> tuple[Simulation, Simulation]:
    """Return step 1 and the step to show (which may be the same), as *strategy* schedules them."""

    def run(step: Any) -> Simulation:
        schedule = make_schedule(step, strategy, budget) if strategy else None
        return simulate(step, schedule, policy=policy)

    before = run(steps.first)
    return before, before if first or steps.steady is steps.first else run(steps.steady)


def _facts(run: Simulation, first: bool, strategy: str, source: Source, training: Training) -> dict[str, str]:
    """Return what the head of the page says: what a graph knows of its own training, else what was asked."""
    if source.kind == "step" and "training" not in run.graph.attributes:
        return {"strategy": strategy} if strategy else {}
    chosen = Training(**{**training.as_dict(), **dict(run.graph.attributes.get("training", {}))})
    facts = {
        "batch": str(run.graph.attributes.get("batch", "")),
        "optimizer": f"{chosen.optimizer} ({chosen.implementation})" if chosen.mode == "train" else "",
        "precision": chosen.precision,
        "target": chosen.target,
        "mode": chosen.mode,
        "micro-batches": str(training.accumulation) if training.accumulation != 1 else "",
        "step": ("1, which creates the optimizer states" if first else "2 and later") if chosen.mode == "train" else "",
        "strategy": strategy,
    }
    return {label: text for label, text in facts.items() if text}
