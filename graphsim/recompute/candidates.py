"""The choice among candidates: every one is a real schedule, judged by its true peak."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from graphsim.recompute.case import Candidate, Case
from graphsim.recompute.spans import ChainPlan, ForwardPass, schedule_passes


def chain_candidate(case: Case, choose: Callable[[ForwardPass], ChainPlan]) -> Candidate:
    """Return what *choose*, which plans each forward pass, leads to."""
    return case.candidate(schedule_passes(case.passes, choose, len(case.graph.ops)))


def pick(case: Case, candidates: Iterable[Candidate], budget: int | None) -> Candidate:
    """Return the cheapest that fits, else the lowest peak, of *candidates* and the one that stores all.

    Without a budget: the lowest peak that costs at most one more forward pass.
    """
    everyone = [case.stored, *candidates]
    if budget is None:
        most = case.one_more_forward * (1 + 1e-12)
        return min((c for c in everyone if c.time <= most), key=lambda c: (c.peak, c.time))
    fitting = [c for c in everyone if c.peak <= budget]
    if fitting:
        return min(fitting, key=lambda c: (c.time, c.peak))
    return min(everyone, key=lambda c: (c.peak, c.time))


def bisect(case: Case, candidate: Callable[[int], Candidate], low: int, high: int, budget: int | None) -> Candidate:
    """Return the pick of the candidates that a bisection of the knob's [low, high] visits; larger knobs store more.

    With a budget it looks for the largest knob that fits, without one for the smallest that costs
    at most one more forward pass. A knob is not always monotone: what it visits is what it picks from.
    """
    seen: list[Candidate] = []
    while low <= high:
        middle = (low + high) // 2
        seen.append(candidate(middle))
        enough = seen[-1].peak > budget if budget is not None else seen[-1].time <= case.one_more_forward
        low, high = (low, middle - 1) if enough else (middle + 1, high)
    return pick(case, seen, budget)
