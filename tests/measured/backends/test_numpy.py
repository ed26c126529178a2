"""The replay on the host measures what numpy really holds, and leaves nothing behind."""

from __future__ import annotations

import resource
import sys
import threading
import tracemalloc

import numpy as np
import pytest

import graphsim as gs
from graphsim.core.layout import validate
from graphsim.core.trace import Trace
from graphsim.errors import OutOfMemoryError, UsageError
from graphsim.measured.backends.numpy import Numpy
from graphsim.recompute.plan import make_schedule


def trace_of(strategy: str) -> Trace:
    step = gs.training_step(gs.load("lenet5", batch=4), optimizer="momentum", target="cpu")
    return gs.simulate(step, make_schedule(step, strategy)).trace


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


def test_what_other_threads_allocate_meanwhile_is_not_counted():
    events = trace_of("sqrt")
    stop, kept, interval = threading.Event(), [], sys.getswitchinterval()

    def allocate():
        while not stop.is_set():
            kept.append(bytes(3000))

    other = threading.Thread(target=allocate)
    sys.setswitchinterval(1e-5)  # the other thread has its turn several times within one replay
    other.start()
    try:
        for _ in range(10):
            assert np.array_equal(Numpy()(events).used, np.cumsum(events.stream[1]))
    finally:
        stop.set()
        other.join()
        sys.setswitchinterval(interval)


def test_everything_is_freed_and_the_event_is_named_if_the_host_has_no_memory_left():
    enormous = 1000  # blocks of nearly 2 GiB: beyond the address space that the process may have
    sizes = np.array([12345] + [2**31 - 1] * enormous, dtype=np.int64)
    number = np.arange(len(sizes))
    nothing = np.full(len(sizes), -1)
    impossible = Trace(tensor=number, nbytes=sizes, malloc=number, free=nothing, execution=nothing)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**40, limits[1]))
    tracemalloc.start()
    try:
        with pytest.raises(OutOfMemoryError, match="out of memory at event") as error:
            Numpy()(impossible)
        assert 0 < error.value.event < enormous
        assert 12345 not in [trace.size for trace in tracemalloc.take_snapshot().traces]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        tracemalloc.stop()
    assert not tracemalloc.is_tracing()


def test_a_block_that_no_array_item_can_hold_is_refused():
    one = np.zeros(1, dtype=np.int64)
    with pytest.raises(UsageError, match="2 GiB"):
        Numpy()(Trace(tensor=one, nbytes=one + 2**31, malloc=one, free=one - 1, execution=one - 1))


def test_touching_pages_changes_no_count():
    events = trace_of("none")
    assert np.array_equal(Numpy(touch=True)(events).used, np.cumsum(events.stream[1]))
