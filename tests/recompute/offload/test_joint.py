"""Recompute and offload together: never slower than recompute alone; on small chains, the best of all that can be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations_with_replacement, permutations, product
from math import inf

import numpy as np
import pytest
from exhaustive import only
from generators import chain, training_steps
from hypothesis import given, settings
from hypothesis import strategies as st
from offloading import Life, Stay, clock, gaps, lives_of, place
from reference import InvalidScheduleError

from graphsim.core.graph import Graph, Op, Tensor
from graphsim.core.simulation import simulate
from graphsim.errors import UsageError
from graphsim.recompute.case import Case
from graphsim.recompute.plan import make_plan
from graphsim.recompute.strategies.auto import Auto
from graphsim.recompute.strategies.offload import Offload

# -- the oracle: everything that can be done ------------------------------------------------------------


def fastest(graph: Graph, budget: int, rate: float, *, again: int) -> float:
    """The least time of any schedule with at most so many recomputes and any offloads; infinity: none fits."""
    best = inf
    costs = [op.time for op in graph.ops]
    for order in sorted(orders(graph, again), key=lambda order: sum(costs[op] for op in order)):
        own = [costs[op] for op in order]
        if sum(own) >= best:
            break
        try:
            lives, longest = lives_of(graph, order, "eager"), gaps(graph, order, "eager")
        except InvalidScheduleError:
            continue
        if peak(lives, longest, len(order)) > budget:
            continue
        for stays in all_stays(longest, lives, own, rate, best):
            if peak(lives, stays, len(order)) > budget:
                continue
            try:
                best = min(best, clock(place(stays, lives), own, rate)[1])
            except InvalidScheduleError:  # the host has no copy, or it is still on its way
                continue
    return best


def orders(graph: Graph, again: int) -> Iterator[list[int]]:
    """Program order, with each number of forward ops up to *again* run again, anywhere."""
    program = list(range(len(graph.ops)))
    forward = [at for at, op in enumerate(graph.ops) if op.name.startswith("f")]
    for count in range(again + 1):
        for places in combinations_with_replacement(range(1, len(program)), count):
            for ops in product(forward, repeat=count):
                if any(op >= place for op, place in zip(ops, places, strict=True)):
                    continue
                order = list(program)
                for at, op in reversed(list(zip(places, ops, strict=True))):
                    order.insert(at, op)
                yield order


def all_stays(
    longest: list[Stay], lives: list[Life], costs: list[float], rate: float, best: float
) -> Iterator[list[Stay]]:
    """Every choice of stays, one at most for each gap, and every order of those that begin or end at once.

    But for those that take as long as the *best* by themselves: with others beside them they take no less.
    """
    promising = []
    for gap in longest:
        nbytes = next(life.nbytes for life in lives if life.tensor == gap.tensor)
        again = sum(other.tensor == gap.tensor for other in longest) > 1
        promising.append(
            [None, *(stay for stay in stays_in(gap, again) if alone(stay, gap, nbytes, costs, rate) < best)]
        )
    for chosen in product(*promising):
        stays = [stay for stay in chosen if stay is not None]
        ties = len({stay.out for stay in stays}) < len(stays) or len({stay.back for stay in stays}) < len(stays)
        yield from map(list, permutations(stays)) if ties else [stays]


def stays_in(gap: Stay, again: bool) -> Iterator[Stay]:
    """Every stay within *gap*; also without a copy out, if there may be one *again*."""
    for free in range(gap.free, gap.back):
        for back in range(free + 1, gap.back + 1):
            for out in (*[None] * again, *range(gap.out, free + 1)):
                yield Stay(gap.tensor, out, free, back)


def alone(stay: Stay, gap: Stay, nbytes: int, costs: list[float], rate: float) -> float:
    """How long the step takes at least with one stay."""
    seconds = nbytes / rate
    out = 0.0 if stay.out is None else max(0.0, seconds - sum(costs[stay.out : stay.free]))
    return sum(costs) + out + max(0.0, seconds - sum(costs[stay.back : gap.back]))


def peak(lives: list[Life], stays: list[Stay], executions: int) -> int:
    """The peak on the device; each tensor is one storage at a time, and stays within one of its gaps."""
    timeline = [0] * executions
    for life in lives:
        for at in range(life.begin, life.end):
            timeline[at] += life.nbytes
    sizes = {life.tensor: life.nbytes for life in lives}
    for stay in stays:
        for at in range(stay.free, stay.back):
            timeline[at] -= sizes[stay.tensor]
    return max(timeline)


def random_chain(seed: int, length: int) -> Graph:
    """A chain of activations of random sizes, made in random seconds."""
    random = np.random.default_rng(seed)
    plain = chain(length)
    ops = [Op(op.name, op.kind, op.inputs, op.outputs, op.phase, time=float(random.integers(1, 9))) for op in plain.ops]
    tensors = [Tensor(t.name, (int(random.integers(1, 9)),), "uint8") for t in plain.tensors.values()]
    return Graph(ops, tensors, outputs=plain.outputs, name=f"chain {seed}", attributes={"cost_unit": "seconds"})


# -- the planner ------------------------------------------------------------------------------------------


SEARCH = Offload(Auto(seconds=30.0), "2B/s")


@pytest.mark.parametrize(
    ("seed", "rate"), only([(1, 2), (3, 4), (8, 1)], [(seed, rate) for seed in range(12) for rate in (1, 2, 4)])
)
def test_on_small_chains_the_plan_is_the_best_of_all_that_can_be(seed, rate):
    case = Case(random_chain(seed, 3))
    for share in (0.75, 0.9):
        budget = int(share * case.stored.peak)
        least = fastest(case.graph, budget, rate, again=2)
        plan = make_plan(case, replace(SEARCH, link=f"{rate}B/s"), budget)
        assert plan.feasible == (least < inf)
        assert not plan.feasible or plan.time == pytest.approx(least, rel=1e-9)


@given(graph=training_steps(), share=st.floats(0.3, 1.0), rate=st.sampled_from([1, 20, 400]))
@settings(max_examples=12)
def test_it_is_never_slower_than_recompute_alone_and_says_how_much_that_takes(graph, share, rate):
    graph = timed(graph)
    case = Case(graph)
    budget = int(share * case.stored.peak)
    alone = make_plan(case, Auto(seconds=0.0), budget)
    plan = make_plan(case, Offload(Auto(seconds=0.2), f"{rate}B/s"), budget)
    run = simulate(graph, plan.schedule)
    assert (plan.peak_bytes, plan.time) == (run.peak, run.time)
    assert plan.feasible >= alone.feasible
    if alone.feasible:
        assert plan.time <= alone.time * (1 + 1e-9)
        assert plan.time <= plan.offloading.recompute_time <= alone.time * (1 + 1e-9)
    assert case.base_time * (1 - 1e-9) <= plan.time_bound <= plan.time * (1 + 1e-9)


def timed(graph: Graph) -> Graph:
    """The graph, its ops a second each."""
    ops = [replace(op, time=1.0) for op in graph.ops]
    return Graph(ops, graph.tensors.values(), outputs=graph.outputs, attributes={"cost_unit": "seconds"})


def test_a_wide_link_takes_the_place_of_all_recompute():
    case = Case(step_in_seconds(12))
    budget = case.stored.peak * 3 // 4
    alone, wide = (make_plan(case, one, budget) for one in (Auto(seconds=10.0), Offload(Auto(seconds=10.0), "1MB/s")))
    assert alone.overhead > 0
    assert wide.overhead == 0
    assert wide.proved_optimal
    assert not wide.schedule.repeats.any()
    assert wide.offloading.host_peak_bytes >= case.stored.peak - budget
    assert wide.offloading.copied_bytes == 2 * 1000 * wide.offloading.count


def step_in_seconds(length: int) -> Graph:
    graph = chain(length)
    return Graph(graph.ops, graph.tensors.values(), outputs=graph.outputs, attributes={"cost_unit": "seconds"})


def test_the_same_seed_finds_the_same():
    case = Case(random_chain(5, 6))
    budget = case.stored.peak * 3 // 4
    first, second = (make_plan(case, SEARCH, budget).schedule for _ in range(2))
    assert first == second


def test_a_link_is_of_no_use_without_seconds():
    with pytest.raises(UsageError, match="costs in an unknown unit: give them --costs of a GPU"):
        make_plan(chain(4), SEARCH, 4000)


def test_what_fits_as_it_is_stays_as_it_is():
    case = Case(random_chain(5, 6))
    plan = make_plan(case, SEARCH, case.stored.peak)
    assert plan.schedule == case.stored.schedule
    assert plan.offloading.count == 0
