"""Shared settings of the test suite."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / room) for room in (".", "ops", "strategies/remat")]  # oracles, reference, generators

settings.register_profile(  # CI tries the same examples every time; elsewhere, new ones
    "graphsim", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("graphsim")
