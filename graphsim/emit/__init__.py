"""Plans that a PyTorch user can apply, written as files of plain PyTorch.

`step.emit_step` writes the very plan, call by call, for batches of one shape. What is here names the modules to
checkpoint, whatever the batch.

A schedule may recompute any op at any time; a checkpoint runs a module again from its beginning, up to the last tensor
that backward needs, and then holds all of it. So what is written is captured anew, with the very file applied to the
model, and the prediction is that capture's, not the schedule's.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from graphsim.core.simulation import op_costs, simulate
from graphsim.emit.capture import Recapturable
from graphsim.emit.modules import Modules
from graphsim.emit.program import check_stores_all
from graphsim.emit.randomness import draws, with_states
from graphsim.emit.text import Wrapped, render
from graphsim.errors import GraphSimError, InfeasibleError, UsageError
from graphsim.recompute.case import Case
from graphsim.recompute.plan import Plan
from graphsim.units import format_bytes
from graphsim.version import __version__

GROUPS = 4
"""Kinds of modules that a search tries to wrap, those with most to free first."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Emission:
    """A file to apply to a model, and what the model then does.

    Attributes:
        text: the file.
        wrapped: the modules that it makes recompute, in the order in which they run.
        plan: peak and time of the captured step with the file applied; base_time is that without.
        stored_peak: bytes at the peak without it.
        scheduled_peak: bytes at the peak of the schedule that it expresses, if it expresses one.
    """

    text: str
    wrapped: Wrapped
    plan: Plan
    stored_peak: int
    scheduled_peak: int | None = None


def emit_plan(captured: Recapturable, plan: Plan) -> Emission:
    """Return *plan* as checkpoints of modules.

    Raises:
        UsageError: checkpoints cannot express it.
        InfeasibleError: in this form it needs more than its budget.
    """
    if plan.schedule.offloads:
        raise UsageError("the plan offloads to the host, which checkpoints of modules cannot: plan without --offload")
    writer = _Writer(captured, plan.strategy, plan.budget)
    made = writer.write(writer.modules.of_schedule(plan.schedule, plan.strategy), plan.peak_bytes)
    if not made.plan.feasible:
        raise _too_large(
            made.plan,
            f"{plan.strategy}'s plan peaks at {plan.peak_bytes:,} bytes, and as checkpoints of modules at "
            f"{made.plan.peak_bytes:,}; try --strategy auto, or plan for a smaller budget",
        )
    return made


def emit_within(captured: Recapturable, budget: int, progress: Progress | None = None) -> Emission:
    """Return the cheapest checkpoints found whose captured peak is within *budget* bytes.

    Tried are the modules of one kind, such as the blocks of a model: as many of them as it takes.

    Raises:
        InfeasibleError: none fits.
    """
    writer = _Writer(captured, "auto", budget, progress)
    stored = writer.write({})
    if stored.plan.feasible:
        return stored
    found = [one for group in _groups(writer.modules) for one in _fewest(group, writer)]
    fitting = [one for one in found if one.plan.feasible]
    if fitting:
        return min(fitting, key=lambda one: (one.plan.time, one.plan.peak_bytes))
    least = min([stored, *found], key=lambda one: one.plan.peak_bytes).plan
    raise _too_large(least, f"no checkpoints of modules fit: the smallest peak found is {least.peak_bytes:,} bytes")


def _fewest(paths: Sequence[str], writer: _Writer) -> Iterator[Emission]:
    """Yield what is tried on the way to the shortest beginning of *paths* that fits."""
    low, high = 0, len(paths)
    tried = writer.write(dict.fromkeys(paths, ()))
    yield tried
    if not tried.plan.feasible:
        return
    while high - low > 1:
        middle = (low + high) // 2
        tried = writer.write(dict.fromkeys(paths[:middle], ()))
        yield tried
        low, high = (low, middle) if tried.plan.feasible else (middle, high)


def _groups(modules: Modules) -> list[list[str]]:
    """Return the modules by kind: those whose paths differ in numbers only; in each, most bytes per time first."""
    size = {path: modules.tape_bytes(path) for path in modules.wrappable}
    costs = op_costs(modules.graph)
    time_of = {path: float(costs[list(modules.ops[path])].sum()) for path in size}
    groups: dict[str, list[str]] = {}
    for path in size:
        if size[path]:
            groups.setdefault(re.sub(r"\d+", "*", path), []).append(path)
    ranked = sorted(groups.values(), key=lambda group: -sum(size[path] for path in group))[:GROUPS]
    return [sorted(group, key=lambda path: -size[path] / (time_of[path] or 1.0)) for group in ranked]


class _Writer:
    """Writes files for one captured model, and captures what they do."""

    def __init__(
        self, captured: Recapturable, strategy: str, budget: int | None, progress: Progress | None = None
    ) -> None:
        check_stores_all(captured.graph)
        self.captured = captured
        self.strategy = strategy
        self.budget = budget
        self.progress = progress
        self.modules = Modules(captured.graph, captured.called)
        self.case = Case(captured.graph)
        self.stored = simulate(captured.graph).peak
        self.start = time.perf_counter()

    def write(self, wrapped: Wrapped, scheduled: int | None = None) -> Emission:
        """Return the file that wraps *wrapped*, verified by a capture of the model with the file applied."""
        if self.progress:
            self.progress(f"capturing the model with {len(wrapped)} modules recomputed")
        plan = self._captured(wrapped)
        return Emission(self._text(wrapped, self._facts(plan)), wrapped, plan, self.stored, scheduled)

    def _captured(self, wrapped: Wrapped) -> Plan:
        try:
            graph = self.captured.applied(self._text(wrapped, ()))
        except (GraphSimError, RuntimeError) as error:  # of PyTorch, where a second run differs from the first
            raise UsageError(f"the model does not run with {self.strategy}'s plan applied: {error}") from error
        if self._is_random(wrapped):
            graph = with_states(graph, wrapped)
        run = simulate(graph)
        return Plan(
            schedule=run.schedule,
            strategy=self.strategy,
            budget=self.budget,
            feasible=self.budget is None or run.peak <= self.budget,
            peak_bytes=run.peak,
            time=run.time,
            base_time=self.case.base_time,
            memory_bound=self.case.memory_bound,
            proved_optimal=False,
            seconds=time.perf_counter() - self.start,
            time_bound=self.case.base_time,
            time_bound_in_any_order=self.case.base_time,
        )

    def _text(self, wrapped: Wrapped, facts: Sequence[tuple[str, str]]) -> str:
        inside = (norm.startswith(f"{path}.") or norm == path for norm in self.captured.norms for path in wrapped)
        title = f"Activation checkpoints for {self.captured.name}, written by graphsim {__version__}."
        random = self._is_random(wrapped)
        return render(wrapped, title=title, facts=facts, statistics=any(inside), random=random)

    def _is_random(self, wrapped: Wrapped) -> bool:
        ops = self.modules.graph.ops
        return any(draws(kind) for kind in {ops[at].kind for path in wrapped for at in self.modules.ops[path]})

    def _facts(self, plan: Plan) -> list[tuple[str, str]]:
        training = self.captured.graph.attributes.get("training") or {}
        return [
            ("strategy", self.strategy),
            (
                "step",
                ", ".join(str(training[key]) for key in ("optimizer", "optimizer_impl", "target") if key in training),
            ),
            ("peak", f"{plan.peak_bytes:,} bytes ({format_bytes(plan.peak_bytes)}), live tensors of a steady step"),
            ("without", f"{self.stored:,} bytes ({format_bytes(self.stored)})"),
            ("extra work", f"{plan.overhead:+.2%} of the step's op costs"),
        ]


def _too_large(plan: Plan, why: str) -> InfeasibleError:
    budget = plan.budget or 0
    return InfeasibleError(
        f"not within {format_bytes(budget)} ({budget:,} bytes): {why}", budget=budget, memory_bound=plan.memory_bound
    )
