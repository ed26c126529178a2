"""Recompute and offload, chosen jointly: plans of recompute alone for more and more memory, the rest of it offloaded.

What recompute needs least is the last bytes, which cost most: a plan for more memory than there is runs less again,
and the link takes off what is too much. The best of them is annealed: a recompute goes and copies come in its place,
or the other way round, or one copy instead of another.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from graphsim.recompute.clock import Clock
from graphsim.recompute.evaluation import Evaluation
from graphsim.recompute.moves.improve import Neighbours, alone, without
from graphsim.recompute.offload.cover import cover
from graphsim.recompute.offload.traffic import Mixed, Traffic, without_offload

_WARM, _COLD = 1.0, 0.01
"""First and last temperature, in costs of an average op."""
_NOISE = 0.5
"""By how much the worth of gaps is varied."""
_REPAIRS = 4
"""Drops in a row that may take the place of an offload."""


class MixedSearch:
    """The search: where it is, and the best so far. What it holds fits."""

    def __init__(self, traffic: Traffic, budget: int, seed: int) -> None:
        self.traffic, self.budget = traffic, budget
        self._random = np.random.default_rng(seed)
        self._neighbours = Neighbours(traffic.problem, budget, self._random)
        self.base = float(traffic.problem.cost[: traffic.problem.ops].sum())
        self.best: Mixed | None = None

    def offer(self, states: Iterable[Evaluation]) -> None:
        """Take *states*, what is too much of them offloaded, if they are better."""
        for state in states:
            found = cover(without_offload(self.traffic, state, self.budget))
            if found is not None:
                self._keep(found)

    def swap(self, clock: Clock) -> None:
        """Offload what the best so far runs again, where that is faster: dearest by byte first."""
        improved = self.best is not None
        while improved and self.best is not None:
            before = self.best
            for unit in self._by_worth(before):
                if clock.is_over():
                    return
                positions = np.flatnonzero(self.best.state.nodes == unit)
                for position in positions[::-1].tolist():
                    found = self._offloaded(self.best, position)
                    if found is not None and found.fits:
                        self._keep(found)
            improved = self.best is not before

    def _by_worth(self, mixed: Mixed) -> list[int]:
        """Return the units that *mixed* runs again, each once, by what they cost for every byte that they make."""
        problem, units = self.traffic.problem, np.unique(mixed.state.nodes)
        units = units[units >= problem.ops]
        made = np.array([max(1, problem.size[problem.makes[unit]].sum()) for unit in units.tolist()])
        found: list[int] = units[np.argsort(-problem.cost[units] / made, kind="stable")].tolist()
        return found

    def _offloaded(self, mixed: Mixed, position: int) -> Mixed:
        """Return *mixed* with what the recompute at *position* makes offloaded instead."""
        state, problem = mixed.state, self.traffic.problem
        gone = alone(state, position)
        moved = mixed.moved_to(without(state, gone))
        place = position - int((gone < position).sum())
        made = np.isin(moved.state.value[moved.gaps.row], problem.makes[int(state.nodes[position])])
        during = (moved.gaps.free <= place) & (place <= moved.gaps.back)
        return moved.with_chosen(np.union1d(moved.chosen, np.flatnonzero(made & during)))

    def anneal(self, steps: int, clock: Clock) -> None:
        """Anneal from the best so far."""
        if self.best is None:
            return
        current, begin = self.best, time.perf_counter()
        for done in range(steps):
            if clock.is_over() or self.best.time <= self.base * (1 + 1e-9):
                return
            progress = clock.progress(done / steps, begin)
            temperature = self.base / max(1, self.traffic.problem.ops) * _WARM * (_COLD / _WARM) ** progress
            proposal = self._neighbour(current)
            if proposal is None:
                continue
            worse = proposal.time - current.time
            if worse <= 0 or self._random.random() < np.exp(-worse / max(temperature, 1e-300)):
                current = proposal
                self._keep(current)

    def _keep(self, found: Mixed) -> None:
        if self.best is None or found.time < self.best.time * (1 - 1e-12):
            self.best = found

    def _neighbour(self, current: Mixed) -> Mixed | None:
        """Return a neighbour that fits; None: no luck."""
        kind = self._random.random()
        positions = np.flatnonzero(current.state.nodes >= self.traffic.problem.ops)
        if len(positions) and kind > 0.75:
            return cover(self._offloaded(current, int(self._random.choice(positions))), self._random, _NOISE)
        if len(current.chosen) and kind < 0.55:
            count = 1 + int(self._random.geometric(0.6)) // 2
            gone = self._random.choice(len(current.chosen), min(count, len(current.chosen)), replace=False)
            current = current.with_chosen(np.delete(current.chosen, gone))
            if kind < 0.3:
                current = self._repaired(current)
        else:
            state = self._neighbours.of(current.lean, current.lean.excess(self.budget))
            if state is None or state is current.lean:
                return None
            current = current.moved_to(state)
        return cover(current, self._random, _NOISE)

    def _repaired(self, mixed: Mixed) -> Mixed:
        """Return *mixed* with recomputes where it does not fit, as far as they are found."""
        for _ in range(_REPAIRS):
            if mixed.fits:
                break
            state = self._neighbours.dropped(mixed.lean)
            if state is not None:
                mixed = mixed.moved_to(state)
        return mixed
