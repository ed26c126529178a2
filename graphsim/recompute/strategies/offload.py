"""Ours: `auto`, which may also move values to host memory and back, where that is faster than to run ops again.

It starts from `auto`'s plan of recompute alone, and is never slower: of that, and of plans for more memory than there
is, which run less again, what is too much waits on the host. What the best of them still runs again is offloaded
instead, one value after the other, the dearest by byte first; then it is annealed (see `recompute.offload.search`).

It is in no table, as the sweep, pages and `fit` do not show host memory: `plan` asks for it (`--offload`).

Source of the idea to choose both at once: Beaumont, Eyraud-Dubois, Shilova, "Efficient Combination of Rematerialization
and Offloading for Training DNNs" (POFO), NeurIPS 2021, which finds optimal plans of a restricted form for chains.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from math import inf

from graphsim.recompute.case import Candidate, Case
from graphsim.recompute.clock import Clock
from graphsim.recompute.evaluation import evaluate
from graphsim.recompute.moves.improve import prune
from graphsim.recompute.offload.search import MixedSearch
from graphsim.recompute.offload.traffic import Traffic, link_rate
from graphsim.recompute.strategies import Progress, Proposal
from graphsim.recompute.strategies.auto import Auto

_LEANER = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Parts of the bytes that are too many, with which the plan of recompute alone is thinned out."""
_SWAPPING = 0.3
"""Of the time, what the first swaps of recompute for offload may take."""
_RICHER, _RICHER_SHARE = (0.15, 0.3, 0.5), 0.1
"""Parts of the bytes that are too many, with which recompute alone is asked too; its share of the time, each."""
_STEPS, _STEPS_PER_OP = 2_000_000, 60
"""Steps times ops of the annealing; steps for every op at most."""


@dataclass(frozen=True, slots=True)
class Offload:
    """Recompute and offload within the budget; without one, or where all fits, what `auto` does.

    Attributes:
        auto: looks for recompute alone; offload takes as many of its seconds again, at most.
        link: to the host: 'gpu' (that of the GPU that the step is made for), 'pcie4x16', '16GB/s', see `core.links`.

    Raises:
        UsageError: when called, the costs of ops are no seconds.
        UnknownNameError: when called, there is no such link.
    """

    auto: Auto = field(default_factory=Auto)
    link: str = "gpu"

    def __call__(self, case: Case, budget: int | None = None, /) -> Proposal:
        """Return the fastest schedule found."""
        rate = link_rate(case, self.link)
        proposal = self.auto(case, budget)
        alone = case.candidate(proposal.schedule)
        fits = budget is None or alone.peak <= budget
        proposal = replace(proposal, recompute_time=alone.time if fits else inf)
        if proposal.interrupted or budget is None or not case.memory_bound <= budget < case.stored.peak:
            return proposal
        clock = Clock(time.perf_counter() + self.auto.seconds)
        found = self._search(case, budget, alone, Traffic.of(case, rate), clock)
        if found is None or (fits and found.time >= alone.time):
            return replace(proposal, interrupted=clock.stopped)
        return replace(proposal, schedule=found.schedule, interrupted=clock.stopped)

    def with_limits(self, *, seconds: float | None = None, progress: Progress | None = None) -> Offload:
        """Return the strategy with so many *seconds*, unless None, and who is told of *progress*."""
        return replace(self, auto=self.auto.with_limits(seconds=seconds, progress=progress))

    def _search(self, case: Case, budget: int, alone: Candidate, traffic: Traffic, clock: Clock) -> Candidate | None:
        """Return the best plan found that fits; None: none does."""
        search, problem = MixedSearch(traffic, budget, self.auto.seed), case.problem
        try:
            state, above = evaluate(problem, problem.nodes(alone.schedule)), case.stored.peak - budget
            search.offer([state, case.program_order])
            for share in _LEANER:
                if clock.is_over():
                    break
                state = prune(state, budget + int(share * above))
                search.offer([state])
            self._tell(search, case)
            search.swap(Clock(time.perf_counter() + _SWAPPING * self.auto.seconds))
            self._tell(search, case)
            for share in _RICHER:
                if clock.is_over():
                    break
                auto = replace(self.auto, seconds=_RICHER_SHARE * self.auto.seconds, prove=None, progress=None)
                richer = auto(case, budget + int(share * above))
                clock.stopped = richer.interrupted
                search.offer([evaluate(problem, problem.nodes(richer.schedule))])
            search.swap(clock)
            self._tell(search, case)
            search.anneal(min(_STEPS_PER_OP * problem.ops, _STEPS // max(1, problem.ops)), clock)
        except KeyboardInterrupt:
            clock.stopped = True
        return None if search.best is None else case.candidate(search.best.schedule())

    def _tell(self, search: MixedSearch, case: Case) -> None:
        if self.auto.progress is not None and search.best is not None and case.base_time:
            self.auto.progress(f"offload: {search.best.time / case.base_time - 1:+.3%} time")
