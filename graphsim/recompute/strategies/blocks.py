"""Every block recomputed: of each block, only what passes on to later ones is stored.

Source: what users do with `torch.utils.checkpoint` around each block; Chen, Xu, Zhang, Guestrin,
"Training Deep Nets with Sublinear Memory Cost", 2016, section 3. A block is a run of ops under one
layer path, cut at some depth of nesting.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import isqrt

from graphsim.core.schedule import Schedule
from graphsim.errors import UsageError
from graphsim.recompute.candidates import chain_candidate, pick
from graphsim.recompute.case import Candidate, Case
from graphsim.recompute.spans import ChainPlan, ForwardPass, drop_spans

MAX_DEPTH = 8
"""Deeper nesting than that of any model's blocks."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Recomputes every block but the last.

    A graph whose ops name no layers has no blocks: there its spans are those of Chen's sqrt(n). Where
    this would need more than storing all, all is stored.

    Attributes:
        depth: how many names of a layer path name a block (2 for ``h.0``); None: the depth with the
            lowest peak.

    Raises:
        UsageError: the depth is less than one.
    """

    depth: int | None = None

    def __post_init__(self) -> None:
        check_positive("depth", self.depth)

    def __call__(self, case: Case, budget: int | None = None, /) -> Schedule:
        """Return the schedule, whatever the budget."""
        return drop_every(case, 1, self.depth)


def drop_every(case: Case, k: int, depth: int | None) -> Schedule:
    """Return the schedule that recomputes every *k*-th block, for the best depth if that is None."""

    def candidate(level: int) -> Candidate:
        def choose(forward: ForwardPass) -> ChainPlan:
            spans = blocks_of(forward, level)
            return drop_spans(spans, range(0, len(spans) - 1, k))

        return chain_candidate(case, choose)

    nested = max((op.layer.count(".") + 1 for op in case.graph.ops), default=1)
    depths = range(1, min(nested, MAX_DEPTH) + 1) if depth is None else (depth,)
    return pick(case, map(candidate, depths), None).schedule


def blocks_of(forward: ForwardPass, depth: int) -> list[range]:
    """Return the spans of *forward* that follow the first *depth* names of layer paths."""
    names = [forward.graph.ops[i].layer.split(".")[:depth] for i in forward.ops]
    if not any(any(name) for name in names):
        return forward.split(isqrt(len(forward.ops)))
    return forward.split_at(i for i, (a, b) in enumerate(pairwise(names), forward.ops.start + 1) if a != b)


def check_positive(name: str, value: int | None) -> None:
    """Raise `UsageError` if an option is given and less than one."""
    if value is not None and value < 1:
        raise UsageError(f"{name} must be at least 1, not {value}")
