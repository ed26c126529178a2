"""Recompute by spans: what runs again, right before backward first reads what is not there.

The forward pass is cut into *spans* of consecutive ops. What passes from one to a later one
*crosses* the boundary between them; what backward reads of a span is its *tape*. A strategy only
says which boundaries hold what crosses them, and which spans keep their tape, when a sweep runs
through them; which ops that takes, and when, is worked out here for any graph: mutations are run
again on a fresh copy or not at all, and nothing that is still there runs again.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from graphsim.core.graph import Graph, Phase
from graphsim.core.index import NOTHING, Ints, rows
from graphsim.core.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Sweep:
    """One run through spans: *saves* (spans) keep their tape, *holds* (spans) what crosses into them."""

    saves: frozenset[int] = frozenset()
    holds: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class ChainPlan:
    """What a strategy decides for one forward pass.

    Attributes:
        spans: the parts of the pass, in order.
        first: what the forward pass itself keeps.
        again: what the sweep keeps that makes the tape of a span again, by that span. A sweep starts
            where all it needs is held; without an entry it keeps that tape only.
    """

    spans: Sequence[range]
    first: Sweep
    again: Mapping[int, Sweep] = field(default_factory=dict)


def drop_spans(spans: Sequence[range], dropped: Iterable[int]) -> ChainPlan:
    """Return the plan that stores what crosses boundaries, and of the *dropped* spans nothing else."""
    kept = frozenset(range(len(spans))).difference(dropped)
    return ChainPlan(spans, Sweep(saves=kept, holds=frozenset(range(len(spans)))))


def schedule_passes(passes: Sequence[ForwardPass], choose: Callable[[ForwardPass], ChainPlan], ops: int) -> Schedule:
    """Return program order of *ops* with the recomputes that *choose* plans for each pass."""
    repeats: dict[int, list[int]] = {}
    for forward in passes:
        repeats.update(_Recompute(forward, choose(forward)).repeats())
    order: list[int] = []
    for position in range(ops):
        order += repeats.get(position, ())
        order.append(position)
    return Schedule(np.array(order, dtype=np.int64))


def forward_passes(graph: Graph) -> list[ForwardPass]:
    """Return the forward pass of each micro-batch: none, if nothing runs backward."""
    flow = Dataflow(graph)
    return [ForwardPass(graph, flow, *bounds) for bounds in _bounds(graph)]


def _bounds(graph: Graph) -> Iterator[tuple[int, int, int]]:
    """Yield, for each micro-batch, where forward starts, where it turns to backward, and where that stops."""
    start, turn, stop = 0, 0, 0
    for position, op in enumerate(graph.ops):
        if op.phase is Phase.FORWARD and turn > start:
            yield start, turn, stop
            start = position
        elif op.phase is Phase.BACKWARD:
            turn = turn if turn > start else position
            stop = position + 1
    if turn > start:
        yield start, turn, stop


class Dataflow:
    """Which op makes each tensor, reads it, and overwrites its storage: the index as plain lists."""

    def __init__(self, graph: Graph) -> None:
        index = graph.index
        self.inputs = rows(index.input_start, index.input_tensor)
        self.outputs = rows(index.output_start, index.output_tensor)
        self.storage: list[int] = index.storage.tolist()
        self.hold: list[bool] = index.hold.tolist()
        self.kept = set(index.storage[index.kept].tolist())
        self.writes = [[self.storage[t] for t in row] for row in rows(index.write_start, index.write_tensor)]
        self.producer: list[int] = index.maker.tolist()
        self.mutators: dict[int, list[int]] = {}
        for position, bases in enumerate(self.writes):
            for base in bases:
                self.mutators.setdefault(base, []).append(position)

    def group(self, base: int) -> list[int]:
        """Return the ops that only together give *base* its bytes: none, if no op overwrites it."""
        mutators = self.mutators.get(base)
        return [self.producer[base], *mutators] if mutators else []

    def changes(self, base: int, start: int, stop: int) -> bool:
        """Whether an op in [start, stop) overwrites *base*."""
        mutators = self.mutators.get(base, ())
        return bisect_left(mutators, start) < bisect_left(mutators, stop)


class ForwardPass:
    """Ops [start, turn), of which some run again during the backward pass, ops [turn, stop)."""

    def __init__(self, graph: Graph, flow: Dataflow, start: int, turn: int, stop: int) -> None:
        self.graph, self.flow = graph, flow
        self.ops, self.backward = range(start, turn), range(turn, stop)
        self.fixed = self._find_fixed()

    @cached_property
    def cuts(self) -> list[int]:
        """Positions where a span may begin: not between ops that only together give a storage its bytes."""
        inside = [0] * (self.ops.stop + 1)
        for base in self.flow.mutators:
            group = [member for member in self.flow.group(base) if member in self.ops]
            if group:
                inside[min(group) + 1] += 1
                inside[max(group) + 1] -= 1
        depth = np.cumsum(inside).tolist()
        return [position for position in self.ops if not depth[position]]

    def split(self, count: int) -> list[range]:
        """Return *count* spans of about equally many ops, or fewer where groups forbid a cut."""
        return self.split_at(self.ops.start + i * len(self.ops) // count for i in range(1, count))

    def split_at(self, wanted: Iterable[int]) -> list[range]:
        """Return the spans that begin at *wanted* (ascending), each moved to the next allowed position."""
        bounds = [self.ops.start]
        for position in wanted:
            bounds += self.cuts[bisect_left(self.cuts, max(position, bounds[-1] + 1)) :][:1]
        return [range(low, high) for low, high in zip(bounds, [*bounds[1:], self.ops.stop], strict=True)]

    @cached_property
    def crossing_bytes(self) -> Ints:
        """Bytes that each position of the pass reads, or a later one, of what an earlier one made; by position."""
        change = np.zeros(len(self.ops) + 1, dtype=np.int64)
        size = self.graph.index.nbytes
        for base, made in self.born.items():
            last = self.readers.get(base, (made,))[-1]
            if last > made:
                change[made + 1 - self.ops.start] += size[base]
                change[last + 1 - self.ops.start] -= size[base]
        return np.cumsum(change)[:-1]

    def narrow(self, count: int) -> list[range]:
        """Return about *count* spans whose boundaries lie where the least crosses, near an even split."""
        cuts = np.array(self.cuts[1:], dtype=np.int64)
        bytes_at, width = self.crossing_bytes, max(1, len(self.ops) // max(1, count))
        wanted: list[int] = []
        for i in range(1, count):
            middle = self.ops.start + i * len(self.ops) // count
            low, high = np.searchsorted(cuts, [middle - width // 2, middle + (width + 1) // 2])
            if low < high:
                near = cuts[low:high]
                wanted.append(int(near[np.lexsort((abs(near - middle), bytes_at[near - self.ops.start]))[0]]))
        return self.split_at(sorted(set(wanted)))

    @cached_property
    def readers(self) -> dict[int, list[int]]:
        """Ops of the pass that read each storage; holds read nothing."""
        found: dict[int, list[int]] = {}
        for position in self.ops:
            if not self.flow.hold[position]:
                for tensor in self.flow.inputs[position]:
                    found.setdefault(self.flow.storage[tensor], []).append(position)
        return found

    @cached_property
    def last_backward_read(self) -> dict[int, int]:
        """The last op of backward that reads each storage."""
        return {
            self.flow.storage[tensor]: position
            for position in self.backward
            if not self.flow.hold[position]
            for tensor in self.flow.inputs[position]
        }

    @cached_property
    def aliases(self) -> dict[int, list[int]]:
        """Tensors that the pass can make again, by storage."""
        found: dict[int, list[int]] = {}
        for position in self.ops:
            if position not in self.fixed:
                for tensor in self.flow.outputs[position]:
                    found.setdefault(self.flow.storage[tensor], []).append(tensor)
        return found

    @cached_property
    def born(self) -> dict[int, int]:
        """For each storage that the pass can make again, the op that allocates it."""
        makers = {base: self.flow.producer[base] for base in self.aliases}
        return {base: op for base, op in makers.items() if op in self.ops and op not in self.fixed}

    def again(self, base: int) -> bool:
        """Whether the pass can make *base* again, and would have to: it is not kept anyway."""
        return base in self.born and base not in self.flow.kept

    def _find_fixed(self) -> set[int]:
        """Return the ops that must not run again, as a recompute could not restore what they read or wrote.

        They overwrite what exists before the pass (running statistics, say) or read what is overwritten
        later; unless all who write it can run again on a fresh copy.
        """
        flow, stop = self.flow, self.backward.stop
        fixed = {position for position in self.ops if self.graph.ops[position].phase is not Phase.FORWARD}
        together = []
        for position in self.ops:
            read = {flow.storage[tensor] for tensor in flow.inputs[position]}
            changed = {base for base in read if flow.changes(base, position, stop)}
            made = {flow.storage[tensor] for tensor in flow.outputs[position]}
            mutated = (changed | made) & flow.mutators.keys()
            together += [{*flow.group(base), position} for base in mutated]
        while True:
            before = len(fixed)
            for group in together:
                if not group.isdisjoint(fixed) or any(member not in self.ops for member in group):
                    fixed.update(member for member in group if member in self.ops)
            if len(fixed) == before:
                return fixed


class _Recompute:
    """The walk through backward of one pass: what is there, what must be made again, and when."""

    def __init__(self, forward: ForwardPass, plan: ChainPlan) -> None:
        self.forward, self.flow, self.plan = forward, forward.flow, plan
        starts = [span.start for span in plan.spans]
        self.span_of = {base: bisect_right(starts, at) - 1 for base, at in forward.born.items()}
        self.in_span: list[list[int]] = [[] for _ in plan.spans]
        for base, span in self.span_of.items():
            self.in_span[span].append(base)
        self.alive = set(self.span_of)
        self.held = dict.fromkeys(plan.first.holds, forward.ops.stop)
        self.saved = dict.fromkeys(plan.first.saves, forward.ops.stop)
        self.planned = dict(plan.again)

    def repeats(self) -> Iterator[tuple[int, list[int]]]:
        """Yield before which op of backward to run which ops again."""
        for position in self.forward.backward:
            if self.flow.hold[position]:
                continue
            bases = {self.flow.storage[tensor] for tensor in self.flow.inputs[position]}
            missing = [base for base in bases if self._is_missing(base)]
            if missing:
                yield position, self._sweep(position, missing)

    def _sweep(self, position: int, missing: list[int]) -> list[int]:
        """Make the tapes of the spans of *missing* again, and keep what is planned; return the ops in order."""
        turn = max(self.span_of[base] for base in missing)
        sweep = self._planned_for(turn)
        start = max((span for span in self.held if span <= turn), default=0)
        limit = self.plan.spans[turn].stop
        wanted = set(missing)
        for span in sweep.saves:
            wanted.update(
                base
                for base in self.in_span[span]
                if self.forward.last_backward_read.get(base, NOTHING) >= position
                or (span < turn and self._crosses(base, span + 1, limit))
            )
        for boundary in sweep.holds:
            for span in range(start, boundary):
                wanted.update(base for base in self.in_span[span] if self._crosses(base, boundary, limit))
        chosen = self._closure(base for base in wanted if self._is_missing(base))
        made = {self.flow.storage[tensor] for op in chosen for tensor in self.flow.outputs[op]}
        for span in range(start, turn):
            for base in self.in_span[span]:
                if base not in made and self._is_missing(base):
                    self.alive.discard(base)
        self.alive |= made & self.span_of.keys()
        self._keep(turn, sweep, limit)
        return chosen

    def _planned_for(self, turn: int) -> Sweep:
        """Return what this sweep keeps: what is planned for its span, and for later ones that needed no sweep."""
        due = [self.planned.pop(span) for span in sorted(self.planned) if span >= turn]
        earlier = range(turn + 1)
        saves = {span for sweep in due for span in sweep.saves if span in earlier}
        return Sweep(
            saves=frozenset({turn} | saves),
            holds=frozenset(span for sweep in due for span in sweep.holds if span in earlier),
        )

    def _keep(self, turn: int, sweep: Sweep, limit: int) -> None:
        """Backward is done with all after *turn*; what crosses into that span is there, as it has just run."""
        self.held = {span: bound for span, bound in self.held.items() if span <= turn + 1}
        self.held |= dict.fromkeys((span for span in (*sweep.holds, turn) if span not in self.held), limit)
        self.saved = {span: bound for span, bound in self.saved.items() if span <= turn}
        self.saved |= dict.fromkeys(sweep.saves, limit)

    def _closure(self, bases: Iterable[int]) -> list[int]:
        """Return the ops that make *bases*, and what they read that is missing, in program order."""
        flow, stop = self.flow, self.forward.backward.stop
        chosen: set[int] = set()
        stack = [op for base in bases for op in self._makers(base)]
        while stack:
            position = stack.pop()
            if position in chosen:
                continue
            chosen.add(position)
            for base in {flow.storage[tensor] for tensor in flow.outputs[position]} | set(flow.writes[position]):
                stack += self._makers(base)
            for base in {flow.storage[tensor] for tensor in flow.inputs[position]}:
                if flow.changes(base, position, stop) or self._is_missing(base):
                    stack += self._makers(base)
        return sorted(chosen)

    def _makers(self, base: int) -> list[int]:
        """Return the ops that make *base* and every view of it: who reads one must not find the old storage."""
        return [self.flow.producer[tensor] for tensor in self.forward.aliases.get(base, ())] + self.flow.group(base)

    def _is_missing(self, base: int) -> bool:
        return self.forward.again(base) and not (base in self.alive and self._is_kept(base))

    def _is_kept(self, base: int) -> bool:
        span = self.span_of[base]
        if span in self.saved:
            taped = base in self.forward.last_backward_read
            return taped or self._crosses(base, span + 1, self.saved[span])
        if not self._crosses(base, span + 1, self.forward.ops.stop):
            return False
        return any(bound > span and self._crosses(base, bound, limit) for bound, limit in self.held.items())

    def _crosses(self, base: int, boundary: int, limit: int) -> bool:
        """Whether an op from span *boundary* on, before op *limit*, reads *base*."""
        if boundary >= len(self.plan.spans):
            return False
        readers = self.forward.readers.get(base, ())
        first = bisect_left(readers, self.plan.spans[boundary].start)
        return first < len(readers) and readers[first] < limit
