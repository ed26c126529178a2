"""The liveness pass: equal to its slow twin on random graphs, and the contract of memory, rule by rule."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from generators import graphs, schedules
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import InvalidScheduleError, interpret

from graphsim.core.graph import HOLD, Graph, Op, Role, Tensor
from graphsim.core.index import NOTHING
from graphsim.core.liveness import POLICIES, live_ranges, ranges_in_any_order, ranges_in_program_order
from graphsim.core.schedule import Schedule
from graphsim.core.simulation import simulate
from graphsim.core.trace import trace
from graphsim.errors import ScheduleError

# -- against the slow twin -----------------------------------------------------------------------------


@given(data=st.data(), graph=graphs(), policy=st.sampled_from(POLICIES))
@settings(max_examples=1000)
def test_the_pass_agrees_with_the_interpreter(data, graph, policy):
    order = data.draw(schedules(graph))
    schedule = Schedule(np.array(order, dtype=np.int64))
    try:
        wanted = interpret(graph, order, policy)
    except InvalidScheduleError:
        with pytest.raises(ScheduleError):
            live_ranges(graph, schedule, policy=policy)
        return
    ranges = live_ranges(graph, schedule, policy=policy)
    assert ranges.timeline.tolist() == wanted.during
    assert [ranges.live_after(i) for i in range(len(order))] == wanted.after
    assert ranges.peak == max(wanted.during, default=ranges.peak)


@given(graph=graphs(), policy=st.sampled_from(POLICIES))
@settings(max_examples=250)
def test_the_scatter_and_the_search_agree_in_program_order(graph, policy):
    fast = ranges_in_program_order(graph.index, policy)
    general = ranges_in_any_order(graph.index, np.arange(len(graph.ops)), policy)
    rows = np.argsort(general.tensor, kind="stable")
    for column in ("tensor", "begin", "end", "nbytes", "source", "kept"):
        assert getattr(fast, column).tolist() == getattr(general, column)[rows].tolist(), column


@given(data=st.data(), graph=graphs(), policy=st.sampled_from(POLICIES))
@settings(max_examples=250)
def test_the_trace_replayed_naively_gives_the_timeline(data, graph, policy):
    order = data.draw(schedules(graph))
    try:
        ranges = live_ranges(graph, Schedule(np.array(order, dtype=np.int64)), policy=policy)
    except ScheduleError:
        return
    events = trace(ranges)
    live, peak, seen = 0, np.zeros(len(order), dtype=np.int64), set()
    for event in events.events():
        live += event.nbytes if event.kind == "malloc" else -event.nbytes
        assert (event.kind, event.block) not in seen
        assert event.nbytes > 0
        seen.add((event.kind, event.block))
        execution = int(events.execution[event.block])
        if event.kind == "malloc" and execution != NOTHING:
            peak[execution] = max(peak[execution], live)
    allocating = sorted({int(e) for e in events.execution if e != NOTHING})
    assert [int(peak[e]) for e in allocating] == [int(ranges.timeline[e]) for e in allocating]
    assert live == int(ranges.nbytes[ranges.kept].sum())


@given(data=st.data(), graph=graphs(), policy=st.sampled_from(POLICIES))
@settings(max_examples=300)
def test_the_roles_add_up_to_the_timeline(data, graph, policy):
    run = simulate(graph, Schedule(np.array(data.draw(schedules(graph)), dtype=np.int64)), policy=policy)
    try:
        timeline = run.timeline
    except ScheduleError:
        return
    parts = run.timeline_by_role()
    assert sum(parts.values()).tolist() == timeline.tolist()
    for execution in range(len(timeline)):
        assert run.by_role(execution) == {role: int(part[execution]) for role, part in parts.items()}


@given(graph=graphs())
@settings(max_examples=200)
def test_an_ideal_compiler_needs_no_more_than_eager(graph):
    assert live_ranges(graph, policy="liveness").peak <= live_ranges(graph, policy="eager").peak


# -- the contract, rule by rule ------------------------------------------------------------------------


def tensor(name: str, nbytes: int, storage: str = "", role: Role = Role.ACTIVATION) -> Tensor:
    return Tensor(name, (nbytes,), "uint8", role, storage)


def op(name: str, inputs: str = "", outputs: str = "", **options) -> Op:
    return Op(name, options.pop("kind", "node"), tuple(inputs.split()), tuple(outputs.split()), **options)


def timeline(ops: list[Op], tensors: list[Tensor], order: str = "", *, policy="eager", outputs=()) -> list[int]:
    graph = Graph(ops, tensors, outputs=outputs)
    schedule = Schedule.of(graph, order.split()) if order else None
    return simulate(graph, schedule, policy=policy).timeline.tolist()


A_B_C = [op("a", "", "x"), op("b", "x", "y"), op("c", "y", "z")]
X_Y_Z = [tensor("x", 1), tensor("y", 10), tensor("z", 100)]


def test_outputs_are_allocated_while_inputs_live_and_inputs_freed_after_their_last_use():
    assert timeline(A_B_C, X_Y_Z) == [1, 11, 110]


def test_an_output_that_nobody_reads_dies_at_once():
    assert timeline([op("a", "", "x"), op("b", "", "y")], X_Y_Z[:2]) == [1, 10]


def test_kept_outputs_live_to_the_end():
    assert timeline(A_B_C, X_Y_Z, outputs=("x",)) == [1, 11, 111]


def test_workspace_counts_while_its_op_runs():
    assert timeline([op("a", "", "x", workspace=5), op("b", "x", "y")], X_Y_Z[:2]) == [6, 11]


def test_residents_live_through_the_step_and_other_sources_to_their_last_use():
    tensors = [tensor("w", 1000, role=Role.PARAMETER), tensor("old", 200, role=Role.GRADIENT), *X_Y_Z[:2]]
    assert timeline([op("a", "old", "x"), op("b", "x", "y")], tensors) == [1201, 1011]


def test_a_view_is_free_and_keeps_its_base_alive():
    tensors = [tensor("x", 10), tensor("v", 10, "x"), tensor("y", 1), tensor("z", 1)]
    ops = [op("a", "", "x"), op("view", "x", "v"), op("b", "", "y"), op("c", "v y", "z")]
    assert timeline(ops, tensors) == [10, 10, 11, 12]


def test_an_in_place_result_is_free():
    tensors = [tensor("x", 10), tensor("x1", 10, "x"), tensor("y", 1)]
    ops = [op("a", "", "x"), op("relu_", "x", "x1", mutates=("x",)), op("b", "x1", "y")]
    assert timeline(ops, tensors) == [10, 10, 11]


def test_a_consumer_reads_the_latest_value_and_the_first_one_dies_early():
    ops = [*A_B_C, op("d", "x z", "w")]
    tensors = [*X_Y_Z, tensor("w", 1000)]
    assert timeline(ops, tensors, "a b c d") == [1, 11, 111, 1101]
    assert timeline(ops, tensors, "a b c a d") == [1, 11, 110, 101, 1101]


def test_a_recompute_that_would_read_a_mutated_value_is_rejected():
    tensors = [tensor("x", 10), tensor("y", 1), tensor("x1", 10, "x"), tensor("z", 1)]
    ops = [op("a", "", "x"), op("b", "x", "y"), op("relu_", "x", "x1", mutates=("x",)), op("c", "x1 y", "z")]
    with pytest.raises(ScheduleError, match=r"op 'b'\) reads 'x' as op 'relu_' left it"):
        timeline(ops, tensors, "a b relu_ b c")
    assert timeline(ops, tensors, "a b relu_ a b relu_ c")[-1] == 12


def test_a_fresh_copy_that_misses_its_mutation_is_rejected():
    tensors = [tensor("x", 10), tensor("x1", 10, "x"), tensor("y", 1)]
    ops = [op("a", "", "x"), op("relu_", "x", "x1", mutates=("x",)), op("b", "x", "y")]
    with pytest.raises(ScheduleError, match=r"op 'b'\) reads 'x' as op 'a' left it, but .* op 'relu_' wrote it last"):
        timeline(ops, tensors, "a relu_ a b")
    assert timeline(ops, tensors, "a relu_ a relu_ b") == [10, 10, 10, 10, 11]


def test_a_kept_output_must_end_as_in_program_order():
    tensors = [tensor("x", 10), tensor("x1", 10, "x")]
    ops = [op("a", "", "x"), op("relu_", "x", "x1", mutates=("x",))]
    with pytest.raises(ScheduleError, match="leaves output 'x' as op 'a' left it"):
        timeline(ops, tensors, "a relu_ a", outputs=("x",))
    assert timeline(ops, tensors, "a relu_ a", outputs=("x1",)) == [10, 10, 20]


def test_a_view_made_before_the_recompute_keeps_the_old_copy_alive():
    tensors = [tensor("x", 10), tensor("v", 10, "x"), tensor("y", 1), tensor("z", 1)]
    ops = [op("a", "", "x"), op("view", "x", "v"), op("b", "x", "y"), op("c", "v y", "z")]
    assert timeline(ops, tensors, "a view a b c") == [10, 10, 20, 21, 12]
    assert timeline(ops, tensors, "a view a view b c") == [10, 10, 10, 10, 11, 12]


def test_an_in_place_result_stands_over_what_is_overwritten_not_over_another_copy():
    tensors = [tensor("x", 10), tensor("v", 10, "x"), tensor("x1", 10, "x"), tensor("y", 1)]
    ops = [op("a", "", "x"), op("view", "x", "v"), op("add_", "v x", "x1", mutates=("x",)), op("b", "x1", "y")]
    assert timeline(ops, tensors, "a view a add_ b") == [10, 10, 20, 20, 11]


def test_an_in_place_op_cannot_run_twice_on_the_same_bytes():
    tensors = [tensor("x", 10), tensor("x1", 10, "x")]
    ops = [op("a", "", "x"), op("relu_", "x", "x1", mutates=("x",))]
    with pytest.raises(ScheduleError, match="left it"):
        timeline(ops, tensors, "a relu_ relu_")


def test_the_optimizer_runs_once():
    tensors = [tensor("w", 10, role=Role.PARAMETER), tensor("g", 10)]
    ops = [op("grad", "w", "g"), op("update", "w g", mutates=("w",))]
    assert timeline(ops, tensors, "grad grad update") == [20, 20, 20]
    with pytest.raises(ScheduleError, match="update"):
        timeline(ops, tensors, "grad update update")
    with pytest.raises(ScheduleError, match="update"):
        timeline(ops, tensors, "grad update grad")


def test_a_mutation_must_come_before_its_readers():
    tensors = [tensor("w", 10, role=Role.BUFFER), tensor("y", 1)]
    ops = [op("update", "w", mutates=("w",)), op("b", "w", "y")]
    with pytest.raises(ScheduleError, match="before the mutation"):
        timeline(ops, tensors, "b update")


def test_a_missing_op_and_a_missing_input_are_named():
    with pytest.raises(ScheduleError, match="never executes op 'c'"):
        timeline(A_B_C, X_Y_Z, "a b")
    with pytest.raises(ScheduleError, match=r"execution 0 \(op 'b'\) reads 'x' before anything has written it"):
        timeline(A_B_C, X_Y_Z, "b a c")
    with pytest.raises(ScheduleError, match="no op of the graph"):
        timeline(A_B_C, X_Y_Z, "a b d")
    with pytest.raises(ScheduleError, match="outside"):
        live_ranges(Graph(A_B_C, X_Y_Z), Schedule(np.array([0, 1, 7])))


@pytest.mark.parametrize(("kind", "needed"), [("hold", True), ("release", False)])
def test_a_schedule_may_leave_out_a_release_but_no_hold(kind, needed):
    ops = [Op("a", "n", (), ("x",)), Op("b", "n", (), ("y",)), Op("k", kind, ("x",), ())]
    graph = Graph(ops, [Tensor("x", (8,), "uint8"), Tensor("y", (4,), "uint8")])
    assert live_ranges(graph).peak == 12
    with pytest.raises(ScheduleError, match="never executes op 'k'") if needed else nullcontext():
        assert live_ranges(graph, Schedule.of(graph, ["a", "b"])).peak == 8


def test_a_hold_keeps_tensors_under_the_eager_policy_only():
    ops = [*A_B_C, op("hold", "x", kind=HOLD)]
    assert timeline(ops, X_Y_Z) == [1, 11, 111, 1]
    assert timeline(ops, X_Y_Z, policy="liveness") == [1, 11, 110, 0]


def test_an_empty_step_needs_what_is_there_before():
    ranges = live_ranges(Graph([], [tensor("w", 7, role=Role.PARAMETER)]))
    assert (ranges.peak, ranges.peak_execution, ranges.timeline.tolist()) == (7, 0, [])
