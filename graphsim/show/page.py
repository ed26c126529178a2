"""One page on a training step of any source, for people who look rather than query."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from graphsim.answers.plan import plans_of
from graphsim.answers.reservation import chosen_allocator, placed
from graphsim.answers.setting import DEFAULTS, Asked, Setting, asked, spelled_out, with_one_name
from graphsim.answers.unknown import Unknown, rooms, unknown_of
from graphsim.core.devices import device_of
from graphsim.core.liveness import Policy
from graphsim.core.simulation import Simulation, simulate
from graphsim.recompute.plan import make_schedule
from graphsim.show.reporters.html import allocation_data, html_page
from graphsim.show.reporters.peak import advice
from graphsim.sources import Source, Steps
from graphsim.step.training import Training
from graphsim.units import as_budget, format_bytes


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
    shown = steps.step(first=first)
    limits = [as_budget(budget, lambda: simulate(shown).peak) for budget in budgets]
    before, run = _scheduled(steps, strategy, limits[0] if limits else None, policy, first)
    allocation, held = None, None
    chosen = chosen_allocator("" if allocator == "none" else allocator, allocator_options)
    if chosen is not None:
        limited = getattr(chosen, "limit", None) is not None
        stretches = placed(before, run, chosen)
        allocation = allocation_data(stretches[1], allocator, allocator_options, limited=limited)
        held = max((stretch.held.reserved or 0 for stretch in stretches), default=0)
    unknown = unknown_of((before, run), question.training.device, question.training.target, chosen)
    plans = list(plans_of(run.graph, [None, *limits], policy=policy)) if compare else []
    facts = _facts(run, first, strategy, question.source, question.training)
    own: dict[str, Any] = {
        "policy": policy,
        "first": first,
        "allocator": allocator,
        "allocator_options": allocator_options,
    }
    own |= {"strategy": strategy, "compare": compare, "budget": budgets}
    return Page(
        html_page(
            run,
            facts=facts,
            allocation=allocation,
            plans=plans,
            verdict=_verdict(run, question, held if allocator == "torch" else None, unknown),
            command=_command(question.source.what, with_one_name(setting), own),
        )
    )


def _verdict(run: Simulation, question: Asked, held: int | None, unknown: tuple[Unknown, ...]) -> str:
    """Say whether the step fits the card that was named, by what PyTorch's allocator holds, and what would help."""
    said = []
    card, training = question.training.device, question.training
    if held:
        said.append(f"PyTorch's allocator reserves {format_bytes(held)} for it.")
    if held and card and training.target == "cuda":
        memory = device_of(card, "cuda").memory
        sure, perhaps = rooms(memory, unknown)
        verdict = "fits" if held <= sure else "may fit" if held <= perhaps else "does not fit"
        size, left = format_bytes(memory), format_bytes(abs(sure - held))
        named = " and ".join(f"{format_bytes(one.most)} for the {one.what}" for one in unknown)
        beside = f"with {named} {left} {'are left' if verdict == 'fits' else 'too much'}"
        said.append(f"That {verdict} on {card} ({size}): {beside}.")
    elif held:
        said += [f"Unknown beside it: up to {format_bytes(one.most)} for the {one.what}." for one in unknown]
    if question.source.kind != "step" and run.peak:
        helps = advice(run.by_role(run.peak_execution), training.mode)
        said.append(helps[0].upper() + helps[1:])
    return " ".join(said)


def _command(what: Any, setting: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Return the command line that makes the page; empty where a source or an option has no words."""
    words = [what] if isinstance(what, str) else []
    options: dict[str, Any] = {n: setting[n] for n, usual in DEFAULTS.items() if setting.get(n, usual) != usual}
    params = [f"{name}={value}" for name, value in (options.pop("params", None) or {}).items()]
    assumed = [f"{place}={value}" for place, value in (options.pop("assume", None) or {}).items()]
    options |= {name: value for name, value in own.items() if value != _OWN.get(name)}
    options |= {"set": params, "assume": assumed}
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else f"--no-{name.replace('_', '-')}")
        elif isinstance(value, list | tuple):
            words += [word for one in value for word in (option, str(one))]
        elif isinstance(value, str | int):
            words += [option, str(value)]
        else:
            return ""
    return shlex.join(["graphsim", "report", *words]) if isinstance(what, str) else ""


_OWN = {
    "policy": "eager",
    "first": False,
    "allocator": "torch",
    "allocator_options": "",
    "strategy": "",
    "compare": False,
}


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
        **{name: str(value) for name, value in source.params.items() if name != "batch"},
        "optimizer": f"{chosen.optimizer} ({chosen.implementation})" if chosen.mode == "train" else "",
        "precision": chosen.precision,
        "master weights": "fp32" if chosen.master_weights else "",
        "target": chosen.target,
        "card": chosen.device,
        "mode": chosen.mode,
        "micro-batches": str(training.accumulation) if training.accumulation != 1 else "",
        "step": ("1, which creates the optimizer states" if first else "2 and later") if chosen.mode == "train" else "",
        "gradients": f"reset {chosen.zero_grad}" + ("" if chosen.set_to_none else ", kept as zeros"),
        "strategy": strategy,
        "release": run.policy,
    }
    return {label: text for label, text in facts.items() if text}
