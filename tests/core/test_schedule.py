"""Schedules: executions by op, repeats allowed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphsim.core.graph import Graph, Op
from graphsim.core.schedule import Schedule
from graphsim.errors import ScheduleError

GRAPH = Graph([Op(name, "n") for name in "abc"], [])


def test_program_order_is_the_default():
    assert Schedule.of(GRAPH) == Schedule(np.array([0, 1, 2]))
    assert len(Schedule.of(GRAPH)) == 3


def test_ops_are_given_by_name_and_may_stand_again():
    schedule = Schedule.of(GRAPH, ["a", "b", "a", "c", "b", "a"])
    assert schedule.ops.tolist() == [0, 1, 0, 2, 1, 0]
    assert schedule.repeats.tolist() == [False, False, True, False, True, True]


def test_a_name_that_is_no_op_is_refused():
    with pytest.raises(ScheduleError, match="executes 'd', which is no op of the graph"):
        Schedule.of(GRAPH, ["a", "d"])


def test_an_empty_schedule_holds_integers_too():
    empty = Schedule.of(GRAPH, [])
    assert (len(empty), empty.ops.dtype, empty.repeats.tolist()) == (0, np.int64, [])


def test_schedules_compare_by_their_executions():
    assert Schedule.of(GRAPH, ["a", "b"]) != Schedule.of(GRAPH, ["b", "a"])
    assert Schedule.of(GRAPH) != [0, 1, 2]


@given(st.lists(st.integers(0, 20)))
def test_a_repeat_is_whatever_was_executed_before(ops):
    repeats = Schedule(np.array(ops, dtype=np.int64)).repeats
    assert repeats.tolist() == [op in ops[:i] for i, op in enumerate(ops)]
