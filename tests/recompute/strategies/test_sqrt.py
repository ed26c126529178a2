"""Chen's sqrt(n) on any graph: what runs again, what must not, and what it saves."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from generators import training_steps
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import interpret

import graphsim as gs
from graphsim.core.graph import HOLD, Graph, Op, Phase, Role, Tensor
from graphsim.errors import UsageError
from graphsim.recompute.plan import make_plan, make_schedule
from graphsim.recompute.strategies.none import StoreAll
from graphsim.recompute.strategies.sqrt import Sqrt


@pytest.mark.exhaustive
@given(graph=training_steps(), spans=st.sampled_from([None, 1, 2, 3, 50]))
@settings(max_examples=1000)
def test_on_any_graph_the_schedule_is_valid_and_only_forward_ops_run_again(graph, spans):
    plan = make_plan(graph, Sqrt(spans))
    order = plan.schedule.ops.tolist()
    assume(order)  # there may be nothing but releases
    assert plan.peak_bytes == max(interpret(graph, order, "eager").during)
    counts = np.bincount(order)
    again = {graph.ops[i].phase for i in np.flatnonzero(counts > 1)}
    # What is overwritten is made again on a fresh copy whenever it is read, with what that takes; a view is
    # made again with its own span and with its base's.
    if not any(op.mutates for op in graph.ops) and not any(tensor.storage for tensor in graph.tensors.values()):
        assert counts.max() <= 2
    assert again <= {Phase.FORWARD}


def executed(ops: list[Op], tensors: list[Tensor], spans: int, **options) -> str:
    graph = Graph(ops, tensors, **options)
    return " ".join(graph.ops[i].name for i in make_schedule(graph, Sqrt(spans)).ops)


def forward(name: str, inputs: str, outputs: str, mutates: tuple[str, ...] = ()) -> Op:
    return Op(name, "n", tuple(inputs.split()), tuple(outputs.split()), mutates=mutates)


def backward(name: str, inputs: str, outputs: str = "", kind: str = "n", mutates: tuple[str, ...] = ()) -> Op:
    return Op(name, kind, tuple(inputs.split()), tuple(outputs.split()), Phase.BACKWARD, mutates=mutates)


def tensors(names: str, **storages: str) -> list[Tensor]:
    return [Tensor(name, (8,), storage=storages.get(name, "")) for name in names.split()]


CHAIN = [forward("f1", "", "x1"), forward("f2", "x1", "x2"), forward("f3", "x2", "x3"), forward("f4", "x3", "x4")]


def test_a_span_runs_again_right_before_backward_first_reads_from_inside_it():
    ops = [*CHAIN, backward("b4", "x4 x3", "g"), backward("b2", "g x1", "g2")]
    assert executed(ops, tensors("x1 x2 x3 x4 g g2"), 2) == "f1 f2 f3 f4 b4 f1 b2"


def test_what_passes_between_spans_is_stored():
    ops = [*CHAIN, backward("b", "x4 x2")]
    assert executed(ops, tensors("x1 x2 x3 x4"), 2) == "f1 f2 f3 f4 b"


def test_the_last_span_does_not_run_again():
    ops = [*CHAIN, backward("b", "x3 x4")]
    assert executed(ops, tensors("x1 x2 x3 x4"), 2) == "f1 f2 f3 f4 b"


def test_a_hold_is_no_reason_to_recompute():
    ops = [*CHAIN, backward("b", "x4"), backward("h", "x1", kind=HOLD)]
    assert executed(ops, tensors("x1 x2 x3 x4"), 2) == "f1 f2 f3 f4 b h"


def test_an_in_place_op_runs_again_with_the_op_that_made_its_base():
    ops = [
        forward("f", "", "x"),
        forward("relu_", "x", "r", ("x",)),
        forward("g", "r", "y"),
        forward("h", "y", "z"),
        forward("i", "z", "v"),
        forward("j", "v", "w"),
        backward("b", "w r"),
    ]
    assert executed(ops, tensors("x r y z v w", r="x"), 2) == "f relu_ g h i j f relu_ b"


def test_no_span_begins_between_an_op_and_the_one_that_overwrites_its_output():
    ops = [
        forward("f", "", "x"),
        forward("g", "x", "y"),
        forward("relu_", "x", "r", ("x",)),
        forward("h", "y r", "z"),
        backward("b", "z y"),
    ]
    assert executed(ops, tensors("x y r z", r="x"), 2) == "f g relu_ h b"


def test_an_update_of_statistics_stays_and_so_does_who_reads_them_before():
    statistics = Tensor("s", (8,), role=Role.BUFFER)
    ops = [
        forward("read", "s", "x"),
        forward("update", "s", "", ("s",)),
        forward("f", "x", "y"),
        forward("g", "y", "z"),
        forward("h", "z", "v"),
        forward("i", "v", "w"),
        backward("b", "w x y z"),
    ]
    assert executed(ops, [statistics, *tensors("x y z v w")], 3) == "read update f g h i f b"


def test_what_backward_overwrites_is_stored():
    ops = [*CHAIN, backward("b", "x4 x1", mutates=("x1",)), backward("c", "x1")]
    assert executed(ops, tensors("x1 x2 x3 x4"), 2) == "f1 f2 f3 f4 b c"


def test_a_kept_output_is_stored():
    ops = [*CHAIN, backward("b", "x4 x1")]
    assert executed(ops, tensors("x1 x2 x3 x4"), 2, outputs=("x1",)) == "f1 f2 f3 f4 b"


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_every_micro_batch_of_a_real_model_is_recomputed_for_less_memory(micro_batches):
    graph = gs.load("resnet18", batch=64, size=224)
    step = gs.training_step(graph, optimizer="sgd", target="cpu", accumulation=micro_batches)
    plan, stored = make_plan(step, Sqrt()), make_plan(step, StoreAll())
    assert plan.peak_bytes < 0.8 * stored.peak_bytes
    assert 0 < plan.overhead < 1 / 3  # backward costs about twice what forward costs
    assert not plan.proved_optimal
    assert stored.proved_optimal
    turns = [a.phase is Phase.BACKWARD and b.phase is Phase.FORWARD for a, b in pairwise(step.ops)]
    micro_batch = np.cumsum([False, *turns])
    assert set(micro_batch[plan.schedule.ops[plan.schedule.repeats]]) == set(range(micro_batches))


def test_less_than_one_span_is_refused():
    with pytest.raises(UsageError, match="at least 1"):
        Sqrt(spans=0)
