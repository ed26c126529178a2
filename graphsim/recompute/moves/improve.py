"""Simulated annealing over sequences: add a drop, remove or shift a recompute; what is above the budget has a price.

The price of a byte above the budget for one execution rises while sequences do not fit and falls while
they do, so that the search stays near the border.
"""

from __future__ import annotations

import time

import numpy as np

from graphsim.core.index import NOTHING, Ints
from graphsim.recompute.clock import Clock
from graphsim.recompute.evaluation import Evaluation, evaluate
from graphsim.recompute.moves.repair import apply, idle_at, plan_drop
from graphsim.recompute.problem import Problem

_KEEP = (0.0, 0.3, 1.0, 2.0)
_WARM, _COLD = 1.0, 0.005
"""First and last temperature, in costs of an average op."""
_RATE = 1.0005
"""By how much the price of excess changes with every step."""


def without(state: Evaluation, positions: Ints | int) -> Evaluation:
    """Return the sequence without the executions at *positions*."""
    return evaluate(state.problem, np.delete(state.nodes, positions))


def alone(state: Evaluation, position: int) -> Ints:
    """Return *position* and the positions of those recomputes that serve nothing but the one there."""
    ops = state.problem.ops
    readers = np.bincount(state.read_row, minlength=len(state.value))
    gone, stack = [position], [position]
    while stack:
        first, end = np.searchsorted(state.read_at, [stack[-1], stack.pop() + 1])
        for row in state.read_row[first:end].tolist():
            readers[row] -= 1
            born = int(state.born[row])
            if readers[row] or born < 0 or state.nodes[born] < ops or state.last[row] >= len(state.nodes):
                continue
            if not readers[state.born == born].any():
                gone.append(born)
                stack.append(born)
    return np.array(gone, dtype=np.int64)


def prune(state: Evaluation, budget: int) -> Evaluation:
    """Return *state*, which fits, without the recomputes that it can do without, dearest first."""
    problem = state.problem
    positions = np.flatnonzero(state.nodes >= problem.ops)
    removed: list[int] = []
    for position in positions[np.argsort(-problem.cost[state.nodes[positions]], kind="stable")].tolist():
        shorter = without(state, np.array([*removed, position]))
        if shorter.peak <= budget:
            removed.append(position)
    return without(state, np.array(removed, dtype=np.int64)) if removed else state


def improve(state: Evaluation, budget: int, *, steps: int, clock: Clock, seed: int, bound: float) -> Evaluation:
    """Return the cheapest sequence within *budget* that *steps* steps find; if nothing fits, the lowest peak seen.

    It ends early at a cost of *bound*, or when *clock* is over; otherwise the same *seed* finds the same.
    """
    return _Annealing(state, budget, seed).run(steps, clock, bound)


class _Annealing:
    """The search: where it is, the best so far, the price of excess."""

    def __init__(self, state: Evaluation, budget: int, seed: int) -> None:
        self.problem, self.budget = state.problem, budget
        self.generator = np.random.default_rng(seed)
        self._neighbours = Neighbours(state.problem, budget, self.generator)
        self.base = float(self.problem.cost[: self.problem.ops].sum()) or 1.0
        self.current, self.above = state, state.excess(budget)
        self.best = prune(state, budget) if state.peak <= budget else state
        stored = evaluate(self.problem, np.arange(self.problem.ops)).excess(budget)
        self.price = 0.1 * self.base / max(1, int(stored.sum()))

    def run(self, steps: int, clock: Clock, bound: float) -> Evaluation:
        """Anneal; it cools with the steps, or with the time that has passed if that goes faster."""
        begin, done = time.perf_counter(), 0
        while done < steps and not clock.is_over():
            if self.best.peak <= self.budget and self.best.cost <= bound * (1 + 1e-12):
                break
            progress = clock.progress(done / steps, begin)
            self._step(self.base / max(1, self.problem.ops) * _WARM * (_COLD / _WARM) ** progress)
            if self._is_better(self.current):
                fits = self.current.peak <= self.budget
                self.best = prune(self.current, self.budget) if fits else self.current
                if fits:
                    self._move(self.best)
            done += 1
        return self.best

    def _is_better(self, state: Evaluation) -> bool:
        if state.peak <= self.budget:
            return self.best.peak > self.budget or state.cost < self.best.cost * (1 - 1e-12)
        return self.best.peak > self.budget and state.peak < self.best.peak

    def _step(self, temperature: float) -> None:
        """Propose a neighbour; take it if it is better, or by chance."""
        proposal = self._neighbours.of(self.current, self.above)
        if proposal is None:
            return
        above = proposal.excess(self.budget)
        worse = proposal.cost - self.current.cost + self.price * float(above.sum() - self.above.sum())
        if worse <= 0 or self.generator.random() < np.exp(-worse / temperature):
            self.current, self.above = proposal, above
        self.price *= _RATE if self.above.any() else 1 / _RATE

    def _move(self, state: Evaluation) -> None:
        self.current, self.above = state, state.excess(self.budget)


class Neighbours:
    """Draws sequences that differ a little from another."""

    def __init__(self, problem: Problem, budget: int, generator: np.random.Generator) -> None:
        self.problem, self.budget, self.generator = problem, budget, generator

    def of(self, state: Evaluation, above: Ints) -> Evaluation | None:
        """Return *state* without a recompute, with a drop, or with one in exchange for the other; None: no luck.

        *above* are the bytes above the budget, see `Evaluation.excess`.
        """
        generator = self.generator
        positions = np.flatnonzero(state.nodes >= self.problem.ops)
        too_much = bool(above.any())
        kind = generator.random()
        if len(positions) and (kind < 0.3 or (kind < 0.7 and not too_much)):
            first = int(generator.integers(len(positions)))
            if generator.random() < 0.5:
                return without(state, alone(state, int(positions[first])))
            count = 1 + int(generator.geometric(0.6)) // 2
            return without(state, positions[first : first + count])
        if kind > 0.92:
            return self._inserted(state)
        if len(positions) and kind > 0.8:
            return self._shifted(state, int(generator.choice(positions)))
        if len(positions) and kind < 0.5:
            position = int(generator.choice(positions))
            state = without(state, alone(state, position) if generator.random() < 0.5 else position)
        return self.dropped(state)

    def _inserted(self, state: Evaluation) -> Evaluation | None:
        """Return the sequence with a unit right before a read of what it makes; what it reads stays for it."""
        if not len(state.read_at):
            return None
        read = int(self.generator.integers(len(state.read_at)))
        unit, place = self.problem.unit_of[int(state.value[state.read_row[read]])], int(state.read_at[read])
        if unit == NOTHING or not self.problem.may_run(unit, int(state.next_op[place])):
            return None
        return evaluate(self.problem, np.insert(state.nodes, place, self.problem.ops + unit))

    def _shifted(self, state: Evaluation, position: int) -> Evaluation | None:
        """Return the sequence with one recompute elsewhere, mostly near by."""
        shorter = np.delete(state.nodes, position)
        node = int(state.nodes[position])
        near = position + round(float(self.generator.laplace(0, 1 + 0.02 * len(shorter))))
        place = min(max(near, 0), len(shorter) - 1)
        following = shorter[place:][shorter[place:] < self.problem.ops]
        if not len(following) or not self.problem.may_run(node - self.problem.ops, int(following[0])):
            return None
        return evaluate(self.problem, np.insert(shorter, place, node))

    def dropped(self, state: Evaluation) -> Evaluation | None:
        """Return *state* with a drop across a moment above the budget; itself if there is none, None: no luck."""
        above = state.excess(self.budget)
        moments = np.flatnonzero(above)
        if not len(moments):
            return state
        moment = int(moments[self.generator.integers(len(moments))])
        rows, last, before = idle_at(state, moment)
        if not len(rows):
            return None
        chosen = min(int(self.generator.exponential(len(rows) / 4)), len(rows) - 1)
        keep = _KEEP[int(self.generator.integers(len(_KEEP)))]
        until = int(before[chosen])
        if until > moment + 1 and self.generator.random() < 0.3:  # earlier than its use, where there may be room
            until = int(self.generator.integers(moment + 1, until))
        drop = plan_drop(state, self.budget, above, int(rows[chosen]), int(last[chosen]), until, keep)
        return None if drop is None else apply(state, drop)
