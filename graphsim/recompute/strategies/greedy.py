"""Chen's greedy: a span ends where what it stores passes a number of bytes; that number is searched.

Source: Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016, Algorithm 3
(memory planning with a byte budget b per span; the best b is found by a grid around the square root).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphsim.core.schedule import Schedule
from graphsim.recompute.candidates import chain_candidate, pick
from graphsim.recompute.case import Candidate, Case
from graphsim.recompute.spans import ChainPlan, ForwardPass, drop_spans

TRIALS = 24
"""Numbers of spans that are tried: a geometric grid."""


@dataclass(frozen=True, slots=True)
class Greedy:
    """Spans of about equally many bytes of tape; the cheapest that fits, else the one with the lowest peak."""

    def __call__(self, case: Case, budget: int | None = None, /) -> Schedule:
        """Return the schedule; without a budget, the one with the lowest peak."""

        def candidate(count: int) -> Candidate:
            def choose(forward: ForwardPass) -> ChainPlan:
                spans = spans_of_bytes(forward, int(tape_bytes(forward).sum()) // count)
                return drop_spans(spans, range(len(spans) - 1))

            return chain_candidate(case, choose)

        most = max((len(forward.ops) for forward in case.passes), default=1)
        counts = np.unique(np.geomspace(2, max(2, most), TRIALS).astype(int)).tolist() if case.passes else []
        return pick(case, map(candidate, counts), budget).schedule


def tape_bytes(forward: ForwardPass) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the bytes that each op of the pass makes for backward to read."""
    taped = np.zeros(len(forward.ops), dtype=np.int64)
    for base, made in forward.born.items():
        if base in forward.last_backward_read:
            taped[made - forward.ops.start] += forward.graph.index.nbytes[base]
    return taped


def spans_of_bytes(forward: ForwardPass, most: int) -> list[range]:
    """Return spans that each end as soon as their tape is more than *most* bytes."""
    wanted, stored = [], 0
    for position, size in zip(forward.ops, tape_bytes(forward).tolist(), strict=True):
        stored += size
        if stored > most:
            wanted.append(position + 1)
            stored = 0
    return forward.split_at(position for position in wanted if position < forward.ops.stop)
