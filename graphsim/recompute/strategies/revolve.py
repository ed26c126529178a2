"""Revolve: binomial checkpointing, the fewest forward steps for a number of checkpoints.

Source: Griewank and Walther, "Algorithm 799: Revolve", ACM TOMS 26(1), 2000. A chain of n equal
steps is reversed with s slots, each of which holds the state before a step. The fewest forward
steps are t(n, s) = r n - C(s + r, r - 1), where r is the smallest number with n <= C(s + r, s); no
step then runs forward more than r times. The forward run that is part of reversing a step is not
counted.

On a graph, the steps are spans of the forward pass, and the state before one is what crosses into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Literal, NamedTuple

from graphsim.core.schedule import Schedule
from graphsim.errors import UsageError
from graphsim.recompute.candidates import bisect, chain_candidate
from graphsim.recompute.case import Candidate, Case
from graphsim.recompute.spans import ChainPlan, ForwardPass, Sweep

MAX_SPANS = 256
"""Steps into which a forward pass is cut at most."""


@dataclass(frozen=True, slots=True)
class Revolve:
    """Reverses the spans of each forward pass with *slots* checkpoints.

    Attributes:
        slots: None: as many as fit the budget; without a budget, as few as one more forward pass allows.
        spans: steps of the chain at most; they are cut where the least crosses.

    Raises:
        UsageError: fewer than one slot, or one span.
    """

    slots: int | None = None
    spans: int = MAX_SPANS

    def __post_init__(self) -> None:
        if self.spans < 1 or (self.slots is not None and self.slots < 1):
            raise UsageError(f"slots and spans must be at least 1, not {self.slots} and {self.spans}")

    def __call__(self, case: Case, budget: int | None = None, /) -> Schedule:
        """Return the schedule; a number of slots that is given is used, whether or not it fits."""
        spans = {forward.ops: forward.narrow(min(self.spans, len(forward.ops))) for forward in case.passes}

        def candidate(slots: int) -> Candidate:
            def choose(forward: ForwardPass) -> ChainPlan:
                return chain_plan(spans[forward.ops], slots)

            return chain_candidate(case, choose)

        if self.slots is not None:
            return candidate(self.slots).schedule
        return bisect(case, candidate, 1, max(map(len, spans.values()), default=0), budget).schedule


class Action(NamedTuple):
    """One move of a reversal.

    ``store`` the state before *step*; ``advance`` from there to the state before *to*; ``reverse``
    *step*; go back to the stored state before *step* (``restore``), or give up its slot (``free``).
    """

    kind: Literal["store", "advance", "reverse", "restore", "free"]
    step: int
    to: int = 0


def forward_steps(n: int, slots: int) -> int:
    """Return the fewest forward steps that reverse *n* steps, in closed form.

    Raises:
        UsageError: there is no slot, or a negative number of steps.
    """
    _check(n, slots)
    r = _repetitions(n, slots)
    return r * n - comb(slots + r, r - 1) if r else 0


def schedule(n: int, slots: int) -> list[Action]:
    """Return the moves that reverse *n* steps, in at most *slots* slots, with `forward_steps` advances.

    Raises:
        UsageError: there is no slot, or a negative number of steps.
    """
    _check(n, slots)
    actions: list[Action] = []
    todo: list[tuple[int, int, int, bool]] = [(0, n, slots, False)] if n else []
    while todo:  # steps [begin, end); one of the free slots is, or will be, for the state before begin
        begin, end, free, stored = todo.pop()
        if stored:
            actions.append(Action("restore", begin))
        if end - begin == 1:
            actions.append(Action("reverse", begin))
            actions += [Action("free", begin)] * stored
            continue
        if not stored:
            actions.append(Action("store", begin))
        middle = begin + _split(end - begin, free)
        actions.append(Action("advance", begin, middle))
        todo += [(begin, middle, free, True), (middle, end, free - 1, False)]
    return actions


def chain_plan(spans: list[range], slots: int) -> ChainPlan:
    """Return the reversal of *spans* as sweeps: what is stored before a step is reversed is held by its sweep."""
    sweeps: dict[int, Sweep] = {}
    holds: set[int] = set()
    for action in schedule(len(spans), slots):
        if action.kind == "store":
            holds.add(action.step)
        elif action.kind == "reverse":
            sweeps[action.step] = Sweep(frozenset({action.step}), frozenset(holds))
            holds.clear()
    return ChainPlan(spans, sweeps.pop(len(spans) - 1), sweeps)


def _split(n: int, slots: int) -> int:
    """Return how many of *n* > 1 steps to advance before the next checkpoint.

    Any number is optimal that leaves to both parts as many repetitions as the whole has, less one for
    the first; this is the largest.
    """
    r = _repetitions(n, slots)
    return min(comb(slots + r - 1, slots), n - (comb(slots + r - 2, slots - 1) if r > 1 else 1))


def _repetitions(n: int, slots: int) -> int:
    r = 0
    while comb(slots + r, slots) < n:
        r += 1
    return r


def _check(n: int, slots: int) -> None:
    if slots < 1:
        raise UsageError(f"a reversal needs at least 1 slot, not {slots}")
    if n < 0:
        raise UsageError(f"a chain has at least 0 steps, not {n}")
