"""Ours: the cheap strategies first, then a search over any recompute of any unit, until it stops to pay.

Starts are the cheapest plan of the span strategies that fits, a greedy repair of program order, and what DTR
makes of it with each of its heuristics. Rounds of search follow, until they bring nothing or what is left to gain
is not worth the time: two searches at a time in machine code (extra `solver`), from the beginning by annealing and
ruin and recreate, then across all that was found so; or plain annealing, without numba and for small graphs before it
is compiled. The cost is bounded from below by a linear program over what is absent at each op (see `recompute.bounds`);
on small graphs, and where it is asked for, proved by `recompute.proof`, which may also find the optimum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import count
from math import inf, isfinite

from graphsim.core.schedule import Schedule
from graphsim.errors import UsageError
from graphsim.recompute.case import Candidate, Case
from graphsim.recompute.clock import Clock
from graphsim.recompute.dtr.scores import HEURISTICS
from graphsim.recompute.evaluation import Evaluation, evaluate
from graphsim.recompute.machine_code import is_available
from graphsim.recompute.moves.anneal import Annealing
from graphsim.recompute.moves.improve import improve
from graphsim.recompute.moves.pair import Search, compiling_beside, is_compiled, side_by_side
from graphsim.recompute.moves.rebuild import Rebuilding
from graphsim.recompute.moves.repair import repair
from graphsim.recompute.proof import prove
from graphsim.recompute.strategies import Progress, Proposal
from graphsim.recompute.strategies.blocks import Blocks
from graphsim.recompute.strategies.dtr import Dtr
from graphsim.recompute.strategies.greedy import Greedy
from graphsim.recompute.strategies.rotor import Rotor
from graphsim.recompute.strategies.sqrt import Sqrt

CHEAP = (Blocks(), Sqrt(), Greedy(), Rotor())
"""Strategies that are asked first."""
_SMALL, _COMPILING = 150, 30.0
"""Ops up to which plain annealing is nearly as good, and seconds up to which it is: nothing is compiled for less."""
_STEPS_PER_OP = 60
"""Steps of a round of plain annealing, for every op."""
_REBUILT, _REBUILT_LARGE, _REBUILT_SMALL = 4_000_000, 2, 50
"""Ops times steps of a round of ruin and recreate; but at least, and at most, so many steps for every op."""
_POOL = 8
"""Sequences that are crossed with each other."""
_MOVED_PER_OP, _FIRST = 300, 0.35
"""Steps of the compiled annealing before, for every op; the share of the time that it may take."""
_GLANCE, _GLANCE_SMALL = 300_000, 60
"""Ops times steps of a first round of plain annealing, beyond which some graphs need nothing; so many an op at most."""
_IDLE, _IDLE_MISFIT = 3, 6
"""Beginnings in a row that bring nothing, before the search gives up; and while nothing fits that might."""
_WORTH = 0.0005
"""A gain that is worth a round's time, in parts of the cost of the step, or of the peak while nothing fits."""
_SQUEEZING = 0.1
"""Of the time, what the repair towards the least memory may take, where the budget is below that."""
_DTR_SHARE = 0.02
"""Of the time, what each heuristic of DTR may take."""
_PROVED, _PROVING = 150, 10.0
"""Ops up to which a proof is tried unasked, as it is mostly found sooner than the search ends; its seconds at most."""


@dataclass(frozen=True, slots=True)
class Auto:
    """Searches for the cheapest schedule within the budget; without one, the lowest peak of the cheap strategies.

    Below what any schedule needs, it looks how near it gets.

    Attributes:
        seconds: when to stop at the latest; Ctrl-C stops it with the best so far.
        seed: of the search; unless the time cuts it short, the same finds the same, once the searches are compiled.
        prove: seconds for a proof after the search, beyond *seconds*; None: on small graphs, some within these.
        progress: told of every better plan, in words.

    Raises:
        UsageError: *seconds* or *prove* is negative.
        MissingExtraError: *prove* is given, and highspy is not installed.
    """

    seconds: float = 45.0
    seed: int = 0
    prove: float | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise UsageError(f"seconds must be at least 0, not {self.seconds}")
        if self.prove is not None and not self.prove >= 0:
            raise UsageError(f"prove must be at least 0 seconds, not {self.prove}")

    def __call__(self, case: Case, budget: int | None = None, /) -> Proposal:
        """Return the best schedule; without a search if nothing needs one, or nothing can fit."""
        clock, found = Clock(time.perf_counter() + self.seconds), [case.stored]
        if budget is None or case.stored.peak > budget:
            try:
                self._search(case, budget, found, clock)
            except KeyboardInterrupt:
                clock.stopped = True
        best = min(found, key=lambda one: _preference(one, budget))
        return Proposal(best.schedule, interrupted=clock.stopped)

    def with_limits(self, *, seconds: float | None = None, progress: Progress | None = None) -> Auto:
        """Return the strategy with so many *seconds*, unless None, and who is told of *progress*."""
        return replace(self, seconds=self.seconds if seconds is None else seconds, progress=progress)

    def _search(self, case: Case, budget: int | None, found: list[Candidate], clock: Clock) -> None:
        """Add to *found*: what is cheap to find, then what the rounds of search make of it."""
        for strategy in CHEAP:
            found.append(case.candidate(strategy(case, budget)))  # noqa: PERF401 - those before Ctrl-C count
        if budget is None or not case.problem.ops:
            return
        if budget < case.memory_bound:  # how near does it get?
            until = time.perf_counter() + _SQUEEZING * self.seconds
            low = repair(case.program_order, case.memory_bound, until=until)
            found.append(case.candidate(case.problem.schedule(low.nodes)))
            return
        rounds = _Rounds(case, budget, clock, self.seed, self._teller(case, budget), self.prove)
        try:
            rounds.run(self._starts(case, budget, found))
        finally:
            if rounds.best is not None:
                found.append(case.candidate(case.problem.schedule(rounds.best.nodes)))

    def _starts(self, case: Case, budget: int, found: list[Candidate]) -> Iterator[Schedule]:
        """Yield the best of *found*, then what DTR makes of the case with each of its heuristics, which is added."""
        yield min(found, key=lambda one: _preference(one, budget)).schedule
        for heuristic in HEURISTICS if self.seconds else ():
            proposal = Dtr(heuristic, seconds=_DTR_SHARE * self.seconds)(case, budget)
            if proposal.interrupted:
                raise KeyboardInterrupt
            found.append(case.candidate(proposal.schedule))
            if found[-1].peak <= budget:
                yield proposal.schedule

    def _teller(self, case: Case, budget: int) -> Callable[[float, bool], None]:
        """Return what tells of a cost, and whether it fits, in words."""
        base = case.base_time

        def tell(cost: float, fits: bool) -> None:
            least = case.least_time(budget)
            if self.progress is not None and base:
                gap = "" if cost <= least else f", at most {cost / least - 1:.2%} from optimal"
                extra = f"{cost / base - 1:+.3%} compute" if fits else "nothing fits yet"
                self.progress(f"auto: {extra}; at least {least / base - 1:+.3%}{gap if fits else ''}")

        return tell


def _preference(one: Candidate, budget: int | None) -> tuple[bool, float, float]:
    """Return what to sort by: the cheapest that fits, else the lowest peak; without a budget, the lowest peak."""
    if budget is None or one.peak > budget:
        return budget is not None, one.peak, one.time
    return False, one.time, one.peak


class _Rounds:
    """Rounds of search until they bring nothing, the bound is near or the time is up."""

    def __init__(
        self,
        case: Case,
        budget: int,
        clock: Clock,
        seed: int,
        tell: Callable[[float, bool], None],
        prove: float | None,
    ) -> None:
        self.case, self.prove = case, prove
        self.stored, self.problem, self.bound = case.program_order, case.problem, case.least_time(budget)
        self.budget, self.clock, self.seed, self.tell = budget, clock, seed, tell
        self.best: Evaluation | None = None
        self._worth = _WORTH * case.base_time

    def run(self, known: Iterable[Schedule]) -> None:
        """Search from a repair of program order and from the *known* schedules; `best` is what it finds."""
        left, ops = max(0.0, self.clock.until - time.perf_counter()), self.problem.ops
        start = repair(self.stored, self.budget, until=self.clock.until - 0.6 * left)
        self._offer(start)
        for schedule in known:
            self._offer(evaluate(self.problem, self.problem.nodes(schedule)))
        if start.peak <= self.budget:
            self._improve(start, min(_GLANCE // ops, _GLANCE_SMALL * ops), 0)
        if self.prove is None and ops <= _PROVED and find_spec("highspy"):
            self._prove(min(_PROVING, (self.clock.until - time.perf_counter()) / 2))
        if not self._is_near():
            if self._is_worth_compiling():
                self._repeat(self._in_pairs(start), 3)
            else:
                self._repeat(self._by_turns(start), 1)
        if self.prove is not None:
            self._prove(self.prove)

    def _prove(self, seconds: float) -> None:
        """Raise the bound, and offer what that finds."""
        if seconds <= 0 or self.clock.stopped or (self._fits() and self._known().cost <= self.bound * (1 + 1e-9)):
            return
        proof = prove(self.case, self.budget, seconds=seconds, known=self._known(), seed=self.seed)
        self.bound, self.clock.stopped = proof.least, proof.interrupted
        if proof.best is not None:
            self._offer(proof.best)

    def _is_worth_compiling(self) -> bool:
        """Whether the searches are there, or worth their time: nothing stops the compiler."""
        worth = self.problem.ops > _SMALL and self.clock.until - time.perf_counter() > _COMPILING
        return is_available() and (worth or is_compiled())

    def _repeat(self, rounds: Iterator[None], each: int) -> None:
        """Go through *rounds*, so many for *each* beginning, until they bring nothing, or it is near or late enough."""
        idle = 0
        while not (self.clock.is_over() or self._is_near()):
            if idle >= each * (_IDLE_MISFIT if isfinite(self.bound) and not self._fits() else _IDLE):
                break
            before = self._rank()
            next(rounds)
            idle = 0 if self._is_worth(before) else idle + 1

    def _by_turns(self, start: Evaluation) -> Iterator[None]:
        """Rounds of annealing, by turns from *start* and from the best."""
        for number in count():
            self._improve(start if number % 2 == 0 else self._known(), _STEPS_PER_OP * self.problem.ops, number)
            yield

    def _improve(self, origin: Evaluation, steps: int, number: int) -> None:
        seed = self.seed + number
        self._offer(improve(origin, self.budget, steps=steps, clock=self.clock, seed=seed, bound=self.bound))

    def _in_pairs(self, start: Evaluation) -> Iterator[None]:
        """Rounds of two searches: they anneal from *start*, ruin and recreate by themselves, and cross what was found.

        Several beginnings that do not know of each other, crossed, beat one that goes on.
        """
        ops = self.problem.ops
        steps = min(max(_REBUILT // ops, _REBUILT_LARGE * ops), _REBUILT_SMALL * ops)
        pool: list[Evaluation] = []
        for number in count():
            seeds = [(self.seed, number, 0), (self.seed, number, 1)]
            left = self.clock.until - time.perf_counter()
            with compiling_beside(self.clock):
                annealing = [Annealing(start, self.budget, seed) for seed in seeds]
                pair = self._run(annealing, _MOVED_PER_OP * ops, _FIRST * left)
            yield
            rebuilding = [Rebuilding(one, self.budget, (*seed, 1)) for one, seed in zip(pair, seeds, strict=True)]
            pool = self._merged(pool, self._run(rebuilding, steps, inf))
            yield
            crossing = [
                Rebuilding(one, self.budget, (*seed, 2), [other for other in pool if other is not one])
                for one, seed in zip(pool, seeds, strict=False)
            ]
            pool = self._merged(pool, self._run(crossing, steps, inf))
            yield

    def _merged(self, pool: list[Evaluation], found: list[Evaluation]) -> list[Evaluation]:
        """Return the best of both, each once, the best first."""
        unique = {self._rank_of(one): one for one in (*found, *pool)}
        return [unique[rank] for rank in sorted(unique)][:_POOL]

    def _run(self, searches: Sequence[Search], steps: int, seconds: float) -> list[Evaluation]:
        """Return what *searches* find within *seconds*, the best first."""
        clock = Clock(min(self.clock.until, time.perf_counter() + seconds))
        found = sorted(side_by_side(searches, steps=steps, clock=clock, watch=self._watch), key=self._rank_of)
        self.clock.stopped = clock.stopped
        self._offer(found[0])
        return found

    def _watch(self, cost: float) -> None:
        if isfinite(cost) and (not self._fits() or cost < self._known().cost):
            self.tell(cost, True)

    def _known(self) -> Evaluation:
        assert self.best is not None, "a start is offered first"
        return self.best

    def _offer(self, state: Evaluation) -> None:
        if self.best is None or self._rank_of(state) < self._rank():
            self.best = state
            self.tell(state.cost, self._fits())

    def _fits(self) -> bool:
        return self._known().peak <= self.budget

    def _rank(self) -> tuple[bool, float]:
        return self._rank_of(self._known())

    def _rank_of(self, state: Evaluation) -> tuple[bool, float]:
        fits = state.peak <= self.budget
        return (not fits, state.cost * (1 + 1e-9) if fits else state.peak)

    def _is_worth(self, before: tuple[bool, float]) -> bool:
        """Whether the best is so much better than the one of rank *before* that searching on is worth the time."""
        too_much, number = self._rank()
        return too_much != before[0] or number < before[1] - (_WORTH * number if too_much else self._worth)

    def _is_near(self) -> bool:
        """Whether the best fits, and no sequence could be much cheaper."""
        return self._fits() and self._known().cost <= self.bound * (1 + 1e-9) + self._worth
