"""What PyTorch's allocator holds for a training, as it is or with recompute that makes it fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from graphsim.answers.reservation import reservations
from graphsim.core.graph import Graph
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import Simulation, op_costs, simulate
from graphsim.errors import ScheduleError
from graphsim.memory.allocators import Allocator
from graphsim.memory.allocators.torch import TorchCaching
from graphsim.recompute.case import Case
from graphsim.recompute.plan import make_schedule
from graphsim.recompute.strategies import STRATEGIES, Strategy, with_limits
from graphsim.sources import Source, Steps
from graphsim.step.training import Training

SECONDS = 1.0
"""Each search for a schedule may take; there are dozens."""
_BUDGETS = 8
"""Budgets of live bytes that are tried for what an allocator may hold."""
_KNOWN = 8
"""Schedules of other sizes that are tried before one is planned."""

Known = dict[tuple[bool, int], list[Schedule]]
"""Schedules that were planned for step 1, or a later one, of so many ops, whatever the size."""


@dataclass(frozen=True)
class Trial:
    """A source and all that is chosen for it."""

    source: Source
    training: Training
    strategy: str = ""
    allocator: TorchCaching = field(default_factory=TorchCaching)


class Outcome(NamedTuple):
    """Both steps as they are scheduled, and the bytes that are held for them at most."""

    first: Simulation
    steady: Simulation
    need: int

    def seconds(self, training: Training) -> float:
        """Return the cost of the steady step, with all of its micro-batches."""
        again = training.accumulation / training.shortened.accumulation
        return float(op_costs(self.steady.graph)[self.steady.schedule.ops].sum()) * again


def need_of(
    source: Source,
    training: Training,
    strategy: str = "",
    room: int | None = None,
    allocator: TorchCaching | None = None,
    *,
    known: Known | None = None,
    plan: bool = True,
) -> int:
    """Return the bytes that PyTorch's allocator holds at most, in step 1 or in a later one after it.

    Short of memory it gives its cache back and tries again, so a step may get by with a little less, at the price of
    such retries. A *strategy* is to make it fit *room* bytes: by one of the *known* schedules, or by one that it
    plans, which is known from then on; or, unless it is to *plan*, only by the known, if any are for as many ops.
    """
    trial = Trial(source, training, strategy, allocator or TorchCaching())
    return outcome_of(trial, room, {} if known is None else known, plan).need


def outcome_of(trial: Trial, room: int | None, known: Known, plan: bool = True) -> Outcome:
    """Return what comes of *trial*; see `need_of`."""
    steps = trial.source.steps(trial.training)
    if not trial.strategy:
        return outcome_as_stored(steps, trial.allocator)
    planner = with_limits(STRATEGIES[trial.strategy](), seconds=SECONDS)
    return Recompute(planner, trial.allocator, known, plan).within(steps, room)


def outcome_as_stored(steps: Steps, allocator: Allocator) -> Outcome:
    """Return what comes of *steps* without recompute."""
    return outcome_of_steps(steps, {id(step): simulate(step) for step in steps}, allocator)


def outcome_of_steps(steps: Steps, chosen: Mapping[int, Simulation], allocator: Allocator) -> Outcome:
    """Return what comes of *steps* with the schedules that are *chosen*, by the identity of a step."""
    first, steady = (chosen[id(step)] for step in steps)
    return Outcome(first, steady, max(held.reserved or 0 for held in reservations(first, steady, allocator)))


@dataclass(frozen=True)
class Recompute:
    """Makes steps fit into what an allocator may hold: the one way of `fit` and of `plan`.

    Attributes:
        planner: makes schedules, within live bytes.
        allocator: holds more than is live.
        known: schedules that are tried before one is planned, and get what is.
        plan: plan some, unless any are known for as many ops.
        rounds: rooms that are tried for each step alone, so that both, one after the other, fit.
    """

    planner: Strategy
    allocator: Allocator
    known: Known = field(default_factory=dict)
    plan: bool = True
    rounds: int = 3

    def within(self, steps: Steps, room: int | None) -> Outcome:
        """Return the schedules with which *steps*, one after the other, fit *room*; else those that need least."""
        goal, tried = room, []
        for _ in range(self.rounds):
            chosen = {id(step): self._alone(step, step is not steps.steady, goal) for step in steps}
            tried.append(outcome_of_steps(steps, chosen, self.allocator))
            need = tried[-1].need
            if room is None or goal is None or need <= room or not self.plan:
                break
            goal -= need - room
        return min(tried, key=lambda outcome: outcome.need)

    def _alone(self, step: Graph, first: bool, room: int | None) -> Simulation:
        """Return one step under the schedule that makes it fit *room* when it is alone."""

        def run(schedule: Schedule | None) -> tuple[Simulation, int]:
            simulation = simulate(step, schedule)
            return simulation, self.allocator(simulation.trace).reserved_peak

        case = Case(step)
        if room is None:
            return simulate(step, make_schedule(case, self.planner))
        schedules, tried = self.known.setdefault((first, len(step.ops)), []), []
        for schedule in schedules:
            with suppress(ScheduleError):  # as many ops, but other ones
                tried.append(run(schedule))
                if tried[-1][1] <= room:
                    return tried[-1][0]
        if self.plan or not tried:
            tried.append(_within(lambda budget: run(make_schedule(case, self.planner, budget)), run(None), room))
            schedules[:] = [tried[-1][0].schedule, *schedules][:_KNOWN]
        return min(tried, key=_held)[0]


def _held(one: tuple[Simulation, int]) -> int:
    return one[1]


def _within(
    planned: Callable[[int], tuple[Simulation, int]], stored: tuple[Simulation, int], room: int
) -> tuple[Simulation, int]:
    """Return what is *planned* for a budget with which *room* bytes suffice, else with which least are held.

    A budget is live bytes, and more is held. As the last one tried held too much, by a share, the next is less by that
    share; or the middle between what was too much and what nothing fits.
    """
    tried: list[tuple[Simulation, int]] = []
    (run, held), low, high = stored, 0, room
    while len(tried) < _BUDGETS and (held > room or not tried):
        scaled = run.peak * room // held if held > room else room
        budget = scaled if scaled > low else (low + high) // 2
        run, held = planned(budget)
        if (run.peak, held) in ((other.peak, more) for other, more in tried):
            break
        tried.append((run, held))
        low, high = (budget, high) if run.peak > budget else (low, run.peak)
    return min(tried, key=_held)
