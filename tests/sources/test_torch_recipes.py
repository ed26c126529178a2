"""What a `Training` does to captured models, against the same done by hand in PyTorch on the CPU."""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import partial

import pytest

torch = pytest.importorskip("torch")

from test_torch import boundaries, compare, count  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import graphsim as gs  # noqa: E402
from graphsim.errors import CaptureError, UsageError  # noqa: E402
from graphsim.sources import source_of  # noqa: E402
from graphsim.sources.torch.capture import capture  # noqa: E402
from graphsim.sources.torch.module import Module  # noqa: E402
from graphsim.sources.torch.optimizers import named  # noqa: E402
from graphsim.sources.torch.quantized import Linear4bit  # noqa: E402
from graphsim.step.training import Training  # noqa: E402


def mlp():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)), (torch.randn(4, 16),)


def loss_of(model, batch):
    return model(*batch).mean()


def captured(model, batch, training):
    optimizer = named(training.optimizer, training.optimizer_impl)
    return capture(model, batch, optimizer=optimizer, loss=None, step=None, training=training)


def same(model, batch, training, real, *optimizers, steps=(True, False)):
    """Compare the captured steps with two calls of *real*, between all ops."""
    graphs = [captured(model, batch, training).graph(first=first) for first in steps]
    existing = [*model.parameters(), *model.buffers(), *batch]
    existing += [t for o in optimizers for s in o.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    for graph, expected in zip(graphs, count(real, existing), strict=False):
        compare(boundaries(graph), expected)


# -- the usual step ----------------------------------------------------------------------------------


def test_micro_batches_under_autocast_with_gradients_reset_before_backward():
    model, batch = mlp()
    adam = torch.optim.Adam(model.parameters(), foreach=False)

    def real():
        for micro in range(3):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(model, batch)
            loss = loss / 3
            if not micro:
                adam.zero_grad(set_to_none=True)
            loss.backward()
        adam.step()

    training = Training(
        optimizer="adam", precision="amp-bf16", accumulation=3, zero_grad="before-backward", target="cpu"
    )
    same(model, batch, training, real, adam)


def test_gradients_that_are_zeroed_after_the_step_stay():
    model, batch = mlp()
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def real():
        loss = loss_of(model, batch)
        loss.backward()
        sgd.step()
        sgd.zero_grad(set_to_none=False)

    training = Training(optimizer="momentum", zero_grad="after-step", set_to_none=False, target="cpu")
    same(model, batch, training, real, sgd)


def test_autocast_to_fp16_scales_the_loss():
    model, batch = mlp()
    sgd, scaler = torch.optim.SGD(model.parameters(), lr=1e-3), torch.amp.GradScaler("cpu", init_scale=1.0)

    def real():
        sgd.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.float16):
            loss = loss_of(model, batch)
        scaler.scale(loss).backward()
        scaler.step(sgd)
        scaler.update()

    same(model, batch, Training(optimizer="sgd", precision="amp-fp16", target="cpu"), real, steps=(True,))


def test_a_model_in_bf16_and_as_it_was_afterwards():
    model, batch = mlp()
    before = {name: (id(p), p.dtype) for name, p in model.named_parameters()}
    graph = captured(model, batch, Training(optimizer="sgd", precision="bf16", target="cpu")).graph()
    assert {name: (id(p), p.dtype) for name, p in model.named_parameters()} == before
    low, inputs = copy.deepcopy(model).to(torch.bfloat16), [batch[0].to(torch.bfloat16)]
    sgd = torch.optim.SGD(low.parameters(), lr=1e-3, foreach=False)

    def real():
        sgd.zero_grad(set_to_none=True)
        loss = loss_of(low, inputs)
        loss.backward()
        sgd.step()

    compare(boundaries(graph), count(real, [*low.parameters(), *inputs])[1])


@pytest.mark.parametrize("mode", ["inference", "evaluation"])
def test_modes_without_an_update_run_the_model_as_it_is_evaluated(mode):
    model = nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.5), nn.BatchNorm1d(32), nn.Linear(32, 4))
    batch = (torch.randn(4, 16),)
    graph = captured(model, batch, Training(mode=mode, target="cpu")).graph()
    assert model.training
    assert {op.phase for op in graph.ops} == {gs.Phase.FORWARD}
    model.eval()

    def real():
        if mode == "evaluation":
            return loss_of(model, batch)
        with torch.no_grad():
            return model(*batch)

    compare(boundaries(graph), count(real, [*model.parameters(), *model.buffers(), *batch])[0])


def test_steps_after_a_warm_up_are_taken_as_one():
    model, batch = mlp()
    calls = []

    def step(model, batch, optimizer):
        calls.append(1)
        optimizer.zero_grad(set_to_none=True)
        wide = torch.zeros(1000 * len(calls))  # what takes more memory in each call
        (loss_of(model, batch) + wide.sum()).backward()
        optimizer.step()

    three = capture(
        model, batch, optimizer="sgd", loss=None, step=step, training=Training(warmup=2, steps=3, target="cpu")
    )
    assert len(calls) == 5
    steady = three.graph()
    assert sorted(t.nbytes for t in steady.tensors.values() if t.nbytes >= 4000) == [12000, 16000, 20000]
    assert [t.nbytes for t in three.graph(first=True).tensors.values() if t.nbytes >= 4000] == [4000]


# -- optimizers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nadam", "radam", "adamax", "adadelta", "asgd", "rprop", "lion", "muon"])
def test_optimizers_that_are_run_and_not_modelled(name):
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    batch = (torch.randn(2, 8),)
    graph = captured(model, batch, Training(optimizer=name, optimizer_impl="forloop", target="cpu")).graph()
    matrices, others = [p for p in model.parameters() if p.dim() == 2], [p for p in model.parameters() if p.dim() != 2]
    if name == "muon":
        used = [torch.optim.Muon(matrices), torch.optim.AdamW(others)]
    else:
        used = [named(name, "forloop")(model.parameters())]

    def real():
        for one in used:
            one.zero_grad(set_to_none=True)
        loss = loss_of(model, batch)
        loss.backward()
        for one in used:
            one.step()

    existing = [*model.parameters(), *batch]
    existing += [t for one in used for s in one.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    compare(boundaries(graph), count(real, existing)[1])


def test_lbfgs_goes_on_as_long_as_it_may():
    """Against a real one that never finds that it is done."""
    model, batch = mlp()

    def step(model, batch, optimizer):
        def closure():
            optimizer.zero_grad()
            loss = model(*batch).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)

    lbfgs = partial(torch.optim.LBFGS, lr=1e-3, max_iter=4, tolerance_grad=0, tolerance_change=0)
    graph = gs.from_torch(model, batch, step=step, optimizer=lbfgs)
    used = lbfgs(model.parameters())
    real = count(lambda: step(model, batch, used), [*model.parameters(), *batch])
    compare(boundaries(graph), real[1])
    assert any("LBFGS is taken not to converge" in warning for warning in graph.attributes["warnings"])


@pytest.mark.parametrize("name", ["lion", "adam8bit"])
def test_states_of_other_packages_optimizers(name):
    """For adam8bit: a byte for each element and a scale for 256, but fp32 for tensors of fewer than 4096 elements."""
    model = nn.Sequential(nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10))
    step = gs.from_torch(model, torch.randn(2, 400), optimizer=named(name), target="cuda")
    nbytes = sum(t.nbytes for t in step.tensors.values() if t.role is gs.Role.OPTIMIZER_STATE and not t.storage)
    large, small = 400 * 120 + 120 * 84, 10 * 84 + 120 + 84 + 10
    blocks = -(-400 * 120 // 256) + -(-120 * 84 // 256)
    assert nbytes == (4 * (large + small) if name == "lion" else 2 * (large + 4 * blocks + 4 * small))


# -- changes of the model ----------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        return x + self.narrow(torch.tanh(self.wide(x)))


class Blocks(nn.Module):
    def __init__(self, saves=False):
        super().__init__()
        self.blocks, self.saves = nn.ModuleList(Block() for _ in range(3)), saves

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.saves else block(x)
        return x.mean()


def compare_with_real(graph, model, batch, optimizer):
    """*graph* between all ops with the second step of a model that is its own loss."""

    def real():
        optimizer.zero_grad(set_to_none=True)
        loss = model(*batch)
        loss.backward()
        optimizer.step()

    compare(boundaries(graph), count(real, [*model.parameters(), *batch])[1])


def test_each_block_is_checkpointed():
    batch = (torch.randn(4, 16),)
    graph = captured(Blocks(), batch, Training(optimizer="sgd", grad_checkpointing=True, target="cpu")).graph()
    model = Blocks(saves=True)
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3)

    compare_with_real(graph, model, batch, sgd)
    assert any(op.phase is gs.Phase.RECOMPUTE for op in graph.ops)


def test_a_model_is_as_it_was_after_all_of_it():
    model = Blocks()
    modules, flags = dict(model.named_modules()), [p.requires_grad for p in model.parameters()]
    training = Training(lora=4, quant="nf4", grad_checkpointing=True, precision="bf16", optimizer="adam8bit")
    gs.peak(model, torch.randn(4, 16), training=training)
    assert dict(model.named_modules()) == modules
    assert [p.requires_grad for p in model.parameters()] == flags
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(torch.randn(4, 16)).shape == ()
    assert "forward" not in vars(model.blocks[0])


def test_a_frozen_configuration_of_a_model_is_left_alone():
    """Every model of diffusers has one."""

    class Frozen(OrderedDict):
        def update(self, *_):
            raise TypeError("frozen")

        clear = copy = update

    model, batch = mlp()
    model.settings = Frozen(width=8)
    captured(model, batch, Training(optimizer="sgd", target="cpu"))
    assert model.settings == {"width": 8}


def test_adapters_are_those_of_peft():
    peft = pytest.importorskip("peft")
    batch = (torch.randn(4, 16),)
    graph = captured(Blocks(), batch, Training(optimizer="sgd", optimizer_impl="forloop", lora=4, target="cpu")).graph()
    model = peft.get_peft_model(Blocks(), peft.LoraConfig(r=4, lora_alpha=4, target_modules=["wide", "narrow"]))
    trained = [p for p in model.parameters() if p.requires_grad]
    sgd = torch.optim.SGD(trained, lr=1e-3, foreach=False)

    compare_with_real(graph, model, batch, sgd)


@pytest.mark.parametrize("double", [False, True])
def test_4_bit_weights_are_laid_out_as_bitsandbytes_does(double):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    real = bitsandbytes.nn.Linear4bit(200, 96, quant_type="nf4", compress_statistics=double).to("cpu")
    state = real.weight.quant_state
    held = [real.weight, real.bias, state.absmax, state.code]
    if double:
        held += [state.offset, state.state2.absmax, state.state2.code]
    ours = Linear4bit(200, 96, nn.Parameter(torch.empty(96)), torch.float32, None, double=double)
    assert sorted(t.nbytes for t in held) == sorted(t.nbytes for t in [*ours.parameters(), *ours.buffers()])


def test_a_weight_takes_as_many_bits_as_is_published():
    """QLoRA (Dettmers et al., 2023), section 3: scales of 0.5 bits a weight, or 0.127 where they are quantized too."""
    for double, bits in ((False, 4 + 32 / 64), (True, 4 + 8 / 64 + 32 / (64 * 256))):
        layer = Linear4bit(4096, 4096, None, torch.bfloat16, None, double=double)
        scales = sum(b.nbytes for name, b in layer.named_buffers() if name.endswith("absmax"))
        assert 8 * (layer.weight.nbytes + scales) == bits * 4096**2


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_quantized_layers_make_their_weight_again_in_backward(quant):
    """Of a frozen layer autograd saves no input in 4 bits, and the input in 8 bits (autograd/_functions.py)."""
    training = Training(lora=4, quant=quant, precision="bf16", optimizer="sgd")
    steps = source_of(Module(Blocks(), torch.randn(2048, 16))).steps(training)
    made = "dequantize_4bit" if quant == "nf4" else "mul_"
    weights = [op for op in steps.steady.ops if op.kind.endswith(made) and op.phase is gs.Phase.BACKWARD]
    assert len(weights) >= 5  # six layers; the first needs no gradient of its input
    frozen = [t for t in steps.steady.tensors.values() if t.name.endswith("base_layer.weight")]
    each_layer = 16 * 64 // (2 if quant == "nf4" else 1)
    assert [t.nbytes for t in frozen[:5]] == [each_layer] * 5
    assert any("outlier" in note for note in steps.steady.attributes["warnings"]) == (quant == "int8")


# -- what a factory may return ------------------------------------------------------------------------


def gan():
    """A generator and a discriminator, each with an optimizer of its own."""
    models = nn.ModuleDict({"g": nn.Linear(4, 8), "d": nn.Linear(8, 1)})
    used = [torch.optim.Adam(models["g"].parameters()), torch.optim.SGD(models["d"].parameters(), lr=1e-3)]

    def step(models, batch, optimizers):
        generator, discriminator = optimizers
        discriminator.zero_grad()
        models["d"](models["g"](batch).detach()).mean().backward()
        discriminator.step()
        generator.zero_grad()
        models["d"](models["g"](batch)).mean().backward()
        generator.step()

    return {"model": models, "inputs": torch.randn(3, 4), "step": step, "optimizers": used}


def test_a_factory_returns_a_dict(monkeypatch):
    from graphsim.sources.torch.source import capture_source

    def made(**words):
        monkeypatch.setattr("graphsim.sources.torch.source._find", lambda source: lambda: words)
        return capture_source("torch:a:b", parameters={}, training=Training(target="cpu")).graph()

    assert made(**gan()).attributes["optimizers"] == ["SGD", "Adam"]
    model, batch = mlp()
    lossy = made(model=model, inputs=batch, loss=lambda output: output.exp().sum(), optimizer=torch.optim.NAdam)
    assert lossy.attributes["optimizers"] == ["NAdam"]
    assert any(op.kind == "exp" for op in lossy.ops)
    with pytest.raises(UsageError, match="'modle'; did you mean 'model'"):
        made(modle=model)


class Manual(nn.Module):
    """Has what a LightningModule has that steps its optimizers itself."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.g, self.d = nn.Linear(4, 8), nn.Linear(8, 1)

    def configure_optimizers(self):
        return [torch.optim.SGD(self.g.parameters(), lr=1e-3), torch.optim.SGD(self.d.parameters(), lr=1e-3)], []

    def training_step(self, batch, number):
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(self.d(self.g(batch)).mean())
            optimizer.step()
            self.untoggle_optimizer(optimizer)


def test_a_lightning_module_steps_several_optimizers_itself():
    model, batch = Manual(), torch.randn(3, 4)
    graph = capture(model, batch, optimizer="adamw", loss=None, step=None).graph()
    assert graph.attributes["optimizers"] == ["SGD", "SGD"]
    assert not hasattr(model, "optimizers")
    model.automatic_optimization = True
    with pytest.raises(CaptureError, match="automatic_optimization = False"):
        capture(model, batch, optimizer="adamw", loss=None, step=None)


# -- what cannot be done ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quant": "nf4"}, "cannot be trained"),
        ({"kv_cache": 8}, "'inference' only"),
        ({"kv_cache": 8, "mode": "inference"}, "no cache"),
        ({"lora": 4, "quant": "nf4", "target": "cpu"}, "for target cuda"),
        ({"grad_checkpointing": True}, "no list of blocks"),
        ({"master_weights": True, "precision": "bf16"}, "--master-weights is not for"),
        ({"step": lambda m, b, o: None, "accumulation": 2}, "--accumulation 2 is not for Sequential: its step"),
        ({"optimizer": torch.optim.SGD, "lora": 4}, "--lora 4 is not for Sequential: it has an optimizer"),
    ],
)
def test_what_a_recipe_cannot_do_is_refused_by_its_name(options, words):
    model, batch = mlp()
    with pytest.raises(UsageError, match=words):
        gs.peak(model, batch, **options)


def test_changes_of_modules_are_not_for_specs():
    for options in ({"lora": 16}, {"optimizer": "nadam"}):
        with pytest.raises(UsageError, match=r"captured|capture the model"):
            gs.peak("lenet5", **options)
