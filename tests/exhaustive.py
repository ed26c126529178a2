"""Which cases of a long list run each time; the others are marked `exhaustive`, which CI runs in a stage of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def only(always: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """Return all *cases* as parameters, tuples as several: those in *always* run each time."""
    always, cases = list(always), list(cases)
    assert all(case in cases for case in always)
    return [case if case in always else _marked(case) for case in cases]


def _marked(case: Any) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.exhaustive)
