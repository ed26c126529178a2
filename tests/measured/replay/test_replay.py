"""Replay on the host: what was predicted is what numpy holds."""

from __future__ import annotations

import numpy as np
import pytest

import graphsim as gs
from graphsim.core.layout import Layout
from graphsim.core.simulation import Simulation
from graphsim.core.trace import Trace
from graphsim.errors import GraphSimError, MissingExtraError, UnknownNameError, UsageError, out_of_memory
from graphsim.measured.backends.cupy import Cupy
from graphsim.measured.backends.numpy import Numpy
from graphsim.measured.backends.torch import Torch
from graphsim.measured.replay import replay_run
from graphsim.recompute.plan import make_plan
from graphsim.sources.spec import shipped_specs

FITS = 4 * 2**30
LARGE = {
    "bert_base": {"batch": 2, "seq": 128},
    "bert_large": {"batch": 1, "seq": 64},
    "gpt2": {"batch": 1, "seq": 128},
    "llama3_8b": {"batch": 1, "seq": 64, "layers": 1},
    "mixtral_8x7b": {"batch": 1, "seq": 16, "layers": 1, "experts": 2},
    "mobilenet_v2": {"batch": 16},
    "resnet101": {"batch": 16},
    "t5_small": {"batch": 2, "seq": 128},
    "vgg16": {"batch": 8},
    "vgg19": {"batch": 8},
    "vit_b16": {"batch": 8},
}


def step_of(name: str, **options) -> Simulation:
    return gs.simulate(gs.training_step(gs.load(name, **LARGE.get(name, {})), **options))


@pytest.mark.parametrize("name", shipped_specs())
def test_every_shipped_spec_that_fits_in_4_gib_is_measured_to_the_byte_at_every_event(name):
    run = step_of(name, optimizer="sgd", target="cpu")
    if run.peak > FITS:
        pytest.skip(f"{name} needs {run.peak:,} bytes even when small")
    result = replay_run(run, "numpy")
    assert result.matched_used == result.matched_total == result.events == run.trace.events_count
    assert result.measured_peak_bytes == result.predicted_peak_bytes == run.peak
    assert result.first_mismatch is None
    assert result.matches


def test_all_but_the_largest_models_are_measured():
    sizes = {name: step_of(name, optimizer="sgd", target="cpu").peak for name in shipped_specs()}
    assert {name for name, size in sizes.items() if size > FITS} <= {"llama3_8b", "mixtral_8x7b"}


def test_a_schedule_with_recompute_is_replayed_like_any_other():
    step = gs.training_step(gs.load("resnet18", batch=2, size=64), optimizer="adam")
    plan = make_plan(step, "sqrt")
    result = replay_run(gs.simulate(step, plan.schedule), "numpy")
    assert result.matches
    assert result.measured_peak_bytes == plan.peak_bytes


class Wrong(Numpy):
    """A backend that holds 100 bytes more from event 7 on."""

    def __call__(self, trace: Trace) -> Layout:
        layout = Numpy()(trace)
        used = layout.used + 100 * (np.arange(len(layout.used)) >= 7)
        return Layout(layout.address, layout.segment, used, used)


def test_the_first_event_that_differs_is_named_with_its_op():
    run = step_of("lenet5", optimizer="sgd")
    result = replay_run(run, Wrong())
    assert result.matched_used == 7
    assert not result.matches
    miss = result.first_mismatch
    assert miss is not None
    assert (miss.event, miss.measured_used - miss.predicted_used) == (7, 100)
    change = run.trace.stream[1]
    assert miss.nbytes == abs(change[7])
    assert miss.kind == ("malloc" if change[7] > 0 else "free")
    execution = run.trace.execution_of(7)
    assert miss.op == ("before the step" if execution < 0 else run.op_at(execution).name)


class Full(Numpy):
    """A backend that runs out of memory at the first event of the step itself."""

    def __call__(self, trace: Trace) -> Layout:
        event = int(trace.malloc[trace.execution >= 0].min())
        raise out_of_memory(event, 5, 12345)


def test_out_of_memory_ends_the_replay_with_the_op():
    run = step_of("lenet5", optimizer="sgd")
    result = replay_run(run, Full())
    assert result.out_of_memory == run.op_at(0).name
    assert result.measured_peak_bytes == 12345
    assert not result.matches


def test_arithmetic_is_timed_where_there_is_an_array_library():
    run = step_of("lenet5", optimizer="sgd")
    result = replay_run(run, "numpy", compute=True)
    assert set(result.compute_seconds) == {"forward", "backward", "optimizer"}
    assert all(seconds > 0 for seconds in result.compute_seconds.values())
    assert not replay_run(run, "numpy").compute_seconds
    with pytest.raises(UsageError, match="numpy or cupy"):
        replay_run(run, "torch", compute=True)


def test_a_replay_survives_json():
    import json

    result = replay_run(step_of("lenet5"), "numpy")
    data = json.loads(result.to_json())
    assert data["schema"] == "graphsim-replay/1"
    keys = {"backend", "device", "events", "matched_used", "matched_total", "first_mismatch"}
    assert keys | {"predicted_peak_bytes", "measured_peak_bytes"} <= set(data)


def test_backends_that_need_a_gpu_say_so_without_one():
    run = step_of("lenet5")
    for backend in (Cupy(), Torch()):
        try:
            device = backend.device
        except (UsageError, MissingExtraError) as error:
            assert "CUDA" in str(error) or "pip install" in str(error)  # noqa: PT017
        else:
            assert device
    with pytest.raises(UnknownNameError, match="numpy"):
        replay_run(run, "numpi")
    with pytest.raises(UsageError, match="lock-step"):
        replay_run(run, "numpy", lockstep=True)
    with pytest.raises(GraphSimError, match="known: touch"):
        replay_run(run, "numpy", options="zzz=1")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cupy", "torch"])
def test_a_gpu_replays_resnet18_as_predicted(backend):
    run = step_of("resnet18", optimizer="adam")
    try:
        result = replay_run(run, backend)
    except GraphSimError as error:
        pytest.skip(str(error))
    assert result.matched_used == result.events


@pytest.mark.gpu
def test_a_gpu_replays_gpt2_in_lockstep_as_predicted():
    try:
        result = replay_run(step_of("gpt2", optimizer="adam"), "cupy", lockstep=True)
    except GraphSimError as error:
        pytest.skip(str(error))
    assert result.matched_used == result.matched_total == result.events
