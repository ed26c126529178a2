"""DTR's heuristics: which storage to evict, the lowest score first.

Source: Kirisame et al., "Dynamic Tensor Rematerialization", ICLR 2021, section 2 and appendix A. The
score of a storage is the cost to compute it again, with that of the evicted ones around it, per byte
and time since its last access; each heuristic leaves some of that out.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Local:
    """h_DTR^local: the cost of the storage's own ops, per byte and staleness."""

    stale = True

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = np.array(sizes, dtype=np.float64)
        # One at a time in an array, all at once through numpy: the same bytes.
        self.last, self.cost = array("d", [-np.inf]) * len(sizes), array("d", [0.0]) * len(sizes)
        self.lasts, self.costs = np.frombuffer(self.last), np.frombuffer(self.cost)
        self.own = [0.0] * len(sizes)
        self.evicted = [False] * len(sizes)
        self.before: list[dict[int, None]] = [{} for _ in sizes]
        self.after: list[dict[int, None]] = [{} for _ in sizes]

    def create(self, storage: int, cost: float, parents: list[int]) -> None:
        """An op of *cost* has made *storage*, or a view of it, from *parents*."""
        self.own[storage] += cost
        self.cost[storage] += cost
        for parent in parents:
            if parent != storage:
                self.before[storage][parent] = None
                self.after[parent][storage] = None

    def evict(self, storage: int) -> None:
        """*storage* is gone."""
        self.evicted[storage] = True

    def restore(self, storage: int) -> None:
        """*storage* is there again."""
        self.evicted[storage] = False

    def refresh(self) -> None:
        """Bring the costs up to date."""

    def scores(self, candidates: npt.NDArray[np.intp], clock: float) -> Floats:
        """Return the score of each candidate."""
        self.refresh()
        weight = self.sizes[candidates]
        if self.stale:
            weight *= clock - self.lasts[candidates]
        return _ratio(self.costs[candidates], weight)


def _ratio(cost: Floats, weight: Floats) -> Floats:
    """Return cost / weight; infinity where there is nothing to gain."""
    ratio = np.full(len(cost), np.inf)
    np.divide(cost, weight, out=ratio, where=weight > 0)
    return ratio


class LeastRecent(Local):
    """h_LRU: the time of the last access."""

    def scores(self, candidates: npt.NDArray[np.intp], clock: float) -> Floats:
        """Return the score of each candidate."""
        return self.lasts[candidates]


class Largest(Local):
    """h_size: the largest first."""

    def scores(self, candidates: npt.NDArray[np.intp], clock: float) -> Floats:
        """Return the score of each candidate."""
        return _ratio(np.ones(len(candidates)), self.sizes[candidates])


class Neighborhood(Local):
    """h_DTR: with the cost of all evicted storages that would have to come back with it, before and after.

    The sums are worked out anew where an eviction or a return has changed what is reached, when they are asked for.
    """

    both = True

    def __init__(self, sizes: list[int]) -> None:
        super().__init__(sizes)
        self._changed: set[int] = set()

    def create(self, storage: int, cost: float, parents: list[int]) -> None:
        """An op of *cost* has made *storage*, or a view of it, from *parents*."""
        super().create(storage, cost, parents)
        self._changed.add(storage)

    def evict(self, storage: int) -> None:
        """*storage* is gone."""
        super().evict(storage)
        self._changed.add(storage)

    def restore(self, storage: int) -> None:
        """*storage* is there again."""
        super().restore(storage)
        self._changed.add(storage)

    def refresh(self) -> None:
        """Bring the costs up to date: of what has changed, and of what reaches it through evicted storages."""
        dirty = {storage for storage in self._changed if not self.evicted[storage]}
        dirty |= self._border(self.after)
        if self.both:
            dirty |= self._border(self.before)
        for storage in dirty:
            cost = self._reached(storage, self.before)
            if self.both:
                cost += self._reached(storage, self.after)
            self.cost[storage] = self.own[storage] + cost
        self._changed.clear()

    def _border(self, edges: list[dict[int, None]]) -> set[int]:
        """Return the live storages next to what has changed and to the evicted ones that it reaches."""
        evicted = self.evicted
        border: set[int] = set()
        seen, stack = set(self._changed), list(self._changed)
        while stack:
            for other in edges[stack.pop()]:
                if not evicted[other]:
                    border.add(other)
                elif other not in seen:
                    seen.add(other)
                    stack.append(other)
        return border

    def _reached(self, storage: int, edges: list[dict[int, None]]) -> float:
        """Return the cost of the evicted storages that *storage* reaches."""
        evicted, own = self.evicted, self.own
        seen: set[int] = set()
        cost, stack = 0.0, [storage]
        while stack:
            for other in edges[stack.pop()]:
                if evicted[other] and other not in seen:
                    seen.add(other)
                    cost += own[other]
                    stack.append(other)
        return cost


class MemoryPerSecond(Neighborhood):
    """h_MSPS: the cost of what must come back before it, per byte (Peng et al., Capuchin, ASPLOS 2020)."""

    both = False
    stale = False


class Classes(Local):
    """h_DTR^eq: evicted neighbours by equivalence classes (union-find) that merge but never split.

    A class knows the live storages around it (its fringe, with how many members each touches). They are told
    of a change of its value when a score is asked for, all in one sweep of an array.
    """

    def __init__(self, sizes: list[int]) -> None:
        super().__init__(sizes)
        self._parent: list[int] = []
        self._value: list[float] = []
        self._told: list[float] = []
        self._fringe: list[dict[int, int]] = []
        self._changed: set[int] = set()
        self._node = [-1] * len(sizes)

    def evict(self, storage: int) -> None:
        """*storage* is gone: its class joins those of its evicted neighbours."""
        super().evict(storage)
        node = len(self._parent)
        fringe: dict[int, int] = {}
        self._parent.append(node)
        self._value.append(self.own[storage])
        self._told.append(0.0)
        self._fringe.append(fringe)
        self._changed.add(node)
        self._node[storage] = node
        roots = set()
        for edges in (self.before[storage], self.after[storage]):
            for other in edges:
                if self.evicted[other]:
                    roots.add(self._find(self._node[other]))
                else:
                    fringe[other] = fringe.get(other, 0) + 1
        for root in roots:
            self._fringe[root].pop(storage, None)
            node = self._join(root, node)

    def restore(self, storage: int) -> None:
        """*storage* is there again: its class keeps the others."""
        super().restore(storage)
        root = self._find(self._node[storage])
        self._node[storage] = -1
        self._value[root] -= self.own[storage]
        self._changed.add(root)
        fringe, roots = self._fringe[root], set()
        for edges in (self.before[storage], self.after[storage]):
            for other in edges:
                if self.evicted[other]:
                    near = self._find(self._node[other])
                    roots.add(near)
                    self._fringe[near][storage] = self._fringe[near].get(storage, 0) + 1
                elif fringe[other] > 1:
                    fringe[other] -= 1
                else:
                    del fringe[other]
                    self.cost[other] -= self._told[root]
        self.cost[storage] = self.own[storage] + sum([self._told[near] for near in roots])

    def refresh(self) -> None:
        """Bring the costs up to date: around the classes whose value has changed."""
        for root in self._changed:
            if self._parent[root] == root:
                fringe = self._fringe[root]
                change = self._value[root] - self._told[root]
                if len(fringe) > 16:
                    self.costs[np.fromiter(fringe, dtype=np.intp, count=len(fringe))] += change
                else:
                    for storage in fringe:
                        self.cost[storage] += change
                self._told[root] = self._value[root]
        self._changed.clear()

    def _join(self, a: int, b: int) -> int:
        """Merge two classes; who touches both pays once."""
        if len(self._fringe[a]) < len(self._fringe[b]):
            a, b = b, a
        large, small = self._fringe[a], self._fringe[b]
        for storage, count in small.items():
            if storage in large:
                self.cost[storage] -= self._told[b]
                large[storage] += count
            else:
                self.cost[storage] += self._told[a] - self._told[b]
                large[storage] = count
        self._parent[b] = a
        self._value[a] += self._value[b]
        self._changed.add(a)
        self._fringe[b] = {}
        return a

    def _find(self, node: int) -> int:
        parent = self._parent
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node


HEURISTICS: dict[str, Callable[[list[int]], Local]] = {
    "dtr": Neighborhood,
    "eqclass": Classes,
    "local": Local,
    "lru": LeastRecent,
    "size": Largest,
    "msps": MemoryPerSecond,
}
"""Heuristics by name."""
