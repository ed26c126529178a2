"""What trials come to, asked for at once: worked out here when it is wanted, or meanwhile in other processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import NamedTuple

from graphsim.answers.need import Trial, outcome_of
from graphsim.answers.processes import processes, submit
from graphsim.errors import GraphSimError


class Cost(NamedTuple):
    """Bytes that are held at most, and the roofline seconds of a steady step."""

    need: int
    seconds: float


Promise = Callable[[], Cost]
Ask = Callable[[Trial], Promise]


def cost_of(trial: Trial, room: int) -> Cost:
    """Return what *trial* costs, with recompute that is to make it fit *room* bytes if it has a strategy.

    Raises:
        GraphSimError: the source does not allow it.
    """
    outcome = outcome_of(trial, room, {})
    return Cost(outcome.need, outcome.seconds(trial.training))


@contextmanager
def asking(room: int, others: int) -> Iterator[Ask]:
    """Give what is asked for the costs of trials; *others* is the number of processes beside this one."""

    def here(trial: Trial) -> Promise:
        return lambda: cost_of(trial, room)

    if others < 1:
        yield here
        return
    with processes(others) as executor:
        yield lambda trial: _meanwhile(executor, trial, room)


def _meanwhile(executor: Executor, trial: Trial, room: int) -> Promise:
    unmade = replace(trial, source=trial.source.with_params())  # without the steps that were made of it
    future = submit(executor, _known_cost, unmade, room)

    def promise() -> Cost:
        found = None
        if not future.cancel():  # else nobody has begun with it
            with suppress(BrokenExecutor):  # out of memory perhaps: here there may be enough
                found = future.result()
        return cost_of(trial, room) if found is None else found

    return promise


def _known_cost(trial: Trial, room: int) -> Cost | None:
    """Return the cost; None where there is none, which says here in full why."""
    try:
        return cost_of(trial, room)
    except GraphSimError:
        return None
