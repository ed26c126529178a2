"""In a narrow terminal names may wrap or end in dots; numbers are whole, and no line is wider."""

from __future__ import annotations

import re

import pytest

import graphsim as gs
from graphsim.show.reporters.difference import diff_text
from graphsim.show.reporters.peak import report_text
from graphsim.units import format_bytes


@pytest.fixture(scope="module")
def report():
    return gs.peak("lenet5", batch=64)


@pytest.mark.parametrize("width", [40, 59, 60, 80, 120])
def test_the_peak_has_all_its_numbers(report, width):
    text = report_text(report, width=width, color=False)
    step = report.steady
    for size in [step.peak_bytes, *filter(None, step.by_role_at_peak.values()), *(t.nbytes for t in step.largest[:8])]:
        assert format_bytes(size) in text
    for size in filter(None, step.by_role_at_peak.values()):
        assert f"{size / step.peak_bytes:.1%}" in text
    assert max(map(len, text.splitlines())) <= width
    assert not re.search(r"\d…", text)


@pytest.mark.parametrize("width", [40, 59, 60, 80])
def test_a_difference_has_what_is_now_and_what_changed(report, width):
    diff = gs.diff(report, "lenet5", only_b={"batch": 2})
    text = diff_text(diff, width=width)
    for change in (diff.steady, *(role for role in diff.roles if role.a or role.b)):
        assert format_bytes(abs(change.bytes)) in text or not change.bytes
        assert change.b is None or format_bytes(change.b) in text
    assert max(map(len, text.splitlines())) <= width
    assert (format_bytes(diff.steady.a) in text) == (width >= 60)
    assert not re.search(r"\d…", text)
