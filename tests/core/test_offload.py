"""Offload: bytes and times are those of the slow twin, on random graphs, and the contract of copies, rule by rule."""

from __future__ import annotations

import numpy as np
import pytest
from generators import chain, graphs, schedules
from hypothesis import given, settings
from hypothesis import strategies as st
from offloading import Stay, gaps, step_of
from reference import InvalidScheduleError

from graphsim.core.graph import Graph, Op, Role, Tensor
from graphsim.core.index import NOTHING
from graphsim.core.liveness import POLICIES, live_ranges, places
from graphsim.core.offload import Offloads, timing_of
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import op_costs, simulate
from graphsim.core.trace import trace
from graphsim.errors import ScheduleError


def with_stays(graph: Graph, order: list[int], stays: list[Stay], rate: float = 1000.0) -> Schedule:
    number = {name: i for i, name in enumerate(graph.tensors)}
    rows = [(number[s.tensor], NOTHING if s.out is None else s.out, s.free, s.back) for s in stays]
    tensor, out, free, back = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return Schedule(np.array(order, dtype=np.int64), Offloads(tensor, out, free, back, rate))


@st.composite
def stays(draw: st.DrawFn, graph: Graph, order: list[int], policy: str) -> list[Stay]:
    """Some that can be, within the gaps between two uses, and some that go a little beyond."""
    try:
        longest = gaps(graph, order, policy)
    except InvalidScheduleError:
        return []
    found, near = [], st.sampled_from([*[0] * 16, 1, -1])
    for gap in draw(st.lists(st.sampled_from(longest), min_size=1, max_size=3, unique=True)) if longest else ():
        free = draw(st.integers(gap.free, gap.back - 1)) + draw(near)
        out = draw(st.integers(min(gap.out or 0, free), free)) + draw(near)
        back = draw(st.integers(min(free + 1, gap.back), gap.back)) + draw(near)
        found.append(Stay(gap.tensor, None if draw(st.integers(0, 7)) == 0 else out, free, back))
    return found


@given(data=st.data(), graph=graphs(), policy=st.sampled_from(POLICIES))
@settings(max_examples=600)
def test_bytes_and_times_are_those_of_the_slow_twin(data, graph, policy):
    order = data.draw(schedules(graph))
    if not (chosen := data.draw(stays(graph, order, policy))):
        return
    costs = [float(data.draw(st.integers(0, 3))) for _ in order]
    schedule = with_stays(graph, order, chosen, rate=2.0)
    try:
        wanted = step_of(graph, order, chosen, costs, 2.0, policy)
    except InvalidScheduleError:
        with pytest.raises(ScheduleError):
            live_ranges(graph, schedule, policy=policy)
        return
    found = places(graph, schedule, policy=policy)
    assert found.device.timeline.tolist() == wanted.device
    assert found.host.timeline.tolist() == wanted.host
    timing = timing_of(np.array(costs), found.copies)
    assert timing.start.tolist() == wanted.starts
    assert timing.total == wanted.total


@pytest.fixture
def step() -> Graph:
    """f1 f2 f3 f4 b4 b3 b2 b1, a second and 1000 bytes each."""
    return chain(4)


def test_what_is_on_the_host_is_not_on_the_device(step):
    run = simulate(step, with_stays(step, list(range(8)), [Stay("f1", 1, 2, 6)]))
    stored = simulate(step).timeline
    assert (stored - run.timeline).tolist() == [0, 0, 1000, 1000, 1000, 1000, 0, 0]
    assert run.host_timeline.tolist() == [0, 1000, 1000, 1000, 1000, 1000, 1000, 1000][: len(step.ops)]
    assert (run.peak, run.time) == (4000, 8.0)
    assert [tensor.op for tensor in run.live_at(6) if tensor.name == "f1"] == ["f1"]  # who made it, not who fetched it


def test_copies_beside_ops_cost_no_time_and_a_slow_link_stalls(step):
    order, one = list(range(8)), [Stay("f1", 1, 2, 6)]
    assert simulate(step, with_stays(step, order, one, rate=1000.0)).time == 8.0
    assert simulate(step, with_stays(step, order, one, rate=500.0)).time == 8.0 + 1 + 1  # out in 2 s for 1, back alike
    assert simulate(step, with_stays(step, order, [Stay("f1", 1, 3, 5)], rate=500.0)).time == 8.0


def test_copies_the_same_way_wait_for_each_other_and_those_the_other_way_do_not(step):
    order = list(range(8))
    both = [Stay("f1", 2, 4, 6), Stay("f2", 2, 4, 5)]
    assert simulate(step, with_stays(step, order, both, rate=1000.0)).time == 8.0
    assert simulate(step, with_stays(step, order, both, rate=500.0)).time == 8.0 + 2 + 1 + 1
    crossing = [Stay("f1", 1, 2, 6), Stay("f2", 2, 4, 5)]  # f1 out in 1 ... 3, f2 in 3 ... 5; waits of 1 and 1 - 0
    copies = simulate(step, with_stays(step, order, crossing, rate=500.0)).places.copies
    timing = timing_of(np.ones(8), copies)
    assert timing.out_done.tolist() == [3.0, 5.0]  # one after the other
    assert timing.back_done.tolist() == [10.0, 8.0]


def test_the_host_keeps_a_copy_of_what_does_not_change():
    ops = [Op("make", "node", (), ("x",), time=1.0)]
    for i in range(1, 6):
        reads = ("x",) if i in (3, 5) else ()
        ops.append(Op(f"o{i}", "node", reads, (f"y{i}",), time=1.0))
    graph = Graph(ops, [Tensor("x", (1000,), "uint8"), *(Tensor(f"y{i}", (0,), "uint8") for i in range(1, 6))])
    twice = with_stays(graph, list(range(6)), [Stay("x", 1, 2, 3), Stay("x", None, 4, 5)])
    run = simulate(graph, twice)
    assert run.timeline.tolist() == [1000, 1000, 0, 1000, 0, 1000]
    assert run.host_timeline.tolist() == [0, 1000, 1000, 1000, 1000, 1000]
    assert run.places.copies.copied == 3000
    with pytest.raises(ScheduleError, match="freed without a copy on the host"):
        live_ranges(graph, with_stays(graph, list(range(6)), [Stay("x", None, 4, 5)]))


def test_what_cannot_be_offloaded_is_named(step):
    cases = {
        "'f1', which is read by execution 1, and on the host in 1 ... 5": Stay("f1", 1, 1, 6),
        "'f3', which is read by execution 3": Stay("f3", 3, 3, 5),
        "'b4', which is not there before execution 2": Stay("b4", 1, 2, 3),
        "'f1', which is not there before execution 2, or not used after 8": Stay("f1", 1, 2, 8),
        "'f1', which changes while it is copied out": Stay("f1", 3, 2, 6),
        "'f2', which is copied out before execution 1, but execution 1 makes it": Stay("f2", 1, 3, 6),
        "'f2', which is freed before execution 5 and is back before 5": Stay("f2", 2, 5, 5),
    }
    for words, stay in cases.items():
        with pytest.raises(ScheduleError, match=words):
            live_ranges(step, with_stays(step, list(range(8)), [stay]))
    with pytest.raises(ScheduleError, match="'f1', which is freed before execution 4, but on its way back until 7"):
        live_ranges(step, with_stays(step, list(range(8)), [Stay("f1", 1, 2, 6), Stay("f1", 2, 4, 6)]))


def test_a_parameter_may_go_before_anything_runs_and_comes_back_to_be_updated():
    ops = [
        Op("forward", "node", (), ("x",), time=1.0),
        Op("update", "node", ("x", "w"), (), time=1.0, mutates=("w",)),
    ]
    graph = Graph(ops, [Tensor("w", (1000,), "uint8", Role.OPTIMIZER_STATE), Tensor("x", (10,), "uint8")])
    run = simulate(graph, with_stays(graph, [0, 1], [Stay("w", 0, 0, 1)]))
    assert run.timeline.tolist() == [10, 1010]
    assert run.time == 2.0 + 1 + 1  # both copies are waited for


def test_the_trace_frees_and_allocates_what_is_offloaded(step):
    run = simulate(step, with_stays(step, list(range(8)), [Stay("f1", 1, 2, 6)]))
    _, signed = run.trace.stream
    assert signed.cumsum().max() == run.peak
    assert run.trace.events_count == simulate(step).trace.events_count + 2
    assert len(trace(run.live_ranges).nbytes) == 9


def test_schedules_that_differ_in_their_offloads_are_not_equal(step):
    order = list(range(8))
    one, other = (with_stays(step, order, [Stay("f1", 1, 2, back)]) for back in (5, 6))
    assert one == with_stays(step, order, [Stay("f1", 1, 2, 5)])
    assert one != other
    assert one != Schedule.of(step)
    assert Schedule.of(step) == with_stays(step, order, [])
    assert op_costs(step).sum() == 8.0
