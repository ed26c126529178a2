"""Proofs: what any schedule in program order costs at least within a budget, nearly always the cost of the cheapest.

The program of a few moments (`solvers.moments`) is solved to the end: at first that of the moment where program order
needs the most. Its solution is made a sequence. Where that is above the budget, moments are added; else it is optimal.
A known plan bounds the search: ops that cost more than it does extra need not run again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite

import numpy as np

from graphsim.core.index import NOTHING
from graphsim.recompute.case import Case
from graphsim.recompute.evaluation import Evaluation, evaluate
from graphsim.recompute.moves.improve import prune
from graphsim.recompute.solvers.checkmate_highs import solve
from graphsim.recompute.solvers.moments import Relaxation, Repeats, relax

_ENTRIES = 1_000_000
"""Values times moments, beyond which no moment is added: larger programs are not solved in any time."""
_SAME = 1e-9
"""Costs that differ by less of the step are the same, for rounding errors."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found.

    Attributes:
        least: what any schedule in program order costs within the budget; infinity if none fits.
        best: the best sequence that is known to fit; None if there is none.
        interrupted: by Ctrl-C.
    """

    least: float
    best: Evaluation | None
    interrupted: bool = False


def prove(case: Case, budget: int, *, seconds: float, known: Evaluation | None = None, seed: int = 0) -> Proof:
    """Return the best bound that *seconds* allow, and note it in *case*.

    Args:
        case: whose ops first run in program order.
        budget: bytes.
        seconds: to stop after.
        known: a sequence; no bound is above its cost, if it fits.
        seed: of the solver.

    Raises:
        MissingExtraError: highspy is not installed.
        SolverError: HiGHS ended without an answer.
    """
    proof = _Prover(case, budget, known, time.perf_counter() + seconds, seed).run()
    case.note_least_time(budget, proof.least)
    return proof


class _Prover:
    def __init__(self, case: Case, budget: int, known: Evaluation | None, until: float, seed: int) -> None:
        self.case, self.budget, self.until, self.seed = case, budget, until, seed
        self.least = case.least_time(budget)
        self.best = known if known is not None and known.peak <= budget else None
        above = case.program_order.memory - budget
        self.moments = {int(above.argmax())} if (above > 0).any() else set()
        self.repeats = self._repeats()

    @property
    def _cost(self) -> float:
        return inf if self.best is None else self.best.cost

    def _repeats(self) -> Repeats:
        return Repeats(self.case.problem, self._cost - self.case.base_time)

    def run(self) -> Proof:
        """Add moments until the bound is met, the time is up or the program is too large."""
        interrupted = False
        while self._is_open() and self.moments and not interrupted and time.perf_counter() < self.until:
            relaxed = relax(self.repeats, self.budget, self.moments)
            answer = solve(
                relaxed.program,
                integer=True,
                seconds=self.until - time.perf_counter(),
                seed=self.seed,
                start=None if self.best is None else relaxed.point(self.best),
            )
            interrupted = answer.interrupted
            self.least = max(self.least, min(self.case.base_time + answer.bound * relaxed.unit, self._cost))
            if answer.x is None or not self._add(self._violated(relaxed, answer.x)):
                break
        return Proof(self.least, self.best, interrupted)

    def _is_open(self) -> bool:
        return self.least < self._cost - _SAME * self.case.base_time and isfinite(self.least)

    def _violated(self, relaxed: Relaxation, x: np.ndarray) -> list[int]:
        """Return ops where a solution's sequence needs too much, the worst first; take it if it fits."""
        nodes = relaxed.nodes(x, self.case.problem)
        if nodes is None:
            return []
        found = evaluate(self.case.problem, nodes)
        if found.peak <= self.budget:
            self._take(prune(found, self.budget))
        above = found.memory - self.budget
        places = np.flatnonzero(above > 0)
        places = places[np.argsort(-above[places], kind="stable")]
        ops = self.case.problem.ops
        return [
            op
            for place in places.tolist()
            for op in (
                [int(found.nodes[place])]
                if found.nodes[place] < ops
                else [max(0, int(found.next_op[place]) - 1), min(ops - 1, int(found.next_op[place]))]
            )
        ]

    def _take(self, found: Evaluation) -> None:
        if found.cost < self._cost:
            self.best = found
            self.least = min(self.least, found.cost)
            self.repeats = self._repeats()

    def _add(self, wanted: list[int]) -> bool:
        """Add some of the *wanted* moments, else those that split the longest stretch; whether there were any."""
        room = _ENTRIES // max(1, len(self.case.problem.size)) - len(self.moments)
        count = min(room, max(2, len(self.moments) // 2))
        new = [op for op in dict.fromkeys(wanted) if op not in self.moments] or self._between()
        self.moments |= {*new[:count]} if count > 0 else set()
        return count > 0 and bool(new)

    def _between(self) -> list[int]:
        """Return the ops in the middle of stretches without a moment, the longest first."""
        bounds = [NOTHING, *sorted(self.moments), self.case.problem.ops]
        gaps = sorted(pairwise(bounds), key=lambda gap: gap[0] - gap[1])
        return [(low + high) // 2 for low, high in gaps if high - low > 1]
