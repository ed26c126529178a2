"""Simulated annealing by the moves of `improve`, each of which re-evaluates only what it changes.

The loops are in `incremental`.
"""

from __future__ import annotations

import numpy as np

from graphsim.recompute.evaluation import Evaluation, evaluate
from graphsim.recompute.moves.pair import Search

_WARM = 1.0
"""The first temperature, in costs of an average op."""


class Annealing(Search):
    """Annealing from *state*; what is above the budget has a price that keeps it near the border."""

    cold, chunk = 0.005, 1000

    def __init__(self, state: Evaluation, budget: int, seed: tuple[int, ...]) -> None:
        from graphsim.recompute.moves.columns import columns_of
        from graphsim.recompute.moves.sequence import all_readers, sequence_of

        super().__init__(state, budget, seed, _WARM)
        ops = np.arange(self.problem.ops)
        stored = int(evaluate(self.problem, ops).excess(budget).sum())
        self._price = 0.1 * float(self.problem.cost[ops].sum()) / max(1, stored)
        self._arrays = columns_of(self.problem), all_readers(self.problem), sequence_of(state)

    def advance(self, temperature: float) -> None:
        """Take a chunk of steps."""
        from graphsim.recompute.moves.incremental import anneal

        self._price = anneal(
            *self._arrays, self.best, self.budget, self.record, self.chunk, temperature, self._price, self.draw
        )
