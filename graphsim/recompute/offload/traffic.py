"""What a sequence of nodes could offload, and how: gaps between two uses, and the copies that fit a budget.

A *gap* is the time between two executions that touch a version of a value. Offloaded, its bytes may be away for all of
it; they are kept longer, and fetched earlier, where there is room and the link would make the ops wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from graphsim.core.devices import device_of
from graphsim.core.index import NOTHING, Bools, Ints, expand
from graphsim.core.links import parse_host_link
from graphsim.core.offload import Copies, Offloads, timing_of
from graphsim.core.schedule import Schedule
from graphsim.errors import UsageError
from graphsim.recompute.case import Case
from graphsim.recompute.evaluation import Evaluation
from graphsim.recompute.problem import Problem

_REPEATS = 4096
"""Executions of one node that are told apart."""
_ROUNDS = 2
"""How often copies are laid out anew, by when ops start with the copies as laid out before."""


class Gaps(NamedTuple):
    """Times between two uses of a row, in order of rows and time: columns.

    Attributes:
        row: of the evaluation.
        size: bytes.
        out: the first execution before which the bytes may be copied out: nothing changes them from there on.
        free, back: nothing touches the row in executions [free, back), and execution `back` does.
        key: says which it is, whatever else runs again: the value, and which execution of which node is next.
    """

    row: Ints
    size: Ints
    out: Ints
    free: Ints
    back: Ints
    key: Ints


@dataclass(frozen=True, eq=False)
class Traffic:
    """A problem with a link.

    Attributes:
        problem: the graph as the searches see it.
        tensor: the tensor of each value.
        changes: for each read of the problem, whether it overwrites the value.
        rate: bytes that the link carries each way, by unit of cost.
    """

    problem: Problem
    tensor: Ints
    changes: Bools
    rate: float

    @staticmethod
    def of(case: Case, rate: float) -> Traffic:
        """Return the problem of *case* with a link of *rate*."""
        index, problem = case.graph.index, case.problem
        tensor = index.storages[~index.resident[index.storages]]
        number = np.full(index.tensors, NOTHING)
        number[tensor] = np.arange(len(tensor))
        written = {*zip(index.write_op.tolist(), number[index.storage[index.write_tensor]].tolist(), strict=True)}
        node = np.repeat(np.arange(len(problem.cost)), np.diff(problem.read_start))
        reads = zip(node.tolist(), problem.read_value.tolist(), strict=True)
        return Traffic(problem, tensor, np.array([read in written for read in reads], bool), rate)

    def gaps(self, state: Evaluation) -> Gaps:
        """Return the gaps of *state*."""
        problem, length = self.problem, len(state.nodes)
        read, _ = expand(problem.read_start, state.nodes)
        rows = np.arange(len(state.value))
        row = np.concatenate([rows, state.read_row])
        at = np.concatenate([state.born, state.read_at])
        changed = np.concatenate([np.ones(len(rows), bool), self.changes[read]])
        order = np.argsort(row * (length + 2) + at + 1, kind="stable")
        row, at, changed = row[order], at[order], changed[order]
        since = row * (length + 2) + np.where(changed, at + 1, 0)
        out = np.maximum.accumulate(since) - row * (length + 2)
        gap = np.flatnonzero((row[1:] == row[:-1]) & (at[1:] - at[:-1] > 1))
        gap = gap[problem.size[state.value[row[gap]]] > 0]
        row, back = row[gap], at[gap + 1]
        value = state.value[row]
        key = (value * len(problem.cost) + state.nodes[back]) * _REPEATS + _occurrence(state.nodes)[back]
        return Gaps(row, problem.size[value], out[gap], at[gap] + 1, back, key)


def link_rate(case: Case, link: str) -> float:
    """Return the bytes per second of *link*, see `parse_host_link`; 'gpu' is that of the GPU that the step is made for.

    Raises:
        UsageError: the costs of ops are no seconds.
        UnknownNameError: there is no such link.
    """
    training = case.given.attributes.get("training")
    name = str(training.get("device", "")) if isinstance(training, Mapping) else ""
    rate = parse_host_link(link, device_of(name, "cuda").name)
    if case.cost_unit != "seconds":
        raise UsageError(
            f"a link has bytes per second, and these ops have their costs in {case.cost_unit or 'an unknown unit'}: "
            "give them --costs of a GPU (graphsim gpus), or train for --target cuda"
        )
    return rate


def _occurrence(nodes: Ints) -> Ints:
    """Return for each execution how often its node ran before."""
    order = np.argsort(nodes, kind="stable")
    position = np.arange(len(nodes))
    first = np.concatenate([[True], np.diff(nodes[order]) != 0])
    found = np.empty(len(nodes), dtype=np.int64)
    found[order] = position - np.maximum.accumulate(np.where(first, position, 0))
    return np.minimum(found, _REPEATS - 1)


@dataclass(frozen=True, eq=False)
class Mixed:
    """A sequence of which some gaps are offloaded.

    Attributes:
        chosen: numbers of gaps, in order.
        budget: bytes.
    """

    traffic: Traffic
    state: Evaluation
    gaps: Gaps
    chosen: Ints
    budget: int

    @cached_property
    def memory(self) -> Ints:
        """Bytes on the device while each execution runs, at the least: what is offloaded is away for all of its gap."""
        change = np.zeros(len(self.state.nodes) + 1, dtype=np.int64)
        np.subtract.at(change, self.gaps.free[self.chosen], self.gaps.size[self.chosen])
        np.add.at(change, self.gaps.back[self.chosen], self.gaps.size[self.chosen])
        memory: Ints = self.state.memory + np.cumsum(change)[:-1]
        return memory

    @property
    def fits(self) -> bool:
        """Whether it fits the budget."""
        return bool((self.memory <= self.budget).all())

    @cached_property
    def lean(self) -> Evaluation:
        """The sequence, its memory without what is offloaded."""
        return replace(self.state, memory=self.memory)

    @property
    def costs(self) -> np.typing.NDArray[np.float64]:
        """The cost of each execution."""
        return self.traffic.problem.cost[self.state.nodes]

    @cached_property
    def copies(self) -> Copies:
        """The copies, laid out within the budget so that ops wait little; it must fit."""
        return self.laid_out[0]

    @cached_property
    def time(self) -> float:
        """The time of the sequence with its copies; it must fit."""
        return self.laid_out[1]

    @cached_property
    def laid_out(self) -> tuple[Copies, float]:
        """The copies, and the time with them."""
        if not len(self.chosen):
            return self.pressed, self.state.cost
        start = np.concatenate([[0.0], np.cumsum(self.costs)])
        found: list[tuple[Copies, float]] = []
        for _ in range(_ROUNDS):
            copies = self._between(start)
            timing = timing_of(self.costs, copies)
            found.append((copies, timing.total))
            if not timing.stalled:
                break
            start = np.concatenate([timing.start, [timing.total]])
        return min(found, key=lambda one: one[1])

    @property
    def pressed(self) -> Copies:
        """The copies if every gap is used to its full length."""
        gaps, chosen = self.gaps, self.chosen
        row, out = gaps.row[chosen], gaps.out[chosen].copy()
        again = np.flatnonzero((row[1:] == row[:-1]) & (out[1:] == out[:-1])) + 1
        out[again] = NOTHING  # the host still has it
        first = np.argsort(gaps.back[chosen], kind="stable")  # of two that come back at once, the one needed first
        row, out, chosen = row[first], out[first], chosen[first]
        back = gaps.back[chosen]
        return Copies(row, out, gaps.free[chosen], back, back, gaps.size[chosen], self.traffic.rate)

    def _between(self, start: np.typing.NDArray[np.float64]) -> Copies:
        """Return the copies with room for them as far as the budget allows, if each execution begins at *start*."""
        pressed, slack = self.pressed, self.budget - self.memory
        free, back = pressed.free.copy(), pressed.back.copy()
        seconds, size = pressed.nbytes / pressed.rate, pressed.nbytes.tolist()
        busy = 0.0
        for k in np.argsort(pressed.out, kind="stable").tolist():
            if pressed.out[k] == NOTHING:
                continue
            busy = max(busy, float(start[pressed.out[k]])) + seconds[k]
            low, high = int(free[k]), min(int(np.searchsorted(start, busy * (1 - 1e-12))), int(back[k]) - 1)
            if high > low:
                full = np.flatnonzero(slack[low:high] < size[k])
                free[k] = low + int(full[0]) if len(full) else high
                slack[low : free[k]] -= size[k]
        limit = np.inf
        for k in np.argsort(-back, kind="stable").tolist():
            high = int(back[k])
            limit = min(limit, float(start[high])) - seconds[k]
            low = max(int(np.searchsorted(start, limit, side="right")) - 1, int(free[k]) + 1)
            if low < high:
                full = np.flatnonzero(slack[low:high] < size[k])
                back[k] = low + int(full[-1]) + 1 if len(full) else low
                slack[back[k] : high] -= size[k]
                limit = min(limit, float(start[back[k]]))
        return replace(pressed, free=free, back=back)

    def with_chosen(self, chosen: Ints) -> Mixed:
        """Return the sequence with other gaps offloaded."""
        return Mixed(self.traffic, self.state, self.gaps, np.sort(chosen), self.budget)

    def moved_to(self, state: Evaluation) -> Mixed:
        """Return another sequence in which the same gaps are offloaded, as far as it has them."""
        gaps = self.traffic.gaps(state)
        chosen = np.isin(gaps.key, self.gaps.key[self.chosen])
        # What a recompute reads in the middle of a gap splits it: both parts are offloaded.
        units = state.nodes[gaps.back] >= self.traffic.problem.ops
        for gap in np.flatnonzero(chosen)[::-1].tolist():
            before = gap - 1
            while before >= 0 and gaps.row[before] == gaps.row[gap] and gaps.back[before] == gaps.free[before + 1] - 1:
                if not units[before]:
                    break
                chosen[before] = True
                before -= 1
        return Mixed(self.traffic, state, gaps, np.flatnonzero(chosen), self.budget)

    def schedule(self, copies: Copies | None = None) -> Schedule:
        """Return it as a schedule of the graph's ops, with these *copies* (its own, if None)."""
        copies = self.copies if copies is None else copies
        problem, nodes = self.traffic.problem, self.state.nodes
        schedule = problem.schedule(nodes)
        if not len(copies.row):
            return schedule
        place = np.concatenate([[0], np.cumsum(problem.lengths(nodes))])
        tensor = self.traffic.tensor[self.state.value[copies.row]]
        out = np.where(copies.out == NOTHING, NOTHING, place[copies.out])
        return Schedule(schedule.ops, Offloads(tensor, out, place[copies.free], place[copies.back], copies.rate))


def without_offload(traffic: Traffic, state: Evaluation, budget: int) -> Mixed:
    """Return *state*, of which nothing is offloaded."""
    return Mixed(traffic, state, traffic.gaps(state), np.empty(0, dtype=np.int64), budget)
