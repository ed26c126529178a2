"""Inception-v3, without its auxiliary head: branches side by side, convolutions of many shapes.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for Computer Vision", 2015, in the
widths that are trained today: 23,834,568 parameters.
"""

from __future__ import annotations

import torch
from torch import nn

Kernel = int | tuple[int, int]


def conv(inputs: int, outputs: int, kernel: Kernel = 1, stride: int = 1, padding: Kernel | None = None) -> nn.Module:
    """Convolve, normalize, rectify; in the same extents unless it strides or *padding* says otherwise."""
    rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
    same = (rows // 2, columns // 2) if stride == 1 else 0
    around = same if padding is None else padding
    layer = nn.Conv2d(inputs, outputs, (rows, columns), stride, around, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs, eps=0.001), nn.ReLU(inplace=True))


def chain(inputs: int, *steps: tuple[int, Kernel] | tuple[int, Kernel, int]) -> nn.Sequential:
    """Convolutions one after the other: outputs, kernel and stride of each."""
    layers = []
    for outputs, *rest in steps:
        layers.append(conv(inputs, outputs, *rest))
        inputs = outputs
    return nn.Sequential(*layers)


class Branches(nn.Module):
    """Branches over one input, put side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _pooled(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(inputs, outputs))


def _small(inputs: int, pooled: int) -> nn.Module:
    double = chain(inputs, (64, 1), (96, 3), (96, 3))
    return Branches(conv(inputs, 64), chain(inputs, (48, 1), (64, 5)), double, _pooled(inputs, pooled))


def _long(width: int) -> nn.Module:
    """Kernels of seven are split in two."""
    once = chain(768, (width, 1), (width, (1, 7)), (192, (7, 1)))
    twice = chain(768, (width, 1), (width, (7, 1)), (width, (1, 7)), (width, (7, 1)), (192, (1, 7)))
    return Branches(conv(768, 192), once, twice, _pooled(768, 192))


def _wide(inputs: int) -> nn.Module:
    def both() -> nn.Module:
        return Branches(conv(384, 384, (1, 3)), conv(384, 384, (3, 1)))

    once = nn.Sequential(conv(inputs, 384), both())
    twice = nn.Sequential(chain(inputs, (448, 1), (384, 3)), both())
    return Branches(conv(inputs, 320), once, twice, _pooled(inputs, 192))


def inception_v3() -> nn.Module:
    """For images of 299 x 299 and 1000 classes."""
    stem = (
        *(conv(3, 32, 3, 2), conv(32, 32, 3, 1, 0), conv(32, 64, 3), nn.MaxPool2d(3, 2)),
        *(conv(64, 80), conv(80, 192, 3, 1, 0), nn.MaxPool2d(3, 2)),
    )
    first = Branches(conv(288, 384, 3, 2), chain(288, (64, 1), (96, 3), (96, 3, 2)), nn.MaxPool2d(3, 2))
    split = chain(768, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2))
    second = Branches(chain(768, (192, 1), (320, 3, 2)), split, nn.MaxPool2d(3, 2))
    blocks = (
        *(_small(192, 32), _small(256, 64), _small(288, 64), first),
        *(_long(128), _long(160), _long(160), _long(192), second),
        *(_wide(1280), _wide(2048)),
    )
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(2048, 1000))
