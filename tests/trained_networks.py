"""Training graphs of convolutional networks as Checkmate and Moccasin have them: one node per layer and pass.

Source: Jain et al., "Checkmate", MLSys 2020, section 3: a node of the backward pass reads the gradients of those
that read the layer's output, what the layer reads, and what it makes. Bytes are those of the output; times are
multiply-adds in convolutions and elements elsewhere, twice as many in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import networkx as nx

CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = (2, 2, 3, 3, 3)


@dataclass(frozen=True, slots=True)
class Image:
    """The output of a layer: node, channels, height, width."""

    node: int
    channels: int
    height: int
    width: int


class Network:
    """Layers as they are added, in order; `trained` makes the graph."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        self.reads: list[list[int]] = []
        self.elements: list[int] = []
        self.work: list[float] = []
        self.input = self.add([], channels, height, width, 0)

    def add(self, images: list[Image], channels: int, height: int, width: int, work: float) -> Image:
        """Add a layer that makes an image of these sizes by *work* operations per sample."""
        self.reads.append([image.node for image in images])
        self.elements.append(channels * height * width)
        self.work.append(work)
        return Image(len(self.reads) - 1, channels, height, width)

    def conv(self, image: Image, channels: int, size: int = 3, stride: int = 1) -> Image:
        """Add a convolution."""
        height, width = image.height // stride, image.width // stride
        return self.add([image], channels, height, width, size**2 * image.channels * channels * height * width)

    def up(self, image: Image, channels: int, size: int, factor: int) -> Image:
        """Add a transposed convolution."""
        height, width = image.height * factor, image.width * factor
        work = size**2 * image.channels * channels * image.height * image.width
        return self.add([image], channels, height, width, work)

    def each(self, *images: Image) -> Image:
        """Add an elementwise layer: activation, batch norm, dropout or sum."""
        first = images[0]
        return self.add(
            [*images], first.channels, first.height, first.width, first.channels * first.height * first.width
        )

    def resize(self, image: Image, numerator: int, denominator: int) -> Image:
        """Add pooling (1, 2) or upsampling (2, 1)."""
        height, width = image.height * numerator // denominator, image.width * numerator // denominator
        return self.add([image], image.channels, height, width, image.channels * height * width)

    def join(self, *images: Image) -> Image:
        """Add a concatenation of channels."""
        channels = sum(image.channels for image in images)
        return self.add([*images], channels, images[0].height, images[0].width, channels * images[0].height)

    def trained(self, batch: int) -> nx.DiGraph:
        """Return forward nodes, the loss and backward nodes, with ``bytes``, ``time`` and ``order``."""
        count = len(self.reads)
        loss = count
        dag = nx.DiGraph(order=list(range(2 * count + 1)))
        readers: list[list[int]] = [[] for _ in self.reads]
        for node, reads in enumerate(self.reads):
            dag.add_node(node, bytes=4 * batch * self.elements[node], time=float(batch * self.work[node]))
            for read in reads:
                dag.add_edge(read, node)
                readers[read].append(node)
        dag.add_node(loss, bytes=4, time=float(batch * self.elements[-1]))
        dag.add_edge(count - 1, loss)
        for node in reversed(range(count)):
            backward = 2 * count - node
            dag.add_node(backward, bytes=4 * batch * self.elements[node], time=2.0 * batch * self.work[node])
            gradients = [2 * count - reader for reader in readers[node]] or [loss]
            for read in {*gradients, *self.reads[node], node}:
                dag.add_edge(read, backward)
        return dag


def vgg_encoder(network: Network) -> list[Image]:
    """Add VGG-16's convolutions; return the image after each pooling."""
    image, pooled = network.input, []
    for channels, convolutions in zip(CHANNELS, CONVOLUTIONS, strict=True):
        for _ in range(convolutions):
            image = network.conv(image, channels)
        image = network.resize(image, 1, 2)
        pooled.append(image)
    return pooled


def fcn8() -> nx.DiGraph:
    """FCN-8 on VGG-16, 416 x 608, batch 8: 73 nodes."""
    network = Network(3, 416, 608)
    _, _, third, fourth, fifth = vgg_encoder(network)
    image = network.each(network.conv(fifth, 4096, 7))
    image = network.each(network.conv(image, 4096, 1))
    image = network.up(network.conv(image, 21, 1), 21, 4, 2)
    image = network.each(image)
    skip = network.each(network.conv(fourth, 21, 1))
    image = network.up(network.each(image, skip), 21, 4, 2)
    image = network.each(image)
    skip = network.each(network.conv(third, 21, 1))
    image = network.up(network.each(image, skip), 21, 16, 8)
    network.each(image)
    return network.trained(8)


def unet() -> nx.DiGraph:
    """A U-Net on VGG-16, 416 x 608, batch 4: 71 nodes."""
    network = Network(3, 416, 608)
    first, second, third, fourth, _ = vgg_encoder(network)
    image = network.each(network.conv(fourth, 512))
    for skip, channels in ((third, 256), (second, 128), (first, 64)):
        image = network.join(network.resize(image, 2, 1), skip)
        image = network.each(network.conv(image, channels))
    network.each(network.conv(image, 21))
    return network.trained(4)


def segnet() -> nx.DiGraph:
    """SegNet on VGG-16, 416 x 608, batch 8: 77 nodes."""
    network = Network(3, 416, 608)
    *_, image = vgg_encoder(network)
    for channels in (512, 256, 128, 64):
        image = network.each(network.conv(network.resize(image, 2, 1), channels))
    for _ in range(3):
        image = network.each(network.conv(image, 64))
    network.conv(image, 21)
    return network.trained(8)


def resnet50() -> nx.DiGraph:
    """ResNet-50, 224 x 224, batch 32: 353 nodes."""
    network = Network(3, 224, 224)
    image = network.each(network.each(network.conv(network.input, 64, 7, 2)))
    image = network.resize(image, 1, 2)
    for channels, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            stride = 2 if block == 0 and channels > 64 else 1
            inner = network.each(network.each(network.conv(image, channels, 1, stride)))
            inner = network.each(network.each(network.conv(inner, channels)))
            inner = network.each(network.conv(inner, 4 * channels, 1))
            if block == 0:
                image = network.each(network.conv(image, 4 * channels, 1, stride))
            image = network.each(network.each(inner, image))
    image = network.add([image], image.channels, 1, 1, image.channels * 49)
    network.each(network.add([image], 1000, 1, 1, 2048 * 1000))
    return network.trained(32)


NETWORKS: dict[str, Callable[[], nx.DiGraph]] = {"fcn8": fcn8, "unet": unet, "segnet": segnet, "resnet50": resnet50}
