"""Moccasin: the optimum of its form against exhaustive search and Checkmate, honest bounds, progress and Ctrl-C."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from exhaustive import only
from generators import chain, graphs, training_steps
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS
from optimum import optimum, staged_optimum
from test_remat import small_dag

from graphsim.core.graph import Graph, Op, Tensor
from graphsim.core.simulation import simulate
from graphsim.errors import MissingExtraError, UsageError
from graphsim.recompute.bounds import memory_bound
from graphsim.recompute.evaluation import evaluate
from graphsim.recompute.plan import Plan, make_plan, make_schedule
from graphsim.recompute.problem import problem_of
from graphsim.recompute.solvers.moccasin_cpsat import solve
from graphsim.recompute.solvers.windows import Windows
from graphsim.recompute.strategies import moccasin
from graphsim.recompute.strategies.checkmate import Checkmate
from graphsim.recompute.strategies.moccasin import MOST_OPS, Moccasin
from graphsim.sources.layered import layered

SHARES = [0.9, 0.75, 0.6]


def dag(reads: list[list[int]], chance: random.Random, sizes: list[int], outputs: set[int]) -> Graph:
    """A plain DAG of ops that read these others, at random costs."""
    ops = [
        Op(f"o{i}", "node", tuple(f"v{j}" for j in sorted({*read})), (f"v{i}",), time=float(chance.randint(1, 9)))
        for i, read in enumerate(reads)
    ]
    tensors = [Tensor(f"v{i}", (size,), "uint8") for i, size in enumerate(sizes)]
    return Graph(ops, tensors, outputs=[f"v{i}" for i in sorted(outputs)])


def wide_dag(seed: int) -> Graph:
    """Up to 10 ops that read up to three values, early and late ones alike; some graphs keep a second output."""
    chance = random.Random(seed)
    count = chance.randint(7, 10)
    reads = [chance.sample(range(i), min(i, chance.randint(1, 3))) for i in range(count)]
    kept = {count - 1, chance.randrange(count) if seed % 3 == 0 else count - 1}
    return dag(reads, chance, [chance.randint(1, 9) for _ in reads], kept)


def peaky_dag(seed: int) -> Graph:
    """10 ops: peaks, one after the other, and values beside them that are read between the peaks, again and again."""
    chance = random.Random(seed)
    beside = chance.randint(1, 2)
    reads: list[list[int]] = [[] for _ in range(beside)]
    sizes = [chance.randint(3, 9) for _ in range(beside)]
    while len(reads) < 10:
        kinds = ("grow", "shrink", "use")
        kind = kinds[(len(reads) - beside) % 3] if chance.random() < 0.85 else chance.choice(kinds)
        reads.append([len(reads) - 1, chance.randrange(beside)] if kind == "use" else [len(reads) - 1])
        sizes.append(chance.randint(6, 9) if kind == "grow" else chance.randint(1, 3))
    return dag(reads, chance, sizes, {9})


def peaks(count: int) -> tuple[Graph, int]:
    """A graph and a budget within which its first op must run again after each of *count* peaks."""
    reads: list[list[int]] = [[]]
    for _ in range(count):
        last = len(reads) - 1
        reads += [[last], [last + 1], [0, last + 2]]
    return dag(reads, random.Random(0), [10] + [20, 1, 1] * count, {len(reads) - 1}), 30


def cost_of(plan: Plan) -> float:
    return plan.time if plan.feasible else float("inf")


def cost_within(graph: Graph, budget: int, recomputes: int) -> tuple[float, float, bool]:
    """Return the cost that the solver reaches by itself, its bound, and whether more recomputes may help."""
    problem = problem_of(graph)
    answer = solve(problem, budget, seconds=60, recomputes=recomputes)
    base = float(problem.cost[: problem.ops].sum())
    if answer.nodes is None:
        return float("inf"), base + answer.bound, not answer.enough
    state = evaluate(problem, answer.nodes)
    assert state.peak <= budget
    return state.cost, base + answer.bound, not answer.enough


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("make", only([small_dag], [small_dag, wide_dag, peaky_dag]))
def test_it_is_the_optimum_of_stages_and_so_is_its_bound(make: Callable[[int], Graph], share: float):
    """The greedy start need not be of stages: where it is cheaper, it is the plan."""
    solvable = beyond = 0
    for seed in range(30):
        graph = make(seed)
        budget = int(share * simulate(graph).peak)
        plan, best = make_plan(graph, Moccasin(seconds=60), budget), staged_optimum(graph, budget)
        assert cost_within(graph, budget, len(graph.ops)) == (pytest.approx(best), pytest.approx(best), False), seed
        assert cost_of(plan) == pytest.approx(best) or optimum(graph, budget) <= cost_of(plan) < best, seed
        assert plan.time_bound == pytest.approx(cost_of(plan)), seed
        assert plan.feasible == (simulate(graph, plan.schedule).peak <= budget), seed
        assert not plan.proved_optimal or plan.time == pytest.approx(optimum(graph, budget)), seed
        solvable += best < float("inf")
        beyond += cost_of(plan) < best - 1e-9
    assert solvable >= (6 if share > 0.7 else 1)
    assert beyond <= 1


@pytest.mark.exhaustive
def test_fewer_recomputes_may_cost_more_and_their_bound_is_not_taken_for_that_of_all():
    dearer = {1: 0, 2: 0}
    for seed in range(30):
        graph = peaky_dag(seed)
        budget = int(0.8 * simulate(graph).peak)
        best, true = staged_optimum(graph, budget), optimum(graph, budget)
        for recomputes in dearer:
            cost, bound, more = cost_within(graph, budget, recomputes)
            assert cost >= best - 1e-9
            assert bound <= best * (1 + 1e-9)
            assert more or cost == pytest.approx(best)
            dearer[recomputes] += cost > best + 1e-9
            plan = make_plan(graph, Moccasin(seconds=60, recomputes=recomputes), budget)
            assert plan.time_bound <= best * (1 + 1e-9) or plan.time_bound == cost_of(plan)
            assert not plan.proved_optimal or plan.time == pytest.approx(true)
    assert dearer[1] > dearer[2] > 0


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_an_op_runs_again_after_every_peak(count: int):
    graph, budget = peaks(count)
    plan = make_plan(graph, Moccasin(seconds=60), budget)
    assert plan.feasible
    assert np.bincount(plan.schedule.ops).max() == count + 1
    if count > 1:
        assert cost_within(graph, budget, count - 1)[0] == float("inf")
    assert cost_within(graph, budget, count)[0] == pytest.approx(plan.time)
    assert plan.time_bound == pytest.approx(plan.time)


def test_no_unit_of_an_optimum_runs_again_more_often_than_is_enough():
    """A plan without needless recomputes, and windows that know nothing of its cost."""
    for seed in range(20):
        graph = peaky_dag(seed)
        plan = make_plan(graph, Moccasin(seconds=60), int(0.8 * simulate(graph).peak))
        windows = Windows(problem_of(graph))
        again = np.bincount(plan.schedule.ops, minlength=len(graph.ops)) - 1
        assert (again <= windows.enough()).all()
        assert (windows.enough() <= np.maximum(0, windows.run_high - windows.run_low + 1)).all()
        assert (Windows(problem_of(graph), 5.0).enough(5.0) <= windows.enough()).all(), "a limit of cost only forbids"


def test_what_is_about_to_lose_its_input_runs_again_for_a_reader_far_behind():
    ops = [
        Op("make", "node", ("source",), ("a",), time=1.0),
        Op("peak", "node", (), ("b",), time=1.0),
        Op("overwrite", "node", ("source",), mutates=("source",), time=1.0),
        Op("read", "node", ("a",), ("c",), time=1.0),
    ]
    tensors = [Tensor(name, (size,), "uint8") for name, size in (("source", 0), ("a", 1), ("b", 1), ("c", 0))]
    plan = make_plan(Graph(ops, tensors, outputs=("c",)), Moccasin(), 1)
    assert plan.schedule.ops.tolist() == [0, 1, 0, 2, 3]


def test_a_source_that_nothing_reads_takes_no_room():
    ops = [Op(name, "node", (), (name,), time=1.0) for name in "ab"] + [Op("end", "node", ("a",), ("c",), time=1.0)]
    tensors = [Tensor(name, (size,), "uint8") for name, size in (("a", 1), ("b", 1), ("c", 0), ("idle", 9))]
    assert make_schedule(Graph(ops, tensors, outputs=("c",)), Moccasin(), 1).ops.tolist() == [0, 1, 0, 2]


@pytest.mark.exhaustive
@given(graph=st.one_of(graphs(max_ops=14), training_steps()), share=st.sampled_from([0.5, 0.7, 0.8, 0.9, 0.95]))
@settings(max_examples=100, deadline=None)
def test_with_mutations_views_workspace_and_holds_it_costs_what_checkmates_program_does(graph: Graph, share: float):
    budget = int(share * simulate(graph).peak)
    plan, exact = make_plan(graph, Moccasin(seconds=20), budget), make_plan(graph, Checkmate(seconds=20, gap=0), budget)
    assert cost_of(plan) == pytest.approx(cost_of(exact))
    assert plan.feasible == (simulate(graph, plan.schedule).peak <= budget)  # it raises if a value is stale or missing
    assert plan.time_bound <= cost_of(plan) * (1 + 1e-9)


@pytest.mark.parametrize("name", ["fcn8", "unet", "segnet"])
@pytest.mark.parametrize("share", SHARES)
def test_networks_of_seventy_ops_are_solved_in_a_moment(name: str, share: float):
    graph = Graph.from_networkx(NETWORKS[name]())
    budget = int(share * simulate(graph).peak)
    plan = make_plan(graph, Moccasin(seconds=60), budget)
    assert plan.seconds < 10
    assert plan.feasible or budget < memory_bound(graph)
    assert plan.time_bound <= cost_of(plan) * (1 + 1e-9)


def test_more_recomputes_prove_that_two_are_enough():
    graph = Graph.from_networkx(NETWORKS["segnet"]())
    budget = int(0.8 * simulate(graph).peak)
    plan, proved = (make_plan(graph, Moccasin(seconds=60, recomputes=most), budget) for most in (2, 1000))
    assert plan.time_bound < plan.time == proved.time
    assert proved.time_bound == pytest.approx(proved.time, rel=1e-7)
    assert not proved.proved_optimal, "of the form, not of all"


def test_the_seed_decides_where_one_worker_solves_to_the_end():
    graph = Graph.from_networkx(NETWORKS["unet"]())
    budget = int(0.7 * simulate(graph).peak)
    one, other = (make_plan(graph, Moccasin(seed=3, seconds=60), budget) for _ in range(2))
    assert np.array_equal(one.schedule.ops, other.schedule.ops)


def test_less_than_one_op_touches_is_proved_impossible_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(moccasin, "solve", None)
    plan = make_plan(chain(5), Moccasin(), 2999)
    assert (plan.feasible, plan.memory_bound, plan.time_bound) == (False, 3000, float("inf"))


HARD = Graph.from_networkx(layered(60, 1, 0.3))


def test_progress_has_the_best_the_bound_and_its_limit_in_words():
    told: list[str] = []
    make_plan(HARD, Moccasin(seconds=1.5, progress=told.append), int(0.8 * simulate(HARD).peak))
    assert told
    assert all(text.startswith("moccasin: +") for text in told), "the greedy start is the first"
    assert all("compute; at least +" in text and "with 1 recompute of each op" in text for text in told)
    told.clear()
    make_plan(peaks(3)[0], Moccasin(seconds=60, progress=told.append), 30)
    assert told[-1].startswith("moccasin: +")
    assert "with" not in told[-1]


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_leaves_the_best_so_far():
    def watch(text: str) -> None:
        signal.raise_signal(signal.SIGINT)

    budget = int(0.8 * simulate(HARD).peak)
    plan = make_plan(HARD, Moccasin(seconds=60, progress=watch), budget)
    assert plan.seconds < 30
    assert plan.feasible
    assert plan.interrupted
    assert plan.time_bound <= plan.time


def test_ctrl_c_between_two_solves_leaves_the_greedy_start(monkeypatch: pytest.MonkeyPatch):
    def solve_no_more(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(moccasin, "solve", solve_no_more)
    plan = make_plan(HARD, Moccasin(), int(0.8 * simulate(HARD).peak))
    assert plan.feasible
    assert plan.interrupted


def test_what_progress_raises_ends_the_search():
    def watch(text: str) -> None:
        raise RuntimeError(text)

    with pytest.raises(RuntimeError, match="moccasin"):
        make_plan(HARD, Moccasin(seconds=200, progress=watch), int(0.8 * simulate(HARD).peak))


def test_recomputes_that_cost_nothing_are_proved_optimal_without_a_solver(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(moccasin, "solve", None)
    graph, budget = peaks(2)
    ops = [replace(op, time=float(op.name != "o0")) for op in graph.ops]
    plan = make_plan(Graph(ops, graph.tensors.values(), outputs=graph.outputs), Moccasin(), budget)
    assert plan.feasible
    assert plan.time == plan.base_time == plan.time_bound
    assert plan.proved_optimal


def test_a_graph_that_is_too_large_is_refused():
    with pytest.raises(UsageError, match="up to 1,500 ops"):
        make_plan(chain(MOST_OPS // 2 + 1), Moccasin(), 300_000)


def test_without_or_tools_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    with pytest.raises(MissingExtraError, match="solver"):
        make_plan(HARD, Moccasin(), int(0.8 * simulate(HARD).peak))


@pytest.mark.parametrize("options", [{"seconds": -1}, {"recomputes": 0}])
def test_options_out_of_range_are_refused(options: dict[str, int]):
    with pytest.raises(UsageError, match="at least"):
        Moccasin(**options)
