"""DTR's simulator in slow motion: objects, no caches, every score from scratch. It shares no code with the fast one.

For graphs without mutations. It follows Kirisame et al., ICLR 2021: eager eviction, storages with views,
equivalence classes that merge but never split, ties to the storage that joined the pool last.
"""

from __future__ import annotations

import math

from graphsim.core.graph import HOLD, Graph, Op


class OutOfMemory(Exception):  # noqa: N818
    pass


class Thrashing(Exception):  # noqa: N818
    pass


class Storage:
    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.ops: list[Op] = []
        self.tensors: list[str] = []
        self.live = False
        self.created = False
        self.locks = 0
        self.last = -math.inf
        self.group: list | None = None

    @property
    def cost(self) -> float:
        return sum(op.time for op in self.ops)


class Twin:
    def __init__(self, graph: Graph, budget: int, heuristic: str) -> None:
        self.graph, self.budget, self.heuristic = graph, budget, heuristic
        self.clock, self.usage, self.order = 1.0, 0, []
        self.pool: list[Storage] = []
        self.made_by = {name: op for op in graph.ops for name in op.outputs}
        self.storages = {t.name: Storage(t.name, t.nbytes) for t in graph.tensors.values() if not t.storage}
        self.given = {name for name in self.storages if name not in self.made_by}
        self.defined = set(self.given)  # parameters: there from beginning to end
        for name in self.given:
            self.storages[name].live = True
            self.usage += self.storages[name].size

    def of(self, tensor: str) -> Storage:
        return self.storages[self.graph.tensors[tensor].base]

    def run(self) -> list[str]:
        last = {}
        for position, op in enumerate(self.graph.ops):
            for name in (*op.inputs, *op.outputs):
                last[self.of(name)] = position
        for name in (*self.graph.outputs, *self.given):
            last[self.of(name)] = math.inf
        for position, op in enumerate(self.graph.ops):
            if op.kind != HOLD:
                self.first(op)
            for storage in dict.fromkeys(self.of(n) for n in (*op.inputs, *op.outputs)):
                if last[storage] == position and storage.live:
                    self.evict(storage)
        for name in dict.fromkeys(self.graph.outputs):
            if name not in self.defined:
                self.execute(self.made_by[name], name)
            self.lock(self.of(name))  # what is kept must all be there in the end
        return self.order

    def first(self, op: Op) -> None:
        self.execute(op, op.outputs[0])
        for name in op.outputs:
            storage = self.of(name)
            storage.created = True
            storage.tensors.append(name)
            if op not in storage.ops:
                storage.ops.append(op)
        for name in op.outputs:
            self.of(name).last = self.clock

    def execute(self, op: Op, wanted: str) -> None:
        for name in op.inputs:
            self.of(name).last = self.clock
        missing = [name for name in op.inputs if name not in self.defined]
        for name in op.inputs:
            self.lock_if_there(name, missing)
        for name in missing:
            if name not in self.defined:
                self.execute(self.made_by[name], name)
            self.lock(self.of(name))
        self.free(op)
        self.clock += op.time
        self.order.append(op.name)
        if len(self.order) > 5 * len(self.graph.ops):
            raise Thrashing
        self.defined.update(op.outputs)
        # What was asked for joins the pool after what is made by the way.
        order = [n for n in op.outputs if n != wanted] + [wanted]
        fresh = [s for s in dict.fromkeys(map(self.of, order)) if not s.live]
        for storage in fresh:
            self.restore(storage)
        self.pool += fresh
        for name in op.inputs:
            storage = self.of(name)
            storage.locks -= 1
            if not storage.locks and storage.name not in self.given:
                self.pool.append(storage)

    def free(self, op: Op) -> None:
        need = sum(self.storages[n].size for n in op.outputs if n in self.storages) + op.workspace
        while self.usage + need > self.budget:
            if not self.pool:
                raise OutOfMemory
            self.evict(self.choose())

    def lock_if_there(self, name: str, missing: list[str]) -> None:
        if name not in missing:
            self.lock(self.of(name))

    def restore(self, storage: Storage) -> None:
        storage.live = True
        self.usage += storage.size
        if storage.group is not None:
            storage.group[0] -= storage.cost
            storage.group = None

    def lock(self, storage: Storage) -> None:
        storage.locks += 1
        if storage in self.pool:
            self.pool.remove(storage)

    def evict(self, storage: Storage) -> None:
        storage.live = False
        self.usage -= storage.size
        self.pool.remove(storage)
        self.defined -= set(storage.tensors)
        storage.group = [storage.cost]
        for other in self.evicted_around(storage):
            if other.group is not storage.group:
                total = [other.group[0] + storage.group[0]]
                groups = (other.group, storage.group)
                for member in self.storages.values():
                    if any(member.group is group for group in groups):
                        member.group = total

    def choose(self) -> Storage:
        best, lowest = None, math.inf
        for storage in self.pool:
            score = self.score(storage)
            if score <= lowest:
                best, lowest = storage, score
            if score == 0:
                break
        assert best is not None
        return best

    def before(self, storage: Storage) -> list[Storage]:
        return [s for op in storage.ops for n in op.inputs if (s := self.of(n)) is not storage]

    def after(self, storage: Storage) -> list[Storage]:
        return [s for s in self.storages.values() if s.created and storage in self.before(s)]

    def evicted_around(self, storage: Storage) -> set[Storage]:
        return {s for s in (*self.before(storage), *self.after(storage)) if s.created and not s.live}

    def reach(self, storage: Storage, step) -> float:
        seen, stack = {storage}, [storage]
        while stack:
            for other in step(stack.pop()):
                if other.created and not other.live and other not in seen:
                    seen.add(other)
                    stack.append(other)
        return sum(s.cost for s in seen if s is not storage)

    def score(self, storage: Storage) -> float:
        stale = self.clock - storage.last
        if self.heuristic == "lru":
            return storage.last
        cost, weight = storage.cost, storage.size * stale
        if self.heuristic == "size":
            cost, weight = 1.0, storage.size
        elif self.heuristic == "eqclass":
            groups = {id(s.group): s.group for s in self.evicted_around(storage)}
            cost += sum(group[0] for group in groups.values())
        elif self.heuristic == "dtr":
            cost += self.reach(storage, self.before) + self.reach(storage, self.after)
        elif self.heuristic == "msps":
            cost, weight = cost + self.reach(storage, self.before), storage.size
        return cost / weight if weight > 0 else math.inf
