"""The user's own objects in a capture: exchanged in place, and as before afterwards. What cannot be is refused."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections import UserDict

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import graphsim as gs  # noqa: E402
from graphsim.errors import CaptureError, UsageError  # noqa: E402
from graphsim.sources.torch.versions import check_version  # noqa: E402


def net(width=16, out=10):
    return nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, out))


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3, foreach=False)


class Pair(nn.Module):
    """A generator and a discriminator, with optimizers of their own that a step closes over."""

    def __init__(self):
        super().__init__()
        self.make, self.judge = net(8, 16), net(16, 1)


def step_of(first, second):
    def step(model, batch, optimizer):
        fake = model.make(torch.randn(8, 8, device=batch[0].device))
        first.zero_grad()
        judged = functional.softplus(-model.judge(batch[0])) + functional.softplus(model.judge(fake.detach()))
        judged.mean().backward()
        first.step()
        second.zero_grad()
        functional.softplus(-model.judge(fake)).mean().backward()
        second.step()

    return step


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("made", ["before", "in the factory"])
def test_optimizers_that_the_user_made_step(made, target):
    box = {}

    def make():
        model = Pair()
        box["step"] = step_of(adam(model.judge.parameters()), adam(model.make.parameters()))
        return model

    model = make if made == "in the factory" else make()
    step = lambda *operands: box["step"](*operands)  # noqa: E731
    graph = gs.from_torch(model, [torch.randn(8, 16)], optimizer=None, step=step, target=target)
    late = lambda model, batch, _: lazily(model)(model, batch, None)  # noqa: E731
    made_late = gs.from_torch(Pair(), [torch.randn(8, 16)], optimizer=None, step=late, target=target)
    assert gs.simulate(graph).peak == gs.simulate(made_late).peak
    assert graph.attributes["optimizers"] == ["Adam", "Adam"]
    states = [t for t in graph.tensors.values() if t.role is gs.Role.OPTIMIZER_STATE and not t.storage]
    assert len(states) == 3 * 8


def lazily(model):
    """Return the step over optimizers that are made in its first call."""
    if not hasattr(model, "own"):
        model.own = step_of(adam(model.judge.parameters()), adam(model.make.parameters()))
    return model.own


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_everything_is_as_before(target):
    model, batch = net(), torch.randn(4, 16)
    optimizer = adam(model.parameters())
    model(batch).sum().backward()
    optimizer.step()
    weight, gradient = model[0].weight, model[0].weight.grad
    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict(), gradient, batch))

    def step(model, batch, _):
        optimizer.zero_grad()
        model(batch).sum().backward()
        optimizer.step()

    gs.from_torch(model, batch, optimizer=None, step=step, target=target)
    now = (model.state_dict(), optimizer.state_dict(), gradient, batch)
    assert model[0].weight is weight
    assert weight.grad is gradient
    assert weight.device.type == "cpu"
    for before, after in zip(tensors(kept), tensors(now), strict=True):
        assert torch.equal(before, after)
    model(batch).sum().backward()
    optimizer.step()


def tensors(value):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def test_a_step_may_take_several_calls():
    calls = 0

    def every_fourth(model, batch, optimizer):
        nonlocal calls
        calls += 1
        (model(batch).mean() / 4).backward()
        if calls % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()

    def in_a_loop(model, batch, optimizer):
        for _ in range(4):
            (model(batch).mean() / 4).backward()
        optimizer.step()
        optimizer.zero_grad()

    peaks = [
        gs.simulate(gs.from_torch(net(), torch.randn(8, 16), optimizer=adam, step=step)).peak
        for step in (every_fourth, in_a_loop)
    ]
    assert peaks[0] == peaks[1]
    assert calls == 8


def test_an_optimizer_that_never_steps_is_an_error():
    with pytest.raises(CaptureError, match="no optimizer steps in 64 calls"):
        gs.from_torch(net(), torch.randn(8, 16), step=lambda model, batch, _: model(batch).mean().backward())


def test_gradients_that_nobody_reads_and_steps_without_gradients_are_in_the_warnings():
    def step(model, batch, optimizer):
        model(batch).mean().backward()
        optimizer.step()

    part = lambda parameters: torch.optim.SGD(parameters[:2], lr=0.1)  # noqa: E731
    (noted,) = gs.from_torch(net(), torch.randn(8, 16), optimizer=part, step=step).attributes["warnings"]
    assert "gradients of 2 parameters are kept" in noted

    other = torch.optim.SGD(net().parameters(), lr=0.1)

    def wrong(model, batch, _):
        model(batch).mean().backward()
        other.step()

    noted = gs.from_torch(net(), torch.randn(8, 16), optimizer=None, step=wrong).attributes["warnings"]
    assert any("none of its parameters has a gradient" in text for text in noted)


class Lightning(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def training_step(self, batch, number):
        return {"loss": functional.cross_entropy(self.net(batch[0]), batch[1])}

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 10)]


def test_a_lightning_module_runs_by_its_own_step_and_optimizer():
    batch = torch.randn(8, 16), torch.randint(0, 10, (8,))
    graph = gs.from_torch(Lightning(), batch)
    assert graph.attributes["optimizers"] == ["SGD"]
    momentum = lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)  # noqa: E731

    def by_hand(model, batch, optimizer):
        loss = model.training_step(batch, 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    plain = gs.from_torch(Lightning(), batch, optimizer=momentum, step=by_hand)
    assert gs.simulate(graph).peak == gs.simulate(plain).peak


@dataclasses.dataclass
class Fields:
    x: torch.Tensor


class Attributes:
    def __init__(self, x):
        self.x = x


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("wrap", [Fields, Attributes, lambda x: UserDict(x=x), lambda x: {"x": x}])
def test_batches_of_any_kind_are_inputs(wrap, target):
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, batch=None, x=None):
            return self.net(x if batch is None else batch.x).mean()

    graph = gs.from_torch(Reads(), wrap(torch.randn(8, 16)), optimizer=adam, target=target)
    (given,) = (t for t in graph.tensors.values() if t.role is gs.Role.INPUT)
    assert (given.name, given.shape, graph.attributes["batch"]) == ("x", (8, 16), 8)


def test_the_graph_says_what_the_step_did():
    def step(model, batch, optimizer):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch).mean()
        loss.backward()
        optimizer.step()

    attributes = gs.from_torch(net().double(), torch.randn(8, 16).double(), optimizer=torch.optim.NAdam, step=step)
    attributes = attributes.attributes
    assert attributes["optimizers"] == ["NAdam"]
    assert attributes["dtypes"] == ["float64"]
    assert attributes["autocast"] == ["bfloat16"]


# -- refused in one line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "target", "reason"),
    [
        (lambda: nn.DataParallel(net()), "cpu", "several processes"),
        (lambda: nn.parallel.DistributedDataParallel(net()), "cpu", "several processes"),
        (lambda: nn.Sequential(nn.Embedding(10, 4, sparse=True)), "cuda", "sparse"),
    ],
)
def test_what_a_capture_cannot_follow_is_refused(make, target, reason):
    with pytest.raises(CaptureError, match=reason):
        gs.from_torch(make, torch.randn(8, 16), target=target)


def test_a_compiled_module_is_refused():
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's compiler announces its own changes
        model.compile()
    with pytest.raises(CaptureError, match="compiled"):
        gs.from_torch(model, torch.randn(8, 16))


@pytest.mark.parametrize("compiled", ["a function", "the model", "the step", "the update"])
def test_what_is_compiled_is_refused_where_it_is_called(compiled):
    def compile_(what):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's compiler announces its own changes
            return torch.compile(what)

    model = net()
    inner = compile_(functional.relu) if compiled == "a function" else functional.relu
    whole = compile_(model) if compiled == "the model" else model

    def step(model, batch, optimizer):
        inner(whole(batch)).mean().backward()
        update = compile_(optimizer.step) if compiled == "the update" else optimizer.step
        update()

    run = compile_(step) if compiled == "the step" else step
    with pytest.raises(CaptureError, match=r"test_torch_inplace\.py:\d+: .* is compiled, and"):
        gs.from_torch(model, torch.randn(8, 16), step=lambda *operands: run(*operands))


def test_what_is_sharded_is_refused_in_one_line():
    from torch.distributed.tensor import DTensor

    class Sharded(nn.Module):
        def __init__(self):
            super().__init__()
            DTensor.from_local(torch.zeros(2), None)

    with pytest.raises(CaptureError, match=r"test_torch_inplace\.py:\d+: what torch.distributed shards runs in sev"):
        gs.from_torch(Sharded, torch.randn(8, 16))


def test_a_factory_that_raises_is_one_line_with_its_place():
    def make():
        raise FileNotFoundError("weights.pt")

    with pytest.raises(CaptureError, match=r"test_torch_inplace\.py:\d+: FileNotFoundError: weights\.pt$"):
        gs.from_torch(make, torch.randn(8, 16))


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.12.1", "2.13.0+cpu", "2.13.0a0+git1"])
def test_tested_versions_pass(version):
    check_version(version)


@pytest.mark.parametrize("version", ["2.10.0", "2.14.0.dev1", "1.13", "3.0", "unknown"])
def test_other_versions_are_refused_in_one_line(version):
    with pytest.raises(UsageError, match=r"^captures are tested with PyTorch 2\.11 to 2\.13, and this is "):
        check_version(version)
