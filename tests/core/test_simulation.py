"""Questions to a simulation, on a real training step."""

from __future__ import annotations

import numpy as np
import pytest

import graphsim as gs
from graphsim.core.simulation import ROLES
from graphsim.errors import ScheduleError, UnknownNameError
from graphsim.recompute.plan import make_schedule


@pytest.fixture(scope="module", params=["none", "sqrt"])
def run(request):
    step = gs.training_step(gs.load("lenet5", batch=8), optimizer="adam", target="cpu")
    return gs.simulate(step, make_schedule(step, request.param))


def test_roles_add_up_to_the_timeline(run):
    parts = run.timeline_by_role()
    assert set(parts) == set(ROLES)
    assert np.array_equal(sum(parts.values()), run.timeline)
    for execution in (0, run.peak_execution, len(run.schedule) - 1):
        roles = run.by_role(execution)
        assert sum(roles.values()) == run.timeline[execution]
        assert roles == {role: int(column[execution]) for role, column in parts.items()}


def test_what_is_live_adds_up_and_is_sorted(run):
    for execution in range(0, len(run.schedule), 7):
        sizes = [tensor.nbytes for tensor in run.live_at(execution)]
        assert sizes == sorted(sizes, reverse=True)
        assert sum(sizes) == run.timeline[execution]


def test_the_peak_is_the_greatest_phase_peak(run):
    assert run.peak == max(run.phase_peaks().values()) == run.timeline[run.peak_execution]


def test_a_forward_op_that_runs_again_is_in_phase_recompute(run):
    repeated = run.schedule.repeats
    assert [phase is gs.Phase.RECOMPUTE for phase in run.phases] == repeated.tolist()
    assert ("recompute" in run.phase_peaks()) == bool(repeated.any())


def test_the_loss_and_what_is_saved_are_live_when_forward_ends(run):
    end = run.phase_end_bytes(gs.Phase.FORWARD)
    assert 0 < end <= run.phase_peaks()["forward"]
    assert run.phase_end_bytes(gs.Phase.RECOMPUTE) == 0 or "recompute" in run.phase_peaks()


def test_gradients_are_named_after_their_parameters():
    step = gs.training_step(gs.load("lenet5", batch=8), optimizer="sgd", target="cpu")
    run = gs.simulate(step)
    names = {tensor.name for tensor in run.live_at(len(step.ops) - 1) if tensor.role == "gradients"}
    assert {"conv1.weight.grad", "head.bias.grad"} <= names


def test_an_empty_schedule_is_not_program_order():
    graph = gs.Graph([gs.Op("a", "n", (), ("x",))], [gs.Tensor("x", (2,))])
    with pytest.raises(ScheduleError, match="never executes op 'a'"):
        _ = gs.simulate(graph, gs.Schedule.of(graph, [])).peak


def test_an_unknown_policy_is_named():
    with pytest.raises(UnknownNameError, match="eager"):
        gs.simulate(gs.Graph([], []), policy="lazy")
