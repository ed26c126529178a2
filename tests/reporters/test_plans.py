"""Plans in a terminal: what is said of how good they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from generators import chain

from graphsim.reporters.plans import plan_text
from graphsim.strategies import STRATEGIES


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        (1.1, "at most 9.09% from optimal: no plan that keeps the order of ops costs less than +10.00%"),
        (1.15, "at most 4.35% from optimal: no plan of mine's form costs less than +15.00%"),
        (1.2, "the cheapest of mine's form; no plan that keeps the order of ops costs less than +10.00%"),
    ],
)
def test_a_bound_says_of_which_plans_it_holds(bound, words):
    plan = replace(STRATEGIES["sqrt"]()(chain(10), budget=10**6), strategy="mine")
    base = plan.base_time
    told = replace(plan, time=base * 1.2, time_bound=base * bound)
    assert f"  {words}\n" in plan_text(told, base * 1.1)
