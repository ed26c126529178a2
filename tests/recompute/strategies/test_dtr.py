"""DTR: the fast run against its slow twin, and what it does to chains and real models."""

from __future__ import annotations

import pytest
from dtr_twin import OutOfMemory, Thrashing, Twin
from generators import chain
from hypothesis import given, settings
from hypothesis import strategies as st

import graphsim as gs
from graphsim.core.graph import HOLD, Graph, Op, Phase, Role, Tensor
from graphsim.core.simulation import op_costs, simulate
from graphsim.errors import UnknownNameError, UsageError
from graphsim.recompute.case import Case
from graphsim.recompute.dtr.program import program_of
from graphsim.recompute.dtr.scores import HEURISTICS
from graphsim.recompute.plan import make_plan, make_schedule
from graphsim.recompute.strategies.dtr import Dtr, run, simulate_log


@st.composite
def programs(draw: st.DrawFn) -> Graph:
    """Ops without mutations: parameters, several outputs, views, inputs read twice or long after, releases."""
    ops: list[Op] = []
    tensors = [
        Tensor(f"p{i}", (draw(st.integers(0, 9)),), "uint8", Role.PARAMETER) for i in range(draw(st.integers(0, 2)))
    ]
    for number in range(draw(st.integers(2, 16))):
        recent = st.sampled_from(tensors[-4:]) if tensors else st.nothing()
        inputs = draw(st.lists(recent | st.sampled_from(tensors), max_size=3)) if tensors else []
        if inputs and draw(st.integers(0, 7)) == 0:
            ops.append(Op(f"o{number}", HOLD, tuple(t.name for t in inputs)))
            continue
        made = [Tensor(f"t{number}.{i}", (draw(st.integers(0, 9)),), "uint8") for i in range(draw(st.integers(1, 2)))]
        if inputs and draw(st.integers(0, 4)) == 0:
            made = [Tensor(f"t{number}.v", (1,), "uint8", storage=draw(st.sampled_from(inputs)).base)]
        names = tuple(t.name for t in inputs)
        # Powers of two add up without rounding, in whatever order.
        time = draw(st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.0, 2.0, 4.0, 8.0]))
        workspace = draw(st.sampled_from([0, 0, 0, 1, 5]))
        ops.append(Op(f"o{number}", "node", names, tuple(t.name for t in made), time=time, workspace=workspace))
        tensors += made
    made_here = [t for t in tensors if t.role is not Role.PARAMETER]
    kept = draw(st.lists(st.sampled_from(made_here), max_size=2, unique=True)) if made_here else []
    return Graph(ops, tensors, outputs=[t.name for t in kept])


@pytest.mark.parametrize("heuristic", HEURISTICS)
@given(graph=programs(), share=st.sampled_from([0.4, 0.5, 0.6, 0.7, 0.8, 0.9]))
@settings(max_examples=100, deadline=None)
def test_the_fast_run_evicts_what_its_twin_evicts(heuristic, graph, share):
    if not any(op.time for op in graph.ops):
        return  # costs would be counted otherwise
    budget = int(simulate(graph).peak * share)
    program = program_of(graph, op_costs(graph), holds=False)
    outcome = run(program, budget, heuristic, most=100, machine=True)
    assert outcome == run(program, budget, heuristic, most=100, machine=False)
    try:
        expected = Twin(graph, budget, heuristic).run()
    except Thrashing:
        return  # for ever, maybe
    except OutOfMemory:
        assert not outcome.finished
        return
    assert outcome.finished
    assert [graph.ops[i].name for i in outcome.order if graph.ops[i].kind != HOLD] == expected
    assert outcome.peak <= budget


@pytest.mark.parametrize("heuristic", ["dtr", "eqclass"])
def test_a_chain_takes_linear_work_in_the_square_root_of_its_memory(heuristic):
    """Theorem 3.1 of the paper: n ops in about 2 sqrt(n) memory take O(n) ops (h_DTR; not h_size)."""
    n = 256
    graph = chain(n)
    plan = make_plan(graph, Dtr(heuristic), 3 * 16 * 1000)
    assert plan.feasible
    assert plan.time - plan.base_time <= 2.5 * n


def test_without_pressure_nothing_runs_twice():
    graph = chain(20)
    assert make_plan(graph, Dtr(), 21_000).overhead == 0
    assert make_plan(graph, Dtr()).overhead == 0


@pytest.mark.parametrize("heuristic", HEURISTICS)
@pytest.mark.parametrize(("share", "finishes"), [(0.8, True), (0.6, False)])
def test_machine_code_does_what_the_interpreter_does(heuristic, share, finishes):
    step = gs.training_step(gs.load("resnet18", batch=8), optimizer="momentum")  # in place, holds, views
    program, budget = Case(step).program, int(simulate(step).peak * share)
    outcome = run(program, budget, heuristic, most=2, machine=True)
    assert outcome == run(program, budget, heuristic, most=2, machine=False)
    assert outcome.finished is finishes
    assert outcome.evictions > 0


def test_a_plan_is_the_same_with_machine_code(monkeypatch):
    graph = chain(100)
    interpreted = make_plan(graph, Dtr(), 30_000)
    simulate_log(graph, 30_000)  # compiles
    ran = []

    def watched(*arguments, **options):
        ran.append(options["machine"])
        return run(*arguments, **options)

    monkeypatch.setattr("graphsim.recompute.strategies.dtr._LARGE", 1)
    monkeypatch.setattr("graphsim.recompute.strategies.dtr.run", watched)
    assert make_schedule(graph, Dtr(), 30_000).ops.tolist() == interpreted.schedule.ops.tolist()
    assert ran == [True]


def test_without_numba_a_log_is_interpreted(monkeypatch):
    graph = chain(100)
    expected = simulate_log(graph, 30_000)
    assert expected.finished
    monkeypatch.setattr("graphsim.recompute.machine_code.find_spec", lambda name: None)
    assert simulate_log(graph, 30_000) == expected


def test_pauses_change_nothing(monkeypatch):
    program = Case(chain(100)).program
    expected = run(program, 30_000, "eqclass", most=3, machine=False)
    monkeypatch.setattr("graphsim.recompute.strategies.dtr._PAUSE_INTERPRETED", 1)
    assert run(program, 30_000, "eqclass", most=3, machine=False) == expected


def test_it_stops_when_its_time_is_up():
    outcome = run(Case(chain(100)).program, 30_000, "eqclass", most=3, until=0.0, machine=False)
    assert not outcome.finished
    assert outcome.order == []


def test_a_graph_of_little_or_nothing():
    assert simulate_log(Graph([], []), 0).finished
    source = Tensor("x", (5,), "uint8")
    assert simulate_log(Graph([], [source], outputs=["x"]), 0).peak == 0
    assert simulate_log(Graph([Op("h", HOLD, ("x",))], [source]), 0).order == [0]


@pytest.mark.parametrize("share", [0.8, 0.6])
def test_a_real_model_fits_for_little_more_compute(share):
    step = gs.training_step(gs.load("resnet18", batch=64), optimizer="momentum")
    peak = simulate(step).peak
    plan = make_plan(step, Dtr(), int(peak * share))
    assert plan.feasible
    assert 0 < plan.overhead < 0.25


def test_an_in_place_op_comes_back_with_what_made_its_base():
    ops = [
        Op("f", "n", (), ("x",), time=1.0),
        Op("relu_", "n", ("x",), ("r",), time=1.0, mutates=("x",)),
        Op("g", "n", ("r",), ("y",), time=1.0),
        Op("h", "n", ("y",), ("z",), time=9.0),
        Op("b", "n", ("z", "y"), ("u",), Phase.BACKWARD, time=1.0),
        Op("c", "n", ("u", "r"), ("v",), Phase.BACKWARD, time=1.0),
    ]
    tensors = [Tensor(n, (8,), "uint8") for n in "xyzuv"] + [Tensor("r", (8,), "uint8", storage="x")]
    graph = Graph(ops, tensors)
    plan = make_plan(graph, Dtr("local"), 24)
    assert " ".join(graph.ops[i].name for i in plan.schedule.ops) == "f relu_ g h b f relu_ c"
    assert plan.peak_bytes == 24 < simulate(graph).peak == 32


def test_a_wrong_option_is_refused():
    with pytest.raises(UnknownNameError, match="'eqclass'"):
        Dtr("eqclas")
    with pytest.raises(UnknownNameError, match="'lru'"):
        simulate_log(chain(3), 5000, "lur")
    with pytest.raises(UsageError, match="above 1"):
        Dtr(most=1.0)
    with pytest.raises(UsageError, match="above 0"):
        Dtr(seconds=0)
