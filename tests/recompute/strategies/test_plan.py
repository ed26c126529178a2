"""Plans: what any strategy makes of a graph, timed, judged and bounded alike; and the judgement of a schedule."""

from __future__ import annotations

import signal
import threading
from importlib.metadata import EntryPoint

import pytest
from generators import chain, graphs
from hypothesis import given, settings
from hypothesis import strategies as st

from graphsim.core.graph import Graph, Op, Phase, Role, Tensor
from graphsim.core.liveness import POLICIES, live_ranges
from graphsim.core.schedule import Schedule
from graphsim.recompute.bounds import memory_bound
from graphsim.recompute.case import Case
from graphsim.recompute.plan import judge, make_plan, make_schedule
from graphsim.recompute.strategies import STRATEGIES, Proposal, with_limits
from graphsim.recompute.strategies.every_k import EveryK
from graphsim.sources.layered import layered

OPS = [
    Op("a", "n", ("w",), ("x",), workspace=3, flops=10),
    Op("b", "n", ("x",), ("y",), flops=20),
    Op("c", "n", ("x", "y", "w"), ("z",), Phase.BACKWARD, flops=40),
]
TENSORS = [Tensor(name, (size,), "uint8") for name, size in (("x", 10), ("y", 1), ("z", 5))]
TENSORS.append(Tensor("w", (100,), "uint8", Role.PARAMETER))
GRAPH = Graph(OPS, TENSORS)


def test_a_plan_says_what_the_schedule_costs():
    plan = judge(GRAPH, Schedule.of(GRAPH, ["a", "b", "a", "c"]), strategy="mine", budget=115, seconds=0.5)
    assert (plan.peak_bytes, plan.feasible, plan.memory_bound) == (116, False, 116)
    assert (plan.time, plan.base_time, plan.overhead) == (80.0, 70.0, 80 / 70 - 1)
    assert (plan.strategy, plan.budget, plan.seconds, plan.proved_optimal) == ("mine", 115, 0.5, False)


def test_nothing_is_cheaper_than_running_each_op_once_if_that_fits():
    order = Schedule.of(GRAPH)
    assert judge(GRAPH, order, strategy="mine", budget=116, seconds=0).proved_optimal
    assert not judge(GRAPH, order, strategy="mine", budget=115, seconds=0).proved_optimal


def test_times_are_taken_before_flops():
    ops = [Op("a", "n", (), ("x",), time=2.5, flops=7), Op("b", "n", ("x",), ("y",), flops=9)]
    graph = Graph(ops, TENSORS[:2])
    assert judge(graph, Schedule.of(graph), strategy="mine", budget=None, seconds=0).base_time == 2.5


@given(graph=graphs(), policy=st.sampled_from(POLICIES))
@settings(max_examples=500)
def test_no_schedule_gets_below_the_lower_bound(graph, policy):
    assert memory_bound(graph) <= live_ranges(graph, policy=policy).peak


@given(graph=graphs())
@settings(max_examples=300)
def test_the_lower_bound_is_the_most_that_one_op_touches(graph):
    storages = {t.name: t.nbytes for t in graph.tensors.values() if not t.storage}
    written = {name for op in graph.ops for name in op.outputs}
    roles = {Role.PARAMETER, Role.BUFFER, Role.INPUT, Role.OPTIMIZER_STATE}
    always = {name for name in storages if name not in written and graph.tensors[name].role in roles}
    most = 0
    for op in graph.ops:
        only_holds = op.kind in ("hold", "release") and not op.outputs and not op.mutates
        names = () if only_holds else (*op.inputs, *op.outputs)
        bases = {graph.tensors[name].base for name in names}
        most = max(most, sum(storages[base] for base in bases - always) + op.workspace)
    assert memory_bound(graph) == most + sum(storages[name] for name in always)


# -- whose strategy it is --------------------------------------------------------------------------


def again(case: Case, budget: int | None = None) -> Schedule:
    """A user's own strategy: a plain function."""
    return Schedule.of(case.graph, ["a", "b", "a", "c"])


class Impatient:
    """A strategy that is told to stop: with a schedule of its own, or with none."""

    def __init__(self, has: bool) -> None:
        self.has = has

    def __call__(self, case: Case, budget: int | None = None) -> Proposal:
        if not self.has:
            raise KeyboardInterrupt
        return Proposal(again(case), interrupted=True)


def test_a_function_is_a_strategy_and_its_plan_goes_by_its_name():
    plan = make_plan(GRAPH, again, 115)
    assert (plan.strategy, plan.peak_bytes, plan.feasible, plan.time) == ("again", 116, False, 80.0)
    assert make_schedule(GRAPH, again) == plan.schedule


def test_options_are_fields_and_the_plan_goes_by_the_name_in_the_table():
    assert make_plan(chain(9), EveryK(k=3)).strategy == "every_k"
    assert make_schedule(chain(9), EveryK(k=1)) == make_schedule(chain(9), "blocks")


def test_a_strategy_of_another_package_is_one_of_the_table(monkeypatch):
    offered = EntryPoint("theirs", f"{__name__}:Theirs", "graphsim.strategies")
    monkeypatch.setattr(
        "importlib.metadata.entry_points",
        lambda *, group, name=None: [offered] if group == offered.group and name in (None, offered.name) else [],
    )
    plan = make_plan(GRAPH, "theirs")
    assert (plan.strategy, plan.schedule.ops.tolist()) == ("theirs", [0, 1, 0, 2])
    assert make_plan(GRAPH, Theirs()).strategy == "theirs"


class Theirs:
    def __call__(self, case: Case, budget: int | None = None) -> Schedule:
        return again(case)


# -- Ctrl-C ----------------------------------------------------------------------------------------


def test_what_is_interrupted_is_the_best_so_far_and_says_so():
    plan = make_plan(GRAPH, Impatient(True), 200)
    assert (plan.interrupted, plan.schedule.ops.tolist()) == (True, [0, 1, 0, 2])
    assert not make_plan(GRAPH, again, 200).interrupted


def test_a_strategy_that_has_nothing_yet_stores_all():
    plan = make_plan(GRAPH, Impatient(False), 200)
    assert (plan.interrupted, plan.schedule) == (True, Schedule.of(GRAPH))


@pytest.mark.parametrize("has", [True, False])
def test_who_asks_for_the_schedule_alone_hears_of_it(has):
    with pytest.raises(KeyboardInterrupt):
        make_schedule(GRAPH, Impatient(has))


@pytest.mark.parametrize("name", ["auto", "moccasin", "checkmate", "checkmate_lp", "dtr"])
@pytest.mark.parametrize("delay", [0.0, 0.3, 1.0])
def test_every_search_hears_ctrl_c_and_returns_a_schedule_of_the_graph(name, delay):
    graph, planning = Graph.from_networkx(layered(60, 1, 0.4)), True
    budget, strategy = int(0.8 * live_ranges(graph).peak), with_limits(STRATEGIES[name](), seconds=60.0)

    def hear(*_: object) -> None:
        """Interrupt the planning; what comes later must not end the tests."""
        if planning:
            raise KeyboardInterrupt

    handler = signal.signal(signal.SIGINT, hear)
    timer = threading.Timer(delay, signal.raise_signal, [signal.SIGINT])
    try:
        try:
            timer.start()
            plan = make_plan(graph, strategy, budget)
        finally:
            planning = False
    except KeyboardInterrupt:  # it came before the strategy began, or when it was done
        return
    finally:
        timer.join()
        signal.signal(signal.SIGINT, handler)
    assert plan.seconds < 30
    assert plan.peak_bytes == live_ranges(graph, plan.schedule).peak
