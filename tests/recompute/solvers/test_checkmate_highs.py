"""HiGHS in a process of its own: what happens when it is killed, hangs, is stopped, or is left alone."""

from __future__ import annotations

import _thread
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from generators import chain
from networks import NETWORKS

from graphsim.answers.planned import compare
from graphsim.core.graph import Graph
from graphsim.core.simulation import simulate
from graphsim.errors import SolverError
from graphsim.recompute.evaluation import evaluate
from graphsim.recompute.moves.repair import repair
from graphsim.recompute.plan import make_plan
from graphsim.recompute.problem import problem_of
from graphsim.recompute.solvers import checkmate_highs
from graphsim.recompute.solvers.checkmate_highs import solve
from graphsim.recompute.solvers.checkmate_model import Model
from graphsim.recompute.solvers.windows import Windows
from graphsim.recompute.strategies.checkmate import Checkmate

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


@pytest.fixture(scope="module")
def hard():
    """A model whose program takes minutes."""
    graph = Graph.from_networkx(NETWORKS["segnet"]())
    problem = problem_of(graph)
    return Model(problem, Windows(problem), int(0.6 * simulate(graph).peak))


@pytest.fixture
def child():
    """The process id of the child that answers next."""
    make_plan(chain(6), Checkmate(), 5000)
    return checkmate_highs._idle[-1].process.pid


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_gone(pid: int, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while is_there(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not is_there(pid)


def test_a_child_is_kept_for_the_next_program(child):
    make_plan(chain(8), Checkmate(), 7000)
    assert [one.process.pid for one in checkmate_highs._idle][-1] == child


def test_a_child_that_is_killed_is_an_error_that_names_the_signal_and_the_next_program_has_a_new_one(hard, child):
    with pytest.raises(SolverError, match="HiGHS ended without an answer: SIGKILL"):
        solve(hard.program, integer=True, seconds=60, progress=lambda *_: os.kill(child, signal.SIGKILL))
    assert not is_there(child)
    assert make_plan(chain(6), Checkmate(), 5000).feasible


def test_a_child_that_was_killed_while_idle_is_replaced(child):
    os.kill(child, signal.SIGKILL)
    assert is_gone(child)
    assert make_plan(chain(6), Checkmate(), 5000).feasible


def test_a_child_that_hangs_is_an_error_and_is_ended(hard, child, monkeypatch):
    monkeypatch.setattr(checkmate_highs, "GRACE", 0.5)
    os.kill(child, signal.SIGSTOP)  # it does not even read
    with pytest.raises(SolverError, match="does not stop"):
        solve(hard.program, integer=True, seconds=0.1)
    assert not is_there(child)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_does_not_wait_long_for_a_child_that_hangs(hard, child, monkeypatch):
    def hang(*_: float) -> None:
        os.kill(child, signal.SIGSTOP)
        _thread.interrupt_main()

    monkeypatch.setattr(checkmate_highs, "STOPPING", 0.5)
    with pytest.raises(KeyboardInterrupt):
        solve(hard.program, integer=True, seconds=60, progress=hang)
    assert not is_there(child)


def test_a_start_that_is_good_enough_is_the_answer(hard):
    problem = hard.problem
    stored = evaluate(problem, np.arange(problem.ops))
    state = repair(stored, int(0.6 * stored.peak))
    start = hard.solution(state.nodes)
    assert start is not None
    enough = solve(hard.program, integer=True, seconds=60, gap=1e6, start=start)
    assert enough.x == pytest.approx(np.concatenate([start, enough.x[len(start) :]]))
    assert 0 < enough.bound <= hard.program.cost @ enough.x


def test_compare_goes_on_without_a_solver_whose_process_ends_and_says_so(monkeypatch):
    monkeypatch.setattr(checkmate_highs, "_idle", [])
    monkeypatch.setattr(sys, "executable", "/bin/false")
    made = compare(chain(6), budget=5000)
    assert {"none", "auto", "moccasin"} <= {plan.strategy for plan in made.plans}
    assert [line for line in made.skipped if "HiGHS" in line] == [
        f"{name}: HiGHS ended without an answer: exit code 1" for name in ("checkmate", "checkmate_lp")
    ]


SCRIPT = """
import sys
sys.path.insert(0, "tests")
from networks import NETWORKS
from graphsim.core.graph import Graph
from graphsim.core.simulation import simulate
from graphsim.recompute.plan import make_plan
from graphsim.recompute.solvers import checkmate_highs
from graphsim.recompute.strategies.checkmate import Checkmate
graph = Graph.from_networkx(NETWORKS["segnet"]())
started = checkmate_highs._Child()
checkmate_highs._idle.append(started)
started._since = float("inf")
def tell(text):
    print(started.process.pid, flush=True)
plan = make_plan(graph, Checkmate(seconds=60, progress=tell), int(0.6 * simulate(graph).peak))
print(plan.interrupted, plan.feasible, "highspy" in sys.modules, flush=True)
"""
"""Without a guard for `__main__`."""


@pytest.fixture
def script():
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, start_new_session=True) as process:
        yield process, int(process.stdout.readline())


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_of_a_terminal_ends_the_search_and_leaves_no_process_behind(script):
    process, child = script
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate()[0].split()[-3:] == [b"True", b"True", b"False"]
    assert process.returncode == 0
    assert is_gone(child)


def test_the_child_ends_with_the_process_that_started_it(script):
    process, child = script
    process.kill()
    process.wait()
    assert is_gone(child)


def test_the_child_imports_numpy_and_highspy_and_nothing_else_of_ours():
    code = (
        "import sys, numpy, highspy; before = {*sys.modules}; import graphsim.recompute.solvers.highs_child; "
        "print(*sorted({*sys.modules} - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = {name for name in done.stdout.split() if name.startswith("graphsim")}
    parents = {"graphsim", "graphsim.version", "graphsim.recompute", "graphsim.recompute.solvers"}
    assert ours == parents | {"graphsim.recompute.solvers.highs_child"}
    assert {"networkx", "rich", "numba"}.isdisjoint(done.stdout.split())
