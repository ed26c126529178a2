"""Shared settings of the test suite."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

HERE = Path(__file__).parent
ROOMS = (".", "cli", "step/ops", "sources", "recompute/moves")  # oracles, reference, generators
sys.path[:0] = [str(HERE / room) for room in ROOMS]

# Predictions for the CPU count the scratch of two threads (`THREADS` in graphsim/step/ops): PyTorch, here and in child
# processes, is held against them with as many, whatever this machine has and whatever the shell says. They wait without
# spinning: with a test worker on each core, a thread that spins takes the time of the one it waits for.
os.environ.update(OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive")

settings.register_profile(  # CI tries the same examples every time; elsewhere, new ones
    "graphsim", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.register_profile("fuzz", parent=settings.get_profile("graphsim"), max_examples=50_000, derandomize=False)
settings.load_profile("graphsim")


def pytest_runtest_setup() -> None:
    """Tests of captures collect garbage again and again: what the imports have made need not be looked through."""
    gc.freeze()


def pytest_configure() -> None:
    """Captures ask whether something is frozen: it is, and to count a million objects takes a while each time."""
    gc.get_freeze_count = lambda: 1


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT is heard, here and in child processes, also where the parent ignores it (nohup, a shell's `&`)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
