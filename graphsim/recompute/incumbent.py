"""The incumbent of a search: the best sequence that it has found, and what it knows when it is told to stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

from graphsim.recompute.case import Case
from graphsim.recompute.evaluation import Evaluation
from graphsim.recompute.moves.improve import prune
from graphsim.recompute.strategies import Proposal


class Incumbent:
    """The best sequence so far; at first the one that stores all.

    Attributes:
        state: the sequence.
        bound: what any sequence of the searched form costs extra, as far as that is proved.
        interrupted: Ctrl-C was heard.
    """

    def __init__(self, case: Case, budget: int) -> None:
        self.case, self.budget = case, budget
        self.state = case.program_order
        self.bound = 0.0
        self.interrupted = False

    @property
    def fits(self) -> bool:
        """Whether it is within the budget."""
        return self.state.peak <= self.budget

    @property
    def extra(self) -> float:
        """Its extra cost; infinity if it does not fit."""
        return self.state.cost - self.case.base_time if self.fits else inf

    def offer(self, *states: Evaluation) -> None:
        """Take the best of *states*, if it is better: the cheapest within the budget, else the lowest peak."""
        self.state = min(self.state, *states, key=lambda state: (max(self.budget, state.peak), state.cost))

    def prune(self) -> None:
        """Leave out recomputes that it can do without, as many that cost nothing are."""
        if self.fits:
            self.state = prune(self.state, self.budget)

    @contextmanager
    def until_interrupted(self) -> Iterator[None]:
        """Let Ctrl-C end what runs inside."""
        try:
            yield
        except KeyboardInterrupt:
            self.interrupted = True

    def proposal(self) -> Proposal:
        """Return it as a strategy's answer: the one that stores all, if it does not fit."""
        self.prune()
        schedule = self.case.problem.schedule(self.state.nodes) if self.fits else self.case.stored.schedule
        return Proposal(schedule, time_bound=self.case.base_time + self.bound, interrupted=self.interrupted)
