"""Predicted peaks of real models against recorded PyTorch measurements (tests/data, bench/accuracy.py)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench" / "accuracy.py"


def _accuracy():
    spec = importlib.util.spec_from_file_location("accuracy", BENCH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["accuracy"] = module
    spec.loader.exec_module(module)
    return module


ACCURACY = _accuracy()
ROWS = list(ACCURACY.reference())


@pytest.mark.parametrize(("case", "measured"), ROWS, ids=[f"{c.model}-b{c.batch}-{c.optimizer}" for c, _ in ROWS])
def test_every_recorded_peak_is_within_half_a_percent(case, measured):
    predicted = ACCURACY.predict(case)
    assert {key: predicted[key] for key in ACCURACY.EXACT} == {key: measured[key] for key in ACCURACY.EXACT}
    errors = {key: predicted[key] / measured[key] - 1 for key in ACCURACY.WITHIN if key in measured}
    assert all(abs(error) <= 0.005 for error in errors.values()), errors


def test_the_mean_error_of_the_steady_peak_is_at_most_a_fifth_of_a_percent():
    errors = [abs(ACCURACY.predict(case)["peak_steady"] / row["peak_steady"] - 1) for case, row in ROWS]
    assert sum(errors) / len(errors) <= 0.002
