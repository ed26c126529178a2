"""The picture of a comparison: every plan stands where its figures say, with its name beside it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from exhaustive import only
from generators import chain
from pages import step
from quick import quick

from graphsim.core.graph import Graph
from graphsim.core.simulation import simulate
from graphsim.errors import UsageError
from graphsim.recompute.case import Case
from graphsim.units import format_bytes

pytest.importorskip("matplotlib")
from graphsim.recompute.plan import Plan, make_plan
from graphsim.show.reporters.pareto import plans_figure, plans_picture

NAMES = ("none", "sqrt", "greedy", "blocks", "rotor", "dtr", "mincut", "selective", "every_k")


def comparison(budget: float | None) -> tuple[Graph, list[Plan]]:
    graph = step("resnet18", batch=4)
    limit = int(budget * simulate(graph).peak) if budget else None
    return graph, [make_plan(graph, quick(name), limit) for name in NAMES]


@pytest.fixture(scope="module", params=[None, 0.6, 0.1])
def drawn(request):
    graph, plans = comparison(request.param)
    return graph, plans, plans_figure(graph, plans)


def points(axes):
    return np.array([line.get_xydata()[0] for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())])


FORMATS = [(".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")]


@pytest.mark.parametrize(("suffix", "magic"), only(FORMATS[:1], FORMATS))
def test_a_picture_is_of_the_format_of_its_suffix(suffix, magic):
    assert plans_picture(*comparison(0.6), suffix).startswith(magic)
    with pytest.raises(UsageError, match=r"\*\.png or"):
        plans_picture(*comparison(None), ".gif")


def test_every_plan_is_a_point_and_the_front_turns_at_the_best(drawn):
    _, plans, figure = drawn
    (axes,) = figure.axes
    assert points(axes).tolist() == [[plan.peak_bytes, plan.overhead] for plan in plans]
    (front,) = [line for line in axes.lines if line.get_label() == "Pareto front"]
    corners = front.get_xydata()[::2].tolist()
    assert corners == sorted(corners)
    assert corners[-1] == [plans[0].peak_bytes, 0.0]
    assert all(any(x <= p.peak_bytes and y <= p.overhead for x, y in corners) for p in plans)


def test_all_are_named_and_no_name_covers_another_or_a_point(drawn):
    _, _, figure = drawn
    (axes,) = figure.axes
    figure.draw_without_rendering()
    assert sorted(name for text in axes.texts for name in text.get_text().replace(",", " ").split()) == sorted(NAMES)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    frame = axes.get_window_extent()
    assert all(frame.containsx(box.x0) and frame.containsx(box.x1) for box in boxes)
    spots = axes.transData.transform(points(axes))
    assert not any(box.contains(*spot) for box in boxes for spot in spots)


def test_the_budget_and_the_bounds_are_drawn_where_they_are(drawn):
    graph, plans, figure = drawn
    (axes,) = figure.axes
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    budget = plans[0].budget
    lines = [line for line in axes.lines if line.get_label().startswith("budget")]
    assert [line.get_xdata()[0] for line in lines] == ([] if budget is None else [budget])
    assert budget is None or f"budget {format_bytes(budget)}" in legend
    assert ("does not fit" in legend) == (not all(plan.feasible for plan in plans))
    assert axes.patches[0].get_x() + axes.patches[0].get_width() == plans[0].memory_bound
    assert axes.get_xlim()[0] < (budget or plans[0].memory_bound)
    corners = axes.collections[0].get_paths()[0].vertices
    sizes = sorted({int(x) for x in corners[:, 0]})
    assert (sizes[0], sizes[-1]) == (plans[0].memory_bound, plans[0].peak_bytes)
    case = Case(graph)
    for size in sizes:
        least = case.least_time(size)
        extra = min(least / plans[0].base_time - 1, axes.get_ylim()[1])
        assert np.isclose(corners[corners[:, 0] == size, 1], extra, atol=1e-9).any()


def test_an_outlier_stands_at_the_edge_and_says_how_far_it_is():
    graph = chain(12)
    plans = [make_plan(graph, quick(name)) for name in ("none", "sqrt", "greedy")]
    far = replace(plans[1], strategy="f$ar$", time=plans[1].base_time * 9)
    axes = plans_figure(graph, [*plans, far]).axes[0]
    (edge,) = [line for line in axes.lines if line.get_marker() == "^"]
    assert axes.get_ylim()[0] < edge.get_ydata()[0] < axes.get_ylim()[1]
    assert any(text.get_text() == r"f\$ar\$ +800%" for text in axes.texts)
