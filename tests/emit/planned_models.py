"""Small models of the kinds that people train: a ResNet, GPT-2, a U-Net, Llama's blocks; larger by their parameters."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional


class Bottleneck(nn.Module):
    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        same = inside == out and stride == 1
        self.down = None if same else nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + (x if self.down is None else self.down(x)))


def resnet(batch: int = 4, width: int = 16, depths: tuple[int, ...] = (2, 2), pixels: int = 64):
    """ResNet-50 is 64 wide, (3, 4, 6, 3) deep and sees 224 pixels."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    inside = width
    for stage, depth in enumerate(depths):
        for block in range(depth):
            layers.append(Bottleneck(inside, width << stage, 2 if stage and not block else 1))
            inside = 4 * (width << stage)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 1000)]
    return nn.Sequential(*layers), torch.randn(batch, 3, pixels, pixels)


class Decoder(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.split(x))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self.drop(self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh")))

    def split(self, x):
        return self.qkv(self.norm1(x)).chunk(3, -1)


class Gpt2(nn.Module):
    def __init__(self, layers: int, width: int, vocabulary: int, length: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.register_buffer("places", torch.arange(length), persistent=False)
        self.drop, self.norm = nn.Dropout(0.1), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Decoder(width, width // 32) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.token.weight

    def forward(self, x):
        hidden = self.drop(self.token(x) + self.place(self.places))
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))


def gpt2(batch: int = 4, layers: int = 3, width: int = 64, vocabulary: int = 128, length: int = 64):
    """GPT-2 is 768 wide, 12 deep and knows 50,257 tokens."""
    return Gpt2(layers, width, vocabulary, length), torch.randint(vocabulary, (batch, length))


def _twice(inside: int, width: int) -> nn.Sequential:
    parts = ((inside, width), (width, width))
    return nn.Sequential(
        *(
            layer
            for a, b in parts
            for layer in (nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
        )
    )


class Unet(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(_twice(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairwise(widths))
        self.join = nn.ModuleList(_twice(b, a) for a, b in pairwise(widths))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x):
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if not level else functional.max_pool2d(x, 2))
            skips.append(x)
        for up, join, skip in zip(reversed(self.up), reversed(self.join), reversed(skips[:-1]), strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return self.head(x)


def unet(batch: int = 2, width: int = 8, depth: int = 2, pixels: int = 32):
    """The U-Net of the paper is 64 wide and 4 deep."""
    return Unet(width, depth), torch.randn(batch, 3, pixels, pixels)


class LlamaBlock(nn.Module):
    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        inner = 8 * width // 3
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        half = width // heads // 2
        angles = torch.outer(torch.arange(length), 10_000.0 ** -(torch.arange(half) / half))
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, -1), persistent=False)
        self.register_buffer("sin", torch.cat([angles.sin()] * 2, -1), persistent=False)

    def forward(self, x):
        y = self.norm1(x)
        query, key, value = (m(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in self.projections())
        mixed = functional.scaled_dot_product_attention(self.turned(query), self.turned(key), value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))

    def projections(self):
        return self.query, self.key, self.value

    def turned(self, x):
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin


def llama(batch: int = 4, layers: int = 3, width: int = 64, length: int = 64):
    """A block of Llama 2 7B is 4,096 wide."""
    return nn.Sequential(*(LlamaBlock(width, width // 32, length) for _ in range(layers))), torch.randn(
        batch, length, width
    )
