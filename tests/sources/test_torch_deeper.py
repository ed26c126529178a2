"""What a capture of three layers tells of more is what a capture with more of them records, or it is not told."""

from __future__ import annotations

from functools import partial

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from graphsim.sources.torch.capture import capture  # noqa: E402
from graphsim.sources.torch.deeper import SHALLOW, UnlikeLayersError, deepened, same  # noqa: E402


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Stack(nn.Module):
    """Layers in a row between others; *run* says how one follows the other."""

    def __init__(self, depth, run):
        super().__init__()
        self.embed, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.body = nn.Module()
        self.body.layers = nn.ModuleList(Layer() for _ in range(depth))
        self.run = run

    def forward(self, x):
        return self.head(self.run(self.body.layers, self.embed(x)))


def in_a_row(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def checkpointed(layers, x):
    for layer in layers:
        x = checkpoint(layer, x, use_reentrant=False)
    return x


def frozen_below(layers, x):
    """The first layer's input needs no gradient: it does less than the others."""
    return in_a_row(layers, x.detach())


def scaled(layers, x):
    """What is done between layers to the tensor of one belongs to that one."""
    for layer in layers:
        x = layer(x) * 2
    return x


def with_the_first(layers, x):
    """Each layer reads what the first one gave."""
    first = x = layers[0](x)
    for layer in list(layers)[1:]:
        x = layer(x + first)
    return x


def twice_the_third(layers, x):
    for number, layer in enumerate(layers):
        x = layer(layer(x)) if number == 3 else layer(x)
    return x


def all_together(layers, x):
    """One op takes a tensor of each layer, and its result grows with them."""
    found = []
    for layer in layers:
        x = layer(x)
        found.append(x)
    return torch.cat(found).sum(0, keepdim=True)


OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adam_foreach": partial(torch.optim.Adam, foreach=True),
    "adam_forloop": partial(torch.optim.Adam, foreach=False),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "none": None,
}


def recorded(depth, run, optimizer="adam"):
    def make(parameters):
        return (
            OPTIMIZERS[optimizer](parameters, lr=0.1)
            if "momentum" not in optimizer
            else OPTIMIZERS[optimizer](parameters)
        )

    made = capture(
        Stack(depth, run),
        torch.zeros(2, 4),
        optimizer=make if OPTIMIZERS[optimizer] else None,
        loss=None,
        step=None,
    )
    return made.recording


@pytest.mark.parametrize("depth", [SHALLOW + 1, SHALLOW + 6])
@pytest.mark.parametrize("run", [in_a_row, checkpointed, frozen_below, scaled])
def test_more_layers_do_what_the_one_in_the_middle_does(run, depth):
    assert same(deepened(recorded(SHALLOW, run), "body.layers", depth - SHALLOW), recorded(depth, run))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_lists_over_all_parameters_and_steps_per_parameter_grow(optimizer):
    made = deepened(recorded(SHALLOW, in_a_row, optimizer), "body.layers", 4)
    assert same(made, recorded(SHALLOW + 4, in_a_row, optimizer))


@pytest.mark.parametrize("run", [with_the_first, twice_the_third, all_together])
def test_layers_that_are_unlike_are_noticed_with_one_more(run):
    try:
        told = deepened(recorded(SHALLOW, run), "body.layers", 1)
    except UnlikeLayersError:
        return
    assert not same(told, recorded(SHALLOW + 1, run))
