"""Shared settings of the test suite."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

HERE = Path(__file__).parent
ROOMS = (".", "cli", "step/ops", "sources", "recompute/moves")  # oracles, reference, generators
sys.path[:0] = [str(HERE / room) for room in ROOMS]

settings.register_profile(  # CI tries the same examples every time; elsewhere, new ones
    "graphsim", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.register_profile("fuzz", parent=settings.get_profile("graphsim"), max_examples=50_000, derandomize=False)
settings.load_profile("graphsim")
