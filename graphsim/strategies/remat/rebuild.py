"""Ruin and recreate: take some recomputes away whose gaps share a moment, then drop values anew until all fits.

Source: Schrimpf, Schneider, Stamm-Wilbrandt, Dueck, "Record Breaking Optimization Results Using the Ruin and
Recreate Principle", Journal of Computational Physics 159, 2000; what is dearer is accepted as annealing does.
Two searches run side by side and take stretches of each other's best. Where nothing fits yet, less above the
budget is better. The loops are machine code, see `compiled`; to compile them takes ten seconds once, then they are
kept on disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from graphsim.errors import MissingExtraError
from graphsim.strategies.remat.clock import Clock
from graphsim.strategies.remat.evaluation import Evaluation, evaluate
from graphsim.strategies.remat.improve import prune

WARM, TEPID = 0.5, 0.25
"""First temperature of a search from a new start, and of one that goes on; in costs of an average op."""
_COLD = 0.01
"""The last temperature."""
_RUINED = 3.0
"""Recomputes that are taken away at once, on average."""
_CHUNK = 20
"""Steps between looks at the clock."""
_TELL = 0.25
"""Seconds between reports."""

Watch = Callable[[float], None]


def is_available() -> bool:
    """Return whether numba is installed."""
    from importlib.util import find_spec

    return find_spec("numba") is not None


def rebuild(
    pair: tuple[Evaluation, Evaluation],
    budget: int,
    *,
    steps: int,
    clock: Clock,
    seed: int,
    warm: tuple[float, float],
    watch: Watch | None = None,
) -> tuple[Evaluation, Evaluation]:
    """Return what *steps* steps from each of *pair* find: the cheapest that fit, or the nearest to fitting.

    They end early when *clock* is over, or at Ctrl-C, which stops the clock; otherwise the same *seed* finds the same.

    Args:
        warm: first temperature of each, in costs of an average op.
        watch: told of the least cost within the budget.

    Raises:
        MissingExtraError: numba is not installed.
    """
    if not is_available():
        raise MissingExtraError("numba", "solver")
    begin = time.perf_counter()
    searches = [_Search(*pair, budget, (seed, 0)), _Search(*pair[::-1], budget, (seed, 1))]
    with ThreadPoolExecutor(len(searches)) as pool:
        tasks = [pool.submit(one.run, steps, heat, clock, begin) for one, heat in zip(searches, warm, strict=True)]
        waiting = True
        while waiting:
            try:
                waiting = bool(wait(tasks, timeout=_TELL).not_done)
            except KeyboardInterrupt:
                clock.stopped = True
            if watch is not None:
                watch(min(one.reached for one in searches))
    for task in tasks:
        task.result()
    first, second = (one.found() for one in searches)
    return first, second


class _Search:
    """One search: where it is, and the best so far."""

    def __init__(self, state: Evaluation, other: Evaluation, budget: int, seed: tuple[int, int]) -> None:
        self.problem, self.budget, self.other = state.problem, budget, other.nodes
        length = len(state.nodes)
        self.nodes = np.zeros(3 * self.problem.ops + length + 64, dtype=np.int64)
        self.nodes[:length] = state.nodes
        self.best = self.nodes.copy()
        self.numbers = np.array([length, float(state.excess(budget).sum()), state.cost] * 2)
        self.draw = np.random.default_rng(seed)

    @property
    def reached(self) -> float:
        """The least cost within the budget so far."""
        return float(self.numbers[5]) if self.numbers[4] == 0 else float("inf")

    def run(self, steps: int, warm: float, clock: Clock, begin: float) -> None:
        """Search; it cools with the steps, or with the time that has passed since *begin* if that goes faster."""
        from graphsim.strategies.remat.compiled import arrays_of, scratch, search

        arrays = arrays_of(self.problem)
        r, d, f = scratch(self.problem, len(self.nodes))
        average = float(self.problem.cost[: self.problem.ops].mean())
        done, stamp = 0, 1
        while done < steps and not clock.is_over():
            heat = average * warm * (_COLD / warm) ** max(done / steps, clock.passed(begin))
            stamp = search(
                arrays, r, d, f, self.nodes, self.best, self.other, self.budget, self.numbers, _CHUNK, heat, _RUINED,
                stamp, self.draw,
            )  # fmt: skip
            done += _CHUNK

    def found(self) -> Evaluation:
        """Return the best sequence, without what it can do without."""
        state = evaluate(self.problem, self.best[: int(self.numbers[3])])
        return prune(state, self.budget) if state.peak <= self.budget else state
