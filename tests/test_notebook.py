"""What a notebook shows of a report."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import graphsim as gs
from graphsim.display import HEIGHT, sparkline, summary_html
from graphsim.recompute.plan import make_plan
from graphsim.units import format_bytes


def test_a_report_shows_its_peak_and_composition():
    report = gs.peak(gs.load("lenet5", batch=8), optimizer="adam")
    shown = report._repr_html_()
    assert f"({report.steady.peak_bytes:,} bytes)" in shown
    assert report.steady.peak_op in shown
    root = ET.fromstring(shown)
    cells = [[cell.text for cell in row] for row in root.iter("tr")][1:]
    sizes = sorted((size for size in report.steady.by_role_at_peak.values() if size), reverse=True)
    assert [row[1] for row in cells] == [format_bytes(size) for size in sizes]
    assert "script" not in shown
    assert not re.search(r"https?:", shown)


def test_the_sparkline_is_as_high_as_the_timeline():
    bars = re.findall(
        r'<rect x="([\d.]+)" y="[\d.]+" width="[\d.]+" height="([\d.]+)"', sparkline([1, 4, 2], ["a"] * 3)
    )
    assert [float(height) for _, height in bars] == [HEIGHT / 4, HEIGHT, HEIGHT / 2]
    assert sparkline([], []) == ""


def test_names_are_escaped():
    shown = summary_html("<b>&", ["<i>"], {"<u>": 1}, [1], ["<forward>"])
    assert not {"<b>", "<i>", "<u>", "<forward>"} & set(re.findall(r"<\w+>", shown))
    ET.fromstring(shown)


def test_a_graph_a_simulation_and_a_plan_show_themselves_and_their_reprs_are_one_line():
    graph = gs.training_step(gs.load("lenet5", batch=8))
    run, plan = gs.simulate(graph), make_plan(graph, "sqrt")
    for value, number in (
        (graph, f"{len(graph.ops):,} ops"),
        (run, f"({run.peak:,} bytes)"),
        (plan, format_bytes(plan.peak_bytes)),
    ):
        (text,) = ET.fromstring(value._repr_html_()).itertext()
        assert number in text
        assert "\n" not in repr(value)
    sizes = run.by_role(run.peak_execution)
    assert all(format_bytes(size) in run._repr_html_() for size in sizes.values() if size)
    hostile = gs.Graph([], [gs.Tensor("x", (4,), role=gs.Role.INPUT)], name="<b>&")
    for value in (hostile, gs.simulate(hostile)):
        assert "&lt;b&gt;" in ET.tostring(ET.fromstring(value._repr_html_()), encoding="unicode")
