"""Whole training steps of a small perceptron against the same loop in torch: phase peaks and what is left."""

from __future__ import annotations

import mlp
import pytest
from torch_memory import Measured, measure

import graphsim as gs
from graphsim.core.graph import Phase
from graphsim.errors import GraphError, UnknownNameError, UsageError
from graphsim.step.training import ZERO_GRAD

torch = pytest.importorskip("torch")


def adam(params):
    return torch.optim.Adam(params, foreach=False)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("zero_grad", ZERO_GRAD)
def test_gradients_are_reset_where_and_how_the_user_says(zero_grad, set_to_none, accumulation):
    options = {"zero_grad": zero_grad, "set_to_none": set_to_none, "accumulation": accumulation}
    ours = mlp.simulated(optimizer="adam", **options)
    theirs = mlp.trained(adam, **options)
    for step in (0, 1):
        assert mlp.difference(ours[step], theirs[step]) <= mlp.SCALARS


def test_step_2_differs_from_step_1_by_what_step_1_left():
    first, later = mlp.simulated(optimizer="adam", zero_grad="before-backward")
    kept = 2 * 4 * parameters() + 4 * 6  # two moments, a counter for each of 6 parameters
    assert later["forward"].end - first["forward"].end == kept + 4 * parameters()
    assert later["optimizer"] == first["optimizer"]


def parameters() -> int:
    return sum(p.numel() for p in mlp.model().parameters())


NATIVE_HALF = pytest.mark.skipif(
    torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    reason="this CPU multiplies fp16 matrices natively (avx512_fp16): oneDNN's scratchpads there are not modelled",
)


@pytest.mark.parametrize("autocast", [None, pytest.param("float16", marks=NATIVE_HALF)])
@pytest.mark.parametrize("mode", ["evaluation", "inference"])
def test_forward_alone_keeps_its_graph_only_if_autograd_records(mode, autocast):
    precision = "amp-fp16" if autocast else "fp32"
    ours = mlp.phases(first=False, mode=mode, precision=precision)["forward"]
    theirs = forward_alone(mode == "evaluation", autocast)
    assert abs(ours.peak - theirs.peak) <= mlp.SCALARS
    assert abs(ours.end - theirs.end) <= mlp.SCALARS


def forward_alone(record: bool, autocast: str | None) -> Measured:
    kept = []

    def run():
        net = mlp.model().eval()
        x, label = torch.randn(96, 40), torch.randint(0, 10, (96,))
        cast = torch.autocast("cpu", dtype=torch.float16, enabled=bool(autocast))
        with torch.profiler.record_function("##forward"), torch.set_grad_enabled(record), cast:
            kept.append(torch.nn.functional.cross_entropy(net(x), label))

    return measure(run)["forward"]


def test_forward_alone_has_neither_gradients_nor_optimizer_states():
    for mode in ("evaluation", "inference"):
        step = gs.training_step(mlp.graph_of(), mode=mode)
        assert {op.phase for op in step.ops} == {Phase.FORWARD}
        assert not [t for t in step.tensors.values() if t.role in ("gradients", "optimizer_state")]


def test_a_model_without_a_loss_can_be_run_but_not_trained():
    graph = mlp.graph_of(mlp.SPEC.replace('{ op = "cross_entropy", with = "label" },', ""))
    assert gs.training_step(graph, mode="inference").ops
    with pytest.raises(GraphError, match="training needs a scalar loss"):
        gs.training_step(graph)


def test_a_parameter_that_the_loss_does_not_reach_never_has_a_gradient():
    unused = '{ op = "linear", out = 7, from = "x", name = "unused" },\n  { op = "cross_entropy", from = "logits"'
    spec = mlp.SPEC.replace('{ op = "linear", out = 10 }', '{ op = "linear", out = 10, name = "logits" }')
    graph = mlp.graph_of(spec.replace('{ op = "cross_entropy"', unused))
    step = gs.training_step(graph, optimizer="adam", set_to_none=False)
    assert "unused.weight" in step.tensors
    assert not [name for name in step.tensors if name.startswith("unused.weight.")]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"mode": "eval"}, UnknownNameError, "evaluation"),
        ({"zero_grad": "before_forward"}, UnknownNameError, "before-forward"),
        ({"precision": "fp8"}, UnknownNameError, "fp16"),
        ({"target": "gpu"}, UnknownNameError, "cpu"),
        ({"accumulation": 0}, UsageError, "1 ... 4096"),
        ({"accumulate": 2}, UsageError, "accumulation"),
        ({"master_weights": True}, UsageError, "fp32"),
    ],
)
def test_wrong_options_are_named_with_what_is_right(options, error, says):
    with pytest.raises(error, match=says):
        gs.training_step(mlp.graph_of(), **options)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_three_micro_batches_have_the_peak_of_any_greater_number(set_to_none):
    graph = gs.load("lenet5", batch=4)
    peaks = {
        n: gs.simulate(gs.training_step(graph, accumulation=n, set_to_none=set_to_none, target="cpu")).phase_peaks()
        for n in (3, 4, 9)
    }
    assert peaks[3] == peaks[4] == peaks[9]
    report = gs.peak(graph, accumulation=4096, set_to_none=set_to_none, target="cpu")
    assert report.steady.phase_peak_bytes == peaks[3]
    with pytest.raises(UsageError, match="too many"):
        gs.training_step(gs.load("resnet50"), accumulation=4096)
