"""Which values to save: plans from dear and small to cheap and large, found by scoring the true backward peak."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from graphsim.torch_compile.backward import BackwardPass, NumberedGraph, backward_pass

MOVES = 500
"""Changes tried on each rung."""

PATIENCE = 30
"""A change may be worse than the plan that it changes, but not than that of so many changes ago."""


@dataclass(frozen=True, slots=True)
class Item:
    """A forward node that is either saved or recomputed.

    Attributes:
        node: its number in the joint graph.
        kept: the nodes that are saved on its behalf: itself, or what the partitioner prefers to save behind it.
        share: its bytes as a share of what the partitioner saves by default.
        time: of one more run.
        kind: equal for nodes of one op, time and share, such as those of the layers of a model.
        movable: large enough to matter.
    """

    node: int
    kept: tuple[int, ...]
    share: float
    time: float
    kind: tuple[str, float, float]
    movable: bool = True


@dataclass(frozen=True, slots=True)
class Choice:
    """Items to save, with the time of recomputing the others and the true peak in bytes."""

    items: frozenset[int]
    cost: float
    peak: int

    @property
    def rank(self) -> tuple[int, float]:
        """Return what a search makes small."""
        return (self.peak, self.cost)


def _rank(choice: Choice) -> tuple[int, float]:
    return choice.rank


@dataclass(frozen=True)
class LadderSearch:
    """One joint graph and the items to decide on.

    Two scores: `exact` asks the partitioner which values it then saves (tens of milliseconds); `guess` supposes that
    they are those kept for the items (a fifth of a millisecond). The second one leads, the first one decides.

    Attributes:
        always: nodes that are saved whatever is decided.
        saved_by: from the items to save to the nodes that the partitioner then saves.
        known: every choice scored by `exact`.
    """

    joint: NumberedGraph
    items: tuple[Item, ...]
    always: frozenset[int]
    saved_by: Callable[[frozenset[int]], frozenset[int]]
    known: dict[frozenset[int], Choice] = field(default_factory=dict)
    _guessed: dict[frozenset[int], tuple[Choice, BackwardPass]] = field(default_factory=dict)

    def exact(self, items: frozenset[int]) -> Choice:
        """Return *items*, scored by the backward graph that the partitioner emits."""
        if items not in self.known:
            self.known[items] = self._choice(items, backward_pass(self.joint, self.saved_by(items)))
        return self.known[items]

    def guess(self, items: frozenset[int]) -> tuple[Choice, BackwardPass]:
        """Return *items*, scored as if exactly the values kept for them were saved."""
        if items not in self._guessed:
            kept = self.always.union(*(self.items[number].kept for number in items))
            run = backward_pass(self.joint, kept)
            self._guessed[items] = self._choice(items, run), run
        return self._guessed[items]

    def _choice(self, items: frozenset[int], run: BackwardPass) -> Choice:
        cost = sum(item.time for item in self.items if item.node in run.recomputed)
        return Choice(items, cost, run.peak)

    def ladder(self, plans: Sequence[frozenset[int]]) -> list[Choice]:
        """Return for each of *plans*, cheapest first, a choice that costs no more and peaks no higher.

        Each takes the lowest peak among all choices known in the end that its cost allows. So from one to the next
        the cost does not fall and the peak does not rise.
        """
        caps: list[float] = []
        for plan in plans:
            caps.append(max([self.exact(plan).cost, *caps[-1:]]))
        self.exact(frozenset(range(len(self.items))))
        for cap in dict.fromkeys(caps):
            self._rung(cap)
        return [self._best(cap) for cap in caps]

    def _best(self, cap: float) -> Choice:
        return min((choice for choice in self.known.values() if choice.cost <= cap), key=_rank)

    def _rung(self, cap: float) -> None:
        """Search at one cost: from the best known choice, or from one spread evenly."""
        known, _ = self.guess(self._best(cap).items)
        even, _ = self.guess(self._even(cap))
        within = [choice for choice in (known, even) if choice.cost <= cap]
        found = self._climb(min(within, key=_rank), cap) if within else known
        for choice in (even, found):  # a guess can be too high
            self.exact(choice.items)

    def _even(self, cap: float) -> frozenset[int]:
        """Return a knapsack by time per byte in which what is saved of a kind lies evenly along the graph."""
        recomputed: set[int] = set()
        left = cap
        for kind in self._kinds:
            count = min(len(kind), int(left / self.items[kind[0]].time))
            kept = len(kind) - count
            recomputed |= set(kind) - {kind[(2 * place + 1) * len(kind) // (2 * kept)] for place in range(kept)}
            left -= count * self.items[kind[0]].time
        return frozenset(range(len(self.items))) - recomputed

    def _climb(self, start: Choice, cap: float) -> Choice:
        """Improve *start* by late acceptance hill climbing (Burke and Bykov, EJOR 2017)."""
        rng = random.Random(0)
        best = now = start
        history = [start.rank] * PATIENCE
        for step in range(MOVES):
            other, _ = self.guess(self._moved(now, cap, rng))
            if other.cost <= cap and (other.rank <= now.rank or other.rank <= history[step % PATIENCE]):
                now = other
                best = min(best, now, key=_rank)
            history[step % PATIENCE] = now.rank
        return best

    def _moved(self, at: Choice, cap: float, rng: random.Random) -> frozenset[int]:
        """Return a neighbour: saved values of the peak dropped, recomputed ones there kept, or one moved along."""
        _, run = self.guess(at.items)
        roll = rng.random()
        if roll < 0.3 and at.items & self._movable:
            return self._shifted(at.items, rng)
        over = _found(run.live_saved, self._kept_by) & at.items & self._movable
        span = (_found(run.live_recomputed, self._made_by) - at.items) & self._movable
        drop = _pick(over, rng) if roll < 0.85 else frozenset()
        add = _pick(span, rng) if not drop or rng.random() < 0.6 else frozenset()
        if not add and at.cost + sum(self.items[number].time for number in drop) > cap:
            add = _pick(self._movable - at.items, rng)
        return (at.items - drop) | add

    def _shifted(self, items: frozenset[int], rng: random.Random) -> frozenset[int]:
        (old,) = _pick(items & self._movable, rng)
        kind = self._kind_of[old]
        place = kind.index(old) + rng.choice((-1, 1))
        return (items - {old}) | {kind[min(max(place, 0), len(kind) - 1)]}

    @cached_property
    def _movable(self) -> frozenset[int]:
        return frozenset(number for number, item in enumerate(self.items) if item.movable)

    @cached_property
    def _kinds(self) -> list[list[int]]:
        """Return the movable items by kind, each along the graph, those that pay most to recompute first."""
        kinds: dict[tuple[str, float, float], list[int]] = {}
        for number in sorted(self._movable, key=lambda number: self.items[number].node):
            kinds.setdefault(self.items[number].kind, []).append(number)
        return sorted(kinds.values(), key=lambda kind: self.items[kind[0]].time / self.items[kind[0]].share)

    @cached_property
    def _kind_of(self) -> dict[int, list[int]]:
        return {number: kind for kind in self._kinds for number in kind}

    @cached_property
    def _kept_by(self) -> dict[int, int]:
        """Return by storage the item for which it is saved."""
        tensors = self.joint.storages
        return {s: number for number, item in enumerate(self.items) for node in item.kept for s in tensors[node]}

    @cached_property
    def _made_by(self) -> dict[int, int]:
        """Return by storage the item that makes it."""
        return {s: number for number, item in enumerate(self.items) for s in self.joint.storages[item.node]}


def _found(storages: frozenset[int], items: dict[int, int]) -> frozenset[int]:
    return frozenset(items[s] for s in storages if s in items)


def _pick(items: frozenset[int], rng: random.Random) -> frozenset[int]:
    """Return one of *items*, or none."""
    return frozenset({rng.choice(sorted(items))}) if items else frozenset()
