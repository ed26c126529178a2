"""Plans in a terminal: what is said of how good they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from generators import chain

from graphsim.answers.planned import Planned
from graphsim.core.graph import Graph
from graphsim.core.schedule import Schedule
from graphsim.recompute.plan import Plan, judge, make_plan
from graphsim.show.reporters.plans import comparison_text, dearest, plan_text


def plan(name: str, peak: int, overhead: float, budget: int | None = None) -> Plan:
    """A plan with these figures; no schedule needs less than 1 KiB."""
    empty = judge(Graph([], []), Schedule.of(Graph([], [])), strategy=name, budget=budget, seconds=0.5)
    fits = budget is None or peak <= budget
    return replace(
        empty, peak_bytes=peak, time=2.0 + 2 * overhead, base_time=2.0, memory_bound=1024, feasible=fits, time_bound=2.0
    )


PLANS = [("none", 4096, 0.0), ("good", 2048, 0.1), ("bad", 3072, 0.2), ("worse", 3072, 0.2), ("hopeless", 1024, 3.0)]


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        (1.1, "at most 9.09% from optimal: no plan that keeps the order of ops costs less than +10.00%"),
        (1.15, "at most 4.35% from optimal: no plan of mine's form costs less than +15.00%"),
        (1.2, "the cheapest of mine's form; no plan that keeps the order of ops costs less than +10.00%"),
    ],
)
def test_a_bound_says_of_which_plans_it_holds(bound, words):
    graph = chain(10)
    plan = replace(make_plan(graph, "sqrt", 10**6), strategy="mine")
    base = plan.base_time
    told = replace(plan, time=base * 1.2, time_bound=base * bound)
    assert f"  {words}\n" in plan_text(Planned(graph, told, base * 1.1))


def test_what_an_allocator_holds_is_beside_the_budget_and_what_is_live_is_not():
    graph = chain(10)
    answer = Planned(graph, make_plan(graph, "none", 2**20), 0.0, None, "torch", 2**19)
    first, second = plan_text(answer).splitlines()[:2]
    assert "within" not in first
    assert second == "  torch holds 512.0 KiB (524,288 bytes) within 1.00 MiB, in step 1 and later"


def test_the_table_tells_peak_time_and_overhead_and_keys_the_chart_to_its_rows():
    text = comparison_text([plan(*each) for each in PLANS], "seconds", 2.0, 100)
    header, *rows = [line.split() for line in text.splitlines()[:6]]
    assert header == ["strategy", "peak", "of", "none", "time", "overhead", "planned", "in", "budget"]
    assert [row[:2] for row in rows] == [["A", "none"], ["B", "good"], ["c", "bad"], ["d", "worse"], ["E", "hopeless"]]
    assert rows[1][2:] == ["2.00", "KiB", "50.0%", "2.20", "s", "+10.00%", "0.50", "s"]
    chart = [line for line in text.splitlines() if "│" in line]
    assert [line.split("│")[0].strip() for line in chart if line.split("│")[0].strip()] == ["dearer", "+20.0%", "+0.0%"]
    places = {mark: (i, line.index(mark)) for i, line in enumerate(chart) for mark in "ABcdE" if mark in line[9:]}
    assert [places[mark][0] for mark in "EcdBA"] == [0, 1, 1, 5, 10]
    assert places["E"][1] < places["B"][1] < places["c"][1] == places["d"][1] - 1 < places["A"][1]
    assert "budget" not in text.splitlines()[-1]


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("budget", [1100, 2048, 4000, 9000])
def test_the_chart_keeps_to_the_width_and_draws_the_budget_where_it_is(width, budget):
    text = comparison_text([plan(*each, budget) for each in PLANS], "flops", 2.1, width)
    assert max(map(len, text.splitlines())) <= width
    columns = {line.index("┊") for line in text.splitlines() if "┊" in line and not set(line) & set("BE")}
    assert len(columns) == (budget < 4096)
    assert "costs less than +5.00%." in text


def test_a_budget_that_nothing_fits_is_told():
    text = comparison_text([plan(*each, 1000) for each in PLANS], "", float("inf"), 100)
    assert "None within 1,000 B keeps the order of ops." in text.splitlines()[-1]


def test_outliers_do_not_set_the_scale():
    assert dearest([plan(*each) for each in PLANS]) == pytest.approx(0.2)
    assert dearest([plan("none", 5, 0.0)]) > 0
