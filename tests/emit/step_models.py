"""Steps that are unusual in one way each: in their batch, their tensors, their passes, their chance."""

from __future__ import annotations

import random

import torch
from emitted_models import Block, Perceptron
from torch import nn


class Pair(nn.Module):
    """Two operands by name, and a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Sequential(Block(64), Block(64), nn.Linear(64, 10)), nn.BatchNorm1d(64)

    def forward(self, x, labels):
        return nn.functional.cross_entropy(self.body(self.norm(x)), labels)


def named_batch():
    return {"model": Pair(), "inputs": {"x": torch.randn(256, 64), "labels": torch.randint(10, (256,))}}


class Tables(nn.Module):
    """Reads a buffer, a tensor that is a plain attribute, and one made of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(Block(64) for _ in range(3)))
        self.register_buffer("scale", torch.rand(64))
        self.shift = torch.rand(64)

    def forward(self, x):
        return self.body(x * self.scale + self.shift) * torch.tensor([0.5, float("inf")])[0]


def tables():
    return Tables(), torch.randn(256, 64)


def twice_used():
    """A parameter with a gradient from two places, and one without."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.body, self.unused = nn.Linear(64, 64), Block(64), nn.Linear(2, 2)

        def forward(self, x):
            return self.body(self.first(self.body(self.first(x)).relu_()))

    return Twice(), torch.randn(256, 64)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        sigmoid = torch.sigmoid(x)
        return gradient * sigmoid * (1 + x * (1 - sigmoid))


def custom():
    """A formula for the gradient in Python."""

    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

        def forward(self, x):
            for layer in self.layers:
                x = Swish.apply(layer(x))
            return x

    return Custom(), torch.randn(256, 64)


def overlapping():
    """Views that are written to, of real and complex numbers, and a result over larger memory."""

    class Overlapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.body = nn.Linear(64, 64), nn.Sequential(Block(64), Block(64))

        def forward(self, x):
            x = self.first(x)
            y = torch.zeros_like(x)
            y[:, ::2] = x[:, 1::2].exp()
            waves = torch.fft.ifft(torch.view_as_complex(self.body(y).unflatten(-1, (32, 2))))
            return nn.functional.mse_loss(torch.view_as_real(waves).flatten(1), x)

    return {"model": Overlapping(), "inputs": torch.randn(256, 64)}


def evaluating():
    """One part is in eval mode."""
    model = Perceptron()
    model.blocks[1].eval()
    return model, torch.randn(256, 64)


def branches():
    """Branches that are computed one after the other, and then summed up one after the other."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x):
            with torch.no_grad():
                wide = [x * number for number in range(8)]
                narrow = []
                while wide:
                    narrow.append(wide.pop(0).sum())
            return (torch.stack(narrow) * self.weight).sum()

    return Branches(), torch.randn(256, 64)


def two_dropouts():
    return nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.1), nn.Dropout(0.1)), torch.randn(8, 64)


def two_draws():
    return Deciding(lambda x: torch.rand(64) - torch.rand(64)), torch.randn(8, 64)


# -- what cannot be written ------------------------------------------------------------------------

TABLE = torch.rand(64)


def outside():
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(64, 64)

        def forward(self, x):
            return self.body(x) * TABLE

    return Outside(), torch.randn(8, 64)


def two_passes():
    def step(model, batch, optimizer):
        optimizer.zero_grad()
        model(batch).mean().backward()
        model(batch).square().mean().backward()
        optimizer.step()

    return nn.Linear(64, 64), torch.randn(8, 64), step


class Deciding(nn.Module):
    def __init__(self, decide) -> None:
        super().__init__()
        self.body, self.decide = nn.Linear(64, 64), decide

    def forward(self, x):
        return self.body(x) * self.decide(x)


def listed():
    return Deciding(lambda x: len(x.tolist())), torch.randn(8, 64)


def chance():
    return Deciding(lambda x: 1 + random.random()), torch.randn(8, 64)


def seeded():
    def decide(x):
        before = torch.rand(64)
        torch.manual_seed(7)
        return before + torch.rand(64)

    return Deciding(decide), torch.randn(8, 64)


def conjugated():
    return Deciding(lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (32, 2))).conj() * 1j).sum()), (
        torch.randn(8, 64)
    )


def shared_batch():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(64, 64)

        def forward(self, left, right):
            return self.body(left + right).mean()

    both = torch.randn(8, 128)
    return {"model": Sum(), "inputs": {"left": both[:, :64], "right": both[:, 64:]}}
