"""What DTR must know of a graph before it runs: what may be evicted, and what must run again together.

An op that overwrites a storage runs again together with all ops that gave the storage its bytes, and
with those that read it in between: they are a *unit*. What cannot be made again as long as it is
needed is never evicted: what a source that is overwritten, or the optimizer, has a part in.
"""

from __future__ import annotations

from bisect import bisect_right

from graphsim.graph import Graph, Phase
from graphsim.index import NOTHING
from graphsim.strategies.spans import Dataflow


class Program:
    """A graph as plain lists, by op, tensor or storage (the number of the tensor that owns it).

    Attributes:
        needs: for each op, the bytes that must be free before it runs.
        parents: for each op, the storages that it reads, each once, by their last place among its inputs.
        fresh: for each op, the storages that it makes, the first one last.
        blocked: for each op, the storages whose next use is a hold: to evict them would free nothing.
        unit: for each op, the ops that run when it runs again.
        evictable: storages that can be made again for as long as something reads them.
        made, makers: for each op, the evictable storages that it makes or makes views of, and those that it reads.
        complete: the op after which a storage has its final bytes.
        released: for each op, the storages that nothing uses after it.
    """

    def __init__(self, graph: Graph, *, holds: bool = True) -> None:
        flow, index = Dataflow(graph), graph.index
        self.graph, self._holds = graph, holds
        self.inputs, self.outputs, self.storage = flow.inputs, flow.outputs, flow.storage
        self.producer, self.hold = flow.producer, flow.hold
        self.size: list[int] = index.nbytes.tolist()
        self.workspace: list[int] = index.workspace.tolist()
        self.kept: list[int] = index.kept.tolist()
        self.sources = [t for t, source in enumerate(index.source.tolist()) if source]
        self.tensors: list[list[int]] = [[] for _ in self.storage]
        for tensor, base in enumerate(self.storage):
            self.tensors[base].append(tensor)
        self.allocates = [sum(self.size[t] for t in row if self.storage[t] == t) for row in self.outputs]
        self.needs = [a + w for a, w in zip(self.allocates, self.workspace, strict=True)]
        self.parents = [list(dict.fromkeys(self.storage[t] for t in reversed(reads)))[::-1] for reads in self.inputs]
        self.fresh = [[t for t in (*makes[1:], *makes[:1]) if self.storage[t] == t] for makes in self.outputs]
        self.touched = [
            list({self.storage[t] for t in (*reads, *makes)})
            for reads, makes in zip(self.inputs, self.outputs, strict=True)
        ]
        self._find_uses(index.resident.tolist())
        self.constant = [p != NOTHING and graph.ops[p].kind == "constant" for p in self.producer]
        fixed = [op.phase is Phase.OPTIMIZER or op.kind == "constant" for op in graph.ops]
        self.blocked = [[s for s in touched if self._next_hold(s, op)] for op, touched in enumerate(self.touched)]
        self._find_units(flow, fixed)
        self._find_evictable(flow, fixed)

    def _find_uses(self, resident: list[bool]) -> None:
        end = len(self.inputs)
        self._uses: list[list[int]] = [[] for _ in self.storage]
        for position, storages in enumerate(self.touched):
            for storage in storages:
                self._uses[storage].append(position)
        self.last_use = [uses[-1] if uses else NOTHING for uses in self._uses]
        for tensor in self.kept:
            self.last_use[self.storage[tensor]] = end
        for storage in self.sources:
            if resident[storage]:
                self.last_use[storage] = end
        self.released: list[list[int]] = [[] for _ in range(end)]
        for storage, last in enumerate(self.last_use):
            if 0 <= last < end:
                self.released[last].append(storage)

    def _next_hold(self, storage: int, position: int) -> bool:
        """Whether the next use of *storage* after op *position* is a hold."""
        if not self._holds:
            return False
        uses = self._uses[storage]
        following = bisect_right(uses, position)
        return following < len(uses) and self.hold[uses[following]]

    def _find_units(self, flow: Dataflow, fixed: list[bool]) -> None:
        """Join what must run again together; mark in *fixed* what must not run again at all."""
        sets = _DisjointSets(len(self.inputs))
        for base, mutators in flow.mutators.items():
            maker = flow.producer[base]
            if maker == NOTHING:
                for op in mutators:
                    fixed[op] = True
                continue
            between = [p for p in self._uses[base] if p < mutators[-1] and not self.hold[p]]
            for op in (*mutators, *between):
                sets.join(op, maker)
        self.unit = sets.members()
        for op, ops in enumerate(self.unit):
            if op == ops[0] and (any(fixed[o] for o in ops) or not self._is_convex(ops)):
                for member in ops:
                    fixed[member] = True

    def _is_convex(self, ops: list[int]) -> bool:
        """Whether no op between those of a unit depends on one of them and is read by another."""
        if len(ops) == 1:
            return True
        inside = set(ops)
        tainted: set[int] = set()
        outside: set[int] = set()
        for position in range(ops[0], ops[-1] + 1):
            reads = {self.storage[t] for t in self.inputs[position]}
            makes = {self.storage[t] for t in self.outputs[position]}
            if position in inside:
                if reads & outside:
                    return False
                tainted |= makes
            elif reads & (tainted | outside):
                outside |= makes - tainted
        return True

    def _find_evictable(self, flow: Dataflow, fixed: list[bool]) -> None:
        """A storage is evictable if all that makes it again stays possible up to its last use."""
        end = len(self.inputs)
        until = [end] * len(self.storage)  # the last op before which each storage can be made again, or read
        self.complete = [NOTHING] * len(self.storage)
        possible = [True] * len(self.storage)
        for storage in {self.storage[t] for t in self.sources}:
            until[storage], possible[storage] = self.last_use[storage], False
        units = []
        for position, ops in enumerate(self.unit):
            made = {self.storage[t] for t in self.outputs[position]}
            for storage in made:
                if self.producer[storage] == position:
                    self.complete[storage] = ops[-1]
                if fixed[position]:
                    possible[storage] = False
                    until[storage] = end if self.constant[storage] else self.last_use[storage]
            if position == ops[0] and not fixed[position]:
                units.append((ops, {self.storage[t] for op in ops for t in self.outputs[op]}))
        while self._lower_limits(flow, units, until):
            pass  # a unit may end after those that read it: most is done in the first round
        self.evictable = [ok and last <= bound for ok, last, bound in zip(possible, self.last_use, until, strict=True)]
        bases = [list(dict.fromkeys(self.storage[t] for t in makes)) for makes in self.outputs]
        self.made = [[s for s in row if self.evictable[s]] for row in bases]
        self.makers = [[s for s in row if self.evictable[s]] for row in self.parents]

    def _lower_limits(self, flow: Dataflow, units: list[tuple[list[int], set[int]]], until: list[int]) -> bool:
        """What a unit makes can be made again for as long as what it reads; return whether that changed anything."""
        changed = False
        for ops, made in units:
            limits = [self._limit(flow, op, t, until) for op in ops for t in self.inputs[op]]
            limit = min(limits, default=len(self.inputs))
            for storage in made:
                if limit < until[storage]:
                    until[storage], changed = limit, True
        return changed

    def _limit(self, flow: Dataflow, op: int, tensor: int, until: list[int]) -> int:
        """Return the last op before which *op* can read *tensor* again."""
        base = self.storage[tensor]
        if flow.producer[base] != NOTHING:
            return until[base]
        mutators = flow.mutators.get(base, [])
        following = bisect_right(mutators, op)
        changed = mutators[following] if following < len(mutators) else len(self.inputs)
        return min(until[base], changed)


class _DisjointSets:
    """Union-find over 0 ... count - 1."""

    def __init__(self, count: int) -> None:
        self._leader = list(range(count))

    def find(self, item: int) -> int:
        leader = self._leader
        while leader[item] != item:
            leader[item] = leader[leader[item]]
            item = leader[item]
        return item

    def join(self, a: int, b: int) -> None:
        self._leader[self.find(a)] = self.find(b)

    def members(self) -> list[list[int]]:
        """Return, for each item, the sorted members of its set."""
        found: dict[int, list[int]] = {}
        for item in range(len(self._leader)):
            found.setdefault(self.find(item), []).append(item)
        return [found[self.find(item)] for item in range(len(self._leader))]
