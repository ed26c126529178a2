"""What a step reads of tensors: known, unknown and checked, logged, or an error that names the line."""

from __future__ import annotations

import copy
import ctypes
import io
import math
import pickle
import random
import sys
from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import graphsim as gs  # noqa: E402
from graphsim.errors import CaptureError  # noqa: E402
from graphsim.sources.torch import zeros  # noqa: E402

HERE = "test_torch_reads.py"


def net():
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 10))


def batch():
    return torch.randn(8, 16), torch.randint(0, 10, (8,))


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3, foreach=False)


def graph(extra=None, **options):
    """A step that hands its loss and its logits to *extra* before backward; None from there goes on."""

    def step(model, batch, optimizer):
        optimizer.zero_grad()
        logits = model(batch[0])
        loss = functional.cross_entropy(logits, batch[1])
        if extra is not None and extra(loss, logits, batch[1]):
            return
        loss.backward()
        optimizer.step()

    return gs.from_torch(net(), batch(), optimizer=adam, step=step, **options)


@cache
def plain_peak(target=""):
    return gs.simulate(graph(target=target)).peak


# -- checks pass -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "guard",
    [
        lambda loss, *_: not math.isfinite(loss.item()),
        lambda loss, *_: math.isnan(loss.item()) or math.isinf(loss.item()),
        lambda loss, *_: not np.isfinite(loss.item()),
        lambda loss, *_: torch.isnan(loss),
        lambda loss, *_: not torch.isfinite(loss),
        lambda loss, logits, *_: torch.isnan(logits).any() or torch.isinf(logits).any(),
    ],
)
def test_a_loss_is_finite(guard, target):
    """To some hundred bytes: the guard's own results."""
    kept = graph(guard, target=target)
    assert gs.simulate(kept).peak == pytest.approx(plain_peak(target), abs=1024)
    assert any(op.phase is gs.Phase.OPTIMIZER for op in kept.ops)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_gradients_do_not_overflow_so_the_scaler_steps_the_optimizer(target):
    scaler = torch.amp.GradScaler("cpu")

    def step(model, batch, optimizer):
        optimizer.zero_grad()
        scaler.scale(functional.cross_entropy(model(batch[0]), batch[1])).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        scaler.step(optimizer)
        scaler.update()

    def make():
        nonlocal scaler
        scaler = torch.amp.GradScaler(target)
        return net()

    captured = gs.from_torch(make, batch, optimizer=adam, step=step, target=target)
    states = [t for t in captured.tensors.values() if t.role is gs.Role.OPTIMIZER_STATE and not t.storage]
    assert len(states) == 3 * 4
    assert captured.attributes["optimizers"] == ["Adam"]


class First(nn.Module):
    """`net` over the first of the batch; its loss gets the output."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x, y):
        return self.net(x)


def cross(output, batch):
    return functional.cross_entropy(output, batch[1])


def test_arguments_of_distributions_are_valid():
    def loss(output, batch, check=True):
        choice = torch.distributions.Categorical(logits=output, validate_args=check)
        return -choice.log_prob(batch[1]).mean() - 0.01 * choice.entropy().mean()

    def unchecked(output, batch):
        return loss(output, batch, check=False)

    checked, plain = (gs.from_torch(First(), batch(), optimizer=adam, loss=how) for how in (loss, unchecked))
    assert len(checked.ops) > len(plain.ops)
    assert gs.simulate(checked).peak == gs.simulate(plain).peak


def test_classes_of_one_hot_are_in_range():
    graph(lambda loss, logits, target: functional.one_hot(logits.argmax(1), 10).sum() is None)


# -- what is only logged ---------------------------------------------------------------------------


def test_what_is_logged_does_not_matter():
    seen = []

    def log(loss, logits, target):
        correct = (logits.argmax(1) == target).sum().item()
        accuracy = correct / len(target)
        seen.append(f"{loss.item():.3f} {accuracy:.1%} {round(accuracy, 2)} {loss} {logits} {[loss]}")
        print(loss, logits)  # noqa: T201
        seen.append(math.exp(loss.item()))

    captured = graph(log)
    assert "nan" in seen[0]
    assert "size=(8, 10)" in seen[0]
    assert captured.attributes["warnings"] == []
    assert gs.simulate(captured).peak == pytest.approx(plain_peak(), abs=512)


def test_a_plain_number_where_a_statement_counts_is_in_the_warnings():
    def count(loss, logits, target):
        total = 0
        total += int((logits.argmax(1) == target).sum())
        print(float(loss.detach()), total)  # noqa: T201

    first, second = graph(count).attributes["warnings"]
    assert HERE in first
    assert HERE in second


def test_a_count_that_chooses_in_the_same_statement_is_an_error():
    layers = [lambda x: x, lambda x: x * 2]

    def choose(loss, logits, target):
        total = 0
        total += layers[int((logits > 0).sum())](1)
        return total < 0

    with pytest.raises(CaptureError, match=HERE):
        graph(choose)


@pytest.mark.parametrize("kind", ["Normal", "Gamma", "Dirichlet"])
def test_parameters_that_are_positive_pass(kind):
    def loss(output):
        positive = functional.softplus(output)
        made = getattr(torch.distributions, kind)
        return made(positive).rsample().mean() if kind == "Dirichlet" else made(positive, positive).rsample().mean()

    gs.from_torch(First(), batch(), optimizer=adam, loss=loss)


# -- what decides ----------------------------------------------------------------------------------

DECISIONS = {
    "compared": lambda loss, *_: loss.item() > 3,
    "a tensor": lambda loss, *_: loss > 3,
    "arithmetic": lambda loss, *_: not 0.5 * (1 + loss.item()) ** 2 - 1,
    "converted": lambda loss, *_: {"loss": float(loss.detach())}["loss"] < 0,
    "a mean of NumPy": lambda loss, *_: np.mean([loss.item()]) < 0,
    "a maximum": lambda loss, *_: max(loss.item(), 0.0) < 0,
    "a count": lambda loss, logits, *_: logits[: int((logits > 0).sum())] is None,
    "a range": lambda loss, logits, *_: list(range((logits > 0).sum())) is None,
    "an index": lambda loss, logits, *_: list(range(10))[logits.argmax()] is None,
    "values": lambda loss, logits, *_: logits.tolist() is None,
    "an array": lambda loss, logits, *_: logits.detach().numpy() is None,
    "made of others": lambda loss, logits, *_: torch.tensor([loss, loss.item()]).max() > 0,
    "pickled": lambda loss, *_: pickle.dumps(loss) is None,
    "saved": lambda loss, *_: torch.save(loss.detach(), io.BytesIO()),
    "another library": lambda loss, *_: np.from_dlpack(loss.detach()) is None,
    "memory": lambda loss, *_: (ctypes.string_at(loss.data_ptr(), 4), loss + 1)[0] is None,
    "the end": lambda loss, *_: sys.exit("done"),
}


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("name", DECISIONS)
def test_what_decides_is_an_error_that_names_the_line(name, target):
    with pytest.raises(CaptureError) as caught:
        graph(DECISIONS[name], target=target)
    assert HERE in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_can_be_given_for_a_line():
    def skip(loss, *_):
        return loss.item() > 3

    line = f"{HERE}:{skip.__code__.co_firstlineno + 1}"
    with pytest.raises(CaptureError, match=line):
        graph(skip)
    assert any(op.phase is gs.Phase.OPTIMIZER for op in graph(skip, assume={line: 1.0}).ops)


def test_a_number_can_be_given_for_each_of_a_list():
    class Routes(nn.Module):
        """Rows go to parts of a size that the numbers decide, as tokens go to experts."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 4)

        def forward(self, x):
            y = self.layer(x)
            sizes = (y > 0).sum(0).tolist()
            return torch.cat([part.square() for part in y.split(sizes)]).mean()

    with pytest.raises(CaptureError) as caught:
        gs.from_torch(Routes, batch()[0])
    graph = gs.from_torch(Routes, batch()[0], assume={caught.value.line: 2})
    assert [graph.tensors[op.outputs[0]].shape for op in graph.ops if op.kind == "pow"][:4] == [(2, 4)] * 4


@pytest.mark.parametrize("select", [lambda x: x[x[:, 0] > 0], lambda x: x[torch.where(x[:, 0] > 0)[0]]])
def test_a_number_of_selected_elements_can_be_given(select):
    class Selects(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 10)

        def forward(self, x):
            y = self.layer(x)
            return select(y).mean()

    with pytest.raises(CaptureError, match="selects a number of elements") as caught:
        gs.from_torch(Selects, batch()[0])
    graph = gs.from_torch(Selects, batch()[0], assume={caught.value.line: 5})
    (mean,) = (op for op in graph.ops if op.kind == "mean")
    assert graph.tensors[mean.inputs[0]].shape == (5, 10)


def test_random_numbers_that_a_step_reads_are_in_the_warnings():
    def drop(loss, *_):
        if torch.rand([]) < 0.5:
            return False
        return random.random() < 0

    warnings = graph(drop).attributes["warnings"]
    assert any(HERE in text and "random number" in text for text in warnings)
    known = torch.randint(0, 2, (8,))
    assert graph(lambda *_: known.sum() > 100).attributes["warnings"] == []


# -- known values are read as they are ---------------------------------------------------------------


class Lengths(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.linear, self.read = nn.Linear(4, 4), read

    def forward(self, x, lengths):
        return self.linear(x)[:, : self.read(lengths)].mean()


@pytest.mark.parametrize(
    "read",
    [
        lambda n: int(n.numpy().max()),
        lambda n: int(np.asarray(n)[0]),
        lambda n: max(n.tolist()),
        lambda n: n.max(),
        lambda n: n[0].item(),
        lambda n: torch.tensor([n[0], n[1]]).max(),
        lambda n: torch.tensor_split(torch.arange(8), n[:1])[0].numel(),
    ],
)
def test_known_numbers_are_read(read):
    inputs = [torch.randn(2, 8, 4), torch.tensor([5, 3])]
    cut = [op for op in gs.from_torch(Lengths(read), inputs).ops if op.kind == "mean"]
    plain = [op for op in gs.from_torch(Lengths(lambda n: 5), inputs).ops if op.kind == "mean"]
    assert [op.flops for op in cut] == [op.flops for op in plain]


def test_a_random_fill_is_known():
    draw = lambda n: int(torch.empty(1).uniform_(0.0, 3.0).item()) + 1  # noqa: E731
    gs.from_torch(Lengths(draw), [torch.randn(2, 8, 4), torch.tensor([5, 3])])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_makes_its_batch_in_this_process(workers):
    """A shuffling one draws a seed first, and with workers tensors would be pickled."""
    data = TensorDataset(torch.randn(32, 16), torch.randint(0, 10, (32,)))

    def loader():
        return list(next(iter(DataLoader(data, batch_size=8, shuffle=True, num_workers=workers))))

    peaks = [gs.simulate(gs.from_torch(First, inputs, loss=cross)).peak for inputs in (loader, list(batch()))]
    assert peaks[0] == peaks[1]


def test_a_schedule_may_ask_how_training_goes():
    def step(model, batch, optimizer):
        loss = cross(model(batch[0]), batch)
        loss.backward()
        optimizer.step()
        torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer).step(loss.item())

    gs.from_torch(net(), batch(), step=step, optimizer="sgd")


def test_windows_that_overlap_are_not_zero():
    class Spectrum(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(9, 1))

        def forward(self, x):
            window = torch.hann_window(16)
            z = torch.stft(x, 16, 4, window=window, return_complex=True) * self.gain
            return torch.istft(z, 16, 4, window=window).square().mean()

    gs.from_torch(Spectrum(), torch.randn(2, 6000))


# -- the region of zeros -----------------------------------------------------------------------------


def test_a_read_of_the_region_finds_zeros_and_is_noticed():
    zeros.give_back()
    assert not zeros.was_read()
    assert ctypes.string_at(zeros.ADDRESS, 8) == bytes(8)
    assert zeros.was_read()
    assert not zeros.was_read()
    ctypes.string_at(zeros.ADDRESS + 2**20, 1)
    assert not zeros.was_read()
    assert zeros.was_read(2**21)
    ctypes.string_at(zeros.ADDRESS + 2**31, 1)  # beyond what one question asks of
    assert zeros.was_read(2**32)


def test_what_is_written_there_is_gone():
    ctypes.memset(zeros.ADDRESS, 7, 16)
    assert zeros.was_read()
    assert ctypes.string_at(zeros.ADDRESS, 16) == bytes(16)
    zeros.give_back()


def test_reading_takes_no_memory():
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole = (ctypes.c_char * 2**28).from_address(zeros.ADDRESS)
    assert not any(memoryview(whole).cast("B")[:: 2**12])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15  # KiB, of 2**18 that were read
    zeros.give_back()


def test_a_copy_of_a_model_is_hollow_too():
    copies = []

    def step(model, batch, optimizer):
        copies.append(copy.deepcopy(model))
        functional.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    assert gs.simulate(gs.from_torch(net(), batch(), optimizer=adam, step=step)).peak > 2 * plain_peak() / 3
