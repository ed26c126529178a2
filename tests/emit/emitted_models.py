"""Small models for plans to be applied to: dropout, batch normalization with in-place activations, attention."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        return x + self.dropout(self.down(functional.gelu(self.up(self.norm(x)))))


class Perceptron(nn.Module):
    """Blocks with dropout."""

    def __init__(self, layers: int = 6, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width, momentum=None)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(out)) + x)


class Convolutional(nn.Module):
    """Residual blocks with running statistics, activations in place."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(Residual(width) for _ in range(4)))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        batch, sequence, width = x.shape
        parts = self.qkv(self.norm(x)).view(batch, sequence, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        scores = (query @ key.transpose(2, 3)).softmax(-1)
        return x + self.out((self.dropout(scores) @ value).transpose(1, 2).reshape(batch, sequence, width))


class Transformer(nn.Module):
    """Attention with its scores in the open, as in eager implementations, and blocks with dropout."""

    def __init__(self, layers: int = 3, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Sequential(Attention(width, 4), Block(width)) for _ in range(layers)), nn.LayerNorm(width)
        )

    def forward(self, x):
        return self.layers(x)


class Overwriting(nn.Module):
    """Its blocks change what they are given: they must not run again."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Hardtanh(inplace=True), nn.Linear(64, 64)) for _ in range(4))
        self.stem = nn.Linear(64, 64)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x


class Shared(nn.Module):
    """One block, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Linear(64, 64), Block(64)

    def forward(self, x):
        return self.block(self.block(self.block(self.stem(x))))


class Fused(nn.Module):
    """Attention by PyTorch's own function, inside of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        heads = self.inner(x).unflatten(-1, (4, 16)).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.1, is_causal=True)
        return x + self.outer(mixed.transpose(1, 2).flatten(2)).relu()


def fused(batch: int = 512):
    return nn.Sequential(*(Fused() for _ in range(4))), torch.randn(batch, 64, 64)


def perceptron(batch: int = 256):
    return Perceptron(), torch.randn(batch, 64)


def convolutional(batch: int = 8):
    return Convolutional(), torch.randn(batch, 3, 16, 16)


def transformer(batch: int = 4):
    return Transformer(), torch.randn(batch, 64, 64)


def overwriting(batch: int = 256):
    return Overwriting(), torch.randn(batch, 64)


def shared(batch: int = 256):
    return Shared(), torch.randn(batch, 64)


def checkpointed(batch: int = 8):
    from torch.utils.checkpoint import checkpoint

    class Own(Perceptron):
        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return x

    return Own(), torch.randn(batch, 64)
