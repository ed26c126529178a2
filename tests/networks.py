"""Training steps of known networks as plain DAGs, one node per Keras layer and one for its backward.

As the instances of Checkmate (MLSys 2020): a forward node has the bytes of its output (float32) and its
multiply-adds as time; the backward node of a layer reads the layer's inputs, its output and the gradients of those
who read it, makes the gradients of its inputs, and costs twice as much. Deterministic.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import networkx as nx

Shape = tuple[int, ...]
"""Channels, then height and width."""


class _Net:
    """Layers in order: name, inputs, shape, multiply-adds."""

    def __init__(self, *shape: int) -> None:
        self.shape: dict[str, Shape] = {"input": shape}
        self.inputs: dict[str, tuple[str, ...]] = {"input": ()}
        self.work: dict[str, int] = {"input": 0}
        self.last = "input"

    def layer(self, kind: str, shape: Shape, work: int, *inputs: str) -> str:
        name = f"{kind}_{len(self.shape)}"
        self.shape[name], self.work[name] = shape, work
        self.inputs[name] = inputs or (self.last,)
        self.last = name
        return name

    def conv(self, channels: int, kernel: int = 3, stride: int = 1, of: str = "") -> str:
        inner, height, width = self.shape[of or self.last]
        shape = (channels, height // stride, width // stride)
        return self.layer("conv", shape, prod(shape) * inner * kernel**2, of or self.last)

    def pointwise(self, kind: str, *inputs: str) -> str:
        shape = self.shape[inputs[0] if inputs else self.last]
        return self.layer(kind, shape, prod(shape), *inputs)

    def pool(self) -> str:
        channels, height, width = self.shape[self.last]
        return self.layer("pool", (channels, height // 2, width // 2), channels * height * width)

    def up(self, factor: int = 2) -> str:
        channels, height, width = self.shape[self.last]
        shape = (channels, height * factor, width * factor)
        return self.layer("up", shape, prod(shape))

    def concat(self, *inputs: str) -> str:
        shape = (sum(self.shape[name][0] for name in inputs), *self.shape[inputs[0]][1:])
        return self.layer("concat", shape, prod(shape), *inputs)

    def dense(self, width: int) -> str:
        return self.layer("dense", (width,), prod(self.shape[self.last]) * width)

    def training(self, batch: int) -> nx.DiGraph:
        """Return the step: forward, loss, backward in reverse order."""
        dag = nx.DiGraph(order=[])
        readers: dict[str, list[str]] = {}

        def add(name: str, elements: int, work: int, *inputs: str) -> None:
            dag.add_node(name, bytes=4 * batch * elements, time=batch * work)
            dag.graph["order"].append(name)
            dag.add_edges_from((source, name) for source in dict.fromkeys(inputs))

        for name, inputs in self.inputs.items():
            add(name, prod(self.shape[name]), self.work[name], *inputs)
            for source in inputs:
                readers.setdefault(source, []).append(name)
        add("loss", prod(self.shape[self.last]), prod(self.shape[self.last]), self.last)
        for name in reversed(self.inputs):
            inputs = self.inputs[name]
            grads = [f"d_{reader}" for reader in readers.get(name, [])] or ["loss"]
            made = sum(prod(self.shape[source]) for source in inputs)
            add(f"d_{name}", made, 2 * self.work[name], *inputs, name, *grads)
        return dag


def _vgg16(net: _Net) -> list[str]:
    """The convolutions of VGG16; returns the outputs of its five blocks."""
    ends = []
    for convolutions, channels in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(convolutions):
            net.conv(channels)
        ends.append(net.pool())
    return ends


def vgg16(batch: int = 32) -> nx.DiGraph:
    """A chain: Simonyan and Zisserman, 2014."""
    net = _Net(3, 224, 224)
    _vgg16(net)
    net.layer("flatten", (prod(net.shape[net.last]),), 0)
    for width in (4096, 4096, 1000):
        net.dense(width)
    return net.training(batch)


def fcn8(batch: int = 8) -> nx.DiGraph:
    """VGG16 with the scores of its last three blocks summed: Long, Shelhamer and Darrell, 2015."""
    net = _Net(3, 416, 608)
    _, _, third, fourth, _ = _vgg16(net)
    for kernel in (7, 1):
        net.conv(4096, kernel)
        net.pointwise("dropout")
    net.conv(21, 1)
    for skip in (fourth, third):
        coarse = net.up()
        fine = net.conv(21, 1, of=skip)
        net.last = net.pointwise("add", coarse, fine)
    net.up(8)
    net.layer("reshape", net.shape[net.last], 0)
    net.pointwise("softmax")
    return net.training(batch)


def unet(batch: int = 8) -> nx.DiGraph:
    """U-Net (Ronneberger et al., 2015) with VGG16 as its contracting half."""
    net = _Net(3, 416, 608)
    first, second, third, fourth, _ = _vgg16(net)
    net.last = fourth
    net.conv(512)
    net.pointwise("norm")
    for channels, skip in ((256, third), (128, second), (64, first)):
        net.concat(net.up(), skip)
        net.conv(channels)
        net.pointwise("norm")
    net.conv(21)
    net.layer("reshape", net.shape[net.last], 0)
    net.pointwise("softmax")
    return net.training(batch)


def segnet(batch: int = 8) -> nx.DiGraph:
    """VGG16 and back, without skips: Badrinarayanan, Kendall and Cipolla, 2015."""
    net = _Net(3, 416, 608)
    net.last = _vgg16(net)[3]
    net.conv(512)
    net.pointwise("norm")
    for channels in (256, 128, 64):
        net.up()
        net.conv(channels)
        net.pointwise("norm")
        net.pointwise("pad")
    net.up()
    net.conv(21)
    net.layer("reshape", net.shape[net.last], 0)
    net.pointwise("softmax")
    return net.training(batch)


def resnet50(batch: int = 32) -> nx.DiGraph:
    """Bottleneck blocks; convolution, norm and activation are layers of their own: He et al., 2015."""
    net = _Net(3, 224, 224)

    def convolve(channels: int, kernel: int = 1, stride: int = 1, of: str = "") -> str:
        net.conv(channels, kernel, stride, of)
        return net.pointwise("norm")

    convolve(64, 7, 2)
    net.pointwise("relu")
    net.pool()
    for stage, (blocks, channels) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            source = net.last
            shortcut = convolve(4 * channels, 1, stride, source) if not block else source
            convolve(channels, 1, stride, source)
            net.pointwise("relu")
            convolve(channels, 3)
            net.pointwise("relu")
            net.pointwise("add", convolve(4 * channels), shortcut)
            net.pointwise("relu")
    net.layer("mean", (2048,), prod(net.shape[net.last]))
    net.dense(1000)
    return net.training(batch)


NETWORKS: dict[str, Callable[[], nx.DiGraph]] = {
    "vgg16": vgg16,
    "fcn8": fcn8,
    "unet": unet,
    "segnet": segnet,
    "resnet50": resnet50,
}
