"""What ``torch.onnx.export`` writes, imported and trained, against the captured step of the module it came from."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from torch import nn  # noqa: E402

import graphsim as gs  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

IDS = torch.randint(0, 60, (4, 16))


class Residual(nn.Module):
    def __init__(self, inner, outer, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.down = nn.Conv2d(inner, outer, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.down(x))


class Perceptron(nn.Module):
    """Two paths with activations that exporters take apart."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm, self.act = nn.Linear(24, 48), nn.Linear(48, 24), nn.LayerNorm(24), nn.GELU()

    def forward(self, x):
        return self.norm(self.down(nn.functional.silu(self.up(x))) + self.act(x))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, batch_first=True, activation="gelu")
        self.table, self.positions = nn.Embedding(60, 32), nn.Parameter(torch.zeros(40, 32))
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 60)
        for parameter in self.parameters():
            nn.init.normal_(parameter)  # equal initializers would be written once

    def forward(self, ids):
        return self.head(self.encoder(self.table(ids) + self.positions[: ids.shape[1]]))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.lstm, self.head = nn.Embedding(60, 16), nn.LSTM(16, 24), nn.Linear(24, 60)

    def forward(self, ids):
        return self.head(self.lstm(self.table(ids))[0])


def resnet():
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        Residual(16, 16, 1), Residual(16, 32, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


CASES = {
    "resnet": (resnet, torch.randn(4, 3, 32, 32)),
    "perceptron": (Perceptron, torch.randn(4, 6, 24)),
    "transformer": (Transformer, IDS),
}

SCALARS = 64
"""Bytes of the numbers that become tensors."""


def export(tmp_path, module, x, *, dynamo=False, training=True, **options):
    path = str(tmp_path / "model.onnx")
    if dynamo:
        torch.onnx.export(module, (x,), path, dynamo=True, external_data=False, verbose=False, **options)
    else:
        mode = torch.onnx.TrainingMode.TRAINING if training else torch.onnx.TrainingMode.EVAL
        torch.onnx.export(module, (x,), path, dynamo=False, training=mode, do_constant_folding=not training, **options)
    return path


def imported(path, **parameters):
    step = gs.training_step(gs.load(path, **parameters), optimizer="sgd", optimizer_impl="forloop", target="cpu")
    return gs.simulate(step)


def parameter_bytes(run):
    owners = (t for t in run.graph.tensors.values() if not t.storage)
    return sum(t.nbytes for t in owners if t.role is gs.Role.PARAMETER)


def live_between_ops(run):
    """The greatest number of live bytes when an op is entered, without scratch inside of kernels."""
    ranges = run.live_ranges
    live = ranges.sum_over_time(ranges.nbytes)
    for begin, nbytes, source in zip(ranges.begin, ranges.nbytes, ranges.source, strict=True):
        live[begin] -= 0 if source else nbytes
    return int(live.max())


@pytest.mark.parametrize("name", CASES)
def test_an_export_in_training_mode_trains_as_its_module_does(tmp_path, name):
    make, x = CASES[name]
    module = make()
    ours = imported(export(tmp_path, module, x))
    real = gs.simulate(gs.from_torch(module, x, optimizer="sgd"))
    assert abs(live_between_ops(ours) - live_between_ops(real)) <= SCALARS
    assert parameter_bytes(ours) == sum(p.nbytes for p in module.parameters())


def test_the_newer_exporter_does_too(tmp_path):
    make, x = CASES["perceptron"]
    module = make()
    ours = imported(export(tmp_path, module, x, dynamo=True))
    real = gs.simulate(gs.from_torch(module, x, optimizer="sgd"))
    assert abs(live_between_ops(ours) - live_between_ops(real)) <= SCALARS


@pytest.mark.parametrize("dynamo", [False, True])
def test_a_recurrent_layer_reaches_the_peaks_that_pytorch_reaches(tmp_path, dynamo):
    """Its kernel allocates much inside, which a capture does not see."""
    from test_onnx import measured_peaks

    peaks = imported(export(tmp_path, Recurrent(), IDS, dynamo=dynamo)).phase_peaks()
    for phase, real in measured_peaks(Recurrent, IDS).items():
        assert abs(peaks[phase] - real) <= SCALARS, (phase, peaks, real)


def test_symbolic_dimensions_of_an_export(tmp_path):
    module, x = Perceptron(), torch.randn(2, 3, 24)
    axes = {"x": {0: "batch", 1: "tokens"}}
    path = export(tmp_path, module, x, input_names=["x"], dynamic_axes=axes)
    ours = imported(path, batch=5, tokens=7)
    real = gs.simulate(gs.from_torch(module, torch.randn(5, 7, 24), optimizer="sgd"))
    assert abs(live_between_ops(ours) - live_between_ops(real)) <= SCALARS


# -- what an export has lost -------------------------------------------------------------------------


def test_an_inference_export_has_its_batch_norms_in_the_convolutions(tmp_path):
    make, x = CASES["resnet"]
    graph = gs.load(export(tmp_path, make(), x, training=False))
    assert not any(op.kind == "batch_norm" for op in graph.ops)
    assert all(op.attributes["bias"] for op in graph.ops if op.kind == "conv2d")


def test_the_newer_exporter_writes_what_it_computes_from_a_parameter_as_a_constant(tmp_path):
    """The slice of the position table: with the parameter go its gradient and its part of the optimizer's work."""
    module = Transformer()
    ours = imported(export(tmp_path, module, IDS, dynamo=True))
    real = gs.simulate(gs.from_torch(module, IDS, optimizer="sgd"))
    assert parameter_bytes(ours) == sum(p.nbytes for p in module.parameters()) - module.positions.nbytes
    assert 0 < live_between_ops(real) - live_between_ops(ours) <= 2 * module.positions.nbytes


def test_layers_are_named_after_modules(tmp_path):
    make, x = CASES["resnet"]
    graph = gs.load(export(tmp_path, make(), x))
    layers = {op.layer for op in graph.ops}
    assert {"0", "4.conv1", "5.bn2", "8"} <= layers
