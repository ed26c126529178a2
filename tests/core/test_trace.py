"""Traces: the order of mallocs and frees that follows from live ranges."""

from __future__ import annotations

import numpy as np
from generators import graphs, schedules
from hypothesis import given, settings
from hypothesis import strategies as st

from graphsim.core.graph import RELEASE, Graph, Op, Role, Tensor
from graphsim.core.index import NOTHING
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import in_succession, simulate
from graphsim.core.trace import Event
from graphsim.errors import ScheduleError

GRAPH = Graph(
    [
        Op("a", "n", ("w", "i"), ("x",), workspace=7),
        Op("b", "n", ("x",), ("y", "nothing")),
        Op("c", "n", ("y",), ("z",)),
    ],
    [
        Tensor("w", (100,), "uint8", Role.PARAMETER),
        Tensor("i", (50,), "uint8"),
        Tensor("x", (1,), "uint8"),
        Tensor("y", (2,), "uint8"),
        Tensor("nothing", (0,), "uint8"),
        Tensor("z", (3,), "uint8"),
    ],
    outputs=("z",),
)


def told(graph: Graph, schedule: Schedule | None = None) -> list[str]:
    trace = simulate(graph, schedule).trace
    names = [*graph.tensors, "workspace"]
    return [f"{'+' if event.kind == 'malloc' else '-'}{names[trace.tensor[event.block]]}" for event in trace.events()]


def test_sources_first_then_outputs_workspace_and_the_frees_of_what_died():
    assert told(GRAPH) == ["+w", "+i", "+x", "+workspace", "-workspace", "-i", "+y", "-x", "+z", "-y"]


def test_every_execution_allocates_anew():
    again = Schedule.of(GRAPH, ["a", "b", "a", "b", "c"])
    begin = ["+w", "+i", "+x", "+workspace", "-workspace", "+y", "-x", "-y"]
    assert told(GRAPH, again) == [*begin, "+x", "+workspace", "-workspace", "-i", "+y", "-x", "+z", "-y"]


def test_events_carry_the_block_and_its_bytes():
    trace = simulate(GRAPH).trace
    assert list(trace.events())[:2] == [Event("malloc", 0, 100), Event("malloc", 1, 50)]
    assert trace.events_count == 10
    assert trace.execution.tolist() == [NOTHING, NOTHING, 0, 1, 2, 0]
    assert (trace.free == NOTHING).tolist() == [True, False, False, False, True, False]


def test_where_only_releases_are_left_out_nothing_runs_and_what_is_resident_stays():
    sources = [Tensor("w", (100,), "uint8", Role.PARAMETER), Tensor("i", (50,), "uint8")]
    graph = Graph([Op("r", RELEASE, ("w", "i"))], sources)
    nothing = Schedule(np.array([], dtype=np.int64))
    assert told(graph, nothing) == ["+w"]
    assert simulate(graph, nothing).live_ranges.live_after(-1) == 100


@given(data=st.data(), graph=graphs())
@settings(max_examples=500)
def test_live_bytes_between_two_executions_are_those_that_liveness_says(data, graph):
    run = simulate(graph, Schedule(np.array(data.draw(schedules(graph)), dtype=np.int64)))
    try:
        ranges = run.live_ranges
    except ScheduleError:
        return
    live, after = 0, {}
    for event in run.trace.events():
        execution = int(run.trace.execution[event.block])
        if event.kind == "malloc" and execution != NOTHING:
            after.setdefault(execution, live)  # what was left when this execution began to allocate
        live += event.nbytes if event.kind == "malloc" else -event.nbytes
    for execution, left in after.items():
        if execution:
            assert left == ranges.live_after(execution - 1)
    assert live == ranges.live_after(len(run.schedule) - 1)


FIRST = Graph(
    [Op("a", "n", ("w",), ("state", "x", "grown"))],
    [
        Tensor("w", (100,), "uint8", Role.PARAMETER),
        Tensor("state", (9,), "uint8", Role.OPTIMIZER_STATE),
        Tensor("x", (1,), "uint8"),
        Tensor("grown", (4,), "uint8"),
    ],
    outputs=("state", "x", "grown"),
)
LATER = Graph(
    [Op("b", "n", ("w", "state", "batch", "grown"), ("y",)), Op("c", "n", ("y",), ("x",))],
    [
        Tensor("w", (100,), "uint8", Role.PARAMETER),
        Tensor("state", (9,), "uint8", Role.OPTIMIZER_STATE),
        Tensor("batch", (5,), "uint8", Role.INPUT),
        Tensor("grown", (8,), "uint8"),
        Tensor("y", (2,), "uint8"),
        Tensor("x", (1,), "uint8"),
    ],
)


def test_a_later_step_begins_with_what_the_first_leaves_behind_by_name_and_size():
    joined = in_succession(simulate(FIRST), simulate(LATER))
    stream, begin = joined.trace, joined.begin
    names = [*FIRST.tensors, *LATER.tensors]
    events = [f"{'+' if e.kind == 'malloc' else '-'}{names[stream.tensor[e.block]]}" for e in stream.events()]
    assert events[:begin] == ["+w", "+state", "+x", "+grown", "-x", "-grown"]
    assert events[begin:] == ["+batch", "+grown", "+y", "-grown", "+x", "-y", "-x"]


@given(first=graphs(), later=graphs())
@settings(max_examples=300)
def test_a_joined_trace_is_the_two_streams_one_after_the_other(first, later):
    one, two = simulate(first), simulate(later)
    joined = in_succession(one, two)
    stream, begin = joined.trace, joined.begin
    events, ended = list(stream.events()), one.trace.events_count
    assert events[:ended] == list(one.trace.events())
    assert all(event.kind == "free" for event in events[ended:begin]), "what the later one does not begin with"
    live = np.cumsum(stream.stream[1])
    assert live.min(initial=0) >= 0
    own = np.cumsum(two.trace.stream[1])
    before = int((two.trace.execution == NOTHING).sum())
    assert live[len(live) - (len(own) - before) :].tolist() == own[before:].tolist()
    block, signed = stream.stream
    for row in range(len(stream.nbytes)):
        assert signed[block == row].tolist() in ([stream.nbytes[row]], [stream.nbytes[row], -stream.nbytes[row]])


@given(graph=graphs())
def test_every_malloc_of_a_joined_trace_knows_its_execution(graph):
    run = simulate(graph)
    stream = in_succession(run, run).trace
    executions = [stream.execution_of(event) for event in stream.malloc.tolist()]
    assert executions == stream.execution.tolist() or run.trace.events_count == 0


def test_a_source_without_a_use_is_neither_in_the_peak_nor_in_the_trace():
    ops = [Op("a", "n", (), ("t",))]
    dead, kept = Tensor("dead", (100,), "uint8"), Tensor("kept", (5,), "uint8", Role.PARAMETER)
    run = simulate(Graph(ops, [dead, kept, Tensor("t", (17,), "uint8")]))
    assert run.peak == 22
    assert [event.nbytes for event in run.trace.events() if event.kind == "malloc"] == [5, 17]
    only_kept = simulate(Graph([], [dead, kept]))
    assert [event.nbytes for event in only_kept.trace.events()] == [5]
