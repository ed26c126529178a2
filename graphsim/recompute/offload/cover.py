"""Which gaps to offload so that a sequence fits: greedy, longest above the budget first."""

from __future__ import annotations

import numpy as np

from graphsim.core.index import Ints
from graphsim.recompute.offload.traffic import Mixed


def cover(mixed: Mixed, generator: np.random.Generator | None = None, noise: float = 0.0) -> Mixed | None:
    """Return *mixed* with gaps offloaded until it fits, and without those that it then can do without.

    A gap is worth the time for which it takes bytes off that are too many, less what ops would wait for its own
    copies; times a random number in 1 ... 1 + *noise*. None: no gap helps at the worst moment.
    """
    gaps, memory = mixed.gaps, mixed.memory.copy()
    free = np.ones(len(gaps.size), bool)
    free[mixed.chosen] = False
    start = np.concatenate([[0.0], np.cumsum(mixed.costs)])
    weight = np.diff(start) + start[-1] * 1e-6
    wait = np.maximum(0.0, 2 * gaps.size / mixed.traffic.rate - (start[gaps.back] - start[gaps.out]))
    while memory[worst := int(memory.argmax())] > mixed.budget:
        over = np.concatenate([[0.0], np.cumsum(weight * (memory > mixed.budget))])
        near = np.flatnonzero(free & (gaps.free <= worst) & (worst < gaps.back))
        if not len(near):
            return None
        share = np.minimum(1.0, (memory[worst] - mixed.budget) / gaps.size[near])
        score = (over[gaps.back[near]] - over[gaps.free[near]]) * share - wait[near]
        if generator is not None and noise:
            score = score * (1 + noise * generator.random(len(near)))
        best = int(near[score.argmax()])
        free[best] = False
        memory[gaps.free[best] : gaps.back[best]] -= gaps.size[best]
    return mixed.with_chosen(_needed(mixed, np.flatnonzero(~free), memory))


def _needed(mixed: Mixed, chosen: Ints, memory: Ints) -> Ints:
    """Return those of *chosen* that it takes to fit; shortest first they are left out. *memory* is what they leave."""
    gaps, kept = mixed.gaps, []
    for gap in chosen[np.argsort(gaps.back[chosen] - gaps.free[chosen], kind="stable")].tolist():
        during = slice(gaps.free[gap], gaps.back[gap])
        if (memory[during] + gaps.size[gap] <= mixed.budget).all():
            memory[during] += gaps.size[gap]
        else:
            kept.append(gap)
    return np.array(kept, dtype=np.int64)
