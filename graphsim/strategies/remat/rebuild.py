"""Ruin and recreate: take some recomputes away whose gaps share a moment, then drop values anew until all fits.

Source: Schrimpf, Schneider, Stamm-Wilbrandt, Dueck, "Record Breaking Optimization Results Using the Ruin and
Recreate Principle", Journal of Computational Physics 159, 2000; what is dearer is accepted as annealing does.
Where nothing fits yet, less above the budget is better. The loops are in `compiled`.
"""

from __future__ import annotations

import numpy as np

from graphsim.graph import Graph, Op, Tensor
from graphsim.strategies.remat.evaluation import Evaluation, evaluate
from graphsim.strategies.remat.pair import Search
from graphsim.strategies.remat.problem import problem_of

HOT, WARM, TEPID = 2.0, 0.5, 0.25
"""First temperatures: of a search that begins anew, and of the second and the first of two that go on."""
_RUINED = 3.0
"""Recomputes that are taken away at once, on average."""


class Rebuilding(Search):
    """Ruin and recreate from *state*; now and then it takes a stretch of *other*."""

    cold, chunk = 0.01, 20

    def __init__(
        self, state: Evaluation, other: Evaluation, budget: int, seed: tuple[int, ...], warm: float = WARM
    ) -> None:
        from graphsim.strategies.remat.compiled import arrays_of, scratch

        super().__init__(state, budget, seed, warm)
        self._current, self._other = self.best.copy(), np.ascontiguousarray(other.nodes)
        self._numbers, self._stamp = self.record.copy(), 1
        self._arrays = (arrays_of(self.problem), *scratch(self.problem, len(self.best)))

    def advance(self, temperature: float) -> None:
        """Take a chunk of steps."""
        from graphsim.strategies.remat.compiled import search

        self._stamp = search(
            *self._arrays,
            self._current,
            self.best,
            self._other,
            self.budget,
            self._numbers,
            self.record,
            self.chunk,
            temperature,
            _RUINED,
            self._stamp,
            self.draw,
        )


def warm_up() -> None:
    """Compile the loops, as the first step does."""
    problem = problem_of(Graph([Op("a", "node", (), ("x",))], [Tensor("x", (1,), "uint8")]))
    state = evaluate(problem, np.arange(1))
    Rebuilding(state, state, 1, (0,)).advance(0.0)
