"""Two searches side by side, in machine code (extra `solver`): they share the time and stop together.

The code is compiled when it is first used, which takes about fifteen seconds, and kept on disk.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from subprocess import DEVNULL, Popen, TimeoutExpired
from typing import ClassVar

import numpy as np

from graphsim.errors import MissingExtraError
from graphsim.recompute.clock import Clock
from graphsim.recompute.evaluation import Evaluation, evaluate
from graphsim.recompute.machine_code import is_available, is_kept, is_on_disk
from graphsim.recompute.moves.improve import prune

Watch = Callable[[float], None]
_COMPILE = "from graphsim.recompute.moves.rebuild import warm_up; warm_up()"
_TELL = 0.25
"""Seconds between reports."""


def is_compiled() -> bool:
    """Return whether the searches have been compiled before, and are on disk."""
    from graphsim.recompute.moves.incremental import anneal
    from graphsim.recompute.moves.ruin import search

    return is_on_disk(anneal, search)


@contextmanager
def compiling_beside(clock: Clock) -> Iterator[None]:
    """Compile the search of `rebuild` in a process of its own, while this one does that of `anneal`.

    Compiling holds the interpreter lock. Where it cannot be done so, it is done when the search is first used.
    """
    from graphsim.recompute.moves.ruin import search

    if is_compiled() or not is_kept(search) or not sys.executable:
        yield
        return
    with Popen([sys.executable, "-P", "-c", _COMPILE], stdout=DEVNULL, stderr=DEVNULL) as process:
        try:
            yield
            with suppress(TimeoutExpired):
                process.wait(0 if clock.is_over() else clock.until - time.perf_counter())
        finally:
            process.kill()


class Search(ABC):
    """A search from one sequence, and the best that it has found.

    Attributes:
        warm, cold: its first and last temperature, in costs of an average op.
        chunk: steps between looks at the clock.
    """

    cold: ClassVar[float]
    chunk: ClassVar[int]

    def __init__(self, state: Evaluation, budget: int, seed: tuple[int, ...], warm: float) -> None:
        if not is_available():
            raise MissingExtraError("numba", "solver")
        self.problem, self.budget, self.warm = state.problem, budget, warm
        self.best = np.zeros(3 * self.problem.ops + len(state.nodes) + 64, dtype=np.int64)
        self.best[: len(state.nodes)] = state.nodes
        self.record = np.array([len(state.nodes), float(state.excess(budget).sum()), state.cost])
        self.draw = np.random.default_rng(seed)

    @abstractmethod
    def advance(self, temperature: float) -> None:
        """Take a chunk of steps; `best` and `record` (its length, bytes above the budget, cost) follow."""

    def run(self, steps: int, clock: Clock) -> None:
        """Search; it cools with the steps, or with the time that passes if that goes faster."""
        average = float(self.problem.cost[: self.problem.ops].mean()) or 1.0
        begin = time.perf_counter()
        for done in range(0, steps, self.chunk):
            if clock.is_over():
                return
            share = clock.progress(done / steps, begin)
            self.advance(average * self.warm * (self.cold / self.warm) ** share)

    def reached(self) -> float:
        """Return the least cost within the budget so far; infinity if nothing has fit."""
        return float(self.record[2]) if self.record[1] == 0 else float("inf")

    def found(self) -> Evaluation:
        """Return the best sequence, without what it can do without if it fits."""
        state = evaluate(self.problem, self.best[: int(self.record[0])])
        return prune(state, self.budget) if state.peak <= self.budget else state


def side_by_side(
    searches: Sequence[Search], *, steps: int, clock: Clock, watch: Watch | None = None
) -> list[Evaluation]:
    """Return what each search finds in *steps* steps: the cheapest that fits, or the nearest to fitting.

    They end early when *clock* is over, or at Ctrl-C, which stops the clock; otherwise the same seeds find the same.

    Args:
        watch: told of the least cost within the budget.
    """
    with ThreadPoolExecutor(len(searches)) as pool:
        tasks = [pool.submit(search.run, steps, clock) for search in searches]
        waiting = True
        while waiting:
            try:
                waiting = bool(wait(tasks, timeout=_TELL).not_done)
            except KeyboardInterrupt:
                clock.stopped = True
            if watch is not None:
                watch(min(search.reached() for search in searches))
    for task in tasks:
        task.result()
    return [search.found() for search in searches]
