"""Ruin and recreate: take some recomputes away whose gaps share a moment, then drop values anew until all fits.

Source: Schrimpf, Schneider, Stamm-Wilbrandt, Dueck, "Record Breaking Optimization Results Using the Ruin and
Recreate Principle", Journal of Computational Physics 159, 2000; what is dearer is accepted as annealing does.
Where nothing fits yet, less above the budget is better. The loops are in `ruin`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np

from graphsim.core.graph import Graph, Op, Tensor
from graphsim.recompute.evaluation import Evaluation, evaluate
from graphsim.recompute.moves.pair import Search
from graphsim.recompute.problem import problem_of

_WARM, _CROSSING = 0.25, 0.1
"""First temperatures: of a search by itself, and of one that crosses."""
_CROSSED = 0.75
"""Share of steps that take a stretch from another sequence instead of ruining this one, where there are others."""
_RUINED = 3.0
"""Recomputes that are taken away at once, on average."""


class Rebuilding(Search):
    """Ruin and recreate from *state*; mostly it takes a stretch of one of *others*, by turns, if there are any."""

    cold, chunk = 0.01, 20

    def __init__(
        self, state: Evaluation, budget: int, seed: tuple[int, ...], others: Sequence[Evaluation] = ()
    ) -> None:
        from graphsim.recompute.moves.columns import columns_of, scratch

        super().__init__(state, budget, seed, _CROSSING if others else _WARM)
        self._current, self._crossed = self.best.copy(), _CROSSED if others else 0.0
        self._others = cycle([np.ascontiguousarray(other.nodes) for other in others or [state]])
        self._numbers, self._stamp = self.record.copy(), 1
        self._arrays = (columns_of(self.problem), *scratch(self.problem, len(self.best)))

    def advance(self, temperature: float) -> None:
        """Take a chunk of steps."""
        from graphsim.recompute.moves.ruin import search

        self._stamp = search(
            *self._arrays,
            self._current,
            self.best,
            next(self._others),
            self.budget,
            self._numbers,
            self.record,
            self.chunk,
            temperature,
            _RUINED,
            self._crossed,
            self._stamp,
            self.draw,
        )


def warm_up() -> None:
    """Compile the loops, as the first step does."""
    problem = problem_of(Graph([Op("a", "node", (), ("x",))], [Tensor("x", (1,), "uint8")]))
    state = evaluate(problem, np.arange(1))
    Rebuilding(state, 1, (0,)).advance(0.0)
