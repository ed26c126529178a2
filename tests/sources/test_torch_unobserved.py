"""Captured steps against steps that nobody observes: the peak of PyTorch's own record of every malloc and free."""

from __future__ import annotations

import gc
from functools import partial

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402, N812
from architectures_more import MORE  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402
from torch_memory import measure  # noqa: E402

import graphsim as gs  # noqa: E402

CASES = {}


def case(*operands):
    """Enter a function of a layer and *operands*, given as functions that make them."""

    def enter(loss):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(64, 64)

            def forward(self, *tensors):
                return loss(self.layer, *tensors)

        CASES[loss.__name__] = (Model, operands)
        return loss

    return enter


def rows():
    return torch.randn(16, 24, 64)


def targets():
    return torch.rand(16, 24, 64)


@case(rows)
def plain(layer, x):
    return F.gelu(layer(x)).square().mean()


@case(rows, targets)
def entropy(layer, x, target):
    return F.binary_cross_entropy(layer(x).sigmoid(), target)


@case(rows, targets)
def entropy_with_logits(layer, x, target):
    return F.binary_cross_entropy_with_logits(layer(x), target)


@case(rows, targets)
def soft_margin(layer, x, target):
    return F.soft_margin_loss(layer(x), target.round() * 2 - 1)


@case(rows, targets)
def huber(layer, x, target):
    return F.huber_loss(layer(x), target) + F.smooth_l1_loss(layer(x), target)


@case(rows, targets)
def squares_of_swapped(layer, x, target):
    return F.mse_loss(layer(x).transpose(1, 2), target.transpose(1, 2))


@case(rows)
def columns(layer, x):
    image = layer(x).view(16, 6, 16, 16)
    return F.fold(F.unfold(image, 3, padding=1), (16, 16), 3, padding=1).square().mean()


@case(rows, lambda: torch.randint(0, 384, (100,)))
def selected(layer, x, index):
    return layer(x).flatten(0, 1).index_select(0, index).square().mean()


@case(rows, lambda: torch.arange(384).view(16, 24) % 10 > 2)
def masked(layer, x, keep):
    return layer(x)[keep].square().mean()


@case(rows)
def booleans(layer, x):
    h = layer(x)
    return (h * (x > 0)).sum() / (h > 0).sum()


@case(rows)
def other_dtypes(layer, x):
    return (layer(x) + x.double().square() + (x > 0).int()).mean().float()


@case(rows)
def batch_norm_of_swapped(layer, x):
    h = F.batch_norm(layer(x).transpose(1, 2), None, None, training=True).transpose(1, 2)
    return layer(h).square().mean()


@case(rows)
def batch_norm_of_the_input(layer, x):
    return layer(F.batch_norm(x, None, None, weight=layer.bias[:24], training=True)).square().mean()


@case(rows)
def activations_of_swapped(layer, x):
    return (F.softplus(layer(x).transpose(1, 2)) * F.elu(layer(x).transpose(1, 2))).contiguous().square().mean()


@case(rows)
def log_sum_exp(layer, x):
    return layer(x).logsumexp(-1).mean()


@case(rows, lambda: torch.randint(1, 64, (24, 5)))
def connectionist(layer, x, labels):
    scores = layer(x).log_softmax(-1)
    return F.ctc_loss(scores, labels, torch.full((24,), 16), torch.full((24,), 5))


@case(rows)
def normalized_of_swapped(layer, x):
    return F.layer_norm(layer(x).transpose(0, 1), (64,)).square().mean()


@case(rows)
def transmittance(layer, x):
    opacity = layer(x).sigmoid()
    return (torch.cumprod(1 - opacity, -1) * opacity).mean()


@case(rows)
def largest(layer, x):
    return layer(x).max() + layer(x).min() + torch.median(layer(x))


@case(rows, targets)
def gaussian(layer, x, target):
    variance = target + 1
    return F.gaussian_nll_loss(layer(x), target, variance)


@case(rows)
def fused_attention(layer, x):
    heads = layer(x).view(16, 24, 4, 16).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, heads, heads).square().mean()


@case(rows)
def modulus(layer, x):
    return torch.fft.rfft(layer(x)).abs().mean()


@case(rows)
def singular_values(layer, x):
    return torch.linalg.svdvals(layer(x)).square().mean()


def image(layer, x):
    return layer(x).view(16, 24, 8, 8).to(memory_format=torch.channels_last)


def volume(layer, x):
    return layer(x).view(16, 6, 4, 8, 8).to(memory_format=torch.channels_last_3d)


@case(rows)
def maxima_of_channels_last(layer, x):
    return F.max_pool2d(image(layer, x), 2).square().mean() + F.max_pool3d(volume(layer, x), 2).square().mean()


@case(rows)
def means_of_channels_last(layer, x):
    y = image(layer, x)
    both = F.avg_pool2d(y, 2).square().mean() + F.adaptive_avg_pool2d(y, 3).square().mean()
    return both + F.avg_pool3d(volume(layer, x), 2).square().mean()


@case(rows)
def padding_of_channels_last(layer, x):
    y = image(layer, x)
    return F.pad(y, (1,) * 4, mode="reflect").square().mean() + F.pad(y, (1,) * 4, mode="replicate").square().mean()


@case(rows)
def resized_channels_last(layer, x):
    y = image(layer, x)
    smooth = F.interpolate(y, (5, 5), mode="bilinear", antialias=True).square().mean()
    return smooth + F.interpolate(y, (12, 12), mode="bicubic").square().mean()


class Recurrent(nn.Module):
    """The layer's output, or its last state only; its sequences packed by *lengths*, if there are any."""

    def __init__(self, kind, last=False, **options):
        super().__init__()
        self.layer, self.last, self.batch_first = kind(64, 64, **options), last, "batch_first" in options

    def forward(self, x, lengths=None):
        if lengths is not None:
            x = pack_padded_sequence(x, lengths, batch_first=self.batch_first, enforce_sorted=False)
        y, state = self.layer(x)
        if self.last:
            return state[0].square().mean()
        return (y if lengths is None else pad_packed_sequence(y, batch_first=self.batch_first)[0]).square().mean()


def lengths():
    return torch.tensor([5, 24, 13, 1, 13, 24, 7, 2, 3, 5, 8, 9, 20, 22, 1, 1])


CASES |= {
    "lstm": (partial(Recurrent, nn.LSTM), (rows,)),
    "lstm_batch_first": (partial(Recurrent, nn.LSTM, batch_first=True), (rows,)),
    "lstm_last_state": (partial(Recurrent, nn.LSTM, last=True), (rows,)),
    "lstm_packed": (partial(Recurrent, nn.LSTM, batch_first=True), (rows, lengths)),
    "gru_packed": (partial(Recurrent, nn.GRU, batch_first=True), (rows, lengths)),
}


def radiance(number):
    """Another model of the tests, which an observer differentiates otherwise: operand *number*, or itself if None."""
    net, batch = MORE["Radiance"]()
    return net if number is None else batch[number]


CASES["radiance"] = (partial(radiance, None), [partial(radiance, n) for n in range(len(MORE["Radiance"]()[1]))])


def step(model, batch, optimizer):
    optimizer.zero_grad()
    loss = model(*batch)
    loss.backward()
    optimizer.step()
    del loss


@pytest.fixture(scope="module")
def measured():
    """Peaks of the second step of each case, over what the case itself holds: one record for all."""

    def train(name):
        model, operands = CASES[name]
        net, batch = model(), [make() for make in operands]
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        for number in (1, 2):
            with torch.profiler.record_function(f"##{name} {number}"):
                step(net, batch, optimizer)

    def run():
        for name in CASES:
            gc.collect()
            with torch.profiler.record_function(f"##{name} before"):
                pass
            train(name)

    torch.manual_seed(0)
    found = measure(run)
    return {name: found[f"{name} 2"].peak - found[f"{name} before"].end for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_the_peak_is_that_of_the_step_without_an_observer(name, measured):
    """Within 0.1 %, and some scalars."""
    torch.manual_seed(0)
    model, operands = CASES[name]
    graph = gs.from_torch(model(), [make() for make in operands], step=step, optimizer=torch.optim.SGD)
    assert gs.simulate(graph).peak == pytest.approx(measured[name], rel=1e-3, abs=256)


def test_temporaries_for_which_there_is_no_rule_are_said():
    graph = gs.from_torch(nn.Bilinear(8, 8, 4), (torch.randn(2, 8), torch.randn(2, 8)))
    assert any("temporaries of aten::_trilinear" in warning for warning in graph.attributes["warnings"])


def test_what_is_assumed_of_products_is_said():
    class Overlap(nn.Module):
        def forward(self, x):
            return x.prod(-1).mean() + x.cumprod(-1).mean()

    graph = gs.from_torch(nn.Sequential(nn.Linear(4, 4), Overlap()), torch.randn(2, 4))
    assert [warning.split(": ")[1] for warning in graph.attributes["warnings"]] == [
        "prod is differentiated as for factors with a zero",
        "cumprod is differentiated as for factors without a zero",
    ]
