"""What PyTorch really allocates, to hold predictions against.

    assert_close(net, loss, inputs, spec)

runs one forward and backward pass of *net* under the profiler and compares its forward end, forward
peak and backward peak with what graphsim predicts for the spec text. Bytes are counted beyond
parameters, buffers and inputs; gradients count.
"""

from __future__ import annotations

import gc
import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import NamedTuple

import pytest

import graphsim as gs
from graphsim.core.graph import Graph
from graphsim.sources.spec import parse_spec

torch = pytest.importorskip("torch")


class Bytes(NamedTuple):
    """Live bytes beyond parameters, buffers and inputs."""

    forward_end: int
    forward_peak: int
    backward_peak: int
    backward_end: int


def measure(forward: Callable[[], torch.Tensor]) -> Bytes:
    """Measure one forward and backward pass; *forward* returns the loss."""
    from torch.profiler import ProfilerActivity, profile, record_function

    gc.collect()  # garbage of tests before must not be freed within
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            with record_function("##forward"):
                loss = forward()
            with record_function("##backward"):
                loss.backward()
    events = recorded.profiler.kineto_results.events()
    ends = {e.name(): e.start_ns() + e.duration_ns() for e in events if e.name()[:2] == "##"}
    live, peaks, end = 0, {"##forward": 0, "##backward": 0}, {"##forward": 0, "##backward": 0}
    for time, _, change in sorted(
        (e.start_ns(), i, e.nbytes()) for i, e in enumerate(events) if e.name() == "[memory]"
    ):
        live += change
        phase = "##forward" if time <= ends["##forward"] else "##backward"
        peaks[phase] = max(peaks[phase], live)
        end[phase] = live
    return Bytes(end["##forward"], peaks["##forward"], peaks["##backward"], end["##backward"])


def predict(graph: Graph) -> Bytes:
    """Predict the same for a forward graph whose output is the loss."""
    step = gs.training_step(graph, optimizer="sgd", target="cpu")
    run = gs.simulate(step)
    resident = sum(
        t.nbytes
        for t in step.tensors.values()
        if not t.storage and t.role in (gs.Role.PARAMETER, gs.Role.BUFFER, gs.Role.INPUT)
    )
    peaks = run.phase_peaks()
    return Bytes(
        run.phase_end_bytes(gs.Phase.FORWARD) - resident,
        peaks["forward"] - resident,
        peaks["backward"] - resident,
        run.phase_end_bytes(gs.Phase.BACKWARD) - resident,
    )


def assert_close(
    forward: Callable[[], torch.Tensor], graph: Graph | str, *, within: int = 256, relative: float = 0.0
) -> None:
    """Compare measured with predicted; *within* bytes covers the scalars that Python numbers become."""
    forward().backward()  # lazy initialisation is not part of a step
    for parameter in _parameters(forward):
        parameter.grad = None
    measured = measure(forward)
    predicted = predict(parse_spec(graph) if isinstance(graph, str) else graph)
    for name, real, ours in zip(Bytes._fields, measured, predicted, strict=True):
        assert abs(ours - real) <= within + relative * real, f"{name}: measured {measured}, predicted {predicted}"


def _parameters(forward: Callable[[], torch.Tensor]) -> list[torch.nn.Parameter]:
    """Return the parameters of the modules that *forward* closes over."""
    cells = [cell.cell_contents for cell in forward.__closure__ or ()]
    return [p for value in cells if isinstance(value, torch.nn.Module) for p in value.parameters()]
