"""What lies between two sizes that were looked at: the trace of any size, as the line through both says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import graphsim as gs
from graphsim.answers.largest import interpolated, largest
from graphsim.core.trace import Trace
from graphsim.memory.allocators.torch import TorchCaching
from graphsim.sources import source_of

NET = {"layers": 2, "width": 128, "heads": 2, "vocab": 2000, "seq": 64}


def trace_of(batch: int, name: str = "gpt2", **params) -> Trace:
    params = params or (NET if name == "gpt2" else {})
    return gs.simulate(source_of(name, **params, batch=batch).steps(gs.Training(target="cpu")).steady).trace


def same(a: Trace, b: Trace) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in Trace.__annotations__)


@pytest.mark.parametrize("batch", [2, 3, 5, 8, 64])
@pytest.mark.parametrize("name", ["gpt2", "lenet5"])
def test_a_size_between_or_beyond_two_is_the_trace_that_is_simulated_for_it(name, batch):
    between = interpolated((4, trace_of(4, name)), (16, trace_of(16, name)))
    assert between is not None
    assert same(between(batch), trace_of(batch, name))


def test_the_ends_are_themselves_and_their_order_does_not_matter():
    ends = (4, trace_of(4)), (8, trace_of(8))
    for pair in (ends, ends[::-1]):
        between = interpolated(*pair)
        assert between is not None
        for size, trace in ends:
            assert same(between(size), trace)


def test_traces_that_differ_in_more_than_bytes_have_nothing_between():
    four = trace_of(4)
    longer = trace_of(8, **{**NET, "layers": 3})
    moved = replace(trace_of(8), free=np.roll(four.free, 1))
    assert interpolated((4, four), (8, longer)) is None
    assert interpolated((4, four), (8, moved)) is None
    assert interpolated((4, four), (4, four)) is None, "no line goes through one point"


@given(
    fixed=st.lists(st.integers(0, 1000), min_size=1, max_size=6),
    slopes=st.lists(st.integers(0, 1000), min_size=6, max_size=6),
    sizes=st.tuples(st.integers(1, 50), st.integers(51, 100)),
    asked=st.integers(1, 200),
)
def test_bytes_on_a_line_are_found_exactly_and_no_block_vanishes(fixed, slopes, sizes, asked):
    rows = np.arange(len(fixed))

    def at(size: int) -> Trace:
        nbytes = np.array([c + k * size for c, k in zip(fixed, slopes, strict=False)], dtype=np.int64)
        return Trace(rows, np.maximum(nbytes, 1), rows, np.full(len(rows), -1), rows)

    between = interpolated(*((size, at(size)) for size in sizes))
    assert between is not None
    found = between(asked)
    assert (found.nbytes >= 1).all()
    straight = np.array([c + k > 0 for c, k in zip(fixed, slopes, strict=False)])
    assert np.array_equal(found.nbytes[straight], at(asked).nbytes[straight])


def test_a_guess_by_two_batches_is_what_a_search_by_simulation_finds():
    allocator, room = TorchCaching(), 600 * 2**20
    between = interpolated((8, trace_of(8)), (16, trace_of(16)))
    assert between is not None
    guess, _ = largest(lambda size: allocator(between(size)).reserved_peak, start=8, room=room)
    found, _ = largest(lambda size: allocator(trace_of(size)).reserved_peak, start=8, room=room)
    assert guess == found > 16
