"""Rotor: optimal checkpointing of a chain whose stages differ, by dynamic programming.

Source: Beaumont, Eyraud-Dubois, Herrmann, Joly, Shilova, "Optimal checkpointing for heterogeneous
chains: how to train deep neural networks with limited memory", 2019 (ACM TOMS 2024), theorem 1. The
forward run of a stage stores its whole tape, or its input only, or nothing; the plan is optimal
among those that keep what they store until the backward of that stage (memory-persistent).

On a graph, the stages are spans of the forward pass; their sizes and times are those of the graph.
The memory that the program counts with is searched, so that the true peak meets the budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from graphsim.core.index import Floats, Ints
from graphsim.core.schedule import Schedule
from graphsim.errors import UsageError
from graphsim.recompute.candidates import bisect, chain_candidate
from graphsim.recompute.case import Candidate, Case
from graphsim.recompute.spans import ChainPlan, ForwardPass, Sweep

MAX_SPANS = 64
SLOTS = 240
"""Equal parts in which memory is counted; sizes are rounded up."""


@dataclass(frozen=True, slots=True)
class Rotor:
    """Plans the spans of each forward pass by dynamic programming.

    Attributes:
        spans: stages of the chain at most; they are cut where the least crosses.

    Raises:
        UsageError: fewer than one span.
    """

    spans: int = MAX_SPANS

    def __post_init__(self) -> None:
        if self.spans < 1:
            raise UsageError(f"spans must be at least 1, not {self.spans}")

    def __call__(self, case: Case, budget: int | None = None, /) -> Schedule:
        """Return the cheapest that fits the budget; without one, the lowest peak of one more forward pass."""
        spans = {forward.ops: forward.narrow(min(self.spans, len(forward.ops))) for forward in case.passes}
        tables = _tables(case, spans)

        def candidate(slots: int) -> Candidate:
            def choose(forward: ForwardPass) -> ChainPlan:
                table = tables[forward.ops]
                return chain_plan(spans[forward.ops], table.steps(max(slots, table.least)))

            return chain_candidate(case, choose)

        return bisect(case, candidate, 1, SLOTS if tables else 0, budget).schedule


class Chain(NamedTuple):
    """A chain of n stages; all columns by stage.

    Attributes:
        forward, backward: times.
        size: bytes of the input of each stage; that of the first is there anyway, and not counted.
        tape: bytes that the backward of the stage reads: its output included, its input not.
        forward_extra, backward_extra: further bytes while the stage runs forward (beyond input and output,
            or input and tape), or backward (beyond input and tape).
    """

    forward: Floats
    backward: Floats
    size: Ints
    tape: Ints
    forward_extra: Ints
    backward_extra: Ints


class Step(NamedTuple):
    """Run a stage: ``forward`` and drop its input, or keep that (``checkpoint``), or the ``tape``; ``backward``."""

    kind: Literal["forward", "checkpoint", "tape", "backward"]
    stage: int


class Table:
    """The least time for stages s ... t with m bytes beyond the input of s, for every s, t and m <= *memory*.

    Either the tape of s is stored, or its input only, up to the next checkpoint, the input of stage k:
    the choice is kept as 0 or k.
    """

    def __init__(self, chain: Chain, memory: int) -> None:
        self.chain, self.memory = chain, memory
        count = len(chain.forward)
        self.time = np.full((count, count, memory + 1), np.inf)
        self.choice = np.zeros((count, count, memory + 1), dtype=np.int16)
        self._before = np.concatenate([[0.0], np.cumsum(chain.forward)])
        for length in range(count):
            for s in range(count - length):
                self._solve(s, s + length)

    @property
    def least(self) -> int:
        """The smallest memory in which the whole chain runs; `memory` if even that is not enough."""
        fits = np.isfinite(self.time[0, -1])
        return int(fits.argmax()) if fits.any() else self.memory

    def steps(self, memory: int) -> list[Step]:
        """Return the steps of the best plan within *memory*; those that store all, if there is none."""
        count = len(self.chain.forward)
        if not np.isfinite(self.time[0, -1, memory]):
            kept = [Step("tape", i) for i in range(count)]
            return kept + [Step("backward", i) for i in reversed(range(count))]
        steps: list[Step] = []
        todo: list[tuple[int, int, int] | Step] = [(0, count - 1, memory)]
        while todo:
            task = todo.pop()
            if isinstance(task, Step):
                steps.append(task)
                continue
            s, t, m = task
            k = int(self.choice[s, t, m])
            if k:
                steps += [Step("checkpoint", s), *(Step("forward", i) for i in range(s + 1, k))]
                todo += [(s, k - 1, m), (k, t, m - int(self.chain.size[k]))]
            else:
                steps.append(Step("tape", s))
                todo.append(Step("backward", s))
                if s < t:
                    todo.append((s + 1, t, m - int(self.chain.tape[s])))
        return steps

    def _solve(self, s: int, t: int) -> None:
        chain, best, choice = self.chain, self.time[s, t], self.choice[s, t]
        tape = int(chain.tape[s])
        least = tape + int(max(chain.forward_extra[s], chain.backward_extra[s]))
        if least <= self.memory:
            rest = 0.0 if s == t else self.time[s + 1, t, least - tape : self.memory + 1 - tape]
            best[least:] = chain.forward[s] + chain.backward[s] + rest
        need = 0
        for k in range(s + 1, t + 1):
            stage = k - 1  # runs from its input, if that is not counted elsewhere, to the input of k
            need = max(need, int((chain.size[stage] if stage > s else 0) + chain.size[k] + chain.forward_extra[stage]))
            size, least = int(chain.size[k]), max(need, int(chain.size[k]))
            if least > self.memory:
                break
            swept = self._before[k] - self._before[s]
            total = swept + self.time[k, t, least - size : self.memory + 1 - size] + self.time[s, k - 1, least:]
            better = total < best[least:]
            best[least:][better] = total[better]
            choice[least:][better] = k


def chain_plan(spans: list[range], steps: list[Step]) -> ChainPlan:
    """Return *steps* as sweeps: the runs forward between two runs backward."""
    sweeps: dict[int, Sweep] = {}
    saves: set[int] = set()
    holds: set[int] = set()
    for kind, stage in steps:
        if kind == "backward" and saves | holds:
            sweeps[stage] = Sweep(frozenset(saves), frozenset(holds))
            saves.clear()
            holds.clear()
        elif kind == "tape":
            saves.add(stage)
            holds.add(stage)
        elif kind == "checkpoint":
            holds.add(stage)
    return ChainPlan(spans, sweeps.pop(len(spans) - 1), sweeps)


def measure(case: Case, forward: ForwardPass, spans: list[range]) -> Chain:
    """Return the chain of *spans*: sizes and times of the graph when it stores all."""
    starts = np.array([span.start for span in spans])
    costs, nbytes, count = case.costs, case.graph.index.nbytes, len(spans)
    tape = np.zeros(count, dtype=np.int64)
    turn = np.full(len(forward.backward), -1)
    for base, made in forward.born.items():
        span = int(np.searchsorted(starts, made, side="right")) - 1
        crosses = forward.readers.get(base, [made])[-1] >= spans[span].stop
        if crosses or base in forward.last_backward_read:
            tape[span] += nbytes[base]
        if base in forward.last_backward_read:
            turn[forward.last_backward_read[base] - forward.backward.start] = span
    # An op of backward belongs to the last span that it, or an earlier one, was the last to read.
    turn = np.where(turn < 0, count - 1, turn)
    turn = np.minimum.accumulate(turn)
    timeline = case.live_ranges.timeline
    level = int(timeline[forward.ops.start])
    stored = np.cumsum(tape)
    live = timeline - level
    forward_extra = np.array([live[list(span)].max() for span in spans]) - stored
    backward = live[forward.backward.start : forward.backward.stop]
    backward_extra = np.array([backward[turn == i].max(initial=0) for i in range(count)]) - stored
    weights = costs[forward.backward.start : forward.backward.stop]
    backward_time = np.bincount(turn, weights, minlength=count).astype(np.float64)
    return Chain(
        forward=np.array([costs[span.start : span.stop].sum() for span in spans]),
        backward=backward_time,
        size=np.concatenate([[0], forward.crossing_bytes[starts[1:] - forward.ops.start]]),
        tape=tape,
        forward_extra=np.maximum(forward_extra, 0),
        backward_extra=np.maximum(backward_extra, 0),
    )


def count_in_slots(chain: Chain, slots: int) -> Chain:
    """Return *chain* with sizes in units of which *slots* hold all tapes; rounded up."""
    extra = max(int(chain.forward_extra.max()), int(chain.backward_extra.max()))
    unit = max(1, -(-(int(chain.tape.sum()) + extra) // max(1, slots - len(chain.tape))))
    return Chain(chain.forward, chain.backward, *(-(-column // unit) for column in chain[2:]))


def _tables(case: Case, spans: dict[range, list[range]]) -> dict[range, Table]:
    """Return the table of each forward pass; equal micro-batches share one."""
    known: dict[tuple[bytes, ...], Table] = {}
    tables = {}
    for forward in case.passes:
        chain = count_in_slots(measure(case, forward, spans[forward.ops]), SLOTS)
        key = tuple(column.tobytes() for column in chain)
        known[key] = known.get(key) or Table(chain, SLOTS)
        tables[forward.ops] = known[key]
    return tables
