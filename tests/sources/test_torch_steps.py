"""Captures of what people do around a model: optimizers, their own steps, factories, and what cannot be captured."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import textwrap

import pytest

torch = pytest.importorskip("torch")

from architectures import PLAIN  # noqa: E402
from exhaustive import only  # noqa: E402
from test_torch import adam, boundaries, check, compare, count, plain_step, sgd  # noqa: E402
from torch import nn  # noqa: E402

import graphsim as gs  # noqa: E402
from graphsim.errors import CaptureError, MissingExtraError, SpecError, UnknownNameError, UsageError  # noqa: E402
from graphsim.sources.torch.capture import capture  # noqa: E402


def accumulate(model, batch, optimizer):
    optimizer.zero_grad(set_to_none=True)
    for _ in range(3):
        (model(*batch) / 3).backward()
    optimizer.step()


def clip(model, batch, optimizer):
    optimizer.zero_grad(set_to_none=True)
    model(*batch).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)
    optimizer.step()


def keep_gradients(model, batch, optimizer):
    loss = model(*batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


def log(model, batch, optimizer):
    plain_step(model, batch, optimizer)
    norm = sum(p.grad.norm().item() for p in model.parameters() if p.grad is not None)
    assert f"{norm:.3f} {2 * norm}"


def zero_late(model, batch, optimizer):
    loss = model(*batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


class Averaged:
    """A step that keeps an exponential moving average of the weights."""

    def __init__(self, model):
        self.average = copy.deepcopy(model)

    def __call__(self, model, batch, optimizer):
        clip(model, batch, optimizer)
        with torch.no_grad():
            for mean, parameter in zip(self.average.parameters(), model.parameters(), strict=True):
                mean.lerp_(parameter, 0.01)


@pytest.mark.parametrize("step", [accumulate, clip, keep_gradients, log, zero_late])
@pytest.mark.parametrize("name", only(["cnn"], ["mlp", "cnn", "tied_and_frozen"]))
def test_steps_of_the_user_are_exact(name, step):
    check(PLAIN[name](), step=step)


OPTIMIZERS = {
    "sgd": sgd,
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam_foreach": lambda p: torch.optim.Adam(p, lr=1e-3, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_exact(name):
    check(PLAIN["mlp"](), optimizer=OPTIMIZERS[name])


def test_an_average_of_the_weights_is_a_resident_constant():
    model, batch = PLAIN["mlp"]()
    step = Averaged(model)
    captured = capture(model, batch, optimizer=adam, loss=None, step=step)
    graph = captured.graph()
    constants = [t for t in graph.tensors.values() if t.name.startswith("constant")]
    assert sum(t.nbytes for t in constants) == sum(p.nbytes for p in model.parameters())
    assert graph.ops[-1].phase is gs.Phase.OPTIMIZER


def test_an_optimizer_object_is_captured_and_left_alone():
    model, batch = PLAIN["mlp"]()
    optimizer = adam(model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    captured = capture(model, batch, optimizer=optimizer, loss=None, step=None)
    assert not optimizer.state
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    used = adam(model.parameters())
    existing = [*model.parameters(), *batch]
    real = count(lambda: plain_step(model, batch, used), existing)
    compare(boundaries(captured.graph()), real[1])


# -- factories ---------------------------------------------------------------------------------------


def test_a_factory_gives_the_graph_of_the_real_model():
    def model():
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        return nn.Sequential(
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), copy.deepcopy(nn.BatchNorm1d(5))
        )

    made = gs.from_torch(model, lambda: torch.randn(4, 5, 32), optimizer="adam")
    real = gs.from_torch(model(), torch.randn(4, 5, 32), optimizer="adam")
    assert boundaries(made) == boundaries(real)


@pytest.mark.exhaustive
def test_a_model_too_large_for_any_machine_is_captured():
    graph = gs.from_torch(lambda: nn.Linear(2**20, 2**20, bias=False), lambda: torch.randn(1, 2**20), optimizer="sgd")
    assert gs.simulate(graph).peak > 2 * 2**42


@pytest.mark.parametrize(
    "model", only(["ViTForImageClassification"], ["ViTForImageClassification", "SwinForImageClassification"])
)
def test_constructors_that_look_at_values(model):
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, model)
    batch = {"pixel_values": torch.randn(1, 3, 224, 224)}
    graph = gs.from_torch(lambda: kind(kind.config_class(num_hidden_layers=2)), batch, optimizer="sgd")
    assert {"forward", "backward", "optimizer"} == {str(op.phase) for op in graph.ops}


# -- the graph ---------------------------------------------------------------------------------------


def test_roles_layers_and_names():
    model, batch = PLAIN["cnn"]()
    graph = gs.from_torch(model, batch, optimizer="adam")
    tensors = graph.tensors
    assert tensors["body.0.weight"].role is gs.Role.PARAMETER
    assert tensors["body.1.running_mean"].role is gs.Role.BUFFER
    assert tensors["input.0"].role is gs.Role.INPUT
    assert tensors["body.0.weight.exp_avg"].role is gs.Role.OPTIMIZER_STATE
    assert tensors["body.0.weight.grad"].role is gs.Role.GRADIENT
    by_kind = {op.kind: op for op in graph.ops if op.phase is gs.Phase.BACKWARD}
    backward = by_kind["native_group_norm_backward"]
    assert (backward.layer, backward.forward_of) == ("body.5", "body.5.native_group_norm")
    run = gs.simulate(graph)
    assert sum(run.by_role(run.peak_execution).values()) == run.peak


def test_batch_norm_can_run_again_without_updating_its_statistics_again():
    graph = gs.from_torch(*PLAIN["cnn"](), optimizer="sgd")
    (normalize,) = (op for op in graph.ops if op.kind == "native_batch_norm")
    (update,) = (op for op in graph.ops if op.kind == "update_running_stats")
    assert not normalize.mutates
    assert update.mutates == ("body.1.running_mean", "body.1.running_var")
    assert not any(op.kind == "update_running_stats" for op in gs.from_torch(evaluated(), torch.randn(2, 4)).ops)


def evaluated():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()


def test_sums_of_gradients_are_in_place_as_they_are_without_an_observer():
    graph = gs.from_torch(*PLAIN["checkpoint_reentrant"](), optimizer="sgd")
    sums = [op for op in graph.ops if op.kind == "add_" and op.phase is gs.Phase.BACKWARD]
    assert sums
    assert all(op.mutates == op.inputs[:1] for op in sums)


def test_attention_adds_its_mask_in_place():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            q = self.linear(x)
            return nn.functional.scaled_dot_product_attention(q, q, q, dropout_p=0.1, is_causal=True).mean()

    graph = gs.from_torch(Attention(), torch.randn(1, 2, 5, 8))
    before = {after.kind: op for op, after in zip(graph.ops, graph.ops[1:], strict=False)}
    assert before["_safe_softmax"].kind == "add_"


def test_a_perfect_planner_needs_less_than_eager():
    graph = gs.from_torch(*PLAIN["torch_transformer"](), optimizer="adam")
    assert gs.simulate(graph, policy="liveness").peak < gs.simulate(graph).peak


def test_the_first_step_creates_the_states():
    model, batch = PLAIN["mlp"]()
    first, steady = (gs.from_torch(model, batch, optimizer="adam", first=first) for first in (True, False))
    states = [t.name for t in steady.tensors.values() if t.role is gs.Role.OPTIMIZER_STATE and not t.storage]
    assert {"body.0.weight.exp_avg", "body.0.weight.exp_avg_sq", "body.0.weight.step"} <= set(states)
    assert set(states) <= set(first.outputs)
    assert len(first.ops) > len(steady.ops)


@pytest.mark.parametrize("name", ["checkpoint_reentrant", "checkpoint_not_reentrant"])
def test_recompute_is_a_phase(name):
    graph = gs.from_torch(*PLAIN[name](), optimizer="sgd")
    again = [op for op in graph.ops if op.phase is gs.Phase.RECOMPUTE]
    assert {op.layer for op in again} >= {f"blocks.{i}.{j}" for i in range(3) for j in range(3)}


def test_the_line_of_an_op_on_request():
    graph = gs.from_torch(*PLAIN["unet"](), lines=True)
    lines = {op.kind: op.attributes["line"] for op in graph.ops if op.phase is gs.Phase.FORWARD and op.kind != "hold"}
    assert "architectures.py:" in lines["upsample_nearest2d"]


def test_a_captured_graph_is_an_ordinary_graph():
    graph = gs.from_torch(*PLAIN["cnn"](), optimizer="adam")
    assert gs.Graph.from_json(graph.to_json()) == graph
    assert graph.dag.number_of_nodes() == len(graph.ops)


def test_the_users_random_numbers_go_on_undisturbed():
    torch.manual_seed(5)
    expected = torch.rand(3)
    model, batch = PLAIN["autoencoder"]()
    torch.manual_seed(5)
    gs.from_torch(model, batch)
    assert torch.equal(torch.rand(3), expected)


# -- what cannot be captured -------------------------------------------------------------------------


class Branch(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.linear, self.how = nn.Linear(4, 4), how

    def forward(self, x):
        y = self.linear(x)
        return y.sum() if self.how(y) else y.mean()


@pytest.mark.parametrize(
    "how",
    [
        lambda y: y.max() > 0,
        lambda y: y.tolist(),
        lambda y: y.detach().numpy(),
        lambda y: len(y[y > 0]),
    ],
)
def test_control_flow_on_data_names_module_and_line(how):
    with pytest.raises(CaptureError) as caught:
        gs.from_torch(nn.Sequential(Branch(how)), torch.randn(2, 4))
    assert "module '0'" in str(caught.value)
    assert "test_torch_steps.py:" in caught.value.line
    assert torch.ones(2).tolist() == [1.0, 1.0]


def test_a_decision_by_a_number_that_was_read_names_the_line():
    with pytest.raises(CaptureError, match=r"test_torch_steps\.py:\d+"):
        gs.from_torch(nn.Sequential(Branch(lambda y: y.max().item() > 0)), torch.randn(2, 4))


def test_wrong_optimizers():
    model, batch = PLAIN["mlp"]()
    with pytest.raises(UnknownNameError, match="did you mean 'adam'"):
        gs.from_torch(model, batch, optimizer="adm")
    with pytest.raises(UsageError, match="an optimizer, not 3"):
        gs.from_torch(model, batch, optimizer=3)


def test_without_torch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"graphsim-memory\[torch\]"):
        gs.from_torch(None, None)


# -- on the command line -----------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        textwrap.dedent("""
            import torch
            from torch import nn

            def make_model(batch=4, width=32):
                return nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 1)), [torch.randn(batch, 16)]

            def only_a_model():
                return nn.Linear(2, 2)
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_models", None)


def test_a_factory_on_the_command_line(package):
    command = [sys.executable, "-m", "graphsim", "peak", "torch:my_models:make_model", "--batch", "64", "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert report["batch"] == 64
    assert report["target"] == "cuda"
    assert report["parameters"] == 16 * 32 + 32 + 32 + 1
    assert report["first"]["peak_bytes"] < report["steady"]["peak_bytes"]


def test_load_takes_a_factory(package):
    assert gs.load("torch:my_models:make_model", batch=2, width=8).tensors["0.weight"].shape == (8, 16)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("torch:my_models", SpecError, "write torch:package.module:function"),
        ("torch:my_models:make_modell", SpecError, "did you mean 'make_model'"),
        ("torch:no_such_module:f", SpecError, "cannot import no_such_module"),
        ("torch:my_models:only_a_model", UsageError, "return (model, inputs)"),
    ],
)
def test_wrong_sources(package, source, error, message):
    with pytest.raises(error) as caught:
        gs.load(source)
    assert message in str(caught.value)
