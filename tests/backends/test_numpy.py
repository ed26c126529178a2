"""The replay on the host measures what numpy really holds, and leaves nothing behind."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import graphsim as gs
from graphsim.backends.numpy import Numpy
from graphsim.layout import validate
from graphsim.strategies import STRATEGIES
from graphsim.trace import Trace


def trace_of(strategy: str) -> Trace:
    step = gs.training_step(gs.load("lenet5", batch=4), optimizer="momentum", target="cpu")
    return gs.simulate(step, STRATEGIES[strategy]()(step).schedule).trace


@pytest.mark.parametrize("strategy", ["none", "sqrt"])
def test_measured_use_equals_the_predicted_one_at_every_event(strategy):
    events = trace_of(strategy)
    measured = Numpy()(events)
    validate(events, measured)
    assert np.array_equal(measured.used, np.cumsum(events.stream[1]))


def test_arrays_of_others_are_not_counted():
    tracemalloc.start()
    try:
        others = [np.ones(1000)]
        events = trace_of("none")
        assert np.array_equal(Numpy()(events).used, np.cumsum(events.stream[1]))
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()
    assert len(others) == 1


def test_everything_is_freed_even_if_the_host_has_no_memory_left():
    columns = ([0, 1], [12345, 2**62], [0, 1], [-1, -1], [-1, 0])
    impossible = Trace(*(np.array(column, dtype=np.int64) for column in columns))
    tracemalloc.start()
    try:
        with pytest.raises(MemoryError):
            Numpy()(impossible)
        assert 12345 not in [trace.size for trace in tracemalloc.take_snapshot().traces]
    finally:
        tracemalloc.stop()
    assert not tracemalloc.is_tracing()
