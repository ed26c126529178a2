"""What a notebook shows of a report."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import graphsim as gs
from graphsim.display import HEIGHT, sparkline, summary_html
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
