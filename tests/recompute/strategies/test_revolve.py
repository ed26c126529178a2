"""Revolve: the closed form, the dynamic program behind it, and what the moves really do."""

from __future__ import annotations

from functools import cache

import pytest
from exhaustive import only
from generators import chain

from graphsim.errors import UsageError
from graphsim.recompute.plan import make_plan
from graphsim.recompute.strategies.none import StoreAll
from graphsim.recompute.strategies.revolve import Revolve, forward_steps, schedule


@cache
def fewest(n: int, slots: int) -> int:
    """The recursion, without any formula: advance m, reverse the rest in one slot less, then the first m."""
    if n <= 1:
        return 0
    if slots == 1:
        return n - 1 + fewest(n - 1, 1)
    return min(m + fewest(n - m, slots - 1) + fewest(m, slots) for m in range(1, n))


def execute(n: int, slots: int) -> int:
    """Carry out the moves on a chain that only knows its state; return how often it stepped forward."""
    state, stored, reversed_, steps = 0, set(), [], 0
    for kind, step, to in schedule(n, slots):
        if kind == "store":
            assert state == step
            stored.add(step)
            assert len(stored) <= slots
        elif kind == "advance":
            assert state == step < to
            steps += to - step
            state = to
        elif kind == "reverse":
            assert state == step
            reversed_.append(step)
        elif kind == "restore":
            assert step in stored
            state = step
        else:
            stored.remove(step)
    assert not stored
    assert reversed_ == list(range(n - 1, -1, -1))
    return steps


@pytest.mark.parametrize("slots", range(1, 21))
def test_the_moves_take_as_many_steps_as_the_closed_form_says(slots):
    for n in range(201):
        assert execute(n, slots) == forward_steps(n, slots)


def test_the_closed_form_is_the_optimum_of_the_recursion():
    for n in range(1, 71):
        for slots in range(1, 11):
            assert forward_steps(n, slots) == fewest(n, slots)


def test_published_values():
    """Griewank and Walther 2000: 10 steps in 3 slots take 2 repetitions; C(s + r, s) steps are the most for r."""
    assert [forward_steps(10, slots) for slots in (1, 2, 3)] == [45, 20, 15]
    assert forward_steps(56, 3) == 5 * 56 - 70


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("length", [12, 40])
def test_on_a_chain_it_needs_a_slot_each_and_no_more_steps_than_the_closed_form(length, slots):
    graph = chain(length)
    plan = make_plan(graph, Revolve(slots=slots))
    assert plan.peak_bytes <= (slots + 4) * 1000
    assert plan.time - plan.base_time <= forward_steps(length, slots)
    assert make_plan(graph, StoreAll()).peak_bytes == (length + 1) * 1000


@pytest.mark.parametrize("length", only([40], [40, 100]))
def test_more_budget_never_costs_more_on_a_chain(length):
    graph = chain(length)
    times = [make_plan(graph, Revolve(), budget * 1000).time for budget in range(8, length + 2)]
    assert times == sorted(times, reverse=True)
    assert make_plan(graph, Revolve(), 8000).feasible


@pytest.mark.parametrize("options", [{"slots": 0}, {"spans": 0}])
def test_senseless_options_are_refused(options):
    with pytest.raises(UsageError, match="at least 1"):
        Revolve(**options)
    with pytest.raises(UsageError, match="at least"):
        schedule(-1, 1)
